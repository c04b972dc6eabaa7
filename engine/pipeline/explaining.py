"""One query of a run, and everything that led to its answer. Wiring only; reads the run and changes nothing in it."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd

from engine.core.catalog import usable
from engine.core.config import EngineConfig
from engine.core.errors import ConfigError, DataError, did_you_mean
from engine.core.runs import Run
from engine.core.storage import atomic_path
from engine.core.tables import ANSWERS
from engine.pipeline.artifacts import ANSWERS_OOF, ANSWERS_TEST, STACK, STACKER
from engine.pipeline.evidence import Evidence, load_evidence
from engine.pipeline.photos import SPLITS, load_tables
from engine.pipeline.request import RunRequest, find_data, member_recipes, resolve_config
from stacking.explain import Explanation, explain_answer
from stacking.stacker import load_stacker
from zoo.neighbours import Neighbour, draw_neighbours, find_embeddings, nearest_photos
from zoo.photo_set import PhotoSet

NEIGHBOURS = 6  # photos: with the query as many as a screen shows side by side


def explain_query(
    run_folder: Path, query: str, *, member: str | None = None, picture: Path | None = None
) -> dict[str, Any]:
    """Everything about one query: its answer, what each member says, what moved the stack, and which photos are near.

    Args:
        run_folder: a run whose stack has answered the query.
        query: the id of a training or test photo.
        member: the frozen member whose embeddings say what is near; None for the first that has them in the run.
        picture: where to draw the photo and its neighbours, as PNG; None for nowhere.

    Returns:
        `stacking.explain.Explanation` as plain values, and: `path`, `split`; `truth`, the landmark that the photo
        shows, `unseen`, whether its fold's models never saw it, and `right`, each None for a test photo; `near`, the
        neighbours, `near_by`, the member that found them, None where no frozen member's embeddings are left;
        `picture`, its path or None.

    Raises:
        ArtifactError: when the stack has not answered yet, or a file is damaged.
        ConfigError: when the run has no such frozen member.
        DataError: when there is no such photo, it cannot be used, or it has no neighbours to be drawn with.
    """
    run = Run(run_folder)
    config = resolve_config(run, RunRequest(run_folder))
    catalog, folds = load_tables(run)
    photo = _find_photo(catalog, query)
    in_test = photo["split"] == "test"
    evidence = _only(load_evidence(run, config, "test" if in_test else "oof"), query)
    explained = explain_answer(
        query,
        run.load_table(ANSWERS_TEST if in_test else ANSWERS_OOF, ANSWERS, made_by=STACK),
        evidence.candidates,
        evidence.rows(config.stack),
        load_stacker(run.verified(STACKER, made_by=STACK)),
        evidence.members,
    )
    photos = PhotoSet.from_tables(usable(catalog, *SPLITS), folds, find_data(run, None))
    row = photos.ids.tolist().index(query)
    near_by, near = _find_neighbours(run, config, photos, row, member)
    facts = {"path": str(photos.paths[row]), "split": photo["split"]} | _tell_truth(photo, evidence, explained)
    if picture is not None:
        if not near:
            raise DataError(f"'{query}' has no neighbours to draw", hint="no frozen member's embeddings are in the run")
        title = [f"answer: {explained.answer or 'none'}", f"truth: {facts['truth'] or 'unknown or none'}"]
        drawn = draw_neighbours(photos, row, title, near, max_pixels=config.data.max_pixels)
        with atomic_path(picture) as temporary:
            drawn.save(temporary, format="PNG")
    return (
        asdict(explained)
        | facts
        | {
            "near": [asdict(each) for each in near],
            "near_by": near_by,
            "picture": None if picture is None else str(picture),
        }
    )


def _find_photo(catalog: pd.DataFrame, query: str) -> pd.Series[Any]:
    named = catalog[catalog["id"] == query]
    if named.empty:
        raise DataError(f"no photo is called '{query}' — {did_you_mean(query, catalog['id'])}")
    photo = named.iloc[0]
    if pd.notna(photo["problem"]):
        raise DataError(f"photo '{query}' was set aside: {photo['problem']}", hint=f"replace {photo['path']}")
    return photo


def _only(evidence: Evidence, query: str) -> Evidence:
    """What is known of one query; its rows are the same as among all, see `stacking.features`."""
    return replace(
        evidence,
        candidates=evidence.candidates[evidence.candidates["query"] == query],
        features=evidence.features[evidence.features["query"] == query],
        queries=evidence.queries[evidence.queries["id"] == query],
    )


def _tell_truth(photo: pd.Series[Any], evidence: Evidence, explained: Explanation) -> dict[str, Any]:
    if photo["split"] == "test":
        return {"truth": None, "unseen": None, "right": None}
    asked = evidence.queries.iloc[0]
    known = None if pd.isna(asked["landmark_id"]) else asked["landmark_id"]
    return {
        "truth": None if pd.isna(photo["landmark_id"]) else photo["landmark_id"],
        "unseen": bool(asked["unseen"]),
        "right": known is not None and explained.answer == known,
    }


def _find_neighbours(
    run: Run, config: EngineConfig, photos: PhotoSet, row: int, member: str | None
) -> tuple[str | None, list[Neighbour]]:
    """The member that found them, and what it found."""
    frozen = {recipe.name: recipe for recipe in member_recipes(config) if recipe.backbone.frozen}
    if member is not None and member not in frozen:
        raise ConfigError(f"no frozen member is called '{member}' — {did_you_mean(member, frozen)}")
    found = find_embeddings(run, frozen.values() if member is None else [frozen[member]], photos)
    return (None, []) if found is None else (found[0], nearest_photos(photos, found[1], row, NEIGHBOURS))
