"""The stacker: LightGBM over (query, candidate) rows that says how probable it is that a candidate is right.

`fit_stacker` and `Stacker.predict` work on tables; only `save_stacker` and `load_stacker` touch the disk: one JSON file
that holds the feature names, and the models as LightGBM's own text.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import lightgbm as lgb
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from engine.core.config import StackConfig
from engine.core.errors import ArtifactError, DataError
from engine.core.storage import read_json, write_json
from stacking.features import feature_names

STACKER_VERSION: Final = 1  # of the file's layout
ROWS_PER_THREAD: Final = 50_000  # below, threads wait for one another: 30,000 rows on two busy cores took 6 s or 180 s


@dataclass(frozen=True)
class Stacker:
    """A fitted stacker; plain values, so two that are equal give equal predictions.

    Attributes:
        features: the columns it reads, in its order.
        models: LightGBM models as text, averaged.
    """

    features: tuple[str, ...]
    models: tuple[str, ...]

    def predict(self, rows: pd.DataFrame, *, threads: int) -> NDArray[np.float64]:
        """The probability that each row's landmark is what its query shows: [N], 0..1.

        Args:
            rows: has the stacker's features under any order; other columns are ignored.
            threads: how many to use; the numbers do not depend on it.

        Raises:
            ArtifactError: when features are missing.
            DataError: when a feature is not a finite number.
        """
        values = _as_matrix(rows, self.features)
        if not len(values):
            return np.zeros(0)
        predictions = [lgb.Booster(model_str=m).predict(values, num_threads=threads) for m in self.models]
        mean: NDArray[np.float64] = np.mean(predictions, axis=0, dtype=np.float64)
        return mean


def fit_stacker(
    rows: pd.DataFrame, right: NDArray[np.bool_], config: StackConfig, *, seed: int, threads: int
) -> Stacker:
    """Learn which candidates are right, from row log-loss, which already aims at the ranking GAP rewards most.

    Args:
        rows: [N] of `stacking.features.build_rows`, made from out-of-fold scores.
        right: [N] of `stacking.features.mark_right`.
        config: size and number of the models.
        seed: which features each tree sees.
        threads: how many to use; the models do not depend on it.

    Raises:
        DataError: when all rows are right or all are wrong, or when a feature is not a finite number.
    """
    if not 0 < np.count_nonzero(right) < len(right):
        raise DataError(
            f"{np.count_nonzero(right)} of {len(right)} candidates are right: there is nothing to tell apart",
            hint="look at the members' own scores first",
        )
    features = feature_names(rows)
    parameters = _parameters(config, min(threads, 1 + len(rows) // ROWS_PER_THREAD))
    data = lgb.Dataset(_as_matrix(rows, features), right, params=parameters)
    seeds = np.random.SeedSequence(seed).generate_state(config.bags) >> 1  # LightGBM's seeds are signed
    models = (lgb.train({**parameters, "seed": int(s)}, data, config.trees) for s in seeds)
    return Stacker(features, tuple(_as_text(model) for model in models))


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
    return Stacker(tuple(stored["features"]), tuple(stored["models"]))


def _parameters(config: StackConfig, threads: int) -> dict[str, Any]:
    return {
        "objective": "binary",
        "learning_rate": config.learning_rate,
        "num_leaves": config.leaves,
        "min_data_in_leaf": config.min_rows_in_leaf,
        "feature_fraction": config.feature_fraction,
        "lambda_l2": config.l2,
        "deterministic": True,
        "force_row_wise": True,  # else LightGBM times both layouts and takes the one that happened to be faster
        "num_threads": threads,
        "verbosity": -1,
    }


def _as_text(model: lgb.Booster) -> str:
    """A model's text without the one line that depends on the machine, so that equal models have equal hashes."""
    return re.sub(r"\[num_threads: \d+\]", "[num_threads: 0]", model.model_to_string())


def _as_matrix(rows: pd.DataFrame, features: tuple[str, ...]) -> NDArray[np.float32]:
    """The features as [N, F], by name."""
    missing = [name for name in features if name not in rows.columns]
    if missing:
        raise ArtifactError(
            f"the stacker reads {len(missing)} features that these rows lack: {', '.join(missing)}",
            hint="the members changed since it was fitted; run 'engine stack' again",
        )
    values = rows[list(features)].to_numpy(dtype=np.float32)
    broken = [name for name, column in zip(features, values.T, strict=True) if not np.isfinite(column).all()]
    if broken:
        raise DataError(f"features that are not finite numbers: {', '.join(broken)}", hint="make the scores again")
    return values
