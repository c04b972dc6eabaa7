"""Honest answers: whatever scores a query was fitted without it, its duplicates and its whole fold.

In: rows of `stacking.features.build_rows` made from out-of-fold scores, queries with their folds and truth. Out: an
`Entry` for each way to answer, ready for the leaderboard. Nothing here touches the disk.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from engine.core.config import CalibrationMethod, StackConfig, StackMethod
from engine.core.errors import DataError
from engine.core.progress import Advance
from stacking.answers import answer_alone, pick_answers
from stacking.baselines import Fit, Predict, choose_rules
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
from stacking.fitting import choose_trial, fit_stacker, try_methods
from stacking.objectives import query_starts
from stacking.trees import answer_gap, fit_lambdarank

Kind = Literal["member", "baseline", "method", "stack", "oracle"]


@dataclass(frozen=True, eq=False)
class Entry:
    """One way to answer, and what it answered.

    Attributes:
        name: what the leaderboard calls it.
        kind: a member of the zoo, a baseline, a method of the stack, the stack, or what it would be with one part of it
            perfect.
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


def enter_baselines(
    rows: pd.DataFrame, queries: pd.DataFrame, config: StackConfig, *, seed: int, threads: int
) -> list[Entry]:
    """Every baseline: the fixed rules, and the logistic stack, the blends and lambdarank without the query's fold.

    Args:
        rows: [N] of `build_rows`.
        queries: id, fold, landmark_id.
        config: the trees of lambdarank.
        seed: likewise.
        threads: how many to use; the answers do not depend on it.

    Raises:
        DataError: as `cross_predict`.
    """
    fits: dict[str, Fit] = {
        **fitted_baselines(rows),
        "lambdarank": lambda part, right: fit_lambdarank(part, right, config, seed=seed, threads=threads),
    }
    ruled = [
        Entry(name, "baseline", pick_answers(rows, rule(rows), queries, decided_by=name), 0.0)
        for name, rule in choose_rules(rows).items()
    ]
    return [*ruled, *(_enter(name, "baseline", rows, queries, fit) for name, fit in fits.items())]


@dataclass(frozen=True, eq=False)
class Stacked:
    """The stack, cross-validated: in each fold the methods were fitted and the best was chosen without its queries.

    Attributes:
        entries: one of what the choice answered, and of each method.
        scores: [N] of the rows, by the choice, 0..1.
        methods: what was chosen in each fold.
        inner: the GAP that the choice was made by, out of sample but chosen among, mean over the folds.
        outer: the GAP of the fold that the choice never saw, likewise; both over queries that list the right landmark.
    """

    entries: list[Entry]
    scores: NDArray[np.float64]
    methods: tuple[StackMethod, ...]
    inner: float
    outer: float


def cross_stack(
    rows: pd.DataFrame, queries: pd.DataFrame, config: StackConfig, *, seed: int, threads: int, advance: Advance
) -> Stacked:
    """Fit the methods and choose among them once for every fold, without it, and answer its queries.

    Args:
        rows: [N] of `build_rows`.
        queries: id, fold, landmark_id, group.
        config: the methods, and how they are fitted.
        seed: of the parts and the trees.
        threads: how many to use; the answers do not depend on it.
        advance: told of each fold.

    Raises:
        DataError: as `cross_predict` and `stacking.fitting.try_methods`.
    """
    started = time.perf_counter()
    scores: dict[str, NDArray[np.float64]] = {}
    chosen: list[StackMethod] = []
    inner: list[float] = []
    outer: list[float] = []

    def fit(part: pd.DataFrame, right: NDArray[np.bool_]) -> Predict:
        trials = try_methods(part, right, groups_of(part, queries), config, seed=seed, threads=threads)
        best = choose_trial(trials, part, right, seed=seed)
        chosen.append(best.stacker.method)
        inner.append(best.gap)

        def predict(unseen: pd.DataFrame) -> NDArray[np.float64]:
            asked = unseen.index.to_numpy()
            for trial in trials:
                method = trial.stacker.method
                scores.setdefault(method, np.zeros(len(rows)))[asked] = trial.stacker.predict(unseen, threads=threads)
            said: NDArray[np.float64] = scores[best.stacker.method][asked]
            outer.append(answer_gap(said, mark_right(unseen, queries), query_starts(unseen)))
            advance(1, best.stacker.method)
            return said

        return predict

    scores = {"stack": cross_predict(rows, queries, fit)} | scores
    seconds = time.perf_counter() - started
    entries = [
        Entry(name, "stack" if name == "stack" else "method", pick_answers(rows, s, queries, decided_by=name), seconds)
        for name, s in scores.items()
    ]
    return Stacked(entries, scores["stack"], tuple(chosen), float(np.mean(inner)), float(np.mean(outer)))


def groups_of(rows: pd.DataFrame, queries: pd.DataFrame) -> NDArray[np.int64]:
    """The group of duplicates that each row's query is of: [N]."""
    return rows["query"].map(queries.set_index("id")["group"]).to_numpy(dtype=np.int64)


def fit_stack(queries: pd.DataFrame, config: StackConfig, *, seed: int, threads: int) -> Fit:
    """The stack as a `Fit`, for studies of it; arguments as `cross_stack`."""

    def fit(part: pd.DataFrame, right: NDArray[np.bool_]) -> Predict:
        best = fit_stacker(part, right, groups_of(part, queries), config, seed=seed, threads=threads)
        return lambda unseen: best.stacker.predict(unseen, threads=threads)

    return fit


def answer_queries(
    scores: NDArray[np.float64], calibration: Calibration, rows: pd.DataFrame, queries: pd.DataFrame
) -> pd.DataFrame:
    """The stack's answers to queries it was not fitted on, as the test set's.

    Args:
        scores: [N] of the rows, by a stacker that was fitted on all out-of-fold rows.
        calibration: of its confidences.
        rows: of `build_rows`, made from the test set's scores.
        queries: its column id.
    """
    answers = pick_answers(rows, scores, queries, decided_by="stack")
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
    confidence, right, fold = _judge_answers(answers, queries)
    chosen = choose_method(confidence, right, fold) if method == "auto" else method
    after = cross_calibrate(chosen, confidence, right, fold)
    fitted = fit_calibration(chosen, confidence, right)
    return fitted, measure_reliability(confidence, right), measure_reliability(after, right)


def cross_calibrated(answers: pd.DataFrame, queries: pd.DataFrame, method: CalibrationMethod) -> pd.DataFrame:
    """The answers with the probability that each is right, by a calibration fitted on the other folds' answers.

    Args:
        answers: `engine.core.tables.ANSWERS`, out of fold.
        queries: id, fold, landmark_id.
        method: of `stacking.calibration.METHODS`.
    """
    confidence = answers["confidence"].to_numpy(copy=True)
    confidence[answers["landmark_id"].notna()] = cross_calibrate(method, *_judge_answers(answers, queries))
    return answers.assign(confidence=confidence)


def _judge_answers(
    answers: pd.DataFrame, queries: pd.DataFrame
) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.int64]]:
    """Of the queries that have an answer: its confidence, whether it is right, and the fold."""
    given = answers[answers["landmark_id"].notna()]
    asked = queries.set_index("id").loc[given["id"]]
    right = given["landmark_id"].to_numpy() == asked["landmark_id"].to_numpy()
    return given["confidence"].to_numpy(), right, asked["fold"].to_numpy()


def _enter(name: str, kind: Kind, rows: pd.DataFrame, queries: pd.DataFrame, fit: Fit) -> Entry:
    started = time.perf_counter()
    scores = cross_predict(rows, queries, fit)
    seconds = time.perf_counter() - started
    return Entry(name, kind, pick_answers(rows, scores, queries, decided_by=name), seconds)
