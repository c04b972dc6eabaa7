"""Features on scales where evidence adds up, for models that are straight lines. Nothing here touches the disk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

LOGIT_FLOOR: Final = 1e-6  # as the members' score floor; bounds a logit to about 14

Values = NDArray[np.float64]


def find_bounded(values: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Which columns of [N, F] lie within 0..1, so that their logit can be taken: [F]."""
    bounded: NDArray[np.bool_] = (values.min(axis=0) >= 0) & (values.max(axis=0) <= 1)
    return bounded


def logit(values: NDArray[np.floating]) -> Values:
    """The log-odds of probabilities of any shape, kept `LOGIT_FLOOR` away from 0 and 1."""
    clipped = np.clip(np.asarray(values, dtype=np.float64), LOGIT_FLOOR, 1 - LOGIT_FLOOR)
    return np.asarray(np.log(clipped / (1 - clipped)))


def straighten(column: NDArray[np.floating], *, bounded: bool) -> Values:
    """The logit of a column [N] that is bounded, the signed logarithm of another."""
    if bounded:
        return logit(column)
    wide = np.asarray(column, dtype=np.float64)
    return np.asarray(np.sign(wide) * np.log1p(np.abs(wide)))


def straighten_all(values: NDArray[np.floating], bounded: NDArray[np.bool_]) -> Values:
    """Every column of [N, F], straightened."""
    pairs = zip(values.T, bounded, strict=True)
    return np.column_stack([straighten(column, bounded=bool(within)) for column, within in pairs])


def add_up(values: Sequence[Values] | Values) -> Values:
    """M arrays [N] -> [N]: their sum, each row's last digit whatever other rows there are, unlike numpy's own sums."""
    return sum(values, start=np.zeros(len(values[0])))
