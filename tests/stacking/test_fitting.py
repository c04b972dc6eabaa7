"""Fitting: parts hold whole groups, no model scores what it saw, equal input gives equal bytes, simple wins ties."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.core.config import StackConfig
from engine.core.errors import DataError
from stacking.evaluate import groups_of
from stacking.features import feature_names, mark_right
from stacking.fitting import METHODS, STAGES, choose_trial, draw_parts, fit_linear, fit_stacker, try_methods
from stacking.objectives import query_starts
from stacking.trees import answer_gap, best_rows

ONE_FITS = [method for method in METHODS if method != "two-stage"]


@pytest.fixture(scope="module")
def quick(tangled, right, groups, quick_config):
    return try_methods(tangled, right, groups, quick_config, seed=0, threads=1)


@pytest.fixture(scope="module")
def starts(tangled):
    return query_starts(tangled)


def _same(ours, theirs):
    """Whether two trials hold the same bytes."""
    return ours.stacker == theirs.stacker and ours.scores.tobytes() == theirs.scores.tobytes()


def _by_method(trials):
    return {trial.stacker.method: trial for trial in trials}


# ---- parts


@given(st.lists(st.integers(0, 9), min_size=1, max_size=60), st.integers(2, 4), st.integers(0, 9))
def test_parts_never_split_a_group_whatever_the_order_of_rows(drawn, parts, seed):
    groups = np.array([*drawn, *range(parts)])
    config = StackConfig(parts=parts, bags=2)
    found = draw_parts(groups, config, seed)
    assert len(found) == 2
    for part in found:
        assert set(part.tolist()) == set(range(parts))
        assert all(len(set(part[groups == group])) == 1 for group in set(groups.tolist()))
        sizes = [len(set(groups[part == number].tolist())) for number in range(parts)]
        assert max(sizes) - min(sizes) <= 1
    order = np.random.default_rng(seed).permutation(len(groups))
    for part, other in zip(found, draw_parts(groups[order], config, seed), strict=True):
        assert other.tolist() == part[order].tolist()


def test_bags_and_seeds_draw_other_parts(groups):
    config = StackConfig(bags=2)
    first, second = draw_parts(groups, config, 0)
    assert (first != second).any()
    assert (draw_parts(groups, config, 1)[0] != first).any()


@pytest.mark.faults
def test_too_few_groups_for_the_parts_are_named(tangled, right, groups):
    with pytest.raises(DataError, match="3 queries without their copies cannot fill 4 parts"):
        try_methods(tangled, right, groups % 3, StackConfig(), seed=0, threads=1)


# ---- every method


def test_all_methods_are_tried_the_simpler_first(trials, tangled, right, starts):
    assert [trial.stacker.method for trial in trials] == list(METHODS)
    for trial in trials:
        assert 0 <= trial.scores.min() < trial.scores.max() <= 1
        assert trial.gap == answer_gap(trial.scores, right, starts)
        assert trial.gap > answer_gap(tangled["all.mean"].to_numpy(dtype=float), right, starts) + 0.03


def test_trees_see_what_a_line_cannot_and_are_chosen(trials, tangled, right):
    gaps = {trial.stacker.method: trial.gap for trial in trials}
    assert min(gap for method, gap in gaps.items() if method != "linear") > gaps["linear"] + 0.02
    assert choose_trial(trials, tangled, right, seed=0).stacker.method != "linear"


def test_a_model_is_fitted_without_each_part_in_each_bag(tangled, right, groups, quick_config):
    config = quick_config.model_copy(update={"parts": 3, "bags": 2})
    found = _by_method(try_methods(tangled, right, groups, config, seed=0, threads=1))
    for method in ONE_FITS:
        models = found[method].stacker.models
        assert len(set(models)) == len(models) == 6
        assert all((model.trees == "") == (method == "linear") for model in models)
    assert len(found["two-stage"].stacker.models) == 6 * len(STAGES)
    assert len(found["two-stage"].stacker.second) in (0, 6)


@pytest.mark.parametrize("method", METHODS)
def test_a_single_method_is_fitted_as_it_is_among_all(method, tangled, right, groups, quick_config, quick):
    config = quick_config.model_copy(update={"method": method})
    [alone] = try_methods(tangled, right, groups, config, seed=0, threads=1)
    assert _same(alone, _by_method(quick)[method])
    assert _same(fit_stacker(tangled, right, groups, config, seed=0, threads=1), alone)


def test_the_second_stage_keeps_the_pick_and_says_how_probable_it_is(trials, starts, right):
    found = _by_method(trials)
    blend = np.mean([found[method].scores for method in ONE_FITS], axis=0)
    scores = found["two-stage"].scores
    best = best_rows(scores, starts)
    assert best.tolist() == best_rows(blend, starts).tolist()
    assert (scores[best] != blend[best]).any()
    np.testing.assert_allclose(scores / blend, np.repeat((scores / blend)[best], np.diff(starts, append=len(scores))))
    assert abs(scores[best].mean() - right[best].mean()) < 0.03


# ---- out of sample


@pytest.mark.parametrize("method", ONE_FITS)
def test_labels_of_a_part_never_reach_its_own_scores(method, tangled, right, groups, quick_config, quick):
    """A few labels, so that the number of trees, which all parts choose together, stays."""
    config = quick_config.model_copy(update={"method": method})
    [part] = draw_parts(groups, config, 0)
    few = np.isin(groups, np.unique(groups[right & (part == 0)])[:3])
    [turned] = try_methods(tangled, right ^ few, groups, config, seed=0, threads=1)
    before = _by_method(quick)[method]
    assert turned.scores[part == 0].tobytes() == before.scores[part == 0].tobytes()
    assert (turned.scores[part == 1] != before.scores[part == 1]).any()
    assert turned.stacker.models[0] == before.stacker.models[0]
    assert turned.stacker.models[1] != before.stacker.models[1]


@pytest.mark.faults
def test_shuffled_labels_are_not_learned_out_of_sample(competition, tangled, quick_config):
    truth = competition.queries
    labels = np.random.default_rng(1).permutation(truth["landmark_id"].to_numpy(dtype=object))
    right = mark_right(tangled, truth.assign(landmark_id=labels))
    for trial in try_methods(tangled, right, groups_of(tangled, truth), quick_config, seed=0, threads=1):
        assert trial.gap < 0.3  # what candidates that are right by chance leave to be found
        assert abs(trial.scores.mean() - right.mean()) < 0.03


# ---- the same again


def test_shuffled_tables_and_a_repeat_give_the_same_bytes(competition, quick_config, quick):
    other = competition.shuffled(3)
    rows = other.tangled()
    right, groups = mark_right(rows, other.queries), groups_of(rows, other.queries)
    again = try_methods(rows, right, groups, quick_config, seed=0, threads=1)
    assert all(_same(*pair) for pair in zip(quick, again, strict=True))


@pytest.mark.parametrize("worth", [1, 10**6])
def test_two_threads_fit_the_same_bytes(worth, tangled, right, groups, quick_config, monkeypatch):
    """Within one fit, where rows are many, and over two fits, where they are few."""
    few = quick_config.model_copy(update={"trees": 5})  # threads of little work wait for one another
    alone = try_methods(tangled, right, groups, few, seed=0, threads=1)
    monkeypatch.setattr("stacking.trees.ROWS_PER_THREAD", worth)
    both = try_methods(tangled, right, groups, few, seed=0, threads=2)
    assert all(_same(*pair) for pair in zip(alone, both, strict=True))


def test_another_seed_fits_another_stacker(tangled, right, groups, quick_config, quick):
    config = quick_config.model_copy(update={"method": "softmax"})
    assert not _same(fit_stacker(tangled, right, groups, config, seed=1, threads=1), _by_method(quick)["softmax"])


# ---- the choice


def test_the_simpler_one_wins_a_tie_and_a_clearly_better_one_wins(trials, tangled, right):
    simple = trials[0]
    tie = replace(trials[1], scores=simple.scores * 0.9, gap=simple.gap)  # another scale, the same order
    better = replace(trials[2], scores=0.5 * simple.scores + 0.5 * right, gap=1.0)
    assert choose_trial([simple, tie], tangled, right, seed=0) is simple
    assert choose_trial([simple, tie, better], tangled, right, seed=0) is better
    assert choose_trial([better, simple], tangled, right, seed=0) is better


def test_trees_on_the_loss_of_the_line_are_simpler_than_trees_on_another(trials, tangled, right):
    found = _by_method(trials)
    tie = [replace(found[method], scores=found["softmax"].scores) for method in ("hybrid", "log-loss", "softmax")]
    assert choose_trial(tie, tangled, right, seed=0).stacker.method == "softmax"
    assert choose_trial(tie[:2], tangled, right, seed=0).stacker.method == "log-loss"


def test_a_gain_within_a_standard_error_is_a_tie(trials, tangled, right, starts):
    """One query of hundreds is put right."""
    simple = trials[0]
    best = best_rows(simple.scores, starts)
    listed = np.logical_or.reduceat(right, starts)
    query = np.flatnonzero(listed & ~right[best])[0]
    scores = simple.scores.copy()
    row = starts[query] + int(np.argmax(right[starts[query] :]))
    scores[best[query]], scores[row] = scores[row], scores[best[query]]
    assert answer_gap(scores, right, starts) > answer_gap(simple.scores, right, starts)
    assert choose_trial([simple, replace(trials[1], scores=scores)], tangled, right, seed=0) is simple


def test_what_is_fitted_is_the_chosen_trial(trials, tangled, right, groups, stack_config):
    chosen = choose_trial(trials, tangled, right, seed=0)
    assert _same(fit_stacker(tangled, right, groups, stack_config, seed=0, threads=1), chosen)


# ---- few rows, many rows, useless rows


@pytest.mark.faults
@pytest.mark.parametrize("value", [True, False])
def test_nothing_to_tell_apart_is_refused(tangled, right, groups, stack_config, value):
    with pytest.raises(DataError, match="nothing to tell apart"):
        try_methods(tangled, np.full_like(right, value), groups, stack_config, seed=0, threads=1)


@pytest.mark.faults
@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_features_that_are_not_finite_are_named(tangled, right, groups, stack_config, broken):
    damaged = tangled.assign(**{"all.mean": tangled["all.mean"].mask(tangled.index == 3, broken)})
    with pytest.raises(DataError, match=r"not finite numbers: all\.mean"):
        try_methods(damaged, right, groups, stack_config, seed=0, threads=1)


def test_constant_features_teach_the_base_rate_alone(tangled, right, groups, quick_config):
    constant = tangled.assign(**dict.fromkeys(feature_names(tangled), np.float32(1)))
    for trial in try_methods(constant, right, groups, quick_config, seed=0, threads=1):
        if trial.stacker.method != "two-stage":
            assert abs(trial.scores.mean() - right.mean()) < 0.02
        assert trial.stacker.predict(constant, threads=1).max() < 0.5


def test_a_handful_of_queries_is_enough_to_fit(tangled, right, groups, quick_config):
    names = pd.unique(tangled["query"])[:8]
    few = tangled["query"].isin(names).to_numpy()
    for trial in try_methods(tangled[few], right[few], groups[few], quick_config, seed=0, threads=1):
        assert np.isfinite(trial.scores).all()
        assert trial.stacker.predict(tangled, threads=1).max() <= 1


def test_a_linear_model_of_very_many_rows_takes_whole_queries_of_some(
    tangled, right, groups, starts, quick_config, monkeypatch
):
    config = quick_config.model_copy(update={"method": "linear"})
    [whole] = try_methods(tangled, right, groups, config, seed=0, threads=1)
    sizes = np.diff(starts, append=len(tangled))
    seen = []

    def watch(values, labels, begins, **settings):
        seen.append((len(values), np.diff(begins, append=len(values))))
        return fit_linear(values, labels, begins, **settings)

    monkeypatch.setattr("stacking.fitting.fit_linear", watch)
    monkeypatch.setattr("stacking.fitting.LINEAR_ROWS", 1000)
    [some] = try_methods(tangled, right, groups, config, seed=0, threads=1)
    for count, taken in seen:
        assert 800 < count < 1200
        assert set(taken.tolist()) <= set(sizes.tolist())
        assert taken.mean() == pytest.approx(sizes.mean(), rel=0.1)
    assert whole.gap - 0.05 < some.gap != whole.gap
    [again] = try_methods(tangled, right, groups, config, seed=0, threads=2)
    assert _same(some, again)
