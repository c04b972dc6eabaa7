"""What else a stack has to beat: blends of the members' scores whose weights were tuned for GAP itself.

In: rows of `stacking.features.build_rows` and which of them are right. Out: a blend, which scores rows; `cross_predict`
of `stacking.evaluate` tunes it without a query's own fold. Nothing here touches the disk.

Each is made from sources, all in `SCORE_FLOOR`..1 for members that tell probabilities: the members' scores, the gate's
probability that the photo shows a landmark, the mean of the members that compare photos (their cosine to the landmark's
nearest photo, or their score where they do not tell it) and the mean score of the others, the classifying heads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit

from engine.core.gap import gap
from stacking.baselines import Fit, fit_logistic, list_members, list_neighbour_members
from stacking.features import P_LANDMARK, SCORE_FLOOR
from stacking.scales import LOGIT_FLOOR, add_up

NEIGHBOURS: Final = "neighbours"
HEADS: Final = "heads"
ROUNDS: Final = 30  # of greedy selection, which mostly stops by itself before; bounds the time
EVALUATIONS: Final = 400  # of GAP: ten weights of 60,000 rows settled after 234, in a second
THIRD_SHARES: Final = (9 / 19, *(k / 20 for k in range(21)))  # of neighbours; the published one first, it wins ties

Values = NDArray[np.float64]
Right = NDArray[np.bool_]


@dataclass(frozen=True)
class GreedyBlend:
    """The mean of products of sources, each as often as it was chosen.

    Attributes:
        chosen: the sources of each product, in the order of choice.
    """

    chosen: tuple[tuple[str, ...], ...]

    def predict(self, rows: pd.DataFrame) -> Values:
        """The blend's score of each row: [N]."""
        sources = _list_sources(rows)
        total = np.zeros(len(rows))
        for product in self.chosen:
            total += _multiply(sources, product)
        return total / len(self.chosen)


@dataclass(frozen=True)
class PowerBlend:
    """A weighted geometric mean of sources, or of their odds.

    Attributes:
        weights: of each source, >= 0.
        odds: whether of their odds p / (1 - p), which tell 0.99 from 0.9 as well as 0.01 from 0.1.
    """

    weights: Mapping[str, float]
    odds: bool

    def predict(self, rows: pd.DataFrame) -> Values:
        """The blend's score of each row: [N], 0..1."""
        sources = _list_sources(rows)
        logs = _take_logs([sources[name] for name in self.weights], odds=self.odds)
        mean = _mean_weighted(logs, np.array([*self.weights.values()]))
        score: Values = expit(mean) if self.odds else np.exp(mean)
        return score


def fitted_baselines(rows: pd.DataFrame) -> Mapping[str, Fit]:
    """What can be fitted to rows with these columns, by name; the third place's only to neighbours and heads both."""
    fits: dict[str, Fit] = {
        "logistic": lambda part, right: fit_logistic(part, right).predict,
        "caruana": lambda part, right: fit_caruana(part, right).predict,
        "nelder-mead": lambda part, right: fit_nelder_mead(part, right).predict,
    }
    if {NEIGHBOURS, HEADS} <= _list_sources(rows.iloc[:0]).keys():
        fits["glr2020-third"] = lambda part, right: fit_glr2020_third(part, right).predict
    return fits


def fit_caruana(rows: pd.DataFrame, right: Right) -> GreedyBlend:
    """Choose, again and again, whatever raises the GAP of the sum of what is chosen the most, until nothing does.

    Caruana et al., "Ensemble selection from libraries of models" (ICML 2004): greedy and with replacement; without
    bagging, for a library is small here. To choose from are each member's score, and its products with the gate, with
    the neighbours, and with both.

    Args:
        rows: [N] of `build_rows`.
        right: [N].
    """
    contest = _Contest.of(rows, right)
    sources = {name: values[contest.order] for name, values in _list_sources(rows).items()}
    products = [
        (f"{member}.score", *factors)
        for factors in ((), (P_LANDMARK,), (NEIGHBOURS,), (P_LANDMARK, NEIGHBOURS))
        if sources.keys() >= set(factors)
        for member in list_members(rows)
    ]
    columns = [_multiply(sources, product) for product in products]
    chosen: list[tuple[str, ...]] = []
    total, reached = np.zeros(len(rows)), -1.0
    while len(chosen) < ROUNDS:
        gaps = [contest.gap(total + column) for column in columns]
        best = int(np.argmax(gaps))  # of equal ones the first, so the simplest
        if gaps[best] <= reached:
            break
        total, reached = total + columns[best], gaps[best]
        chosen.append(products[best])
    return GreedyBlend(tuple(chosen))


def fit_nelder_mead(rows: pd.DataFrame, right: Right) -> PowerBlend:
    """Search the weights of the members' scores and the gate in a geometric mean of odds that has the best GAP.

    Nelder and Mead's simplex (1965), since GAP is a step function of them. It starts from equal weights times the gate
    and never ends below that; its first steps double a weight, for much smaller ones change no rank.

    Args:
        rows: [N] of `build_rows`.
        right: [N].
    """
    contest = _Contest.of(rows, right)
    sources = _list_sources(rows)
    scores = [f"{member}.score" for member in list_members(rows)]
    start = dict.fromkeys(scores, 1 / len(scores)) | ({P_LANDMARK: 1.0} if P_LANDMARK in sources else {})
    logs = _take_logs([sources[name][contest.order] for name in start], odds=True)
    first = np.array([*start.values()])
    found = minimize(
        lambda weights: -contest.gap(_mean_weighted(logs, weights)),
        first,
        method="Nelder-Mead",
        bounds=[(0, None)] * len(first),
        options={"initial_simplex": np.vstack([first, first + np.diag(first)]), "maxfev": EVALUATIONS},
    ).x
    return PowerBlend(dict(zip(start, found.tolist(), strict=True)), odds=True)


def fit_glr2020_third(rows: pd.DataFrame, right: Right) -> PowerBlend:
    """The third place of GLR 2020: the classifying heads' score to some power times the neighbours' to another.

    Ha et al., "Google Landmark Recognition 2020 Competition Third Place Solution" (arXiv 2010.05350), and the notebook
    of their submission: a landmark's confidence is the sum over its photos among the query's 5 nearest of cosine^9 *
    head^10, where head is the mean over the models of the cosine to the landmark's centre, 1e-8 outside its 5 best.

    What differs here: of the photos the nearest counts, not their sum; heads tell probabilities, not cosines, so that
    the ratio of the powers, all that decides a ranking, is chosen on a grid by its GAP.

    Args:
        rows: [N] of `build_rows`, of members that compare photos and members that do not.
        right: [N].
    """
    contest = _Contest.of(rows, right)
    sources = _list_sources(rows)
    logs = _take_logs([sources[name][contest.order] for name in (HEADS, NEIGHBOURS)], odds=False)
    gaps = [contest.gap(_mean_weighted(logs, np.array([1 - share, share]))) for share in THIRD_SHARES]
    share = THIRD_SHARES[int(np.argmax(gaps))]
    return PowerBlend({HEADS: 1 - share, NEIGHBOURS: share}, odds=False)


@dataclass(frozen=True, eq=False)
class _Contest:
    """Rows laid out so that the GAP of their scores takes a millisecond.

    Attributes:
        order: [N] of the rows: by query, and for each query as `pick_answers` decides between equal scores.
        right: [N] whether the row's landmark is what its query shows, in that order.
        starts: [G] each query's first row in that order.
    """

    order: NDArray[np.intp]
    right: Right
    starts: NDArray[np.intp]

    @classmethod
    def of(cls, rows: pd.DataFrame, right: Right) -> _Contest:
        query, landmark = (rows[key].rank(method="dense").to_numpy() for key in ("query", "landmark_id"))
        order = np.lexsort((landmark, -rows["all.mean"].to_numpy(), query))
        return cls(order, right[order], np.flatnonzero(np.diff(query[order], prepend=0)))

    def gap(self, scores: Values) -> float:
        """The GAP of each query's best row, over the queries with a right one, for scores [N] in this order."""
        best = np.maximum.reduceat(scores, self.starts)
        tied = np.flatnonzero(scores == np.repeat(best, np.diff(self.starts, append=len(scores))))
        answers = tied[np.searchsorted(tied, self.starts)]  # of each query the first of its best
        positives = max(1, int(self.right.sum()))  # without any, every GAP is 0
        return gap(best, self.right[answers], np.arange(len(best)), positives=positives)


def _list_sources(rows: pd.DataFrame) -> dict[str, Values]:
    """What blends are made from, [N] each, by name: those of the module's docstring that these rows have."""

    def read(column: str) -> Values:
        values: Values = np.maximum(rows[column].to_numpy(dtype=np.float64), SCORE_FLOOR)
        return values

    members, comparing = list_members(rows), list_neighbour_members(rows)
    sources = {f"{member}.score": read(f"{member}.score") for member in members}
    near = [read(f"{name}.{'cosine' if f'{name}.cosine' in rows.columns else 'score'}") for name in comparing]
    heads = [sources[f"{name}.score"] for name in members if name not in comparing]
    sources |= {name: add_up(parts) / len(parts) for name, parts in ((NEIGHBOURS, near), (HEADS, heads)) if parts}
    if P_LANDMARK in rows.columns:
        sources[P_LANDMARK] = read(P_LANDMARK)
    return sources


def _multiply(sources: Mapping[str, Values], names: tuple[str, ...]) -> Values:
    product: Values = np.multiply.reduce([sources[name] for name in names], axis=0)
    return product


def _take_logs(sources: Sequence[Values], *, odds: bool) -> Values:
    """[T, N] logarithms of T sources, or their logits."""
    logs: Values = np.log(sources)
    return logs - np.log1p(-np.minimum(sources, 1 - LOGIT_FLOOR)) if odds else logs


def _mean_weighted(logs: Values, weights: Values) -> Values:
    """[T, N], [T] -> [N]; 0 where all weights are."""
    shares = weights / max(weights.sum(), np.finfo(float).tiny)
    return add_up(shares[:, None] * logs)
