"""Candidates as codes: sorted, complete, and refused when they are not about the queries."""

import numpy as np
import pandas as pd
import pytest

from engine.core.errors import DataError
from stacking.listings import list_candidates, require_heard

QUERIES = pd.DataFrame({"id": ["q2", "q1"]})


def listed(*rows):
    frame = pd.DataFrame(rows, columns=["member", "query", "landmark_id", "score", "rank"])
    return frame.astype({"score": np.float32, "rank": np.int16})


def test_listings_are_sorted_by_query_then_landmark():
    candidates = listed(("m", "q2", "7", 0.5, 1), ("m", "q1", "9", 0.2, 2), ("m", "q1", "8", 0.3, 1))
    book, (listing,) = list_candidates(candidates, QUERIES, ["m"])
    assert list(book.queries) == ["q1", "q2"]
    assert list(book.landmarks) == ["7", "8", "9"]
    assert list(book.queries[listing.query]) == ["q1", "q1", "q2"]
    assert list(book.landmarks[book.landmark_of(listing.pair)]) == ["8", "9", "7"]
    np.testing.assert_allclose(listing.score, [0.3, 0.2, 0.5])
    assert list(listing.rank) == [1, 2, 1]


def test_ids_that_look_like_numbers_stay_apart():
    candidates = listed(("m", "q1", "0012", 0.5, 1), ("m", "q1", "12", 0.4, 2), ("m", "q1", "12e0", 0.3, 3))
    book, (listing,) = list_candidates(candidates, QUERIES, ["m"])
    assert list(book.landmarks) == ["0012", "12", "12e0"]
    assert len(listing.pair) == 3


def test_further_columns_are_evidence_of_the_members_that_have_them():
    candidates = listed(("m", "q2", "7", 0.5, 1), ("n", "q1", "7", 0.5, 1), ("m", "q1", "7", 0.2, 1))
    candidates = candidates.assign(votes=[0.25, np.nan, 0.5], inliers=[2.0, np.nan, 1.0], none=np.nan)
    _, (m, n) = list_candidates(candidates, QUERIES, ["m", "n"])
    assert list(m.evidence) == ["inliers", "votes"]
    assert m.evidence["inliers"].tolist() == [1, 2]  # of q1, then of q2
    assert m.evidence["votes"].tolist() == [0.5, 0.25]
    assert n.evidence == {}


@pytest.mark.faults
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_evidence_that_a_member_has_of_some_candidates_only_is_refused(value):
    candidates = listed(("m", "q1", "7", 0.5, 1), ("m", "q2", "7", 0.5, 1)).assign(votes=[0.25, value])
    with pytest.raises(DataError, match="candidates of 'm': 'votes' is missing or not finite for 1 of 2"):
        list_candidates(candidates, QUERIES, ["m"])


def test_other_members_are_left_out():
    candidates = listed(("m", "q1", "7", 0.5, 1), ("other", "nobody", "8", np.nan, 1))
    book, listings = list_candidates(candidates, QUERIES, ["m"])
    assert list(book.landmarks) == ["7"]
    assert [listing.member for listing in listings] == ["m"]


@pytest.mark.faults
@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("m", "q9", "7", 0.5, 1), "'m': 'q9' is not among the queries"),
        (("m", "q1", "7", 0.4, 2), "'m': 'q1' lists landmark '7' twice"),
        (("m", "q2", "7", np.inf, 1), "'m': 'score' is missing or not finite for 1 of 2"),
    ],
)
def test_a_candidate_that_does_not_fit_is_named(row, message):
    with pytest.raises(DataError, match=message):
        list_candidates(listed(("m", "q1", "7", 0.5, 1), row), QUERIES, ["m"])


@pytest.mark.faults
def test_a_query_given_twice_is_refused():
    with pytest.raises(DataError, match="id 'q1' stands there twice"):
        list_candidates(listed(("m", "q1", "7", 0.5, 1)), pd.DataFrame({"id": ["q1", "q1"]}), ["m"])


@pytest.mark.faults
def test_all_problems_are_shown_together():
    candidates = listed(("m", "q8", "7", 0.5, 1), ("n", "q9", "7", 0.5, 1))
    with pytest.raises(DataError, match=r"(?s)'m': 'q8'.*'n': 'q9'"):
        list_candidates(candidates, QUERIES, ["m", "n"])


@pytest.mark.faults
def test_a_member_of_another_data_set_is_refused_with_counts():
    candidates = listed(("m", "q1", "7", 0.5, 1))
    with pytest.raises(DataError, match="'m' says nothing about 1 of 2 queries, first 'q2'"):
        require_heard(candidates, pd.DataFrame({"member": [], "query": []}, dtype="str"), QUERIES, ["m"])


def test_a_member_may_list_nothing_for_a_query_it_has_features_of():
    features = pd.DataFrame({"member": ["m"], "query": ["q2"], "max": [0.0]})
    require_heard(listed(("m", "q1", "7", 0.5, 1)), features, QUERIES, ["m"])
