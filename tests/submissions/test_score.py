"""A submission file against a solution file."""

from __future__ import annotations

import numpy as np
import pytest

from engine.core.config import ValidationConfig
from engine.core.errors import DataError, SubmissionError
from submissions.score import read_solution, score_file

QUICK = ValidationConfig(bootstrap=50)


def _score(folder, submission, solution, config=QUICK):
    for name, text in (("submission.csv", submission), ("solution.csv", solution)):
        (folder / name).write_text(text, encoding="utf-8")
    rng = np.random.default_rng(0)
    return score_file(folder / "submission.csv", folder / "solution.csv", config, rng=rng)


def test_score_file_counts_and_scores(tmp_path):
    score = _score(
        tmp_path,
        "id,landmarks\na,7 0.9\nb,8 0.7\nc,7 0.8\nd,\n",
        "id,landmarks,Usage\nd,9,Private\nc,,Public\nb,8,Public\na,7,Private\n",
    )
    assert score.gap == pytest.approx((1 + 2 / 3) / 3)
    assert 0 <= score.gap_low <= score.gap <= score.gap_high <= 1
    assert (score.queries, score.with_landmark, score.answered, score.correct) == (4, 3, 3, 2)


def test_score_file_can_weigh_the_queries_to_another_prevalence(tmp_path):
    config = ValidationConfig(bootstrap=50, prevalence=0.25)  # the photo without a landmark stands for three
    score = _score(tmp_path, "id,landmarks\na,7 0.1\nb,7 0.9\n", "id,landmarks\na,7\nb,\n", config)
    assert score.gap == pytest.approx(1 / 4)


def test_score_file_is_the_same_for_the_same_generator(tmp_path):
    submission = "id,landmarks\n" + "".join(f"{i},{i % 3} 0.{i}\n" for i in range(9))
    solution = "id,landmarks\n" + "".join(f"{i},{i % 2}\n" for i in range(9))
    assert _score(tmp_path, submission, solution) == _score(tmp_path, submission, solution)


@pytest.mark.faults
def test_an_empty_answer_to_a_photo_without_a_landmark_is_not_a_hit(tmp_path):
    score = _score(tmp_path, "id,landmarks\na,\nb,\n", "id,landmarks\na,7\nb,\n")
    assert (score.gap, score.correct) == (0.0, 0)


@pytest.mark.faults
def test_score_file_says_which_ids_differ_from_which_file(tmp_path):
    with pytest.raises(SubmissionError) as caught:
        _score(tmp_path, "id,landmarks\na,7 0.5\nx,\n", "id,landmarks\na,7\nb,\n")
    assert "solution.csv have no row: b" in str(caught.value)
    assert "ids are not in" in str(caught.value)
    assert "x (line 3)" in str(caught.value)


@pytest.mark.faults
def test_score_file_without_a_landmark_in_the_solution_is_a_named_error(tmp_path):
    with pytest.raises(DataError, match="number of queries that show a landmark"):
        _score(tmp_path, "id,landmarks\na,7 0.5\n", "id,landmarks\na,\n")


def test_read_solution_reads_no_landmark_as_null(tmp_path):
    path = tmp_path / "solution.csv"
    path.write_bytes(b"\xef\xbb\xbfid,landmarks\r\n0012,0007\r\nnan,\r\nb,None\r\n")
    truth = read_solution(path)
    assert list(truth.itertuples(index=False, name=None)) == [("0012", "0007"), ("nan", None), ("b", None)]


@pytest.mark.faults
@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("b,7 8", "solution.csv:3: '7 8' is not one landmark id, or nothing"),
        ("b,7 0.5", "solution.csv:3: '7 0.5' is not one landmark id, or nothing"),
        ("a,8", "solution.csv:3: id 'a' stands there a second time"),
        ("b", "solution.csv:3: has 1 values, the header has 2 columns"),
    ],
)
def test_read_solution_refuses_a_bad_row_by_line(tmp_path, row, said):
    path = tmp_path / "solution.csv"
    path.write_text(f"id,landmarks\na,7\n{row}\n", encoding="utf-8")
    with pytest.raises(SubmissionError) as caught:
        read_solution(path)
    assert said in str(caught.value)
