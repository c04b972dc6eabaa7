"""Trees: a GAP that is the challenge's, a curve that is the model's, each objective lowers its own loss."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.core.config import StackConfig
from engine.core.errors import ArtifactError, DataError
from engine.core.gap import gap, score_answers
from stacking.answers import pick_answers
from stacking.evaluate import cross_predict
from stacking.features import feature_names
from stacking.objectives import query_probability, query_starts, smoothed_gap, softmax_loss
from stacking.trees import (
    OBJECTIVES,
    ROWS_PER_GROUP,
    ROWS_PER_THREAD,
    WATCH_EVERY,
    Sample,
    add_trees,
    answer_gap,
    as_matrix,
    as_text,
    best_rows,
    bin_rows,
    fit_lambdarank,
    grow,
    grow_ranker,
    starts_within,
    threads_for,
)


@st.composite
def contests(draw):
    """Scores with many ties, which rows are right, and where queries start."""
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    sizes = rng.integers(1, 5, draw(st.integers(1, 12)))
    starts = np.cumsum(sizes) - sizes
    right = np.zeros(sizes.sum(), dtype=np.bool_)
    right[(starts + rng.integers(sizes))[rng.random(len(sizes)) < 0.6]] = True
    return rng.integers(draw(st.integers(1, 8)), size=len(right)) / 8, right, starts


@pytest.fixture(scope="module")
def table(rows):
    return as_matrix(rows, feature_names(rows))


@pytest.fixture(scope="module")
def starts(rows):
    return query_starts(rows)


@pytest.fixture(scope="module")
def held(groups):
    return groups % 3 == 0


@pytest.fixture(scope="module")
def sample(table, right, starts, stack_config):
    return Sample(bin_rows(table, right, stack_config, threads=1), right, starts, np.full(len(right), -2.0))


@pytest.fixture(scope="module")
def grown(sample, held, stack_config):
    return {name: grow(name, sample, held, stack_config, seed=0, threads=1) for name in OBJECTIVES}


# ---- answers


@given(contests())
def test_the_best_row_is_the_first_of_the_highest_of_each_query(contest):
    scores, _, starts = contest
    plain = [first + int(np.argmax(part)) for first, part in zip(starts, np.split(scores, starts[1:]), strict=True)]
    assert best_rows(scores, starts).tolist() == plain


@given(contests())
def test_the_gap_is_the_challenges_over_queries_with_a_right_row(contest):
    scores, right, starts = contest
    best = best_rows(scores, starts)
    found = answer_gap(scores, right, starts)
    if right.any():  # ids in the rows' order decide between ties
        wanted = gap(scores[best], right[best], np.arange(len(best)), positives=int(right.sum()))
        assert found == pytest.approx(wanted, abs=1e-12)
    else:
        assert found == 0


def test_the_gap_is_that_of_the_answers_up_to_what_no_member_lists(rows, right, starts, competition):
    scores = np.random.default_rng(0).random(len(rows)) + right
    answers = pick_answers(rows, scores, competition.queries, decided_by="test")
    shown = competition.queries["landmark_id"].notna().sum()
    whole = score_answers(answers, competition.queries) * shown / right.sum()
    assert answer_gap(scores, right, starts) == pytest.approx(whole, abs=1e-12)


# ---- samples


@given(contests(), st.integers(0, 99))
def test_starts_within_some_queries_are_those_of_their_rows_alone(contest, seed):
    _, right, starts = contest
    query = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(right)))
    kept = np.random.default_rng(seed).random(len(starts)) < 0.5
    inside = kept[query]
    wanted = query_starts(pd.DataFrame({"query": query[inside]})) if inside.any() else np.zeros(0, dtype=int)
    assert starts_within(starts, inside).tolist() == wanted.tolist()


def test_a_part_of_a_sample_has_the_rows_of_its_queries(sample, held, right, starts):
    margin = np.arange(len(right), dtype=float)
    part = Sample(sample.data, right, starts, margin).take(held)
    assert part.margin.tolist() == margin[held].tolist()
    assert part.right.tolist() == right[held].tolist()
    assert part.data.num_data() == held.sum()
    assert part.data.get_label().tolist() == right[held].tolist()
    assert part.data.get_init_score().tolist() == margin[held].tolist()
    sizes = np.diff(starts, append=len(right))
    assert np.diff(part.starts, append=held.sum()).tolist() == sizes[held[starts]].tolist()


# ---- growing


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_curve_is_the_gap_of_the_first_trees(objective, grown, sample, table, held):
    model, curve = grown[objective]
    part = sample.take(held)
    wanted, margin = [], part.margin.copy()
    for tree in range(model.num_trees() + 1):
        if tree % WATCH_EVERY == 0:
            wanted.append(answer_gap(query_probability(margin, part.starts), part.right, part.starts))
        # one by one, as LightGBM adds them up: the last digit decides between nearly equal scores
        margin += model.predict(table[held], raw_score=True, start_iteration=tree, num_iteration=1)
    np.testing.assert_allclose(curve, wanted, rtol=0, atol=1e-12)
    told = model.predict(table[held], raw_score=True, num_iteration=20) + part.margin
    assert curve[4] == pytest.approx(
        answer_gap(query_probability(told, part.starts), part.right, part.starts), abs=2e-3
    )
    assert curve.max() > curve[0] + 0.1


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_text_of_the_first_trees_predicts_as_they_do(objective, grown, table):
    model, _ = grown[objective]
    text = as_text(model, 15)
    added = model.predict(table, raw_score=True, num_iteration=15, num_threads=1)
    assert add_trees(text, table, np.full(len(table), 0.5), threads=1).tobytes() == (0.5 + added).tobytes()
    assert "num_threads: 0]" in text


def test_each_objective_lowers_its_own_loss(grown, sample, table, held):
    part = sample.take(~held)

    def log_loss(margin):
        return float(np.logaddexp(0, np.where(part.right, -margin, margin)).sum())

    def softmax(margin):
        return softmax_loss(margin, part.right, part.starts)

    def hybrid(margin):
        return 0.75 * softmax(margin) - 0.25 * smoothed_gap(margin, part.right, part.starts)

    for name, loss in {"log-loss": log_loss, "softmax": softmax, "hybrid": hybrid}.items():
        steps = [
            loss(part.margin + grown[name][0].predict(table[~held], raw_score=True, num_iteration=trees))
            for trees in (1, 5, 20, 60)
        ]
        assert loss(part.margin) > steps[0] > steps[1] > steps[2] > steps[3]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_labels_of_watched_queries_never_reach_the_trees(objective, grown, sample, held, stack_config, table):
    turned = sample.right ^ (held & (np.arange(len(held)) % 2 == 0))
    other = Sample(bin_rows(table, turned, stack_config, threads=1), turned, sample.starts, sample.margin)
    model, curve = grow(objective, other, held, stack_config, seed=0, threads=1)
    assert as_text(model) == as_text(grown[objective][0])
    assert curve.tolist() != grown[objective][1].tolist()


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_two_threads_grow_the_same_trees(objective, grown, sample, held, stack_config, monkeypatch):
    monkeypatch.setattr("stacking.trees.ROWS_PER_THREAD", 1)
    few = stack_config.model_copy(update={"trees": 5})  # threads of little work wait for one another
    model, curve = grow(objective, sample, held, few, seed=0, threads=2)
    assert as_text(model) == as_text(grown[objective][0], 5)
    assert curve.tolist() == grown[objective][1][:2].tolist()


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_two_threads_grow_the_same_trees_of_sparse_features_and_gradients_of_many_magnitudes(
    objective, stack_config, monkeypatch
):
    """Sums of such gradients depend on their order; those of gradients near one another are exact in any."""
    monkeypatch.setattr("stacking.trees.ROWS_PER_THREAD", 1)
    few = stack_config.model_copy(update={"trees": 20})
    rng, starts = np.random.default_rng(0), np.arange(0, 12_000, 5)
    right = np.zeros(12_000, dtype=bool)
    right[starts] = rng.random(len(starts)) < 0.6
    dense = rng.normal(size=(12_000, 4)) + np.outer(right, [1, 0, 0, 0])
    sparse = np.where(rng.random((12_000, 8)) < 0.3, rng.random((12_000, 8)) + 0.5 * right[:, None], 0)
    table, margin = np.hstack([dense, sparse]).astype(np.float32), rng.normal(0, 12, 12_000)
    held = np.arange(12_000) >= 9_000

    def grow_with(threads):
        sample = Sample(bin_rows(table, right, few, threads=threads), right, starts, margin)
        return grow(objective, sample, held, few, seed=0, threads=threads)

    (one, curve), (two, again) = grow_with(1), grow_with(2)
    assert as_text(two) == as_text(one)
    assert again.tolist() == curve.tolist()


def test_few_rows_are_not_worth_a_second_thread():
    assert [threads_for(rows, 4) for rows in (10, ROWS_PER_THREAD, 10 * ROWS_PER_THREAD)] == [1, 2, 4]


# ---- ranking


class _WatchedError(Exception):
    """Ends a fit once its groups are seen."""


@given(st.lists(st.integers(1, 9), min_size=1, max_size=60), st.integers(10, 40))
def test_groups_to_rank_are_whole_queries_and_never_too_large(sizes, limit):
    starts, rows, seen = np.cumsum(sizes) - sizes, sum(sizes), []

    def watch(_values, _right, *, group, **_):
        seen.extend(group.tolist())
        raise _WatchedError

    values, right, config = np.zeros((rows, 1)), np.zeros(rows, bool), StackConfig()
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("stacking.trees.ROWS_PER_GROUP", limit)
        monkeypatch.setattr("stacking.trees.lgb.Dataset", watch)
        with pytest.raises(_WatchedError):
            grow_ranker(values, right, starts, config, seed=0, threads=1)
    assert max(seen) <= limit
    assert sum(seen) == rows
    assert set(np.cumsum(seen).tolist()) <= {*starts.tolist(), rows}
    assert len(seen) <= 1 + rows // (limit - max(sizes))


def test_lightgbm_takes_groups_at_its_own_limit(stack_config):
    rng = np.random.default_rng(0)
    starts = np.arange(0, 3 * ROWS_PER_GROUP, 4)
    values = rng.random((3 * ROWS_PER_GROUP, 2), dtype=np.float32)
    few = stack_config.model_copy(update={"trees": 1})
    right = np.arange(len(values)) % 400 == 0
    assert "tree_sizes=" in grow_ranker(values, right, starts, few, seed=0, threads=1)


def test_lambdarank_ranks_queries_out_of_fold_and_repeats_itself(rows, competition, stack_config, monkeypatch):
    config = stack_config.model_copy(update={"trees": 10})
    queries = competition.queries[:200]  # it looks at every pair
    asked = rows[rows["query"].isin(queries["id"])].reset_index(drop=True)

    def score(threads):
        def fit(part, right):
            return fit_lambdarank(part, right, config, seed=0, threads=threads)

        return cross_predict(asked, queries, fit)

    scores = score(1)
    assert scores.min() < 0 < scores.max()
    drawn = np.random.default_rng(0).random(len(asked))
    ours, lots = (score_answers(pick_answers(asked, s, queries, decided_by="x"), queries) for s in (scores, drawn))
    assert ours > lots + 0.3
    monkeypatch.setattr("stacking.trees.ROWS_PER_THREAD", 1)
    assert score(2).tobytes() == scores.tobytes()


def test_lambdarank_has_a_hundred_trees_at_most(rows, right, stack_config, monkeypatch):
    monkeypatch.setattr("stacking.trees.RANKER_TREES", 2)
    two = stack_config.model_copy(update={"trees": 2})
    few = rows[:600]
    found, wanted = (fit_lambdarank(few, right[:600], each, seed=0, threads=1)(few) for each in (stack_config, two))
    assert found.tobytes() == wanted.tobytes()


# ---- features


@pytest.mark.faults
def test_missing_and_broken_features_are_named(rows):
    with pytest.raises(ArtifactError, match="reads 2 features that these rows lack: b, a"):
        as_matrix(rows, ("all.mean", "b", "a"))
    with pytest.raises(DataError, match=r"not finite numbers: all\.mean"):
        as_matrix(rows.assign(**{"all.mean": np.inf}), ("all.max", "all.mean"))
