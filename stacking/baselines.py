"""What a stack has to beat: rules that merge the members' scores without trees.

In: rows of `stacking.features.build_rows`. Out: a score for each row. A single member needs no rows, see
`stacking.answers.answer_alone`. Nothing here touches the disk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from engine.core.errors import ArtifactError
from stacking.features import P_LANDMARK, feature_names

LOGIT_FLOOR: Final = 1e-6  # as the members' score floor; bounds a logit to about 14

Rule = Callable[[pd.DataFrame], NDArray[np.float64]]


def mean_score(rows: pd.DataFrame) -> NDArray[np.float64]:
    """The mean of the members' scores; where a member does not list the landmark its floor counts, which is 0."""
    return rows["all.mean"].to_numpy(dtype=np.float64)


def geometric_score(rows: pd.DataFrame) -> NDArray[np.float64]:
    """The geometric mean of the members' scores: one doubter weighs more."""
    return rows["all.geometric"].to_numpy(dtype=np.float64)


def gated_mean_score(rows: pd.DataFrame) -> NDArray[np.float64]:
    """The mean times the gate's probability that the photo shows a landmark."""
    return mean_score(rows) * _gate(rows)


def gated_geometric_score(rows: pd.DataFrame) -> NDArray[np.float64]:
    """The geometric mean times the gate's probability that the photo shows a landmark."""
    return geometric_score(rows) * _gate(rows)


def _gate(rows: pd.DataFrame) -> NDArray[np.float64]:
    return rows[P_LANDMARK].to_numpy(dtype=np.float64)


_RULES: Final[Mapping[str, Rule]] = {"mean": mean_score, "geometric-mean": geometric_score}
_GATED_RULES: Final[Mapping[str, Rule]] = {
    "gated-mean": gated_mean_score,
    "gated-geometric-mean": gated_geometric_score,
}


def choose_rules(rows: pd.DataFrame) -> Mapping[str, Rule]:
    """The rules that can be applied to these rows, by name: the gated ones only where there was a gate."""
    return {**_RULES, **_GATED_RULES} if P_LANDMARK in rows.columns else _RULES


@dataclass(frozen=True, eq=False)
class LogisticStack:
    """A logistic regression over the same features as the stacker's.

    Attributes:
        features: the columns it reads, in its order.
        bounded: [F] which of them lay within 0..1, so that their logit is taken.
        model: scikit-learn's pipeline.
    """

    features: tuple[str, ...]
    bounded: NDArray[np.bool_]
    model: Any

    def predict(self, rows: pd.DataFrame) -> NDArray[np.float64]:
        """The probability that each row's landmark is what its query shows: [N], 0..1.

        Raises:
            ArtifactError: when features are missing.
        """
        missing = [name for name in self.features if name not in rows.columns]
        if missing:
            raise ArtifactError(f"the logistic stack reads features that these rows lack: {', '.join(missing)}")
        values = rows[list(self.features)].to_numpy(dtype=np.float64)
        probability: NDArray[np.float64] = self.model.predict_proba(_straighten(values, self.bounded))[:, 1]
        return probability


def fit_logistic(rows: pd.DataFrame, right: NDArray[np.bool_]) -> LogisticStack:
    """Learn which candidates are right with a logistic regression on standardised logits.

    Args:
        rows: [N] of `build_rows`.
        right: [N], some of both kinds.
    """
    features = feature_names(rows)
    values = rows[list(features)].to_numpy(dtype=np.float64)
    bounded = (values.min(axis=0) >= 0) & (values.max(axis=0) <= 1)
    # newton-cholesky: exact in some ten steps where rows far outnumber features
    model = make_pipeline(StandardScaler(), LogisticRegression(solver="newton-cholesky"))
    return LogisticStack(features, bounded, model.fit(_straighten(values, bounded), right))


def _straighten(values: NDArray[np.float64], bounded: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Logits of what lies within 0..1, signed logarithms of the rest: scales on which evidence adds up."""
    clipped = np.clip(values, LOGIT_FLOOR, 1 - LOGIT_FLOOR)
    return np.where(bounded, np.log(clipped / (1 - clipped)), np.sign(values) * np.log1p(np.abs(values)))
