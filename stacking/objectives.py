"""What LightGBM is given to lower: losses over whole queries, where row log-loss judges each candidate by itself.

In: the margins [N] of rows of `stacking.features.build_rows`, which stand sorted by query; `right` [N], which of them
are right, at most one in a query; `starts` [G], the first row of each query. Out: gradients and Hessians [N], float64,
of sums over queries, not of means. Nothing here touches the disk.

A margin is a log-odds against "none of these", whose margin is 0: a query shows candidate i with the probability
e^s_i / (1 + sum of e^s over the query). `softmax_gradient` is the gradient of that likelihood, a proper loss, and
sorting by the true probability is what GAP wants. `hybrid_gradient` adds a quarter of GAP's own gradient, which pays
where the model is too small to find the true probability. GAP counts ranks, so its gradient is 0 almost everywhere; it
is smoothed in two places:

- what a query answers: each candidate with a weight, a softmax over the query, not the best one with weight 1;
- what is ranked before it: a sigmoid of the difference of margins over `RANK_WIDTH`, not a step.

All pairs of rows would be too many. Rows are laid on `NODES` evenly spaced margins, pairs of nodes are compared, and
what comes out at the nodes is read back between them: O(N + NODES^2).

`fit_linear` makes the margins that trees start from. On the few thousand rows of a small competition a linear model
beats trees, which cut the rows up before they have learned what a straight line says at once; on hundreds of thousands
trees beat it, by what features say together. Trees that start from the line have both. It wants logits, not
probabilities: scales on which evidence adds up gave it .010 to .020 of GAP in drawn competitions, and without them it
was behind trees at any size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit

Values = NDArray[np.float64]
Right = NDArray[np.bool_]
Starts = NDArray[np.intp]

NODES: Final = 384  # margins span about 20, so a node stands for a tenth of RANK_WIDTH; the sigmoids take 2 ms
LOWEST_QUANTILE: Final = 0.002  # where nodes begin: a stray margin far below the others must not stretch them all
LEAST_STEP: Final = 1e-6  # between nodes, which is no step to RANK_WIDTH: before the first tree all margins are equal
RANK_WIDTH: Final = 0.6  # tau: margins this close count as nearly tied
ANSWER_WIDTH: Final = 0.5  # tau_q: how sharply a query's best candidate is its answer
GAP_SHARE: Final = 0.25  # of the hybrid; alone, smoothed GAP was worse held out than row log-loss by .001 to .004
LEAST_HESSIAN: Final = 1e-3  # a row that is settled must not ask for a leap


@dataclass(frozen=True, eq=False)  # arrays have no single truth value to compare by
class LinearModel:
    """Margins as a weighted sum of standardised features.

    Attributes:
        mean: [F], subtracted.
        scale: [F], > 0, divided by; 1 where the feature was constant.
        weights: [F], 0 where the feature was constant.
        bias: the margin of a row of means.
    """

    mean: Values
    scale: Values
    weights: Values
    bias: float

    def margin(self, values: NDArray[np.floating[Any]]) -> Values:
        """[N, F] -> [N]: log-odds against the outcome that none of a query's candidates is right."""
        margin: Values = (values - self.mean) @ (self.weights / self.scale) + self.bias
        return margin


def query_starts(rows: pd.DataFrame) -> Starts:
    """The first row of each run of equal `query`: [G], ascending; in rows of `build_rows` a run is a query."""
    return np.flatnonzero(np.diff(pd.factorize(rows["query"])[0], prepend=-1))


def query_probability(margin: Values, starts: Starts) -> Values:
    """The probability that each row's candidate is what its query shows: [N] in 0..1, sums up to 1 within a query.

    >>> query_probability(np.log([1.0, 2.0, 3.0]), np.array([0, 2])).tolist()  # 1 and 2 against 1; 3 against 1
    [0.25, 0.5, 0.75]
    """
    top = np.maximum(_highest(margin, starts), 0)  # [N]; the greatest term becomes 1, so nothing overflows
    odds = np.exp(margin - top)
    probability: Values = odds / (np.exp(-top) + _total(odds, starts))
    return probability


def softmax_loss(margin: Values, right: Right, starts: Starts) -> float:
    """The negative log-likelihood, in nats, summed over queries; a query with nothing right shows "none"."""
    top = np.maximum(np.maximum.reduceat(margin, starts), 0)  # [G]
    odds = np.add.reduceat(np.exp(margin - _spread(top, starts, len(margin))), starts)
    return float(np.sum(top + np.log(np.exp(-top) + odds)) - np.sum(margin[right]))


def softmax_gradient(margin: Values, right: Right, starts: Starts) -> tuple[Values, Values]:
    """Gradient and diagonal of the Hessian of `softmax_loss`, [N] each.

    Args:
        margin: [N] finite.
        right: [N].
        starts: [G] of `query_starts`.
    """
    probability = query_probability(margin, starts)
    return probability - right, np.maximum(probability * (1 - probability), LEAST_HESSIAN)


def log_loss_gradient(margin: Values, right: Right, starts: Starts) -> tuple[Values, Values]:
    """Gradient and diagonal of the Hessian of the rows' log-loss, each judged by itself; arguments as the others'."""
    del starts
    probability = expit(margin)
    return probability - right, np.maximum(probability * (1 - probability), LEAST_HESSIAN)


def hybrid_gradient(margin: Values, right: Right, starts: Starts) -> tuple[Values, Values]:
    """Gradient of a quarter of -`smoothed_gap` and three quarters of `softmax_loss`, [N], and the loss's Hessian, [N].

    GAP is not convex, and its part has no say in the Hessian.

    Args:
        margin: [N] finite.
        right: [N].
        starts: [G] of `query_starts`.
    """
    gradient, hessian = softmax_gradient(margin, right, starts)
    return (1 - GAP_SHARE) * gradient - GAP_SHARE * smoothed_gap_gradient(margin, right, starts), hessian


def smoothed_gap(margin: Values, right: Right, starts: Starts) -> float:
    """M x GAP of answers that are not quite decided, all queries ranked together: 0 to the number of right rows."""
    ranking = _rank(_Grid.over(margin, right), _answer_share(margin, starts))
    return float(np.sum(ranking.right * ranking.precision))


def smoothed_gap_gradient(margin: Values, right: Right, starts: Starts) -> Values:
    """Gradient [N] of `smoothed_gap`, uphill.

    A margin moves its row in the ranking, and it moves weight within its query to the row from the others. What either
    is worth is found at the nodes and read back between them, so that the gradient is of the ranking that nodes stand
    for, and does not jump from node to node.
    """
    grid = _Grid.over(margin, right)
    share = _answer_share(margin, starts)
    ranking = _rank(grid, share)
    moved, weighed = grid.read(ranking.worth_of_moving()), grid.read(ranking.worth_of_weight())
    return share * (moved + (weighed - _total(share * weighed, starts)) / ANSWER_WIDTH)


def fit_linear(values: NDArray[np.floating[Any]], right: Right, starts: Starts, *, l2: float) -> LinearModel:
    """The linear model of least `softmax_loss` + l2 / 2 x the sum of squared weights.

    The loss is a sum over queries, so the more there are, the less l2 says. The bias is free.

    Args:
        values: [N, F] finite.
        right: [N].
        starts: [G] of `query_starts`.
        l2: > 0, which also makes the minimum a single one.
    """
    varies = np.ptp(values, axis=0) > 0  # not the deviation: rounding keeps that of a constant above 0
    mean, scale = values.mean(axis=0, dtype=np.float64), np.ones(values.shape[1])
    columns = values[:, varies] - mean[varies]
    scale[varies] = columns.std(axis=0)
    columns /= scale[varies]

    def loss(point: Values) -> tuple[float, Values]:
        weights, bias = point[:-1], point[-1]
        margin = columns @ weights + bias
        error = query_probability(margin, starts) - right
        gradient = np.append(error @ columns + l2 * weights, error.sum())
        value = softmax_loss(margin, right, starts) + l2 / 2 * float(weights @ weights)
        return value / len(starts), gradient / len(starts)  # a mean, for the solver's absolute tolerance

    found = minimize(loss, np.zeros(columns.shape[1] + 1), jac=True, method="L-BFGS-B").x
    weights = np.zeros(len(mean))
    weights[varies] = found[:-1]
    return LinearModel(mean, scale, weights, float(found[-1]))


@dataclass(frozen=True, eq=False)
class _Grid:
    """Where rows lie on B nodes. A table over nodes is [2, B]: first for wrong rows, then for right ones.

    Attributes:
        step: from node to node, as a margin.
        below: [N] the node below each row, as a position in the flat table.
        part: [N] how far the row is on its way to the next node, 0..1.
    """

    step: float
    below: NDArray[np.intp]
    part: Values

    @classmethod
    def over(cls, margin: Values, right: Right) -> _Grid:
        """Nodes from nearly the lowest margin to the highest; what is lower lies on the first node."""
        low = float(np.quantile(margin, LOWEST_QUANTILE))
        step = max((float(margin.max()) - low) / (NODES - 1), LEAST_STEP)
        place = np.clip((margin - low) / step, 0, NODES - 1)
        node = np.minimum(place.astype(np.intp), NODES - 2)
        return cls(step, node + NODES * right, place - node)

    def deposit(self, weight: Values) -> Values:
        """[N] -> [2, B]: each row's weight, shared between the two nodes around it."""
        flat = np.zeros(2 * NODES)
        flat += np.bincount(self.below, weight * (1 - self.part), len(flat))
        flat += np.bincount(self.below + 1, weight * self.part, len(flat))
        return flat.reshape(2, NODES)

    def read(self, table: Values) -> Values:
        """[2, B] -> [N]: the table at each row, a straight line between nodes."""
        flat = table.ravel()
        value: Values = flat[self.below] * (1 - self.part) + flat[self.below + 1] * self.part
        return value


@dataclass(frozen=True, eq=False)
class _Ranking:
    """The weight on the nodes, and what is ranked before each of them.

    Attributes:
        wrong, right: [B] the weight of wrong and of right rows.
        before: [B, B] how far node b is ranked before node a: sigmoid of (margin b - margin a) / RANK_WIDTH.
        misses, hits: [B] the weight of wrong and of right rows before a node; hits with the half of the row itself that
            the sigmoid leaves out, so that precision is never 0 / 0.
    """

    wrong: Values
    right: Values
    before: Values
    misses: Values
    hits: Values

    @property
    def precision(self) -> Values:
        """[B] smoothed, of a right row at each node."""
        return self.hits / self._all

    @property
    def _all(self) -> Values:
        return self.hits + self.misses

    @property
    def _gain(self) -> Values:
        """[B] what a hit more before a node adds to the value."""
        return self.right * self.misses / self._all**2

    @property
    def _cost(self) -> Values:
        """[B] what a miss more before a node takes from it."""
        return self.right * self.hits / self._all**2

    def worth_of_weight(self) -> Values:
        """[2, B] the derivative of the value by a row's weight: its own precision, and what it does to those after."""
        return np.stack([-self._cost @ self.before, self.precision + self._gain @ self.before])

    def worth_of_moving(self) -> Values:
        """[2, B] the derivative of the value by a row's margin, for each unit of its weight."""
        slope = self.before * (1 - self.before) / RANK_WIDTH  # [B, B]
        own = (self.hits * (slope @ self.wrong) - self.misses * (slope @ self.right)) / self._all**2
        return np.stack([-self._cost @ slope, own + self._gain @ slope])


def _rank(grid: _Grid, share: Values) -> _Ranking:
    wrong, right = grid.deposit(share)
    margins = grid.step * np.arange(NODES)
    before = expit((margins - margins[:, None]) / RANK_WIDTH)
    return _Ranking(wrong, right, before, before @ wrong, before @ right + 0.5)


def _answer_share(margin: Values, starts: Starts) -> Values:
    """[N] how much each row is its query's answer: 0..1, sums to 1 within a query."""
    odds = np.exp((margin - _highest(margin, starts)) / ANSWER_WIDTH)
    share: Values = odds / _total(odds, starts)
    return share


def _total(values: Values, starts: Starts) -> Values:
    """[N] -> [N]: the sum over the row's query."""
    return _spread(np.add.reduceat(values, starts), starts, len(values))


def _highest(values: Values, starts: Starts) -> Values:
    """[N] -> [N]: the maximum over the row's query."""
    return _spread(np.maximum.reduceat(values, starts), starts, len(values))


def _spread(values: Values, starts: Starts, rows: int) -> Values:
    """[G] -> [N]: each query's value for all of its rows."""
    return np.repeat(values, np.diff(starts, append=rows))
