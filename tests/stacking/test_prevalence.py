"""Prevalence: presence is told out of fold, the correction is Bayes' rule, and it wins where landmarks are rare."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from engine.core.errors import ArtifactError, DataError
from engine.core.gap import score_answers
from stacking.answers import pick_answers
from stacking.calibration import measure_reliability
from stacking.features import feature_names
from stacking.prevalence import (
    correct_answers,
    correct_confidence,
    cross_presence,
    fit_presence,
    query_table,
    sensitivity,
)

PROBABILITY = st.floats(0, 1)
SHARE = st.floats(0.001, 0.999)


@pytest.fixture(scope="module")
def scores(stacked):
    return stacked.scores


@pytest.fixture(scope="module")
def answers(competition, rows, scores):
    return pick_answers(rows, scores, competition.queries, decided_by="stack")


@pytest.fixture(scope="module")
def table(rows, scores):
    return query_table(rows, scores)


@pytest.fixture(scope="module")
def presence(competition, table, stack_config):
    return cross_presence(table, competition.queries, stack_config, seed=0, threads=1, advance=lambda *_: None)


@pytest.fixture(scope="module")
def teller(competition, table, stack_config):
    return fit_presence(table, competition.queries, stack_config, seed=0, threads=1)


def _draw_answers(rng, size, share):
    """Answers of which half are right where a landmark is shown, with what a perfect model of half landmarks says."""
    shows = rng.random(size) < share
    sight = rng.normal(np.where(shows, 1.0, -1.0))  # log-odds 2 x sight that one is shown, at even odds before
    sharp = rng.random(size)  # how probable the label is where one is shown
    presence = 1 / (1 + np.exp(-2 * sight))
    right = shows & (rng.random(size) < sharp)
    return presence * sharp, presence, shows, right


def test_the_table_says_best_second_and_sum_of_each_query(rows, scores, table):
    told = table.set_index("query")
    by_query = {query: sorted(scores[rows["query"] == query], reverse=True) for query in rows["query"].unique()[:20]}
    for query, falling in by_query.items():
        assert told.loc[query, ["stack.best", "stack.second"]].tolist() == falling[:2]
        total = told.loc[query, "stack.total"]
        assert total / (1 - total) == pytest.approx(sum(falling))
    assert told.index.tolist() == sorted(rows["query"].unique())


def test_the_table_says_of_the_best_two_candidates_what_their_rows_say(rows, scores, table):
    told = table.set_index("query")
    features = feature_names(rows)
    for query in rows["query"].unique()[:20]:
        falling = rows[rows["query"] == query].iloc[np.argsort(-scores[rows["query"] == query], kind="stable")]
        for name in features:
            if name.startswith("query."):
                assert told.loc[query, name] == falling[name].iloc[0]
            else:
                assert told.loc[query, [f"best.{name}", f"second.{name}"]].tolist() == falling[name].tolist()[:2]
    assert len(told.columns) == 3 + 2 * len(features) - sum(name.startswith("query.") for name in features)


def test_a_query_of_one_candidate_has_no_second():
    rows = pd.DataFrame(
        {
            "query": ["b", "a", "b"],
            "landmark_id": ["1", "1", "2"],
            "all.mean": [0.3, 0.6, 0.4],
            "query.gate.p_landmark": [0.2, 0.7, 0.2],
        }
    )
    table = query_table(rows, np.array([0.25, 0.5, 0.75])).set_index("query")
    a = {"stack.best": 0.5, "stack.second": 0.0, "stack.total": 1 / 3, "query.gate.p_landmark": 0.7}
    b = {"stack.best": 0.75, "stack.second": 0.25, "stack.total": 0.5, "query.gate.p_landmark": 0.2}
    a |= {"best.all.mean": 0.6, "second.all.mean": 0.0}
    b |= {"best.all.mean": 0.4, "second.all.mean": 0.3}
    assert table.to_dict("index") == {"a": a, "b": b}


def test_presence_is_told_better_than_by_any_single_feature_and_about_as_well_as_by_the_stack(
    competition, table, presence
):
    shown, told = competition.queries["landmark_id"].notna(), table.set_index("query")
    alone = {name: roc_auc_score(shown, told[name].reindex(competition.queries["id"])) for name in told}
    total = alone.pop("stack.total")  # already an opinion of the query, fitted on all that the others say
    assert roc_auc_score(shown, presence) > max(alone.values())
    assert roc_auc_score(shown, presence) > total - 0.01
    assert measure_reliability(presence.to_numpy(), shown.to_numpy()).ece < 0.06  # 15 bins of 53: chance makes .05


def test_presence_does_not_see_its_own_folds_truth(competition, table, presence, stack_config):
    held = competition.queries["fold"] == 1
    turned = competition.queries.assign(landmark_id=competition.queries["landmark_id"].mask(held, "0003"))
    other = cross_presence(table, turned, stack_config, seed=0, threads=1, advance=lambda *_: None)
    mine = held.to_numpy()
    assert (other[mine] == presence[mine]).all()
    assert (other[~mine] != presence[~mine]).any()


def test_presence_is_alike_for_shuffled_input_and_two_threads(
    competition, rows, scores, presence, teller, stack_config
):
    order = np.random.default_rng(1).permutation(len(rows))
    queries = competition.queries.sample(frac=1, random_state=2)
    table = query_table(rows.iloc[order], scores[order])
    again = cross_presence(table, queries, stack_config, seed=0, threads=2, advance=lambda *_: None)
    pd.testing.assert_series_equal(again.reindex(presence.index), presence, check_exact=True)
    assert fit_presence(table, queries, stack_config, seed=0, threads=2) == teller


def test_a_query_has_the_same_presence_alone(table, teller):
    together = teller.predict(table, threads=1)
    for number in range(50):
        assert teller.predict(table.iloc[[number]], threads=1)[0] == together[number]


def test_a_query_without_a_candidate_shows_nothing_known(competition, table, stack_config):
    found = cross_presence(
        table.iloc[1:], competition.queries, stack_config, seed=0, threads=1, advance=lambda *_: None
    )
    first = table["query"].iloc[0]
    assert found[first] == 0
    assert (found.drop(first) > 0).all()


@pytest.mark.faults
def test_missing_features_are_named(table, teller):
    with pytest.raises(ArtifactError, match=r"lack: query\.gate\.p_landmark"):
        teller.predict(table.drop(columns="query.gate.p_landmark"), threads=1)


@pytest.mark.faults
def test_queries_of_one_kind_teach_nothing(competition, table, stack_config):
    with pytest.raises(DataError, match="800 of 800 queries show a known landmark"):
        fit_presence(table, competition.queries.assign(landmark_id="1"), stack_config, seed=0, threads=1)


@given(PROBABILITY, PROBABILITY, SHARE, SHARE)
def test_corrected_confidences_stay_within_0_and_1(p, presence, trained, wanted):
    corrected = correct_confidence(np.array([p]), np.array([presence]), trained=trained, wanted=wanted)
    assert 0 <= corrected[0] <= 1


@given(st.lists(PROBABILITY, min_size=2), PROBABILITY, SHARE, SHARE)
def test_corrected_confidences_rise_with_confidence(p, presence, trained, wanted):
    rising = np.sort(p)
    corrected = correct_confidence(rising, np.full(len(p), presence), trained=trained, wanted=wanted)
    assert (np.diff(corrected) >= -1e-15).all()  # two confidences next to one another may round to turned ones


@given(PROBABILITY, PROBABILITY, SHARE)
def test_the_same_share_leaves_confidences_as_they_are(p, presence, share):
    assert correct_confidence(np.array([p]), np.array([presence]), trained=share, wanted=share)[0] == p


@given(st.floats(0.01, 0.99), st.floats(0.01, 1), st.floats(0.01, 0.99), st.floats(0.01, 0.99))
def test_the_correction_is_bayes_rule(presence, labelled, trained, wanted):
    """Worked out by the likelihoods of both kinds, which is what the shift leaves alone."""
    likely, unlikely = presence / trained, (1 - presence) / (1 - trained)
    shown = wanted * likely / (wanted * likely + (1 - wanted) * unlikely)
    p = np.array([presence * labelled])
    corrected = correct_confidence(p, np.array([presence]), trained=trained, wanted=wanted)
    assert corrected[0] == pytest.approx(shown * labelled)


@given(PROBABILITY, PROBABILITY, SHARE, SHARE)
def test_fewer_landmarks_make_no_answer_surer(p, presence, one, other):
    low, high = sorted([one, other])
    corrected = correct_confidence(np.array([p]), np.array([presence]), trained=high, wanted=low)
    assert corrected[0] <= p


@pytest.mark.parametrize("wanted", [0.03, 0.2, 0.8])
def test_corrected_confidences_are_calibrated_at_the_other_share(wanted):
    p, presence, _, right = _draw_answers(np.random.default_rng(0), 60_000, wanted)
    corrected = correct_confidence(p, presence, trained=0.5, wanted=wanted)
    before, after = measure_reliability(p, right), measure_reliability(corrected, right)
    assert before.ece > 0.05
    assert after.ece < 0.005  # chance alone makes about .003
    assert after.log_loss < before.log_loss


def test_the_correction_wins_where_landmarks_are_rare():
    p, presence, shows, right = _draw_answers(np.random.default_rng(1), 40_000, 0.03)
    ids = pd.Series([f"q{number:05d}" for number in range(len(p))])
    truth = pd.DataFrame({"id": ids, "landmark_id": pd.Series(["a"] * len(p)).where(shows)})
    answers = pd.DataFrame({"id": ids, "landmark_id": np.where(right, "a", "b"), "confidence": p})
    seen = pd.Series(presence, index=ids)
    corrected = correct_answers(answers, seen, trained=0.5, wanted=0.03)
    assert score_answers(corrected, truth) > score_answers(answers, truth) + 0.03


@pytest.mark.faults
@pytest.mark.parametrize("shares", [(0, 0.5), (0.5, 1), (float("nan"), 0.5)])
def test_a_share_has_to_lie_between_0_and_1(shares):
    with pytest.raises(DataError, match="between 0 and 1"):
        correct_confidence(np.array([0.5]), np.array([0.5]), trained=shares[0], wanted=shares[1])


def test_the_curve_has_a_point_for_each_share_and_none_is_won_at_the_folds_own(
    competition, answers, presence, validation_config
):
    trained = float(competition.queries["landmark_id"].notna().mean())
    shares = [0.03, 0.3, trained, 0.8]
    curve = sensitivity(answers, answers, competition.queries, presence, shares, validation_config, seed=0)
    assert [point.prevalence for point in curve] == shares
    rare, _, same, _ = curve
    assert rare.difference.estimate == rare.corrected - rare.plain != 0
    assert (same.corrected, same.difference.low, same.difference.high) == (same.plain, 0, 0)
    assert [point.plain for point in curve] == sorted(point.plain for point in curve)  # landmarks are easier to find


def test_the_curve_compares_with_the_ranking_that_stays_without_a_correction(
    competition, answers, presence, validation_config
):
    coarse = answers.assign(confidence=answers["confidence"].round(1))  # a calibration may cost some of the ranking
    queries = competition.queries
    trained = float(queries["landmark_id"].notna().mean())
    [point] = sensitivity(answers, coarse, queries, presence, [trained], validation_config, seed=0)
    assert point.plain == pytest.approx(score_answers(answers, queries))
    assert point.corrected == pytest.approx(score_answers(coarse, queries)) != pytest.approx(point.plain)


def test_the_curve_shows_that_a_learned_presence_wins_where_landmarks_are_rare(validation_config, stack_config):
    p, presence, shows, right = _draw_answers(np.random.default_rng(2), 10_000, 0.5)
    ids = [f"q{number:05d}" for number in range(len(p))]
    rows = pd.DataFrame({"query": ids, "landmark_id": np.where(right, "a", "b"), "query.gate.p_landmark": presence})
    number = np.arange(len(p))
    queries = pd.DataFrame(
        {"id": ids, "fold": number % 4, "landmark_id": pd.Series(["a"] * len(p)).where(shows), "group": number}
    )
    learned = cross_presence(query_table(rows, p), queries, stack_config, seed=0, threads=1, advance=lambda *_: None)
    answers = rows[["landmark_id"]].assign(id=ids, confidence=p)
    rare, even = sensitivity(answers, answers, queries, learned, [0.03, 0.5], validation_config, seed=0)
    assert rare.difference.low > 0.02
    assert abs(even.difference.estimate) < 0.001


def test_the_curve_is_alike_for_shuffled_input(competition, answers, presence, validation_config):
    curve = sensitivity(answers, answers, competition.queries, presence, [0.1], validation_config, seed=0)
    shuffled = (answers.sample(frac=1, random_state=4), answers.sample(frac=1, random_state=6), competition.queries)
    again = sensitivity(*shuffled, presence.sample(frac=1, random_state=5), [0.1], validation_config, seed=0)
    assert again == curve
