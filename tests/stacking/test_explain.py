"""One query explained: what is said of it is what the tables and the stacker say."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from scipy.special import expit

from engine.core.errors import ArtifactError, DataError
from stacking.answers import pick_answers
from stacking.explain import MOVERS, SHOWN, contributions, explain_answer
from stacking.features import mark_right
from stacking.stacker import fit_stacker

MEMBERS = ("large", "small", "nearest")


@pytest.fixture(scope="module")
def stacker(competition, rows, stack_config):
    one_model = stack_config.model_copy(update={"bags": 1})  # so that its probability is that of its log-odds
    return fit_stacker(rows, mark_right(rows, competition.queries), one_model, seed=0, threads=1)


@pytest.fixture(scope="module")
def answers(competition, rows, stacker):
    return pick_answers(rows, stacker.predict(rows, threads=1), competition.queries, decided_by="stack")


@pytest.fixture(scope="module")
def explain(competition, rows, stacker, answers):
    def explain_one(query):
        return explain_answer(query, answers, competition.candidates, rows[rows["query"] == query], stacker, MEMBERS)

    return explain_one


def test_contributions_and_the_base_add_up_to_what_the_stacker_predicts(rows, stacker):
    added = contributions(stacker, rows)
    assert added.shape == (len(rows), len(stacker.features) + 1)
    np.testing.assert_allclose(expit(added.sum(axis=1)), stacker.predict(rows, threads=1), atol=1e-6)


def test_contributions_are_the_mean_over_the_models(competition, rows, stack_config):
    both = fit_stacker(rows, mark_right(rows, competition.queries), stack_config, seed=0, threads=1)
    few = rows[:50]
    alone = [contributions(type(both)(both.features, (model,)), few) for model in both.models]
    np.testing.assert_allclose(contributions(both, few), np.mean(alone, axis=0))


def test_the_answer_and_the_best_of_the_others_are_judged(competition, rows, stacker, explain):
    probability = rows.assign(p=stacker.predict(rows, threads=1))
    for query in competition.queries["id"][:20]:
        found = explain(query)
        best = probability[probability["query"] == query].nlargest(2, "p")
        assert [each.landmark_id for each in found.judged] == best["landmark_id"].tolist()
        assert found.answer == found.judged[0].landmark_id
        np.testing.assert_allclose(expit([each.log_odds for each in found.judged]), best["p"], atol=1e-6)


def test_an_answer_that_the_stacker_would_not_give_is_judged_first(competition, rows, stacker, answers):
    query = competition.queries["id"][0]
    own = rows[rows["query"] == query]
    least = own.iloc[np.argmin(stacker.predict(own, threads=1))]["landmark_id"]
    other = answers.assign(landmark_id=answers["landmark_id"].mask(answers["id"] == query, least))
    found = explain_answer(query, other, competition.candidates, own, stacker, MEMBERS)
    assert found.judged[0].landmark_id == found.answer == least
    assert found.judged[1].log_odds > found.judged[0].log_odds


def test_movers_are_the_features_that_moved_it_most(rows, stacker, explain):
    query = rows["query"].iloc[0]
    [judged, _] = explain(query).judged
    row = rows[(rows["query"] == query) & (rows["landmark_id"] == judged.landmark_id)]
    [added] = contributions(stacker, row)
    assert len(judged.movers) == MOVERS
    sizes = [abs(each.contribution) for each in judged.movers]
    assert sizes == sorted(np.abs(added[:-1]), reverse=True)[:MOVERS]
    for each in judged.movers:
        assert each.value == row[each.feature].iloc[0]
        assert each.contribution == added[stacker.features.index(each.feature)]


def test_rank_counts_the_answers_that_are_surer(answers, explain):
    ranked = answers.sort_values(["confidence", "id"], ascending=[False, True])["id"].tolist()
    for place in (0, 17, len(ranked) - 1):
        found = explain(ranked[place])
        assert (found.rank, found.answers) == (place + 1, len(ranked))


def test_members_gate_and_features_are_those_of_the_tables(competition, rows, explain):
    query = competition.queries["id"][3]
    found = explain(query)
    gate = competition.query_features.query("member == 'gate' and query == @query")["p_landmark"].iloc[0]
    assert found.gate == pytest.approx(gate)
    assert found.features["query.min_side"] == rows.loc[rows["query"] == query, "query.min_side"].iloc[0]
    assert set(found.members) == set(MEMBERS)
    candidates = competition.candidates[competition.candidates["query"] == query]
    for member, listed in found.members.items():
        theirs = candidates[candidates["member"] == member].sort_values("rank")[:SHOWN]
        assert [each.landmark_id for each in listed] == theirs["landmark_id"].tolist()
        assert [each.rank for each in listed] == list(range(1, SHOWN + 1))
        np.testing.assert_array_equal([each.score for each in listed], theirs["score"])


def test_an_explanation_is_plain_values_that_json_takes(rows, explain):
    found = asdict(explain(rows["query"].iloc[0]))
    assert json.loads(json.dumps(found))["judged"][0]["movers"][0] == found["judged"][0]["movers"][0]


def test_a_query_without_any_candidate_is_explained_by_what_there_is(competition, rows, stacker, answers):
    query = competition.queries["id"][0]
    silent = answers.assign(
        landmark_id=answers["landmark_id"].mask(answers["id"] == query),
        confidence=answers["confidence"].mask(answers["id"] == query, 0.0),
    )
    others = competition.candidates[competition.candidates["query"] != query]
    found = explain_answer(query, silent, others, rows[:0], stacker, MEMBERS)
    assert (found.answer, found.rank, found.judged, found.gate) == (None, None, (), None)
    assert found.answers == len(answers) - 1
    assert set(found.members.values()) == {()}


@pytest.mark.faults
def test_a_query_that_was_not_answered_and_rows_of_other_members_are_refused(competition, rows, stacker, answers):
    given = competition.candidates, rows[:3]
    with pytest.raises(DataError, match="'nobody' is none of 800 queries"):
        explain_answer("nobody", answers, *given, stacker, MEMBERS)
    with pytest.raises(ArtifactError, match=r"1 features that these rows lack: all\.mean"):
        contributions(stacker, rows.drop(columns="all.mean"))
