"""What each part of the stack is worth: the stack without a member or the gate, and members added one by one.

In: a way to make rows of some members, queries with their folds and truth, a `Fit`. Out: plain values, for a table or
for JSON. Nothing here touches the disk.

A member that adds nothing to the others may still be good alone: what two members both know is missed only when both
are left out, which is why `add_members` stands beside `leave_out`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from engine.core.config import ValidationConfig
from engine.core.gap import Difference, bootstrap_difference, score_queries
from stacking.baselines import Fit, Predict, fit_logistic
from stacking.calibration import measure_reliability
from stacking.features import GATE, P_LANDMARK
from stacking.scoring import score_fit

MakeRows = Callable[[Sequence[str]], pd.DataFrame]  # some members -> rows of `build_rows` made of them and the gate


@dataclass(frozen=True)
class Ablation:
    """The stack without one of its parts.

    Attributes:
        without: a member, or `GATE`.
        gap: the stack's GAP without it, 0..1.
        worth: the whole stack's GAP minus that; below 0 where the part does harm.
    """

    without: str
    gap: float
    worth: Difference


@dataclass(frozen=True)
class Addition:
    """A member added to those before it.

    Attributes:
        member: the added one.
        gap: GAP with it and all before it, 0..1.
        gain: over those before it; of the first, over no answer at all, which is its GAP.
    """

    member: str
    gap: float
    gain: float


@dataclass(frozen=True)
class GateQuality:
    """How well the gate tells photos apart, and whether its probabilities can be taken at their word.

    Attributes:
        landmark: area under the ROC curve, 0..1, .5 being chance, of photos that show a landmark, known or unseen,
            against those that show none.
        known: likewise of photos that show a landmark that their models know against all others.
        ece: expected calibration error of its probability that a photo shows a landmark, 0..1.
        brier: Brier score of the same, 0..1.
    """

    landmark: float | None  # None where all photos are of one kind
    known: float | None
    ece: float
    brier: float


def leave_out(
    members: Sequence[str],
    make_rows: MakeRows,
    queries: pd.DataFrame,
    fit: Fit,
    config: ValidationConfig,
    *,
    seed: int,
) -> list[Ablation]:
    """The stack without each member, and without the gate, against the whole stack on the same resampled queries.

    Args:
        members: of the whole stack; of a single one there is nothing to leave out.
        make_rows: makes the rows anew, so that what members say together never counts the one left out.
        queries: id, fold, landmark_id.
        fit: fits the stack; once for every fold and every part.
        config: prevalence, resamples and level of the intervals.
        seed: of the resamples; each part is compared on the same ones.

    Returns:
        One for each member in the order given, then the gate where there is one.

    Raises:
        DataError: as `score_fit`.
    """
    whole_rows = make_rows(members)
    whole = score_fit(whole_rows, queries, fit, config)

    def compare(part: str, rows: pd.DataFrame) -> Ablation:
        rest = score_fit(rows, queries, fit, config)
        worth = bootstrap_difference(
            whole,
            rest,
            resamples=config.bootstrap,
            level=config.confidence_level,
            rng=np.random.default_rng(seed),
        )
        return Ablation(part, score_queries(rest), worth)

    found = []
    if len(members) > 1:
        found = [compare(name, make_rows([other for other in members if other != name])) for name in members]
    if P_LANDMARK in whole_rows.columns:
        found.append(compare(GATE, drop_gate(whole_rows)))
    return found


def drop_gate(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows without what the gate says."""
    return rows.drop(columns=[name for name in rows.columns if name.startswith(f"query.{GATE}.")])


def fit_cheaply(rows: pd.DataFrame, right: NDArray[np.bool_]) -> Predict:
    """The logistic stack as a `Fit`, to try many subsets with: 0.4 s where the default trees took 11 s (7,450 rows)."""
    return fit_logistic(rows, right).predict


def add_members(
    members: Sequence[str],
    make_rows: MakeRows,
    queries: pd.DataFrame,
    config: ValidationConfig,
    *,
    fit: Fit = fit_cheaply,
) -> list[Addition]:
    """Members in the order of what they add: each time the one with which the GAP gets highest.

    The best of several is chosen by the very queries that score it, so gains are a little too high, and an order is
    certain only where gains differ by more than an interval of `leave_out`. Fits M * (M + 1) / 2 times each fold.

    Args:
        members: M to choose from; of equally good ones the smaller name comes first.
        make_rows: as for `leave_out`.
        queries: likewise.
        config: prevalence.
        fit: a cheap one.

    Returns:
        M of them, in the order of choice.

    Raises:
        DataError: as `score_fit`.
    """
    chosen: list[Addition] = []
    left, before = set(members), 0.0
    while left:
        so_far = [step.member for step in chosen]
        gaps = {name: score_queries(score_fit(make_rows([*so_far, name]), queries, fit, config)) for name in left}
        best = min(left, key=lambda name: (-gaps[name], name))
        chosen.append(Addition(best, gaps[best], gaps[best] - before))
        left.remove(best)
        before = gaps[best]
    return chosen


def measure_gate(query_features: pd.DataFrame, queries: pd.DataFrame) -> GateQuality | None:
    """How well the gate tells photos of landmarks from others; None where there was no gate.

    Args:
        query_features: `engine.core.tables.QUERY_FEATURES`, with the gate's rows among them.
        queries: id, landmark_id, unseen, of `engine.core.folds.oof_truth`; those that the gate says nothing of are left
            out.
    """
    said = query_features[query_features["member"] == GATE]
    if said.empty:
        return None
    asked = queries.merge(said, left_on="id", right_on="query")
    known, probability = asked["landmark_id"].notna().to_numpy(), asked["p_landmark"].to_numpy(dtype=np.float64)
    shown = known | asked["unseen"].to_numpy(dtype=np.bool_)
    reliability = measure_reliability(probability, shown)
    return GateQuality(_area(shown, probability), _area(known, probability), reliability.ece, reliability.brier)


def _area(positive: NDArray[np.bool_], score: NDArray[np.float64]) -> float | None:
    if positive.all() or not positive.any():
        return None
    return float(roc_auc_score(positive, score))
