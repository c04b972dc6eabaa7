"""What the members said of some queries, read from a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from engine.core.catalog import usable
from engine.core.config import EngineConfig, StackConfig
from engine.core.folds import TEST_FOLD, class_sizes, oof_truth
from engine.core.runs import TRAIN_ZOO, Run
from engine.core.tables import CANDIDATES, QUERY_FEATURES, TableSchema
from engine.pipeline.photos import load_tables
from engine.pipeline.request import member_recipes

if TYPE_CHECKING:
    from zoo.photo_set import Part


@dataclass(frozen=True, eq=False)
class Evidence:
    """What the stacker knows of some queries.

    Attributes:
        candidates: of all members.
        features: of all members and the gate.
        sizes: of the classes, per fold.
        queries: id, fold, landmark_id, unseen, width, height, group (of duplicates).
        members: their names.
        inputs: hashes of the files this was read from.
    """

    candidates: pd.DataFrame
    features: pd.DataFrame
    sizes: pd.DataFrame
    queries: pd.DataFrame
    members: list[str]
    inputs: dict[str, Any]

    def rows(self, config: StackConfig, members: Sequence[str] | None = None) -> pd.DataFrame:
        """The stacker's rows, of all members or of some."""
        from stacking.features import build_rows

        return build_rows(
            self.candidates, self.features, self.sizes, self.queries, self.members if members is None else members,
            per_member=config.candidates_per_member,
        )  # fmt: skip


def load_evidence(run: Run, config: EngineConfig, part: Part) -> Evidence:
    """What the members said of the training photos out of fold, or of the test set.

    Raises:
        ArtifactError: when scores are not there or are damaged.
    """
    catalog, folds = load_tables(run)
    if part == "oof":
        queries = oof_truth(catalog, folds)
    else:
        queries = usable(catalog, "test")[["id"]].assign(fold=TEST_FOLD, landmark_id=None, unseen=False)
    members = [recipe.name for recipe in member_recipes(config)]
    scored = [f"scores/{member}.{part}.parquet" for member in members] if len(queries) else []
    heard = [f"scores/{member}.{part}.queries.parquet" for member in members] if len(queries) else []
    if config.gate.enabled and len(queries):
        heard.append(f"gate/{part}.parquet")
    facts = catalog[["id", "width", "height", "duplicate_group"]].rename(columns={"duplicate_group": "group"})
    return Evidence(
        candidates=_load_all(run, scored, CANDIDATES),
        features=_load_all(run, heard, QUERY_FEATURES),
        sizes=class_sizes(catalog, folds),
        queries=queries.merge(facts, on="id"),
        members=members,
        inputs={
            name: run.hash_of(name, made_by=TRAIN_ZOO) for name in ["catalog.parquet", "folds.parquet", *scored, *heard]
        },
    )


def _load_all(run: Run, names: Sequence[str], schema: TableSchema) -> pd.DataFrame:
    tables = [run.load_table(name, schema, made_by=TRAIN_ZOO) for name in names]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=list(schema.columns))
