"""Answers to a checked file, and files to their scores."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from engine.core.catalog import bad_images
from engine.core.config import ValidationConfig
from engine.core.csvfile import read_rows
from engine.core.errors import DataError, SubmissionError, raise_problems
from engine.core.progress import Progress
from engine.core.runs import TRAIN_ZOO, Run
from engine.core.tables import ANSWERS, CATALOG
from engine.pipeline.artifacts import ANSWERS_TEST, STACK

if TYPE_CHECKING:
    from submissions.score import Score
    from submissions.submission import CheckReport

SUBMISSION = "submission.csv"


def submit(run_folder: Path, progress: Progress, *, allow_missing: bool = False) -> tuple[Path, CheckReport]:
    """Write and check `submission.csv`: every test id once, in the order of test.csv.

    Raises:
        ArtifactError: when the stack has not answered the test set yet.
        DataError: when test photos are missing or broken and `allow_missing` is not set.
        SubmissionError: when there is no test set.
    """
    from submissions.submission import build_submission, check_submission, write_submission

    run = Run(run_folder)
    with run.locked():
        catalog = run.load_table("catalog.parquet", CATALOG, made_by=TRAIN_ZOO)
        test_ids = catalog.loc[catalog["split"] == "test", "id"].tolist()
        if not test_ids:
            raise SubmissionError("the run has no test photos", hint="add test.csv to the data and train again")
        if not allow_missing:
            check_unreadable(catalog)
        answers = run.load_table(ANSWERS_TEST, ANSWERS, made_by=STACK)
        path = run.path(SUBMISSION)
        inputs = {
            "answers": run.hash_of(ANSWERS_TEST, made_by=STACK),
            "catalog": run.hash_of("catalog.parquet", made_by=TRAIN_ZOO),
        }
        if not run.is_fresh(SUBMISSION, inputs):
            write_submission(path, build_submission(answers, test_ids))
            run.record(SUBMISSION, kind="submission", version=1, inputs=inputs)
        report = check_submission(path, test_ids, set(catalog["landmark_id"].dropna()))
    progress.say(f"{path}: written and checked")
    return path, report


def check_unreadable(catalog: pd.DataFrame) -> None:
    """Refuse a test set with photos that could not be read.

    Raises:
        DataError: listing them.
    """
    bad = bad_images(catalog)
    bad = bad[bad["split"] == "test"]
    problems = [f"test photo {row.id}: {row.reason}" for row in bad.itertuples()]
    raise_problems(DataError, problems, hint="mend them, or use --allow-missing to leave them without an answer")


def check_file(path: Path, data: Path | None) -> CheckReport:
    """Check a submission file, against a data folder when one is given."""
    from submissions.submission import check_submission

    if data is None:
        return check_submission(path)
    test_ids = [row["id"] for _, row in read_rows(data / "test.csv", ["id"], error=DataError)]
    known = {row["landmark_id"] for _, row in read_rows(data / "train.csv", ["landmark_id"], error=DataError)}
    known -= {"", "None"}  # a training photo without a landmark
    return check_submission(path, test_ids, known, ids_from=str(data / "test.csv"))


def score(path: Path, solution: Path) -> Score:
    """Score a submission file against its solution."""
    from submissions.score import score_file

    return score_file(path, solution, ValidationConfig(), rng=np.random.default_rng(0))
