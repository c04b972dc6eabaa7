"""Confidences to probabilities: how often an answer of some confidence is right, learned out of fold.

In: confidences of answers and whether they are right. Out: a `Calibration`, which keeps their order, and `Reliability`,
which says how far confidences are from what they promise. Nothing here touches the disk.

| method      | probability of a confidence c                                                                |
|-------------|----------------------------------------------------------------------------------------------|
| none        | c                                                                                            |
| temperature | sigmoid(a logit c): Guo et al. (2017)                                                        |
| platt       | sigmoid(a logit c + b): Platt (1999)                                                         |
| beta        | sigmoid(a ln c - d ln(1 - c) + b): Kull et al. (2017)                                        |
| isotonic    | a step function, which ties what it cannot tell apart; a thousandth of Platt's breaks the    |
|             | ties in the order that the confidences had                                                   |
| venn-abers  | p1 / (1 - p0 + p1), where p0 and p1 are what isotonic says of c once an answer of confidence |
|             | c that is wrong or right has been added; ties as above: Vovk and Petej (2014)                |

Slopes are above 0, so each of them rises with c.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit
from sklearn.isotonic import IsotonicRegression

from engine.core.config import CalibrationMethod
from stacking.scales import add_up

METHODS: Final[tuple[CalibrationMethod, ...]] = get_args(CalibrationMethod)  # the simpler first
Values = NDArray[np.float64]
Right = NDArray[np.bool_]

BINS = 15  # of equally many answers
LEAST = 1e-12  # of a slope, and of a probability whose logarithm counts as a loss
TIE_BREAK = 1e-3  # the share of Platt's probability where steps leave ties


@dataclass(frozen=True)
class Calibration:
    """A rising function from confidence to probability; plain values, to be kept as JSON.

    Attributes:
        method: of `METHODS`.
        slopes: of the terms of `method`; those of Platt for isotonic and venn-abers.
        bias: added to the terms.
        knots: confidences, ascending, each with what never falls along them: of isotonic its probability, of
            venn-abers p0 and p1.
    """

    method: CalibrationMethod
    slopes: tuple[float, ...] = ()
    bias: float = 0.0
    knots: tuple[tuple[float, ...], ...] = ()

    def apply(self, confidence: Values) -> Values:
        """The probability that an answer of some confidence is right: [N] -> [N], 0..1."""
        if self.method == "none":
            return confidence
        weighed = np.array(self.slopes)[:, None] * _terms(self.method, confidence).T
        smooth: Values = expit(add_up(weighed) + self.bias)
        if not self.knots:
            return smooth
        places, *heights = np.array(self.knots).T
        stepped = np.interp(confidence, places, *heights) if self.method == "isotonic" else self._merge(confidence)
        return (1 - TIE_BREAK) * stepped + TIE_BREAK * smooth

    def _merge(self, confidence: Values) -> Values:
        """[N] -> [N]: venn-abers before its ties are broken; between two knots p0 is the lower's, p1 the upper's."""
        places, if_wrong, if_right = np.array(self.knots).T
        p0 = np.append(0.0, if_wrong)[np.searchsorted(places, confidence, side="right")]
        p1 = np.append(if_right, 1.0)[np.searchsorted(places, confidence, side="left")]
        merged: Values = p1 / (1 - p0 + p1)
        return merged


@dataclass(frozen=True)
class Reliability:
    """How far confidences are from how often answers are right.

    Attributes:
        ece: expected calibration error: the mean over `BINS` bins of equally many answers, sorted by confidence, of the
            distance between mean confidence and share of right answers; 0..1.
        brier: mean squared distance of confidence and truth; 0..1.
        log_loss: mean, in nats.
        bins: (mean confidence, share of right ones, answers) of each bin.
    """

    ece: float
    brier: float
    log_loss: float
    bins: tuple[tuple[float, float, int], ...]


def measure_reliability(confidence: Values, right: Right) -> Reliability:
    """How far the confidences of some answers, [N] in 0..1, are from how often they are right; N at least 1."""
    parts = [part for part in np.array_split(np.argsort(confidence, kind="stable"), BINS) if len(part)]
    bins = tuple((float(confidence[part].mean()), float(right[part].mean()), len(part)) for part in parts)
    ece = sum(count * abs(said - true) for said, true, count in bins) / len(confidence)
    brier = float(np.mean((confidence - right) ** 2))
    return Reliability(ece, brier, float(_losses(confidence, right).mean()), bins)


def fit_calibration(method: CalibrationMethod, confidence: Values, right: Right) -> Calibration:
    """Learn a calibration; of answers that are all right or all wrong there is nothing to learn, and none is made.

    Args:
        method: of `METHODS`.
        confidence: [N], 0..1.
        right: [N].
    """
    if method == "none" or not 0 < np.count_nonzero(right) < len(right):
        return Calibration("none")
    terms = _terms(method, confidence)

    def loss(weights: Values) -> tuple[float, Values]:
        score = terms @ weights[:-1] + weights[-1]
        error = expit(score) - right
        gradient = np.append(error @ terms, error.sum())
        return float(np.logaddexp(0, np.where(right, -score, score)).mean()), gradient / len(right)

    middle = (0.0, 0.0) if method == "temperature" else (None, None)
    bounds = [(LEAST, None)] * terms.shape[1] + [middle]
    found = minimize(loss, np.append(np.ones(terms.shape[1]), 0.0), jac=True, bounds=bounds, method="L-BFGS-B").x
    slopes, bias = tuple(found[:-1].tolist()), float(found[-1])
    find_knots = {"isotonic": _fit_isotonic, "venn-abers": _fit_venn_abers}.get(method)
    return Calibration(method, slopes, bias, find_knots(confidence, right) if find_knots else ())


def cross_calibrate(method: CalibrationMethod, confidence: Values, right: Right, fold: NDArray[Any]) -> Values:
    """The probability of each answer by a calibration fitted on the other folds' answers; all of them [N]."""
    probability = np.zeros(len(confidence))
    for held in np.unique(fold):
        inside = fold == held
        calibration = fit_calibration(method, confidence[~inside], right[~inside])
        probability[inside] = calibration.apply(confidence[inside])
    return probability


def choose_method(confidence: Values, right: Right, fold: NDArray[Any]) -> CalibrationMethod:
    """The method of the lowest cross-validated log loss; one that is less simple has to win by a standard error.

    Args:
        confidence: [N], 0..1.
        right: [N].
        fold: [N], whole groups of duplicates in each.
    """
    best, lowest = METHODS[0], _losses(confidence, right)
    for method in METHODS[1:]:
        losses = _losses(cross_calibrate(method, confidence, right, fold), right)
        gain = lowest - losses
        if gain.mean() > gain.std() / np.sqrt(len(gain)):
            best, lowest = method, losses
    return best


def _fit_isotonic(confidence: Values, right: Right) -> tuple[tuple[float, ...], ...]:
    steps = IsotonicRegression(y_min=0, y_max=1).fit(confidence, right)
    return tuple(zip(steps.X_thresholds_.tolist(), steps.y_thresholds_.tolist(), strict=True))


def _fit_venn_abers(confidence: Values, right: Right) -> tuple[tuple[float, ...], ...]:
    """The inductive Venn-Abers predictor of Vovk, Petej and Fedorova (2015): p0 and p1 at each confidence.

    What stands between two knots like itself is left out.
    """
    places, place = np.unique(confidence, return_inverse=True)
    answers = np.bincount(place)
    hits = np.bincount(place[right], minlength=len(places))
    if_right = _fit_with_one_more(answers, hits)
    if_wrong = 1 - _fit_with_one_more(answers[::-1], (answers - hits)[::-1])[::-1]  # the same, seen from the other end
    knots = np.column_stack([places, if_wrong, if_right])
    step = (np.diff(knots[:, 1:], axis=0) != 0).any(axis=1)
    kept = np.append(True, step) | np.append(step, True)
    return tuple(map(tuple, knots[kept].tolist()))


def _fit_with_one_more(answers: NDArray[np.intp], hits: NDArray[np.intp]) -> Values:
    """What an isotonic fit says at each place once one more right answer stands there: n answers, hits [P] -> [P].

    An isotonic fit is the slope of the lower hull of the points (answers, hits) counted up to each place. One more
    right answer at a place moves all points before it by (-1, -1), and its slope there is that of the line below both
    parts. From place to place that line only grows steeper and its ends only move on, so all of them together take time
    proportional to P, after each point's successor on the hull of all that follow it has been found, likewise.
    """
    x: list[int] = [0, *np.cumsum(answers).tolist()]  # Python's numbers: exact
    y: list[int] = [0, *np.cumsum(hits).tolist()]

    def rises(left: tuple[int, int], middle: int, end: int) -> bool:
        """Whether the line from left to middle, drawn on, passes below end."""
        return (y[end] - left[1]) * (x[middle] - left[0]) > (y[middle] - left[1]) * (x[end] - left[0])

    last = len(answers)
    after = list(range(1, last + 2))
    for point in range(last - 1, -1, -1):
        while after[point] < last and not rises((x[point], y[point]), after[point], after[after[point]]):
            after[point] = after[after[point]]

    slopes, left, end = np.zeros(last), (-1, -1), 1
    for place in range(1, last + 1):
        moved = x[place - 1] - 1, y[place - 1] - 1
        if end < place or (moved[1] - left[1]) * (x[end] - left[0]) <= (y[end] - left[1]) * (moved[0] - left[0]):
            left, end = moved, max(end, place)
            while end < last and not rises(left, end, after[end]):
                end = after[end]
        slopes[place - 1] = (y[end] - left[1]) / (x[end] - left[0])
    return slopes


def _terms(method: CalibrationMethod, confidence: Values) -> Values:
    """[N, T]; finite for 0 and 1 too."""
    inside = np.clip(confidence, np.finfo(float).tiny, 1 - np.finfo(float).epsneg)
    low, high = np.log(inside), -np.log1p(-inside)
    return np.column_stack([low, high]) if method == "beta" else (low + high)[:, None]


def _losses(probability: Values, right: Right) -> Values:
    of_truth = np.where(right, probability, 1 - probability)
    losses: Values = -np.log(np.maximum(of_truth, LEAST))
    return losses
