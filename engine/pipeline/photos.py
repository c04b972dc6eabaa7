"""A data folder as the run knows it: catalog, folds, and the photos that can be used."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from engine.core.catalog import (
    bad_images,
    build_catalog,
    check_bad_fraction,
    check_missing,
    extra_photos,
    scan,
    usable,
)
from engine.core.config import EngineConfig, flatten, load_config
from engine.core.folds import fold_notes, make_folds
from engine.core.progress import Progress
from engine.core.runs import TRAIN_ZOO, Run
from engine.core.storage import write_text
from engine.core.tables import CATALOG, FOLDS
from engine.pipeline.request import find_data

if TYPE_CHECKING:
    from zoo.photo_set import PhotoSet

SPLITS = ("train", "nonlandmark", "test")


def make_catalog(run: Run, config: EngineConfig, data: Path, progress: Progress) -> pd.DataFrame:
    """The catalog of a data folder, made anew only when its files or the rules changed."""
    inputs = scan(data) | flatten(config.data, "data")
    if not run.is_fresh("catalog.parquet", inputs):
        table = build_catalog(data, config.data, progress=progress)
        run.save_table("catalog.parquet", table, CATALOG, inputs, {"data": str(data)})
    catalog = run.load_table("catalog.parquet", CATALOG, made_by=TRAIN_ZOO)
    bad = bad_images(catalog)
    run.path("bad_images.csv").unlink(missing_ok=True)  # of an earlier catalog
    if len(bad):
        write_text(run.path("bad_images.csv"), bad.to_csv(index=False, lineterminator="\n"))
        progress.say(f"{len(bad)} photos cannot be used and are set aside: {run.path('bad_images.csv')}")
    check_missing(catalog, "train", "nonlandmark")
    check_bad_fraction(catalog, config.data)
    return catalog


def make_fold_table(run: Run, config: EngineConfig, catalog: pd.DataFrame, progress: Progress) -> pd.DataFrame:
    """The folds of the training photos."""
    inputs = flatten(config.folds, "folds") | {
        "seed": config.seed,
        "catalog": run.hash_of("catalog.parquet", made_by=TRAIN_ZOO),
    }
    if not run.is_fresh("folds.parquet", inputs):
        folds = make_folds(catalog, config.folds, seed=config.seed)
        run.save_table("folds.parquet", folds, FOLDS, inputs)
        for note in fold_notes(catalog, folds):
            progress.say(note)
    return run.load_table("folds.parquet", FOLDS, made_by=TRAIN_ZOO)


def make_photo_set(run: Run, config: EngineConfig, data: Path, progress: Progress) -> PhotoSet:
    """Catalog and folds, made or fresh, and the usable photos with them."""
    catalog = make_catalog(run, config, data, progress)
    folds = make_fold_table(run, config, catalog, progress)
    from zoo.photo_set import PhotoSet  # brings torch: no mistake before has to wait for it

    return PhotoSet.from_tables(usable(catalog, *SPLITS), folds, data)


def load_tables(run: Run) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The run's catalog and folds."""
    catalog = run.load_table("catalog.parquet", CATALOG, made_by=TRAIN_ZOO)
    return catalog, run.load_table("folds.parquet", FOLDS, made_by=TRAIN_ZOO)


def load_photos(run: Run) -> PhotoSet:
    """The usable photos of a run that has its catalog and folds."""
    from zoo.photo_set import PhotoSet

    catalog, folds = load_tables(run)
    return PhotoSet.from_tables(usable(catalog, *SPLITS), folds, find_data(run, None))


def check_data(data: Path, config_name: str, progress: Progress) -> tuple[dict[str, int], list[dict[str, Any]]]:
    """Read a whole data folder: how much of what there is, and what cannot be used."""
    config = load_config(config_name)
    catalog = build_catalog(data, config.data, progress=progress)
    good = usable(catalog, *SPLITS)
    summary = {f"{split} photos": int((good["split"] == split).sum()) for split in SPLITS}
    summary |= {
        "landmarks": good["landmark_id"].nunique(),
        "duplicate photos": len(good) - good["duplicate_group"].nunique(),
        "photos that no CSV names": len(extra_photos(data, catalog)),
        "photos that cannot be used": len(catalog) - len(good),
    }
    return summary, [dict(row) for _, row in bad_images(catalog).iterrows()]
