"""Importance: what decides is missed, what says nothing is not, and a query's features stay one query's."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stacking.evaluate import fit_stack
from stacking.features import feature_names
from stacking.importance import group_features, measure_gain, permute_features, permute_groups
from stacking.objectives import query_starts
from stacking.trees import Sample, as_matrix, as_text, bin_rows, grow, grow_ranker


@pytest.fixture(scope="module")
def noisy(rows):
    """The rows with a row feature and a query feature that say nothing."""
    rng = np.random.default_rng(1)
    of_query = pd.Series(rng.random(rows["query"].nunique()), index=rows["query"].unique())
    return rows.assign(**{"noise.row": rng.random(len(rows)), "query.noise.all": rows["query"].map(of_query)})


@pytest.fixture(scope="module")
def fit(competition, stack_config):
    linear = stack_config.model_copy(update={"method": "linear"})  # as the engine's own study
    return fit_stack(competition.queries, linear, seed=0, threads=1)


@pytest.fixture(scope="module")
def losses(noisy, competition, fit, validation_config):
    groups = group_features(feature_names(noisy))
    found = permute_groups(
        noisy, competition.queries, fit, groups, validation_config, repeats=3, rng=np.random.default_rng(0)
    )
    return {each.name: each for each in found}


def test_gain_is_a_share_of_the_splits_and_noise_gets_little(noisy, right, stack_config):
    features = feature_names(noisy)
    table, held = as_matrix(noisy, features), noisy["query"].factorize()[0] % 2 == 0
    sample = Sample(
        bin_rows(table, right, stack_config, threads=1), right, query_starts(noisy), np.full(len(right), -2.0)
    )
    grown = [grow("log-loss", sample, part, stack_config, seed=0, threads=1)[0] for part in (held, ~held)]
    gain = measure_gain(features, [as_text(model) for model in grown])
    assert set(gain) == set(features)
    assert sum(gain.values()) == pytest.approx(1)
    assert list(gain.values()) == sorted(gain.values(), reverse=True)
    assert max(gain["noise.row"], gain["query.noise.all"]) < 0.02 < next(iter(gain.values()))


def test_trees_that_never_split_have_no_gain(rows, right, stack_config):
    starts = query_starts(rows)
    table, few = np.ones((len(rows), 2), dtype=np.float32), stack_config.model_copy(update={"trees": 2})
    text = grow_ranker(table, right, starts, few, seed=0, threads=1)
    assert measure_gain(["a", "b"], [text]) == {"a": 0.0, "b": 0.0}


def test_groups_are_members_the_gate_and_what_they_say_together(rows):
    groups = group_features(feature_names(rows))
    assert set(groups) == {"large", "small", "nearest", "gate", "all", "class", "query"}
    assert {"large.score", "query.large.p_none"} <= set(groups["large"])
    assert groups["gate"] == ("query.gate.p_landmark",)
    assert sorted(name for group in groups.values() for name in group) == sorted(feature_names(rows))


def test_a_members_name_may_have_dots():
    assert set(group_features(["lite.v1.score", "query.lite.v1.max"])) == {"lite.v1"}


def test_what_decides_is_missed_and_noise_is_not(losses, rows):
    assert next(iter(losses)) == "all"
    assert losses["all"].loss > 0.1
    assert abs(losses["noise"].loss) < 0.005
    assert all(each.spread < 0.02 for each in losses.values())
    assert losses["all"].features == len(group_features(feature_names(rows))["all"])


def test_a_model_that_reads_one_feature_misses_that_one_alone(rows, competition, validation_config):
    def fit_mean(_part, _right):
        return lambda unseen: unseen["all.mean"].to_numpy(dtype=float)

    groups = {"read": ["all.mean"], "unread": ["all.max"], "none": []}
    found = permute_groups(
        rows, competition.queries, fit_mean, groups, validation_config, repeats=2, rng=np.random.default_rng(0)
    )
    assert found[0].name == "read"
    assert found[0].loss > 0.2
    assert [(each.loss, each.spread) for each in found[1:]] == [(0.0, 0.0)] * 2


def test_models_never_saw_the_fold_they_answer(rows, competition, validation_config):
    fold = competition.queries.set_index("id")["fold"]

    def fit_watched(part, _right):
        learned = set(part["query"].map(fold))

        def predict(unseen):
            assert not learned & set(unseen["query"].map(fold))
            return unseen["all.mean"].to_numpy(dtype=float)

        return predict

    groups = {"mean": ["all.mean"]}
    rng = np.random.default_rng(0)
    [found] = permute_groups(rows, competition.queries, fit_watched, groups, validation_config, repeats=1, rng=rng)
    assert found.spread == 0


@settings(deadline=None)
@given(sizes=st.lists(st.integers(1, 4), min_size=1, max_size=8), seed=st.integers(0, 9))
def test_query_features_move_as_whole_queries_and_row_features_as_rows(sizes, seed):
    queries = np.repeat([f"q{number}" for number in range(len(sizes))], sizes)
    place = np.arange(len(queries))
    rows = pd.DataFrame({"query": queries, "a.x": place, "a.y": -place})
    rows["query.a.z"] = rows["query"]
    shuffled = rows.sample(frac=1, random_state=seed)  # a query's rows need not stand together
    moved = permute_features(shuffled, ["a.x", "a.y", "query.a.z"], np.random.default_rng(seed))
    assert (moved["a.x"] == -moved["a.y"]).all()  # together
    assert sorted(moved["a.x"]) == place.tolist()
    came_from = moved.groupby("query")["query.a.z"].agg(["nunique", "first"])
    assert (came_from["nunique"] == 1).all()
    assert sorted(came_from["first"]) == sorted(set(queries))
    pd.testing.assert_frame_equal(permute_features(rows, [], np.random.default_rng(seed)), rows)
