"""One query explained: what is said of it is what the tables and the stacker say."""

import json
from dataclasses import asdict

import numpy as np
import pytest

from engine.core.errors import ArtifactError, DataError
from stacking.answers import pick_answers
from stacking.explain import MOVERS, SHOWN, contributions, explain_answer
from stacking.fitting import METHODS, fit_stacker
from stacking.objectives import query_probability, query_starts
from stacking.scales import straighten
from stacking.stacker import Stacker
from stacking.trees import add_trees, as_matrix

MEMBERS = ("large", "small", "nearest")


@pytest.fixture(scope="module")
def stacker(tangled, right, groups, stack_config):
    """One model, so that its probability is that of its log-odds."""
    config = stack_config.model_copy(update={"method": "log-loss"})
    found = fit_stacker(tangled, right, groups, config, seed=0, threads=1).stacker
    return Stacker(found.method, found.features, found.bounded, found.models[:1])


@pytest.fixture(scope="module")
def answers(competition, tangled, stacker):
    return pick_answers(tangled, stacker.predict(tangled, threads=1), competition.queries, decided_by="stack")


@pytest.fixture(scope="module")
def explain(competition, tangled, stacker, answers):
    def explain_one(query):
        return explain_answer(
            query, answers, competition.candidates, tangled[tangled["query"] == query], stacker, MEMBERS
        )

    return explain_one


def test_contributions_and_the_base_add_up_to_what_the_stacker_predicts(tangled, stacker):
    added = contributions(stacker, tangled)
    assert added.shape == (len(tangled), len(stacker.features) + 1)
    probability = query_probability(added.sum(axis=1), query_starts(tangled))
    np.testing.assert_allclose(probability, stacker.predict(tangled, threads=1), atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_contributions_and_the_base_add_up_to_the_mean_margin_of_the_models(method, tangled, trials):
    [found] = [trial.stacker for trial in trials if trial.stacker.method == method]
    values = as_matrix(tangled, found.features)
    margins = []
    for model in found.models:
        margin = model.linear.margin(values, found.bounded)
        margins.append(add_trees(model.trees, values, margin, threads=1) if model.trees else margin)
    added = contributions(found, tangled)
    np.testing.assert_allclose(added.sum(axis=1), np.mean(margins, axis=0), atol=1e-6)
    alone = [contributions(Stacker(method, found.features, found.bounded, (model,)), tangled) for model in found.models]
    np.testing.assert_allclose(added, np.mean(alone, axis=0), atol=1e-9)


def test_of_a_linear_model_a_contribution_is_weight_times_what_the_straightened_value_has_over_its_mean(
    tangled, trials
):
    linear = trials[0].stacker
    assert linear.method == "linear"
    added = contributions(linear, tangled)
    for place, (name, within) in enumerate(zip(linear.features, linear.bounded, strict=True)):
        straight = straighten(tangled[name].to_numpy(dtype=np.float32), bounded=within)
        wanted = [model.linear.weights[place] * (straight - model.linear.centre[place]) for model in linear.models]
        np.testing.assert_allclose(added[:, place], np.mean(wanted, axis=0), rtol=1e-9, atol=1e-12)
    bases = [model.linear.bias + np.dot(model.linear.weights, model.linear.centre) for model in linear.models]
    np.testing.assert_allclose(added[:, -1], np.mean(bases), rtol=1e-9)


def test_one_softmax_model_tells_odds_against_none_of_the_candidates(tangled, trials):
    [found] = [trial.stacker for trial in trials if trial.stacker.method == "softmax"]
    one = Stacker("softmax", found.features, found.bounded, found.models[:1])
    probability = one.predict(tangled, threads=1)
    none = 1 - np.add.reduceat(probability, query_starts(tangled))
    sizes = np.diff(query_starts(tangled), append=len(tangled))
    odds = contributions(one, tangled).sum(axis=1)
    np.testing.assert_allclose(np.log(probability / np.repeat(none, sizes)), odds, atol=1e-5)


def test_the_answer_and_the_best_of_the_others_are_judged(competition, tangled, stacker, explain):
    probability = tangled.assign(p=stacker.predict(tangled, threads=1))
    for query in competition.queries["id"][:20]:
        found = explain(query)
        best = probability[probability["query"] == query].nlargest(2, "p")
        assert [each.landmark_id for each in found.judged] == best["landmark_id"].tolist()
        assert found.answer == found.judged[0].landmark_id
        np.testing.assert_allclose(
            np.diff([each.log_odds for each in found.judged]), np.diff(np.log(best["p"])), atol=1e-5
        )


def test_an_answer_that_the_stacker_would_not_give_is_judged_first(competition, tangled, stacker, answers):
    query = competition.queries["id"][0]
    own = tangled[tangled["query"] == query]
    least = own.iloc[np.argmin(stacker.predict(own, threads=1))]["landmark_id"]
    other = answers.assign(landmark_id=answers["landmark_id"].mask(answers["id"] == query, least))
    found = explain_answer(query, other, competition.candidates, own, stacker, MEMBERS)
    assert found.judged[0].landmark_id == found.answer == least
    assert found.judged[1].log_odds > found.judged[0].log_odds


def test_movers_are_the_features_that_moved_it_most(tangled, stacker, explain):
    query = tangled["query"].iloc[0]
    [judged, _] = explain(query).judged
    row = tangled[(tangled["query"] == query) & (tangled["landmark_id"] == judged.landmark_id)]
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


def test_members_gate_and_features_are_those_of_the_tables(competition, tangled, explain):
    query = competition.queries["id"][3]
    found = explain(query)
    gate = competition.query_features.query("member == 'gate' and query == @query")["p_landmark"].iloc[0]
    assert found.gate == pytest.approx(gate)
    assert found.features["query.min_side"] == tangled.loc[tangled["query"] == query, "query.min_side"].iloc[0]
    assert set(found.members) == set(MEMBERS)
    candidates = competition.candidates[competition.candidates["query"] == query]
    for member, listed in found.members.items():
        theirs = candidates[candidates["member"] == member].sort_values("rank")[:SHOWN]
        assert [each.landmark_id for each in listed] == theirs["landmark_id"].tolist()
        assert [each.rank for each in listed] == list(range(1, SHOWN + 1))
        np.testing.assert_array_equal([each.score for each in listed], theirs["score"])


def test_an_explanation_is_plain_values_that_json_takes(tangled, explain):
    found = asdict(explain(tangled["query"].iloc[0]))
    assert json.loads(json.dumps(found))["judged"][0]["movers"][0] == found["judged"][0]["movers"][0]


def test_a_query_without_any_candidate_is_explained_by_what_there_is(competition, tangled, stacker, answers):
    query = competition.queries["id"][0]
    silent = answers.assign(
        landmark_id=answers["landmark_id"].mask(answers["id"] == query),
        confidence=answers["confidence"].mask(answers["id"] == query, 0.0),
    )
    others = competition.candidates[competition.candidates["query"] != query]
    found = explain_answer(query, silent, others, tangled[:0], stacker, MEMBERS)
    assert (found.answer, found.rank, found.judged, found.gate) == (None, None, (), None)
    assert found.answers == len(answers) - 1
    assert set(found.members.values()) == {()}


@pytest.mark.faults
def test_a_query_that_was_not_answered_and_rows_of_other_members_are_refused(competition, tangled, stacker, answers):
    given = competition.candidates, tangled[:3]
    with pytest.raises(DataError, match="'nobody' is none of 800 queries"):
        explain_answer("nobody", answers, *given, stacker, MEMBERS)
    with pytest.raises(ArtifactError, match=r"1 features that these rows lack: all\.mean"):
        contributions(stacker, tangled.drop(columns="all.mean"))
