"""The stacker's rows: every number by hand on two queries, then the laws on a drawn competition."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core.errors import DataError
from stacking.features import KEYS, P_LANDMARK, SCORE_FLOOR, build_rows, feature_names, mark_right

few = settings(deadline=None, max_examples=8)

CANDIDATES = pd.DataFrame(
    [
        ("a", "q1", "7", 0.6, 1),
        ("a", "q1", "8", 0.3, 2),
        ("a", "q1", "9", 0.1, 3),
        ("b", "q1", "9", 0.5, 1),
        ("b", "q1", "7", 0.4, 2),
        ("a", "q2", "8", 0.9, 1),
        ("b", "q2", "8", -0.2, 1),
        ("b", "q2", "7", -0.5, 2),
    ],
    columns=["member", "query", "landmark_id", "score", "rank"],
).astype({"score": np.float32, "rank": np.int16})
FEATURES = pd.DataFrame({"member": ["a", "a", "gate", "gate"], "query": ["q1", "q2", "q2", "q1"]}).assign(
    entropy=[1.5, 0.5, np.nan, np.nan], p_landmark=[np.nan, np.nan, 0.25, 0.75]
)
SIZES = pd.DataFrame({"fold": [0, 0, 1], "landmark_id": ["7", "9", "7"], "size": [3.0, 24.0, 8.0]})
QUERIES = pd.DataFrame(
    {"id": ["q2", "q1"], "fold": [1, 0], "landmark_id": [None, "9"], "width": [100, 64], "height": [50, 80]}
)


def make_rows(candidates=CANDIDATES, features=FEATURES, queries=QUERIES, members=("a", "b"), per_member=1):
    return build_rows(candidates, features, SIZES, queries, members, per_member=per_member)


def assert_column(rows, name, expected):
    np.testing.assert_allclose(rows[name], np.asarray(expected, dtype=np.float32), rtol=1e-6, err_msg=name)


def test_rows_are_the_union_of_each_members_best_sorted_by_query_and_landmark():
    rows = make_rows()
    assert rows["query"].tolist() == ["q1", "q1", "q2"]
    assert rows["landmark_id"].tolist() == ["7", "9", "8"]
    assert make_rows(per_member=2)["landmark_id"].tolist() == ["7", "8", "9", "7", "8"]


def test_a_row_shows_what_every_member_says_at_any_rank():
    rows = make_rows()
    assert_column(rows, "a.score", [0.6, 0.1, 0.9])
    assert_column(rows, "b.score", [0.4, 0.5, -0.2])
    assert_column(rows, "a.inverse_rank", [1, 1 / 3, 1])
    assert_column(rows, "b.inverse_rank", [1 / 2, 1, 1])
    assert_column(rows, "a.below_best", [0, np.float32(0.1) - np.float32(0.6), 0])
    assert_column(rows, "a.above_next", [np.float32(0.6) - np.float32(0.3), 0.1, 0.9])  # after the last comes the floor
    assert_column(rows, "b.above_next", [0.4, np.float32(0.5) - np.float32(0.4), 0.3])


def test_a_landmark_that_a_member_does_not_list_has_its_floor_and_no_rank():
    rows = make_rows(per_member=2).set_index(["query", "landmark_id"])
    unlisted = rows.loc[("q1", "8")]
    assert (unlisted["b.score"], unlisted["b.inverse_rank"], unlisted["b.above_next"]) == (0, 0, 0)
    assert unlisted["b.below_best"] == np.float32(-0.5)
    assert rows.loc[("q2", "7"), "a.score"] == 0
    negative = make_rows(per_member=2, candidates=CANDIDATES.query("query != 'q2' or member != 'b' or rank != 1"))
    negative = negative.set_index(["query", "landmark_id"])
    assert negative.loc[("q2", "8"), "b.score"] == np.float32(-0.5)  # not above what it does list


def test_agreement_is_counted_and_averaged_over_all_members():
    rows = make_rows()
    assert_column(rows, "all.first", [1, 1, 2])
    assert_column(rows, "all.listed", [2, 2, 2])
    assert_column(rows, "all.mean", [0.5, 0.3, 0.35])
    assert_column(rows, "all.max", [0.6, 0.5, 0.9])
    assert_column(rows, "all.spread", [0.2, 0.4, 1.1])
    assert_column(rows, "all.geometric", np.sqrt([0.24, 0.05, 0.9 * SCORE_FLOOR]))


def test_evidence_of_a_landmark_that_a_member_does_not_list_is_its_lowest_for_the_query():
    candidates = CANDIDATES.assign(cosine=[0.5, 0.25, -0.75, 0.125, 0.375, 0.625, 0.5, 0.875])
    rows = make_rows(candidates=candidates, per_member=3)
    assert rows[["query", "landmark_id"]].agg("".join, axis=1).tolist() == ["q17", "q18", "q19", "q27", "q28"]
    assert_column(rows, "a.cosine", [0.5, 0.25, -0.75, 0.625, 0.625])
    assert_column(rows, "b.cosine", [0.375, 0.125, 0.125, 0.875, 0.5])
    rows = make_rows(candidates=candidates.drop(index=5), per_member=3)
    assert_column(rows, "a.cosine", [0.5, 0.25, -0.75, 0, 0])  # of q2 it lists nothing


def test_evidence_is_merged_over_the_members_that_have_it():
    rows = make_rows(candidates=CANDIDATES.assign(cosine=[0.5, 0.25, 0, 0.125, 0.375, -0.5, 0.25, 0], inliers=range(8)))
    assert_column(rows, "all.cosine", [0.4375, 0.0625, -0.125])
    assert_column(rows, "all.inliers", [4, 3, 6])
    alone = CANDIDATES.assign(cosine=[0.5, 0.25, 0, np.nan, np.nan, -0.5, np.nan, np.nan])
    rows = make_rows(candidates=alone)
    assert_column(rows, "all.cosine", rows["a.cosine"])
    assert not {"b.cosine", "all.inliers"} & set(rows.columns)


def test_without_evidence_there_is_no_such_feature():
    assert not [name for name in make_rows().columns if name.endswith(("cosine", "inliers"))]


def test_shares_are_within_the_query_and_balanced_by_class_size():
    rows = make_rows()
    geometric = np.sqrt([0.24, 0.05])
    assert_column(rows, "all.share", [*(geometric / geometric.sum()), 1])
    assert_column(rows, "query.top_share", [geometric[0] / geometric.sum()] * 2 + [1])
    balanced = geometric / np.sqrt([4, 25])
    assert_column(rows, "all.balanced", [*balanced, np.sqrt(0.9 * SCORE_FLOOR)])
    assert_column(rows, "all.balanced_share", [*(balanced / balanced.sum()), 1])


def test_class_size_is_what_the_querys_own_fold_was_trained_on():
    assert_column(make_rows(), "class.size", [3, 24, 0])  # fold 1 has never seen landmark 8
    assert_column(make_rows(per_member=2), "class.size", [3, 0, 24, 8, 0])


def test_query_features_stand_in_every_row_of_the_query():
    rows = make_rows()
    assert_column(rows, "query.a.entropy", [1.5, 1.5, 0.5])
    assert_column(rows, P_LANDMARK, [0.75, 0.75, 0.25])
    assert_column(rows, "query.min_side", np.log([64, 64, 50]))
    assert "query.a.p_landmark" not in rows  # the gate's column, empty for members


def test_without_a_gate_there_is_no_gate_feature():
    assert P_LANDMARK not in make_rows(features=FEATURES[FEATURES["member"] != "gate"])


def test_members_not_asked_for_leave_no_trace():
    rows = make_rows(members=["a"])
    assert not [name for name in rows.columns if "b." in name]
    assert rows["landmark_id"].tolist() == ["7", "8"]


def test_a_query_without_candidates_has_no_row():
    queries = pd.concat([QUERIES, QUERIES.iloc[:1].assign(id="q0")])
    said = pd.DataFrame({"member": ["a", "b", "gate"], "query": "q0", "entropy": 1.0, "p_landmark": 0.5})
    everything = pd.concat([FEATURES, pd.DataFrame({"member": "b", "query": ["q1", "q2"], "entropy": 1.0}), said])
    everything.loc[everything["member"] == "gate", "entropy"] = np.nan
    everything.loc[everything["member"] != "gate", "p_landmark"] = np.nan
    rows = make_rows(features=everything, queries=queries)
    assert set(rows["query"]) == {"q1", "q2"}


def test_no_candidates_at_all_make_an_empty_table_with_every_column():
    said = pd.concat([FEATURES, pd.DataFrame({"member": "b", "query": ["q1", "q2"], "entropy": 1.0})])
    rows = make_rows(candidates=CANDIDATES[:0], features=said)
    assert len(rows) == 0
    assert {"a.score", "all.share", "class.size"} <= set(rows.columns)


def test_features_are_finite_float32_and_named_in_order(rows):
    names = feature_names(rows)
    assert list(KEYS) + list(names) == list(rows.columns)
    assert {str(dtype) for dtype in rows.dtypes[list(names)]} == {"float32"}
    assert np.isfinite(rows[list(names)].to_numpy()).all()


def test_features_lie_in_one_block_that_is_read_without_a_copy(rows):
    names = list(feature_names(rows))
    assert np.shares_memory(rows[names].to_numpy(), rows[names].to_numpy())


def test_mark_right_knows_no_right_row_where_there_is_no_landmark():
    assert mark_right(make_rows(per_member=2), QUERIES).tolist() == [False, False, True, False, False]
    assert not mark_right(make_rows(), QUERIES.assign(landmark_id=None)).any()


@pytest.fixture(scope="module")
def evident_rows(evident):
    found = evident.rows()
    assert {"small.cosine", "nearest.cosine", "all.cosine", "small.votes.small"} < set(found.columns)
    return found


@few
@given(seed=st.integers(0, 1000))
def test_the_order_of_rows_and_members_never_matters(evident, evident_rows, seed):
    members = np.random.default_rng(seed).permutation(["large", "small", "nearest"]).tolist()
    pd.testing.assert_frame_equal(evident.shuffled(seed).rows(members), evident_rows, check_exact=True)


@few
@given(seed=st.integers(0, 1000))
def test_a_querys_rows_do_not_depend_on_the_other_queries(evident, evident_rows, seed):
    queries = evident.queries.sample(50, random_state=seed)

    def asked(table):
        return table[table["query"].isin(queries["id"])]

    alone = replace(
        evident,
        candidates=asked(evident.candidates),
        query_features=asked(evident.query_features),
        queries=queries,
    ).rows()
    pd.testing.assert_frame_equal(alone, asked(evident_rows).reset_index(drop=True), check_exact=True)


@pytest.mark.faults
@pytest.mark.parametrize(
    ("features", "message"),
    [
        (FEATURES.assign(entropy=[1.5, np.inf, np.nan, np.nan]), "of 'a': 'entropy' is missing or not finite for 1"),
        (FEATURES.drop(index=3), "of 'gate': 'p_landmark' is missing or not finite for 1"),
        (pd.concat([FEATURES, FEATURES.iloc[:1]]), "of 'a': 'q1' stands there twice"),
        (pd.concat([FEATURES, FEATURES.iloc[:1].assign(query="q9")]), "of 'a': 'q9' is not among the queries"),
    ],
)
def test_query_features_that_do_not_fit_are_named(features, message):
    with pytest.raises(DataError, match=message):
        make_rows(features=features)
