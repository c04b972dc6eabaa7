"""A submission file against a solution file: its GAP, with an interval.

A solution is a CSV with `id,landmarks`: the one landmark a photo shows, or nothing (or `None`). Further columns are
ignored.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from engine.core.config import ValidationConfig
from engine.core.csvfile import read_rows
from engine.core.errors import SubmissionError, raise_problems
from engine.core.gap import align, bootstrap_gap, prevalence_weights, score_queries
from submissions.submission import COLUMNS, LANDMARK_ID, read_submission

NO_LANDMARK = ("", "None")  # the challenge's own CSVs write None


@dataclass(frozen=True)
class Score:
    """What a submission is worth.

    Attributes:
        gap: 0..1.
        gap_low: lower end of its bootstrap interval.
        gap_high: upper end.
        queries: photos of the solution.
        with_landmark: those that show a landmark.
        answered: those with an answer.
        correct: those with the right answer.
    """

    gap: float
    gap_low: float
    gap_high: float
    queries: int
    with_landmark: int
    answered: int
    correct: int


def read_solution(path: Path) -> pd.DataFrame:
    """Read a solution.

    Returns:
        Columns id, landmark_id (null: shows no landmark of the training set), in the file's order.

    Raises:
        SubmissionError: with every problem found: a row that is not one landmark or none, an id given twice.
    """
    truth: dict[str, str | None] = {}
    problems = []
    for line, row in read_rows(path, COLUMNS, error=SubmissionError):
        photo, landmark = row["id"], row["landmarks"]
        if photo in truth:
            problems.append(f"{path}:{line}: id '{photo}' stands there a second time")
        if landmark and not LANDMARK_ID.fullmatch(landmark):
            problems.append(f"{path}:{line}: {landmark!r} is not one landmark id, or nothing")
        truth[photo] = None if landmark in NO_LANDMARK else landmark
    raise_problems(SubmissionError, problems, hint="correct those rows of the solution")
    return pd.DataFrame({"id": list(truth), "landmark_id": pd.Series(list(truth.values()), dtype=object)})


def score_file(submission: Path, solution: Path, config: ValidationConfig, *, rng: np.random.Generator) -> Score:
    """Score a submission file.

    Args:
        submission: the CSV file to score.
        solution: the CSV file with the truth; the two have to hold the same ids.
        config: resamples and level of the interval, and the prevalence to weigh the queries to, if any.
        rng: where the resamples come from.

    Raises:
        SubmissionError: when either file breaks the rules, or their ids differ.
        DataError: when the solution names no landmark, or the prevalence cannot be reached.
    """
    truth = read_solution(solution)
    answers = read_submission(submission, test_ids=truth["id"].tolist(), ids_from=str(solution))
    weights = prevalence_weights(truth["landmark_id"].notna().to_numpy(dtype=np.bool_), config.prevalence)
    queries = align(answers, truth, weights=weights)
    interval = bootstrap_gap(queries, resamples=config.bootstrap, level=config.confidence_level, rng=rng)
    return Score(
        gap=score_queries(queries),
        gap_low=interval.low,
        gap_high=interval.high,
        queries=len(queries.ids),
        with_landmark=int(np.count_nonzero(queries.has_landmark)),
        answered=int(np.count_nonzero(queries.answered)),
        correct=int(np.count_nonzero(queries.correct)),
    )
