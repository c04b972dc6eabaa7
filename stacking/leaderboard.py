"""Entries to numbers: the GAP of each with its interval, and whether the stack really beats the best member.

In: entries of `stacking.evaluate`, queries with their truth. Out: plain values, for a table or for JSON. Nothing here
touches the disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypedDict

import numpy as np
import pandas as pd

from engine.core.config import ValidationConfig
from engine.core.errors import DataError
from engine.core.gap import (
    Difference,
    ScoredQueries,
    align,
    bootstrap_difference,
    score_queries,
)
from stacking.evaluate import Entry, Kind
from stacking.scoring import draw_interval, lay_answers, score_part

SIZE_BOUNDS = (64, 128, 256)  # pixels: thumbnails, what a small network sees, what a large one sees


# most training photos of a landmark in a band of the tail -> the band's name
TAIL = {1: "1 photo", 3: "2 or 3", 5: "4 or 5", 10: "6 to 10", np.inf: "more"}


class LeaderboardRow(TypedDict):
    """One entry's numbers.

    `gap`, `gap_low`, `gap_high` and `accuracy` (the share of queries with a landmark whose answer names it, the ceiling
    of the GAP) lie within 0..1; `fit_seconds` is the entry's own.
    """

    name: str
    kind: Kind
    gap: float
    gap_low: float
    gap_high: float
    accuracy: float
    fit_seconds: float


class SizeBand(TypedDict):
    """Queries of similar size, and the GAP of each entry among them alone.

    `gaps` is entry -> 0..1, or None throughout where no query of the band shows a landmark.
    """

    shorter_side: str
    queries: int
    landmarks: int
    gaps: dict[str, float | None]


class TailBand(TypedDict):
    """Queries whose landmarks have similarly many training photos, and the share each entry names, entry -> 0..1."""

    photos: str
    queries: int
    accuracies: dict[str, float]


@dataclass(frozen=True)
class Comparison:
    """One entry against another, over the same resampled queries.

    Attributes:
        ours: an entry's name.
        theirs: another's.
        kind: the other's.
        difference: our GAP minus theirs.
    """

    ours: str
    theirs: str
    kind: Kind
    difference: Difference


def rank_entries(
    entries: Sequence[Entry], queries: pd.DataFrame, config: ValidationConfig, *, seed: int
) -> list[LeaderboardRow]:
    """The leaderboard, best GAP first, equal ones by name.

    Args:
        entries: whose answers are about the queries.
        queries: id, landmark_id (null: no landmark of the training set).
        config: prevalence, resamples and level of the intervals.
        seed: of the resamples; every entry is scored on the same ones.

    Raises:
        DataError: when no query shows a landmark, or an answer is about an unknown query.
    """
    rows = [_score_entry(entry, lay_answers(entry.answers, queries, config), config, seed) for entry in entries]
    return sorted(rows, key=lambda row: (-row["gap"], row["name"]))


def score_by_size(entries: Sequence[Entry], queries: pd.DataFrame, config: ValidationConfig) -> list[SizeBand]:
    """The GAP of every entry in each band of the photos' shorter side, bands without queries left out.

    Args:
        entries: as for `rank_entries`.
        queries: likewise, with width and height in pixels.
        config: prevalence, of all queries together: one band may show no landmark, or nothing else.
    """
    aligned = {entry.name: lay_answers(entry.answers, queries, config) for entry in entries}
    place = np.searchsorted(SIZE_BOUNDS, queries[["width", "height"]].min(axis="columns"), side="right")
    shown = queries["landmark_id"].notna().to_numpy()
    bands = []
    for band, name in enumerate(_band_names()):
        inside = place == band
        if inside.any():
            gaps = {entry: score_part(scored, inside) for entry, scored in aligned.items()}
            counts = int(inside.sum()), int((inside & shown).sum())
            bands.append(SizeBand(shorter_side=name, queries=counts[0], landmarks=counts[1], gaps=gaps))
    return bands


def _band_names() -> list[str]:
    between = [f"{low} to {high - 1} px" for low, high in pairwise(SIZE_BOUNDS)]
    return [f"under {SIZE_BOUNDS[0]} px", *between, f"{SIZE_BOUNDS[-1]} px or more"]


def score_tail(entries: Sequence[Entry], queries: pd.DataFrame, class_sizes: pd.DataFrame) -> list[TailBand]:
    """The accuracy of every entry by how many photos of a query's landmark its models saw; bands with queries only.

    Args:
        entries: as for `rank_entries`.
        queries: id, fold, landmark_id (null: no landmark that the query's models know).
        class_sizes: fold, landmark_id, size: training photos that the fold's models saw.
    """
    sizes = queries.merge(class_sizes, on=["fold", "landmark_id"], how="left")["size"]
    bands = pd.cut(sizes, [0, *TAIL], labels=[*TAIL.values()])
    right = pd.DataFrame({entry.name: align(entry.answers, queries).correct for entry in entries})
    return [
        TailBand(
            photos=str(name),
            queries=len(part),
            accuracies={str(entry): float(share) for entry, share in part.mean().items()},
        )
        for name, part in right.groupby(bands.to_numpy(), observed=True)
    ]


def compare_stack(
    entries: Sequence[Entry], queries: pd.DataFrame, config: ValidationConfig, *, seed: int
) -> list[Comparison]:
    """The stack against every other entry, paired: the best of the others first, equal ones by name.

    Args:
        entries: as for `rank_entries`, one of them a stack.
        queries: likewise.
        config: likewise.
        seed: of the resamples, which are the same for every entry.

    Raises:
        DataError: when there is not one stack; else as `rank_entries`.
    """
    stacks = [entry for entry in entries if entry.kind == "stack"]
    if len(stacks) != 1:
        raise DataError(f"there are {len(stacks)} stacks to compare, wanted one")
    ours = lay_answers(stacks[0].answers, queries, config)

    def compare(entry: Entry) -> Comparison:
        difference = bootstrap_difference(
            ours,
            lay_answers(entry.answers, queries, config),
            resamples=config.bootstrap,
            level=config.confidence_level,
            rng=np.random.default_rng(seed),
        )
        return Comparison(stacks[0].name, entry.name, entry.kind, difference)

    found = [compare(entry) for entry in entries if entry.kind != "stack"]
    return sorted(found, key=lambda each: (each.difference.estimate, each.theirs))


def _score_entry(entry: Entry, queries: ScoredQueries, config: ValidationConfig, seed: int) -> LeaderboardRow:
    interval = draw_interval(queries, config, seed)
    return {
        "name": entry.name,
        "kind": entry.kind,
        "gap": score_queries(queries),
        "gap_low": interval.low,
        "gap_high": interval.high,
        "accuracy": float(np.mean(queries.correct[queries.has_landmark])),
        "fit_seconds": entry.fit_seconds,
    }
