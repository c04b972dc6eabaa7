"""A member's folds to its merged scores, `scores/<member>.{oof,test}.parquet` and `.queries.parquet`."""

from __future__ import annotations

import pandas as pd

from engine.core.runs import TRAIN_ZOO
from engine.core.tables import CANDIDATES, QUERY_FEATURES, read_table
from zoo.candidates import mean_candidates, mean_features
from zoo.context import Context
from zoo.photo_set import PARTS, known_landmarks
from zoo.recipe import Recipe

VERSION = 1  # raised when a change of code changes what is merged


def merge_folds(context: Context, recipe: Recipe) -> None:
    """Write `scores/<member>.*`: out of fold every fold's rows, for the test set the mean over the fold models."""
    run, folds = context.run, range(context.photos.fold_count)
    knows = pd.Series([name for fold in folds for name in known_landmarks(context.photos, recipe, fold)]).value_counts()
    for part in PARTS:
        for ending, schema in (("parquet", CANDIDATES), ("queries.parquet", QUERY_FEATURES)):
            parts = [f"zoo/{recipe.name}/fold{fold}/{part}.{ending}" for fold in folds]
            parts = [name for name in parts if run.find(name) is not None]
            name = f"scores/{recipe.name}.{part}.{ending}"
            inputs = {name: run.hash_of(name, made_by=TRAIN_ZOO) for name in parts} | {"version": VERSION}
            if not parts or run.is_fresh(name, inputs):
                continue
            tables = [read_table(run.path(each), schema) for each in parts]
            if part == "oof":
                merged = pd.concat(tables, ignore_index=True, join="inner")  # what every fold's model can tell
            elif schema is CANDIDATES:
                merged = mean_candidates(tables, knows=knows, member=recipe.name, keep=recipe.candidates)
            else:
                merged = mean_features(tables)
            run.save_table(name, merged, schema, inputs)
