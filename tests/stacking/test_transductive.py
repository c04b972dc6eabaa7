"""What other queries tell: EM finds a known share, frequent landmarks go down, and no fold looks into another."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core.errors import DataError
from engine.core.gap import score_answers
from stacking.answers import pick_answers
from stacking.baselines import fit_logistic
from stacking.evaluate import cross_predict
from stacking.prevalence import correct_answers, cross_presence, query_table
from stacking.transductive import (
    SMOOTHING,
    correct_to_test,
    demote_frequent,
    enter_transductive,
    estimate_prevalence,
)


@pytest.fixture(scope="module")
def scores(competition, rows):
    return cross_predict(rows, competition.queries, lambda part, right: fit_logistic(part, right).predict)


@pytest.fixture(scope="module")
def answers(competition, rows, scores):
    return pick_answers(rows, scores, competition.queries, decided_by="stack")


@pytest.fixture(scope="module")
def presence(competition, rows, scores, stack_config):
    return cross_presence(
        query_table(rows, scores), competition.queries, stack_config, seed=0, threads=1, advance=lambda *_: None
    )


def _draw_presence(rng, size, share, trained):
    """What a perfect model, learned at one share, says of queries of another."""
    sight = rng.normal(np.where(rng.random(size) < share, 1.0, -1.0))
    return pd.Series(1 / (1 + np.exp(-2 * sight) * (1 - trained) / trained))


def _em(presence, trained, steps=20_000):
    """Saerens' two steps as they stand in the paper: posteriors at the current share, and their mean as the next."""
    share = trained
    for _ in range(steps):
        shown = share / trained * presence
        share = np.mean(shown / (shown + (1 - share) / (1 - trained) * (1 - presence)))
    return share


@pytest.mark.parametrize("trained", [0.4, 0.8])
@pytest.mark.parametrize("share", [0.03, 0.3, 0.9])
def test_a_known_share_is_found_again(share, trained):
    presence = _draw_presence(np.random.default_rng(0), 40_000, share, trained)
    assert estimate_prevalence(presence, trained=trained) == pytest.approx(share, abs=0.01)
    assert abs(presence.mean() - share) > 0.03  # what one would guess without it


@settings(max_examples=30)  # each takes EM thousands of steps
@given(st.lists(st.floats(0.05, 0.95), min_size=5, max_size=30), st.floats(0.2, 0.8))
def test_the_estimate_is_where_em_stops(values, trained):
    presence = pd.Series(values)
    found = estimate_prevalence(presence, trained=trained)
    low = 0.5 / len(values)
    assert found == pytest.approx(np.clip(_em(presence.to_numpy(), trained, 3000), low, 1 - low), abs=0.02)


def test_the_estimate_is_where_em_stops_to_the_last_digits():
    presence = _draw_presence(np.random.default_rng(1), 500, 0.2, 0.5)
    assert estimate_prevalence(presence, trained=0.5) == pytest.approx(_em(presence.to_numpy(), 0.5), abs=1e-9)


def test_presence_of_the_folds_own_share_gives_that_share():
    presence = _draw_presence(np.random.default_rng(2), 40_000, 0.6, 0.6)
    assert estimate_prevalence(presence, trained=0.6) == pytest.approx(0.6, abs=0.01)


def test_a_weight_counts_as_so_many_queries():
    presence = _draw_presence(np.random.default_rng(3), 300, 0.3, 0.5)
    counts = np.random.default_rng(4).integers(1, 4, 300)
    repeated = presence.repeat(counts)
    weighted = estimate_prevalence(presence, trained=0.5, weights=counts.astype(float))
    assert weighted == pytest.approx(estimate_prevalence(repeated, trained=0.5), abs=1e-9)


@pytest.mark.parametrize(("presence", "share"), [([0.0] * 4, 0.125), ([1.0] * 4, 0.875), ([0.0, 1.0], 0.5)])
def test_the_estimate_never_reaches_0_or_1(presence, share):
    assert estimate_prevalence(pd.Series(presence), trained=0.5) == pytest.approx(share)


def test_the_estimate_does_not_depend_on_the_order():
    presence = _draw_presence(np.random.default_rng(5), 500, 0.2, 0.5)
    shuffled = presence.sample(frac=1, random_state=6)
    assert estimate_prevalence(shuffled, trained=0.5) == estimate_prevalence(presence, trained=0.5)


@pytest.mark.faults
def test_nothing_is_estimated_from_nothing():
    with pytest.raises(DataError, match="0 queries"):
        estimate_prevalence(pd.Series([], dtype=float), trained=0.5)


def test_the_test_sets_own_share_is_corrected_to(answers, presence):
    share = estimate_prevalence(presence, trained=0.9)
    wanted = correct_answers(answers, presence, trained=0.9, wanted=share)
    corrected, found = correct_to_test(answers, presence, trained=0.9)
    assert found == share
    pd.testing.assert_frame_equal(corrected, wanted, check_exact=True)
    assert (wanted["confidence"] < answers["confidence"]).any()


def _answers(landmarks, confidence):
    ids = [f"q{number:03d}" for number in range(len(landmarks))]
    return pd.DataFrame({"id": ids, "landmark_id": landmarks, "confidence": confidence, "decided_by": "stack"})


def test_the_odds_fall_by_the_surplus():
    """90 of 100 answers are of a landmark with a tenth of the photos: 10 were expected."""
    answers = _answers(["a"] * 90 + ["b"] * 10, 0.5)
    sizes = pd.Series({"a": 1.0, "b": 9.0})
    full = demote_frequent(answers, sizes, strength=1)["confidence"].to_numpy()
    factor = (10 + SMOOTHING) / (90 + SMOOTHING)
    assert full[:90] == pytest.approx(np.full(90, factor / (1 + factor)))
    assert (full[90:] == 0.5).all()  # rarer than expected is not promoted
    half = demote_frequent(answers, sizes, strength=0.5)["confidence"].to_numpy()
    assert half[0] / (1 - half[0]) == pytest.approx(factor**0.5)


def test_a_distractor_landmark_goes_down():
    """Right answers spread as the classes do; photos of nothing all fall onto one small landmark."""
    rng = np.random.default_rng(0)
    shown = rng.choice(list("abcdefgh"), 400)
    landmarks = np.append(shown, ["a"] * 150)
    confidence = np.append(rng.beta(4, 2, 400), rng.beta(4, 3, 150))
    answers = _answers(landmarks, confidence)
    truth = answers[["id"]].assign(landmark_id=pd.Series([*shown, *[None] * 150]))
    demoted = demote_frequent(answers, pd.Series(dict.fromkeys("abcdefgh", 20.0)))
    assert score_answers(demoted, truth) > score_answers(answers, truth) + 0.03


@given(
    st.lists(st.tuples(st.sampled_from(["a", "b", "c", None]), st.floats(0, 1)), min_size=1, max_size=80),
    st.floats(0, 5),
)  # fmt: skip
def test_demoted_confidences_stay_within_0_and_1_and_never_rise(drawn, strength):
    landmarks, confidence = zip(*drawn, strict=True)
    answers = _answers(list(landmarks), list(confidence))
    demoted = demote_frequent(answers, pd.Series({"a": 1.0, "b": 50.0}), strength=strength)
    assert demoted["confidence"].between(0, 1).all()
    assert (demoted["confidence"] <= answers["confidence"] + 1e-15).all()
    pd.testing.assert_frame_equal(demoted.drop(columns="confidence"), answers.drop(columns="confidence"))


def test_answers_of_one_landmark_keep_their_order(answers, competition):
    sizes = competition.class_sizes.query("fold == 0").set_index("landmark_id")["size"]
    demoted = demote_frequent(answers, sizes, strength=3)
    assert (demoted["confidence"] != answers["confidence"]).any()
    for landmark in answers["landmark_id"].unique():
        mine = answers["landmark_id"] == landmark
        before, after = answers.loc[mine, "confidence"].rank(), demoted.loc[mine, "confidence"].rank()
        pd.testing.assert_series_equal(after, before)


def test_strength_0_changes_nothing(answers, competition):
    sizes = competition.class_sizes.query("fold == 0").set_index("landmark_id")["size"]
    pd.testing.assert_frame_equal(demote_frequent(answers, sizes, strength=0), answers, check_exact=True)


def test_demotion_does_not_depend_on_the_order(answers, competition):
    sizes = competition.class_sizes.query("fold == 0").set_index("landmark_id")["size"]
    weights = np.random.default_rng(7).random(len(answers))
    order = np.random.default_rng(8).permutation(len(answers))
    demoted = demote_frequent(answers, sizes, weights=weights)
    again = demote_frequent(answers.iloc[order], sizes.sample(frac=1, random_state=9), weights=weights[order])
    pd.testing.assert_frame_equal(again.sort_index(), demoted, check_exact=True)


def test_a_heavy_query_is_not_told_by_its_own_weight():
    answers = _answers(["a", "b", "b"], 0.5)
    sizes = pd.Series({"a": 1.0, "b": 1.0})
    heavy = demote_frequent(answers, sizes, strength=1, weights=np.array([1000.0, 1.0, 1.0]))
    assert heavy["confidence"].tolist() == [0.5, 0.5, 0.5]


@pytest.mark.faults
def test_a_negative_strength_is_refused(answers):
    with pytest.raises(DataError, match="promote frequent landmarks"):
        demote_frequent(answers, pd.Series({"a": 1.0}), strength=-1)


@pytest.fixture(scope="module")
def entries(competition, answers, presence, validation_config):
    return enter_transductive(answers, competition.queries, presence, competition.class_sizes, validation_config)


def test_each_entry_answers_every_query_with_the_same_labels(entries, answers):
    assert [entry.name for entry in entries] == ["stack demoted", "stack corrected", "stack corrected and demoted"]
    for entry in entries:
        same = entry.answers.drop(columns="confidence")
        pd.testing.assert_frame_equal(same, answers.drop(columns="confidence"))
        assert entry.answers["confidence"].between(0, 1).all()


def test_each_fold_is_a_test_set_of_its_own(competition, answers, presence, entries):
    held = competition.queries["fold"] == 2
    mine = answers["id"].isin(competition.queries.loc[held, "id"])
    outside = float(competition.queries.loc[~held, "landmark_id"].notna().mean())
    alone, _ = correct_to_test(answers[mine], presence, trained=outside)
    sizes = competition.class_sizes.query("fold == 2").set_index("landmark_id")["size"]
    for entry, wanted in zip(entries[1:], [alone, demote_frequent(alone, sizes)], strict=True):
        found = entry.answers[entry.answers["id"].isin(alone["id"])]
        pd.testing.assert_frame_equal(found.reset_index(drop=True), wanted.reset_index(drop=True), check_exact=True)


def test_the_truth_of_a_fold_does_not_reach_its_own_answers(competition, answers, presence, entries, validation_config):
    held = competition.queries["fold"] == 2
    turned = competition.queries.assign(landmark_id=competition.queries["landmark_id"].mask(held))
    others = enter_transductive(answers, turned, presence, competition.class_sizes, validation_config)
    mine = answers["id"].isin(competition.queries.loc[held, "id"])
    for other, entry in zip(others, entries, strict=True):
        pd.testing.assert_frame_equal(other.answers[mine], entry.answers[mine], check_exact=True)


def test_a_wanted_share_is_found_from_weighted_queries(competition, answers, presence, validation_config):
    config = validation_config.model_copy(update={"prevalence": 0.05})
    _, corrected, _ = enter_transductive(answers, competition.queries, presence, competition.class_sizes, config)
    shows = competition.queries["landmark_id"].notna().to_numpy()
    known = correct_answers(answers, presence, trained=float(shows.mean()), wanted=0.05)
    off = np.log(corrected.answers["confidence"] / known["confidence"]).abs().median()
    assert off < np.log(2)  # within a factor of two of what the share itself would make of them
    assert np.log(answers["confidence"] / known["confidence"]).abs().median() > 2 * off


def test_shuffled_input_gives_the_same_entries(competition, answers, presence, entries, validation_config):
    other = competition.shuffled(3)
    again = enter_transductive(
        answers.sample(frac=1, random_state=4), other.queries, presence.sample(frac=1, random_state=5),
        other.class_sizes, validation_config,
    )  # fmt: skip
    for mine, theirs in zip(entries, again, strict=True):
        pd.testing.assert_frame_equal(mine.answers, theirs.answers, check_exact=True)
