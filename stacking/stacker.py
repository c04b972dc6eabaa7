"""A fitted stacker: from rows of (query, candidate) to the probability that a candidate is what its query shows.

The first stage scores rows: linear models and trees, each fitted without another part of the queries, averaged. A
second stage, where there is one, looks at whole queries and says how probable the best row is. `stacking.fitting` makes
them.

Only `save_stacker` and `load_stacker` touch the disk: one JSON file that holds the feature names, and the trees as
LightGBM's own text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit

from engine.core.config import StackMethod
from engine.core.errors import ArtifactError
from engine.core.storage import read_json, write_json
from stacking.objectives import Starts, Values, query_probability, query_starts
from stacking.scales import logit, straighten
from stacking.trees import Matrix, Objective, add_trees, as_matrix, best_rows

STACKER_VERSION: Final = 3  # of the file's layout


@dataclass(frozen=True)
class Linear:
    """A linear model over straightened features, as plain values.

    Attributes:
        weights: of the features.
        bias: the margin where all straightened features are 0.
        centre: the features' means where it was fitted, straightened: what they are measured from to explain a margin.
    """

    weights: tuple[float, ...]
    bias: float
    centre: tuple[float, ...]

    def margin(self, values: Matrix, bounded: Sequence[bool]) -> Values:
        """[N, F] features -> [N] log-odds against the outcome that none of a query's candidates is right.

        Column by column: a BLAS product's last digit depends on the other rows, and the whole table straightened would
        be another two of it.
        """
        margin = np.full(len(values), self.bias)
        for column, weight, within in zip(values.T, self.weights, bounded, strict=True):
            if weight:
                margin += weight * straighten(column, bounded=within)
        return margin


@dataclass(frozen=True)
class Model:
    """One fitted first stage.

    Attributes:
        objective: what its trees lowered; linear where it has none.
        linear: where the trees start.
        trees: LightGBM's text; empty for none.
    """

    objective: Literal["linear"] | Objective
    linear: Linear
    trees: str


@dataclass(frozen=True)
class Stacker:
    """A fitted stacker; plain values, so two that are equal give equal predictions.

    Attributes:
        method: how it was fitted.
        features: the columns it reads, in its order.
        bounded: which of them a linear model takes the logit of.
        models: of the first stage, averaged.
        second: LightGBM's texts of the second stage, averaged; empty for none.
    """

    method: StackMethod
    features: tuple[str, ...]
    bounded: tuple[bool, ...]
    models: tuple[Model, ...]
    second: tuple[str, ...] = ()

    def predict(self, rows: pd.DataFrame, *, threads: int) -> Values:
        """The probability that each row's landmark is what its query shows: [N], 0..1.

        With a second stage that of a query's best row is its own, and its other rows keep their ratio to it.

        Args:
            rows: of `build_rows`, all rows of each query; other columns are ignored.
            threads: how many to use; the numbers do not depend on it.

        Raises:
            ArtifactError: when features are missing.
            DataError: when a feature is not a finite number.
        """
        values = as_matrix(rows, self.features)
        if not len(values):
            return np.zeros(0)
        starts = query_starts(rows)
        total = np.zeros(len(values))
        for model in self.models:
            margin = model.linear.margin(values, self.bounded)
            if model.trees:
                margin = add_trees(model.trees, values, margin, threads=threads)
            total += query_probability(margin, starts)
        first: Values = total / len(self.models)
        if not self.second:
            return first
        asked = tabulate_queries(values, first, starts)
        margin = logit(asked.confidence)
        sure = [expit(add_trees(text, asked.table, margin, threads=threads)) for text in self.second]
        return rescale(first, asked.confidence, np.mean(sure, axis=0), starts)


@dataclass(frozen=True, eq=False)
class Asked:
    """One row per query, for a second stage.

    Attributes:
        table: [G, F] what is known of the query and of its best candidate.
        confidence: [G] of the best candidate by the first stage.
        best: [G] its row.
    """

    table: Matrix
    confidence: Values
    best: NDArray[np.intp]


def tabulate_queries(values: Matrix, scores: Values, starts: Starts) -> Asked:
    """What a second stage is told of each query: its best row, and how the others stand to it.

    Args:
        values: [N, F] the first stage's features.
        scores: [N] of the first stage, 0..1.
        starts: [G].
    """
    best = best_rows(scores, starts)
    highest, others = scores[best], scores.copy()
    others[best] = 0
    runner_up, rest = np.maximum.reduceat(others, starts), np.add.reduceat(others, starts)
    told = np.column_stack([logit(highest), logit(runner_up), logit(highest) - logit(runner_up), rest])
    return Asked(np.column_stack([told, values[best]]).astype(np.float32), highest, best)


def rescale(scores: Values, before: Values, after: Values, starts: Starts) -> Values:
    """Scores [N] with each query's best raised or lowered from [G] to [G], and its others in proportion."""
    factor = after / np.maximum(before, np.finfo(float).tiny)
    return scores * np.repeat(factor, np.diff(starts, append=len(scores)))


def save_stacker(path: Path, stacker: Stacker) -> None:
    """Write a stacker to one JSON file, atomically."""
    write_json(path, {"schema_version": STACKER_VERSION, **asdict(stacker)})


def load_stacker(path: Path) -> Stacker:
    """Read a stacker back; it predicts what the saved one did, bit for bit.

    LightGBM reads past the end of a damaged model and takes the process down with it, so this is only for a file whose
    SHA-256 the caller has verified, see `engine.core.runs.Run.verified`.

    Raises:
        ArtifactError: when the file is missing, is not JSON, or is of another version.
    """
    stored = read_json(path)
    if stored.get("schema_version") != STACKER_VERSION:
        raise ArtifactError(
            f"{path}: is a stacker of version {stored.get('schema_version')}, this engine reads {STACKER_VERSION}",
            hint="run 'engine stack' again",
        )
    models = tuple(Model(each["objective"], _read_linear(each["linear"]), each["trees"]) for each in stored["models"])
    return Stacker(
        stored["method"], tuple(stored["features"]), tuple(stored["bounded"]), models, tuple(stored["second"])
    )


def _read_linear(stored: Mapping[str, Any]) -> Linear:
    return Linear(tuple(stored["weights"]), stored["bias"], tuple(stored["centre"]))
