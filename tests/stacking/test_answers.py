"""Answers: one for every query, the best candidate, ties by rule."""

import numpy as np
import pandas as pd
import pytest

from engine.core.tables import ANSWERS, read_table, write_table
from stacking.answers import answer_alone, pick_answers

QUERIES = pd.DataFrame({"id": ["q2", "q1", "q3"]})


def table(*rows):
    return pd.DataFrame(rows, columns=["query", "landmark_id", "all.mean"])


def answer(rows, scores):
    return pick_answers(rows, np.asarray(scores, dtype=float), QUERIES, decided_by="rule").set_index("id")


def test_the_highest_score_answers_and_is_the_confidence():
    answers = answer(table(("q1", "7", 0.9), ("q1", "8", 0.1), ("q2", "7", 0.5)), [0.2, 0.3, 0.25])
    assert answers.loc["q1", ["landmark_id", "confidence", "decided_by"]].tolist() == ["8", 0.3, "rule"]
    assert answers.loc["q2", "confidence"] == 0.25


@pytest.mark.parametrize(
    ("means", "winner"),
    [([0.1, 0.3, 0.2], "11"), ([0.3, 0.3, 0.3], "10"), ([0.1, 0.3, 0.3], "11")],
)
def test_equal_scores_go_to_the_higher_mean_then_to_the_smaller_landmark_id(means, winner):
    rows = table(*zip(["q1"] * 3, ["10", "11", "9"], means, strict=True))
    assert answer(rows, [0.5, 0.5, 0.5]).loc["q1", "landmark_id"] == winner
    assert answer(rows[::-1], [0.5, 0.5, 0.5]).loc["q1", "landmark_id"] == winner


def test_every_query_has_a_row_and_one_without_candidates_no_landmark():
    answers = answer(table(("q1", "7", 0.9)), [0.2])
    assert answers.index.tolist() == ["q1", "q2", "q3"]
    assert answers["landmark_id"].isna().tolist() == [False, True, True]
    assert answers["confidence"].tolist() == [0.2, 0, 0]


def test_a_member_alone_gives_its_first_and_its_own_score():
    candidates = pd.DataFrame(
        {"member": ["a", "a", "b"], "query": "q1", "landmark_id": ["7", "8", "9"], "score": [0.4, 0.6, 0.9]}
    ).assign(rank=[2, 1, 1])
    answers = answer_alone(candidates, "a", QUERIES).set_index("id")
    assert answers.loc["q1", ["landmark_id", "confidence", "decided_by"]].tolist() == ["8", 0.6, "a"]
    assert answers["landmark_id"].notna().sum() == 1


def test_answers_are_the_table_answers(tmp_path):
    answers = answer(table(("q1", "7", 0.9)), [1 / 3]).reset_index()
    write_table(tmp_path / "answers.parquet", answers, ANSWERS)
    pd.testing.assert_frame_equal(read_table(tmp_path / "answers.parquet", ANSWERS), answers, check_dtype=False)
