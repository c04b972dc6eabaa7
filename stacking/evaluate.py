"""Honest answers: whatever scores a query was fitted without it, its duplicates and its whole fold.

In: rows of `stacking.features.build_rows` made from out-of-fold scores, queries with their folds and truth. Out: an
`Entry` for each way to answer, ready for the leaderboard. Nothing here touches the disk.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from engine.core.config import CalibrationMethod, StackConfig
from engine.core.errors import DataError
from stacking.answers import answer_alone, pick_answers
from stacking.baselines import choose_rules
from stacking.blends import fitted_baselines
from stacking.calibration import (
    Calibration,
    Reliability,
    choose_method,
    cross_calibrate,
    fit_calibration,
    measure_reliability,
)
from stacking.features import mark_right
from stacking.stacker import Stacker, fit_stacker

Kind = Literal["member", "baseline", "stack", "oracle"]
Predict = Callable[[pd.DataFrame], NDArray[np.float64]]
Fit = Callable[[pd.DataFrame, NDArray[np.bool_]], Predict]


@dataclass(frozen=True, eq=False)
class Entry:
    """One way to answer, and what it answered.

    Attributes:
        name: what the leaderboard calls it.
        kind: a member of the zoo, a baseline, a stack, or what a stack would be with one part of it perfect.
        answers: `engine.core.tables.ANSWERS`, out of fold.
        fit_seconds: wall time to fit it once for every fold, without what it is made from.
    """

    name: str
    kind: Kind
    answers: pd.DataFrame
    fit_seconds: float


def cross_predict(rows: pd.DataFrame, queries: pd.DataFrame, fit: Fit) -> NDArray[np.float64]:
    """Score each row with a model that was fitted on the other folds' rows only.

    Folds never split a group of duplicates, so a query's duplicates are left out with it.

    Args:
        rows: [N] of `build_rows`.
        queries: id, fold, landmark_id.
        fit: makes a model of rows and which of them are right.

    Returns:
        [N] scores.

    Raises:
        DataError: when the queries are of one fold only.
    """
    fold = rows["query"].map(queries.set_index("id")["fold"]).to_numpy()
    folds = np.unique(fold)
    if len(folds) < 2:
        raise DataError(
            f"queries of {len(folds)} fold cannot be cross-validated, two are needed", hint="raise folds.count"
        )
    right = mark_right(rows, queries)
    scores = np.zeros(len(rows))
    for held in folds:
        inside = fold == held
        scores[inside] = fit(rows[~inside], right[~inside])(rows[inside])
    return scores


def enter_members(candidates: pd.DataFrame, queries: pd.DataFrame, fit_seconds: Mapping[str, float]) -> list[Entry]:
    """Every single member, by its own best candidate and its own score.

    Args:
        candidates: `engine.core.tables.CANDIDATES`, out of fold.
        queries: its column id.
        fit_seconds: member -> what training it took; names the members to enter.
    """
    return [
        Entry(member, "member", answer_alone(candidates, member, queries), seconds)
        for member, seconds in fit_seconds.items()
    ]


def enter_baselines(rows: pd.DataFrame, queries: pd.DataFrame) -> list[Entry]:
    """Every baseline: the fixed rules, and the logistic stack and the blends, fitted without the query's fold."""
    ruled = [
        Entry(name, "baseline", pick_answers(rows, rule(rows), queries, decided_by=name), 0.0)
        for name, rule in choose_rules(rows).items()
    ]
    return [*ruled, *(_enter(name, "baseline", rows, queries, fit) for name, fit in fitted_baselines(rows).items())]


def enter_stack(rows: pd.DataFrame, queries: pd.DataFrame, config: StackConfig, *, seed: int, threads: int) -> Entry:
    """The LightGBM stack, fitted without the query's fold."""

    def fit(part: pd.DataFrame, right: NDArray[np.bool_]) -> Predict:
        stacker = fit_stacker(part, right, config, seed=seed, threads=threads)
        return lambda unseen: stacker.predict(unseen, threads=threads)

    return _enter("stack", "stack", rows, queries, fit)


def answer_queries(
    stacker: Stacker, calibration: Calibration, rows: pd.DataFrame, queries: pd.DataFrame, *, threads: int
) -> pd.DataFrame:
    """The stack's answers to queries it was not fitted on, as the test set's.

    Args:
        stacker: fitted on all out-of-fold rows.
        calibration: of its confidences.
        rows: of `build_rows`, made from the test set's scores.
        queries: its column id.
        threads: how many to use.
    """
    answers = pick_answers(rows, stacker.predict(rows, threads=threads), queries, decided_by="stack")
    answered = answers["landmark_id"].notna().to_numpy()
    probability = calibration.apply(answers["confidence"].to_numpy())
    return answers.assign(confidence=np.where(answered, probability, 0.0))


def calibrate(
    answers: pd.DataFrame, queries: pd.DataFrame, method: CalibrationMethod | Literal["auto"]
) -> tuple[Calibration, Reliability, Reliability]:
    """A calibration of answers, and their reliability before and after it, where each fold's is fitted on the others.

    Args:
        answers: `engine.core.tables.ANSWERS`, out of fold.
        queries: id, fold, landmark_id.
        method: of `stacking.calibration.METHODS`, or auto for the one with the lowest cross-validated log loss.
    """
    given = answers[answers["landmark_id"].notna()]
    asked = queries.set_index("id").loc[given["id"]]
    right, fold = (given["landmark_id"].to_numpy() == asked["landmark_id"].to_numpy()), asked["fold"].to_numpy()
    confidence = given["confidence"].to_numpy()
    chosen = choose_method(confidence, right, fold) if method == "auto" else method
    after = cross_calibrate(chosen, confidence, right, fold)
    fitted = fit_calibration(chosen, confidence, right)
    return fitted, measure_reliability(confidence, right), measure_reliability(after, right)


def _enter(name: str, kind: Kind, rows: pd.DataFrame, queries: pd.DataFrame, fit: Fit) -> Entry:
    started = time.perf_counter()
    scores = cross_predict(rows, queries, fit)
    seconds = time.perf_counter() - started
    return Entry(name, kind, pick_answers(rows, scores, queries, decided_by=name), seconds)
