"""The leaderboard: sorted, with intervals, weighted to the share of landmarks asked for, and paired."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from engine.core.config import ValidationConfig
from engine.core.errors import DataError
from engine.core.gap import prevalence_weights, score_answers
from stacking.evaluate import Entry
from stacking.leaderboard import compare_stack, rank_entries, score_by_size, score_tail

QUERIES = pd.DataFrame({"id": [f"q{i:03d}" for i in range(120)]}).assign(
    landmark_id=[str(i % 7) if i % 3 else None for i in range(120)]
)


def entry(name, kind, share_right, seed=0):
    """Answers of which about that share is right, the right ones tending to stand first."""
    rng = np.random.default_rng(seed)
    right = rng.random(len(QUERIES)) < share_right
    given = QUERIES["landmark_id"].where(right & QUERIES["landmark_id"].notna().to_numpy(), "99")
    confidence = rng.random(len(QUERIES)) + 0.5 * right
    answers = pd.DataFrame({"id": QUERIES["id"], "landmark_id": given, "confidence": confidence, "decided_by": name})
    return Entry(name, kind, answers, 2.0)


ENTRIES = [
    entry("weak", "member", 0.3), entry("fair", "member", 0.5), entry("mean", "baseline", 0.6),
    entry("stack", "stack", 0.95),
]  # fmt: skip


def test_rows_are_sorted_by_gap_and_hold_the_exact_score(validation_config):
    board = rank_entries(ENTRIES, QUERIES, validation_config, seed=0)
    assert [row["name"] for row in board] == ["stack", "mean", "fair", "weak"]
    by_name = {each.name: each for each in ENTRIES}
    for row in board:
        assert row["gap"] == score_answers(by_name[row["name"]].answers, QUERIES)
        assert row["gap_low"] < row["gap"] < row["gap_high"]
        assert row["gap"] <= row["accuracy"]
        assert row["fit_seconds"] == 2.0


def test_rows_are_plain_values_that_json_takes(validation_config):
    board = rank_entries(ENTRIES, QUERIES, validation_config, seed=0)
    assert json.loads(json.dumps(board)) == board
    assert {type(value) for row in board for value in row.values()} == {str, float}


def test_an_entrys_numbers_do_not_depend_on_the_other_entries(validation_config):
    assert (
        rank_entries(ENTRIES[3:], QUERIES, validation_config, seed=0)
        == (rank_entries(ENTRIES, QUERIES, validation_config, seed=0)[:1])
    )


def test_fewer_landmarks_make_the_score_lower():
    gaps = [
        rank_entries(ENTRIES[:1], QUERIES, ValidationConfig(prevalence=share, bootstrap=10), seed=0)[0]["gap"]
        for share in (0.9, 0.5, 0.03)
    ]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[0] > gaps[-1] + 0.1


def test_the_stack_is_compared_with_every_other_entry_the_best_first(validation_config):
    found = compare_stack(ENTRIES, QUERIES, validation_config, seed=0)
    assert [(each.ours, each.theirs, each.kind) for each in found] == [
        ("stack", "mean", "baseline"), ("stack", "fair", "member"), ("stack", "weak", "member"),
    ]  # fmt: skip
    board = {row["name"]: row["gap"] for row in rank_entries(ENTRIES, QUERIES, validation_config, seed=0)}
    for each in found:
        assert each.difference.estimate == board["stack"] - board[each.theirs]
        assert 0 < each.difference.low < each.difference.estimate < each.difference.high
        assert each.difference.p_value < 0.05


def test_a_comparison_does_not_depend_on_the_others_nor_on_their_order(validation_config):
    found = compare_stack(ENTRIES, QUERIES, validation_config, seed=0)
    assert compare_stack(ENTRIES[::-1], QUERIES, validation_config, seed=0) == found
    assert compare_stack([ENTRIES[1], ENTRIES[3]], QUERIES, validation_config, seed=0) == found[1:2]


def test_equal_entries_are_compared_by_name(validation_config):
    twin = replace(ENTRIES[1], name="a twin")
    found = compare_stack([*ENTRIES, twin], QUERIES, validation_config, seed=0)
    assert [each.theirs for each in found] == ["mean", "a twin", "fair", "weak"]
    assert found[1].difference == found[2].difference


@pytest.mark.faults
@pytest.mark.parametrize("stacks", [0, 2])
def test_what_is_compared_is_one_stack(stacks, validation_config):
    with pytest.raises(DataError, match=f"there are {stacks} stacks to compare, wanted one"):
        compare_stack([*ENTRIES[:3], *ENTRIES[3:] * stacks], QUERIES, validation_config, seed=0)


@pytest.mark.faults
def test_queries_without_any_landmark_have_no_gap(validation_config):
    with pytest.raises(DataError, match="number of queries that show a landmark"):
        rank_entries(ENTRIES, QUERIES.assign(landmark_id=None), validation_config, seed=0)


def test_each_size_band_is_scored_alone(validation_config):
    sides = np.tile([20, 64, 127, 300], 30)
    sized = QUERIES.assign(width=sides, height=sides + 5)
    bands = score_by_size(ENTRIES, sized, validation_config)
    assert [band["shorter_side"] for band in bands] == ["under 64 px", "64 to 127 px", "256 px or more"]
    assert [band["queries"] for band in bands] == [30, 60, 30]
    for band, inside in zip(bands, [sides < 64, (sides >= 64) & (sides < 128), sides >= 256], strict=True):
        truth = QUERIES[inside]
        assert band["landmarks"] == truth["landmark_id"].notna().sum()
        for each in ENTRIES:
            answers = each.answers[each.answers["id"].isin(truth["id"])]
            assert band["gaps"][each.name] == score_answers(answers, truth)


def test_a_band_without_a_landmark_has_no_gap(validation_config):
    sides = np.where(QUERIES["landmark_id"].isna(), 20, 200)
    bands = score_by_size(ENTRIES, QUERIES.assign(width=sides, height=sides), validation_config)
    assert [set(band["gaps"].values()) == {None} for band in bands] == [True, False]


def test_the_bands_share_the_weights_of_all_queries():
    sides = np.where(QUERIES["landmark_id"].isna() | (QUERIES.index % 2 == 0), 20, 200)  # the large all show a landmark
    sized, config = QUERIES.assign(width=sides, height=sides), ValidationConfig(prevalence=0.3)
    weights = prevalence_weights(QUERIES["landmark_id"].notna().to_numpy(), 0.3)
    for band, inside in zip(score_by_size(ENTRIES, sized, config), [sides == 20, sides == 200], strict=True):
        for each in ENTRIES:
            answers = each.answers[inside]
            expected = score_answers(answers, QUERIES[inside], weights=weights[inside])
            assert band["gaps"][each.name] == pytest.approx(expected, abs=1e-12)


def test_the_tail_is_the_share_of_right_answers_by_class_size():
    asked = QUERIES.assign(fold=QUERIES.index % 2)
    sizes = pd.DataFrame(
        [(fold, str(landmark), [1, 2, 3, 6, 50, 50, 50][landmark] + fold) for fold in (0, 1) for landmark in range(7)],
        columns=["fold", "landmark_id", "size"],
    )
    bands = score_tail(ENTRIES, asked, sizes)
    assert [band["photos"] for band in bands] == ["1 photo", "2 or 3", "4 or 5", "6 to 10", "more"]
    size = {(fold, landmark): count for fold, landmark, count in sizes.itertuples(index=False)}
    for band, (low, high) in zip(bands, [(1, 1), (2, 3), (4, 5), (6, 10), (11, 99)], strict=True):
        inside = [
            (query, landmark)
            for query, landmark, fold in asked.dropna()[["id", "landmark_id", "fold"]].itertuples(index=False)
            if low <= size[fold, landmark] <= high
        ]
        assert band["queries"] == len(inside) > 0
        for each in ENTRIES:
            given = dict(zip(each.answers["id"], each.answers["landmark_id"], strict=True))
            expected = np.mean([given[query] == landmark for query, landmark in inside])
            assert band["accuracies"][each.name] == pytest.approx(expected)


def test_a_query_without_a_known_landmark_is_no_part_of_the_tail():
    sizes = pd.DataFrame({"fold": [0], "landmark_id": ["1"], "size": [1.0]})
    [band] = score_tail(ENTRIES, QUERIES.assign(fold=0), sizes)
    assert band["queries"] == (QUERIES["landmark_id"] == "1").sum()
