"""Self-checks: an honest stack passes, one that peeks does not; copies and lookalikes in another fold are found."""

import numpy as np
import pandas as pd
import pytest

from engine.core.gap import score_answers
from stacking.ablation import fit_cheaply
from stacking.answers import answer_alone
from stacking.evaluate import fit_stack
from stacking.features import mark_right
from stacking.honesty import LOOKALIKE, find_lookalikes, leaks, likest_pairs, shuffle_labels, shuffled_gap


@pytest.fixture(scope="module")
def answers(competition):
    """Of one member."""
    return answer_alone(competition.candidates, "large", competition.queries)


def test_shuffled_labels_teach_an_honest_stack_nothing(competition, rows, stack_config, validation_config):
    for fit in (fit_stack(competition.queries, stack_config, seed=0, threads=1), fit_cheaply):
        found = shuffled_gap(rows, competition.queries, fit, np.random.default_rng(0), validation_config)
        assert found.is_chance
        assert 0 < found.spread < found.chance < 0.1


def test_a_stack_that_peeks_is_caught(competition, rows, validation_config):
    """It knows a third of the labels that it is asked for: the shuffle of an equal generator."""
    told = shuffle_labels(competition.queries, np.random.default_rng(7))
    right = pd.Series(mark_right(rows, told), index=rows.index)
    rng = np.random.default_rng(0)

    def fit_peeking(_part, _right):
        return lambda unseen: rng.random(len(unseen)) + right[unseen.index] * (rng.random(len(unseen)) < 0.3)

    found = shuffled_gap(rows, competition.queries, fit_peeking, np.random.default_rng(7), validation_config)
    assert not found.is_chance


def test_shuffling_keeps_every_label_and_moves_most(competition):
    shuffled = shuffle_labels(competition.queries, np.random.default_rng(0))
    before, after = (table["landmark_id"].fillna("") for table in (competition.queries, shuffled))
    assert sorted(before) == sorted(after)
    assert (before.to_numpy() != after.to_numpy()).mean() > 0.5


def test_a_copy_in_another_fold_is_found():
    catalog = pd.DataFrame({"id": list("abcdef"), "duplicate_group": [0, 0, 2, 2, 2, 5]})
    folds = pd.DataFrame({"id": list("abcde"), "fold": [0, 0, 1, 2, 1]})
    found = leaks(catalog, folds)
    assert found.groups == (2,)
    assert found.queries == 3
    assert leaks(catalog, folds.assign(fold=0)).groups == ()
    assert leaks(catalog, folds.assign(fold=0)).queries == 0


def test_the_gap_without_lookalikes_is_that_of_the_other_queries(competition, answers, validation_config):
    queries = competition.queries
    cosines = np.random.default_rng(3).uniform(0.7, 1, len(queries))
    nearest = pd.DataFrame({"query": queries["id"], "cosine": cosines}).sample(frac=1, random_state=0)
    found = find_lookalikes(nearest, answers, queries, validation_config, seed=0)
    assert [each.cosine for each in found] == list(LOOKALIKE)
    for each in found:
        others = queries[cosines < each.cosine]
        assert each.photos == len(queries) - len(others)
        assert each.gap == score_answers(answers[answers["id"].isin(others["id"])], others)
        assert each.low <= score_answers(answers, queries) <= each.high


def test_lookalikes_that_decide_the_gap_are_told_from_those_that_do_not(competition, answers, validation_config):
    queries = competition.queries
    laid = queries.merge(answers, on="id", suffixes=("", "_given"))
    right = laid["landmark_id"].notna() & (laid["landmark_id"] == laid["landmark_id_given"])
    few = np.arange(len(queries)) < len(queries) // 50
    for alike, slight in ((few, True), (right.to_numpy(), False), (queries["landmark_id"].notna().to_numpy(), False)):
        nearest = pd.DataFrame({"query": queries["id"], "cosine": np.where(alike, 1.0, 0.0)})
        [first, *_] = find_lookalikes(nearest, answers, queries, validation_config, seed=0)
        assert first.are_slight == slight
    assert first.gap is None


def test_two_photos_that_are_each_others_nearest_are_one_pair():
    nearest = pd.DataFrame({"query": list("abcd"), "neighbour": list("bacc"), "cosine": [0.8, 0.8, 1.0, 0.9]})
    found = likest_pairs(nearest)
    assert found["query"].tolist() == ["c", "d", "a"]
    assert found["cosine"].tolist() == [1.0, 0.9, 0.8]
