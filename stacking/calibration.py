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

METHODS: Final[tuple[CalibrationMethod, ...]] = get_args(CalibrationMethod)  # the simpler first
Values = NDArray[np.float64]
Right = NDArray[np.bool_]

BINS = 15  # of equally many answers
LEAST = 1e-12  # of a slope, and of a probability whose logarithm counts as a loss
TIE_BREAK = 1e-3  # the share of Platt's probability in an isotonic one


@dataclass(frozen=True)
class Calibration:
    """A rising function from confidence to probability; plain values, to be kept as JSON.

    Attributes:
        method: of `METHODS`.
        slopes: of the terms of `method`; those of Platt for isotonic.
        bias: added to the terms.
        knots: of isotonic: confidences, ascending, and their probabilities, never falling.
    """

    method: CalibrationMethod
    slopes: tuple[float, ...] = ()
    bias: float = 0.0
    knots: tuple[tuple[float, float], ...] = ()

    def apply(self, confidence: Values) -> Values:
        """The probability that an answer of some confidence is right: [N] -> [N], 0..1."""
        if self.method == "none":
            return confidence
        smooth: Values = expit(_terms(self.method, confidence) @ np.array(self.slopes) + self.bias)
        if self.method != "isotonic":
            return smooth
        places, heights = np.array(self.knots).T
        stepped: Values = np.interp(confidence, places, heights)
        return (1 - TIE_BREAK) * stepped + TIE_BREAK * smooth


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
    if method != "isotonic":
        return Calibration(method, slopes, bias)
    steps = IsotonicRegression(y_min=0, y_max=1).fit(confidence, right)
    knots = zip(steps.X_thresholds_.tolist(), steps.y_thresholds_.tolist(), strict=True)
    return Calibration(method, slopes, bias, tuple(knots))


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


def _terms(method: CalibrationMethod, confidence: Values) -> Values:
    """[N, T]; finite for 0 and 1 too."""
    inside = np.clip(confidence, np.finfo(float).tiny, 1 - np.finfo(float).epsneg)
    low, high = np.log(inside), -np.log1p(-inside)
    return np.column_stack([low, high]) if method == "beta" else (low + high)[:, None]


def _losses(probability: Values, right: Right) -> Values:
    of_truth = np.where(right, probability, 1 - probability)
    losses: Values = -np.log(np.maximum(of_truth, LEAST))
    return losses
