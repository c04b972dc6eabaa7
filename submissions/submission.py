"""Answers to a submission file and back: `id,landmarks`, one row per test photo, `<landmark_id> <confidence>` or empty.

Written atomically as UTF-8 with LF; a confidence is written with the digits that read back as the same number, and '.'.
What is written obeys the rules that are read: ids and plain numbers only, so no field is a spreadsheet formula.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from engine.core.csvfile import read_rows
from engine.core.errors import SHOWN, SubmissionError, raise_problems
from engine.core.storage import write_text

COLUMNS = ("id", "landmarks")
LANDMARK_ID = re.compile("[0-9A-Za-z_][0-9A-Za-z_-]{0,63}")  # not '-' first: a spreadsheet would take it for a formula
_NUMBER = re.compile(r"-?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what makes a spreadsheet run a field
_REMEDY = "rebuild it with 'engine submit', or correct it"


@dataclass(frozen=True)
class CheckReport:
    """What a valid submission holds.

    Attributes:
        rows: test photos.
        answered: those with an answer.
        landmarks: different landmarks among the answers.
        lowest: the smallest confidence, None without answers.
        highest: the largest.
        tied: answers that share their confidence with another one.
    """

    rows: int
    answered: int
    landmarks: int
    lowest: float | None
    highest: float | None
    tied: int

    @property
    def empty(self) -> int:
        """Test photos without an answer."""
        return self.rows - self.answered

    @property
    def notices(self) -> tuple[str, ...]:
        """What is allowed but rarely meant, one sentence each."""
        notices = []
        if not self.answered:
            notices.append("no photo has an answer: the score will be 0")
        if self.tied:
            notices.append(f"{self.tied:,} answers share their confidence with another: the ids decide their order")
        return tuple(notices)


def build_submission(answers: pd.DataFrame, test_ids: Sequence[str]) -> pd.DataFrame:
    """Lay answers over the test photos.

    Args:
        answers: columns id, landmark_id (null: no answer), confidence; a photo may be absent.
        test_ids: every photo of the test set, in the order of the file.

    Returns:
        Columns id, landmarks; every test id once, in the given order.

    Raises:
        SubmissionError: on an id given twice, an id outside the test set, or an answer that the file cannot hold.
    """
    expected, ids = pd.Index(test_ids), answers["id"]
    problems = [
        *_counted("test ids are given more than once", expected[expected.duplicated()]),
        *_counted("ids are answered more than once", ids[ids.duplicated()]),
        *_counted("answered ids are not in the test set", ids[~ids.isin(expected)]),
        *filter(None, map(_id_problem, test_ids)),
    ]
    fields = {}
    rows = answers[answers["landmark_id"].notna()]
    for photo, landmark, confidence in zip(rows["id"], rows["landmark_id"], rows["confidence"], strict=True):
        fields[photo] = f"{landmark} {float(confidence)!r}"
        try:
            _parse_answer(fields[photo])
        except ValueError as error:
            problems.append(f"answer of id '{photo}': {error}")
    raise_problems(SubmissionError, problems, hint="make the answers again with 'engine stack'")
    return pd.DataFrame({"id": list(test_ids), "landmarks": [fields.get(photo, "") for photo in test_ids]})


def write_submission(path: Path, frame: pd.DataFrame) -> None:
    """Write what `build_submission` made; a killed process leaves the old file or the new one, whole.

    Raises:
        ResourceError: when the file cannot be written.
    """
    write_text(path, frame[list(COLUMNS)].to_csv(index=False, lineterminator="\n"))


def read_submission(
    path: Path,
    *,
    test_ids: Collection[str] | None = None,
    ids_from: str = "the test set",
    known_landmarks: Collection[str] | None = None,
) -> pd.DataFrame:
    """Read a submission and refuse it unless every row obeys the rules.

    Args:
        path: the CSV file.
        test_ids: the ids that have to be there, each once; None does not compare.
        ids_from: what `test_ids` came from, for the messages: a file's name.
        known_landmarks: the landmarks of the training set; None does not compare.

    Returns:
        Columns id, landmark_id (null: no answer), confidence (0 where there is no answer), in the file's order.

    Raises:
        SubmissionError: with every problem found.
    """
    lines, frame, malformed = _parse_rows(path)
    places = pd.Series([f"{photo} (line {line})" for line, photo in zip(lines, frame["id"], strict=True)], dtype=object)
    problems = _counted("ids stand there more than once", places[frame["id"].duplicated()])
    if test_ids is not None:
        missing = set(test_ids).difference(frame["id"])
        problems += _counted(f"ids of {ids_from} have no row", [photo for photo in test_ids if photo in missing])
        problems += _counted(f"ids are not in {ids_from}", places[~frame["id"].isin(set(test_ids))])
    if known_landmarks is not None:
        unknown = frame["landmark_id"].notna() & ~frame["landmark_id"].isin(set(known_landmarks))
        named = frame["landmark_id"][unknown] + " of " + places[unknown]
        problems += _counted("answers name a landmark that training never saw", named)
    raise_problems(SubmissionError, [f"{path}: {problem}" for problem in problems] + malformed, hint=_REMEDY)
    return frame


def check_submission(
    path: Path,
    test_ids: Collection[str] | None = None,
    known_landmarks: Collection[str] | None = None,
    *,
    ids_from: str = "the test set",
) -> CheckReport:
    """Check a submission and tell what it holds; see `read_submission` for the arguments.

    Raises:
        SubmissionError: with every problem found.
    """
    frame = read_submission(path, test_ids=test_ids, ids_from=ids_from, known_landmarks=known_landmarks)
    answers = frame[frame["landmark_id"].notna()]
    confidence = answers["confidence"]
    return CheckReport(
        rows=len(frame),
        answered=len(answers),
        landmarks=answers["landmark_id"].nunique(),
        lowest=float(confidence.min()) if len(answers) else None,
        highest=float(confidence.max()) if len(answers) else None,
        tied=int(confidence.duplicated(keep=False).sum()),
    )


def _parse_rows(path: Path) -> tuple[list[int], pd.DataFrame, list[str]]:
    """Line numbers, the table, and the problems of malformed rows, which stand in the table without their answer."""
    lines, ids, answers, problems = [], [], [], []
    for line, row in read_rows(path, COLUMNS, error=SubmissionError):
        if len(row) > len(COLUMNS):
            raise SubmissionError(f"{path}:1: has the columns {','.join(row)}; wanted only {','.join(COLUMNS)}")
        answer: tuple[str | None, float] = (None, 0.0)
        try:
            answer = _parse_answer(row["landmarks"])
        except ValueError as error:
            problems.append(f"{path}:{line}: {error}")
        if problem := _id_problem(row["id"]):
            problems.append(f"{path}:{line}: {problem}")
        lines.append(line)
        ids.append(row["id"])
        answers.append(answer)
    landmarks, confidences = zip(*answers, strict=True)
    columns = {"id": ids, "landmark_id": pd.Series(landmarks, dtype=object), "confidence": confidences}
    return lines, pd.DataFrame(columns), problems


def _id_problem(photo: str) -> str | None:
    if not photo:
        return "the id is empty"
    return _formula_problem(photo)


def _formula_problem(field: str) -> str | None:
    return f"{field!r} begins like a spreadsheet formula" if field.startswith(_FORMULA) else None


def _parse_answer(field: str) -> tuple[str | None, float]:
    """Landmark and confidence of a field; ValueError says what is wrong with it."""
    if not field:
        return None, 0.0
    if problem := _formula_problem(field):
        raise ValueError(problem)
    landmark, *numbers = field.split(" ")
    if len(numbers) != 1:
        raise ValueError(f"{field!r} is not one answer; wanted '<landmark_id> <confidence>', or nothing")
    if not LANDMARK_ID.fullmatch(landmark):
        raise ValueError(f"{landmark!r} is not a landmark id (letters, digits, '_' and '-', at most 64)")
    return landmark, _parse_confidence(numbers[0])


def _parse_confidence(text: str) -> float:
    if not _NUMBER.fullmatch(text):
        raise ValueError(f"confidence {text!r} is not a plain number such as 0.25, with '.' for the decimals")
    value = float(text)
    mantissa = text.lower().partition("e")[0]
    if math.isinf(value) or (abs(value) < sys.float_info.min and mantissa.strip("-0.")):
        raise ValueError(f"confidence {text!r} is beyond what a 64-bit number holds with full precision")
    return value


def _counted(what: str, items: Iterable[str]) -> list[str]:
    """One line with how many there are and the first of them; nothing when there are none."""
    listed = list(items)
    rest = f", … and {len(listed) - SHOWN:,} more" if len(listed) > SHOWN else ""
    return [f"{len(listed):,} {what}: {', '.join(listed[:SHOWN])}{rest}"] if listed else []
