"""Self-checks: an honest stack passes, one that peeks does not, and a copy in another fold is found."""

import numpy as np
import pandas as pd

from stacking.ablation import fit_cheaply
from stacking.evaluate import fit_stack
from stacking.features import mark_right
from stacking.honesty import leaks, shuffle_labels, shuffled_gap


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
