"""The gate: does a photo show a landmark at all?

A logistic regression on the embeddings of the frozen members, side by side, trained on landmark photos against photos
without one, one model per fold like every member. In: embeddings. Out: `gate/{oof,test}.parquet`, the column
`p_landmark` in 0..1 per query. Without photos of nothing there is nothing to learn: it then passes everything (1.0).
"""

from __future__ import annotations

import time

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from engine.core.config import GateConfig, flatten
from engine.core.errors import ConfigError
from engine.core.storage import sha256_json
from engine.core.tables import QUERY_FEATURES
from zoo.context import Context
from zoo.embedding import embedding_key
from zoo.members import embeddings_of
from zoo.photo_set import Part, PhotoSet
from zoo.recipe import Recipe

VERSION = 1
MEMBER = "gate"


def run_gate(context: Context, config: GateConfig, recipes: list[Recipe]) -> None:
    """Fit the gate per fold and score every query; finished and fresh scores are not made again.

    Args:
        context: the run and its photos.
        config: the gate's settings.
        recipes: the run's members; those with a frozen backbone lend their embeddings.

    Raises:
        ConfigError: when no member has a frozen backbone.
    """
    frozen = list({embedding_key(recipe): recipe for recipe in recipes if recipe.backbone.frozen}.values())
    if not frozen:
        raise ConfigError(
            "the gate needs a member with a frozen backbone",
            hint='add one, e.g. recipe = "lite0-frozen", or set gate.enabled = false',
        )
    photos = context.photos
    inputs = flatten(config, "gate") | {
        "training photos": photos.training_digest,
        "test photos": sha256_json([photos.hashes[row] for row in photos.rows_of("test", 0)]),
        "queries": sha256_json(photos.ids.tolist()),
        "embeddings": [embedding_key(recipe) for recipe in frozen],
        "version": VERSION,
    }
    parts: tuple[Part, ...] = ("oof", "test") if len(photos.rows_of("test", 0)) else ("oof",)
    if all(context.run.is_fresh(f"gate/{part}.parquet", inputs) for part in parts):
        return
    if not (photos.landmarks[photos.folds >= 0] == "").any():
        context.progress.say("gate: no photo without a landmark to learn from, so it lets everything pass")
    began = time.monotonic()
    features = np.concatenate([embeddings_of(context, recipe).mean(axis=1) for recipe in frozen], axis=1)
    with context.progress.task("gate", photos.fold_count, "fold") as advance:
        scored = []
        for fold in range(photos.fold_count):
            scored.append(score_gate_fold(features, photos, fold, config))
            advance(1, "")
    facts = {"seconds": round(time.monotonic() - began, 2)}
    for part in parts:
        table = gate_table([each[part] for each in scored], part, photos)
        context.run.save_table(f"gate/{part}.parquet", table, QUERY_FEATURES, inputs, facts)


def fit_gate(features: NDArray[np.float16], shows_landmark: NDArray[np.bool_], config: GateConfig) -> Pipeline:
    """Fit the classifier.

    Args:
        features: [N, D] embeddings.
        shows_landmark: [N], both kinds present.
        config: the regularisation.
    """
    regression = LogisticRegression(C=config.inverse_penalty, max_iter=200)
    return make_pipeline(StandardScaler(), regression).fit(features.astype(np.float32), shows_landmark)


def score_gate_fold(
    features: NDArray[np.float16], photos: PhotoSet, fold: int, config: GateConfig
) -> dict[Part, NDArray[np.float64]]:
    """P(landmark) of a fold's held-out photos and of the test set, by the model that saw neither."""
    rows = photos.training_rows(fold, negatives=True)
    shows_landmark = photos.landmarks[rows] != ""
    parts: tuple[Part, ...] = ("oof", "test")
    queries = {part: photos.rows_of(part, fold) for part in parts}
    if shows_landmark.all():
        return {part: np.ones(len(queries[part])) for part in parts}
    gate = fit_gate(features[rows], shows_landmark, config)
    return {
        part: gate.predict_proba(features[queries[part]].astype(np.float32))[:, 1] if len(queries[part]) else np.ones(0)
        for part in parts
    }


def gate_table(scores: list[NDArray[np.float64]], part: Part, photos: PhotoSet) -> pd.DataFrame:
    """One row per query: out of fold the fold's own score, for the test set the mean over the folds."""
    if part == "oof":
        rows = np.concatenate([photos.rows_of("oof", fold) for fold in range(photos.fold_count)])
        probability = np.concatenate(scores)
    else:
        rows = photos.rows_of("test", 0)
        probability = np.mean(scores, axis=0)
    return pd.DataFrame({"member": MEMBER, "query": photos.ids[rows], "p_landmark": probability.astype(np.float32)})
