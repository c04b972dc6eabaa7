"""The training photos that look most like one photo, by a frozen member's stored embeddings; nothing is embedded here.

In: the photos and the embeddings of a run, see `zoo.embedding`. Out: neighbours as plain values, or a picture of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import faiss
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from engine.core.images import read_image
from engine.core.progress import Advance
from engine.core.runs import Run
from zoo.embedding import embedding_series
from zoo.photo_set import PhotoSet
from zoo.pictures import neighbours_picture
from zoo.recipe import Recipe
from zoo.shards import count_missing
from zoo.sources import Rows

TILE = 224  # pixels of a photo in the picture: what most members see of it


@dataclass(frozen=True)
class Neighbour:
    """A training photo near another.

    Attributes:
        id: the photo.
        path: its file.
        landmark_id: None where it shows none.
        cosine: of the two embeddings as seen from the mean of all training photos, -1..1.
    """

    id: str
    path: str
    landmark_id: str | None
    cosine: float


def stored_embeddings(run: Run, recipe: Recipe, photos: PhotoSet) -> NDArray[np.float16] | None:
    """The embeddings of every photo by a frozen recipe, float16 [N, V, D]; None unless all are in the run."""
    if not recipe.backbone.frozen:
        return None
    series = embedding_series(recipe)
    if count_missing(run, series, photos.hashes):
        return None
    shards = range(-(-len(photos.hashes) // series.size))  # of more photos than now some may be left over
    return np.concatenate([np.load(run.path(f"{series.folder}/{shard:05d}.npy")) for shard in shards])


def find_embeddings(run: Run, recipes: Iterable[Recipe], photos: PhotoSet) -> tuple[str, NDArray[np.float16]] | None:
    """The name of the first recipe that has its `stored_embeddings` in the run, and these; None if none has."""
    for recipe in recipes:
        embeddings = stored_embeddings(run, recipe, photos)
        if embeddings is not None:
            return recipe.name, embeddings
    return None


def nearest_photos(photos: PhotoSet, embeddings: NDArray[np.float16], row: int, count: int) -> list[Neighbour]:
    """The training photos nearest to a photo, nearest first, as a `zoo.photo_heads.NeighbourHead` finds them.

    Args:
        photos: N of them.
        embeddings: [N, V, D], averaged over the views.
        row: the photo; if it is a training photo, its own fold is left out: its models did not see it either.
        count: how many, or all there are.
    """
    [nearest], [cosines] = _search(photos, embeddings, int(photos.folds[row]), np.array([row]), count)
    return [
        Neighbour(str(photos.ids[at]), str(photos.paths[at]), str(photos.landmarks[at]) or None, float(cosine))
        for at, cosine in zip(nearest, cosines, strict=True)
    ]


def nearest_across_folds(
    photos: PhotoSet, embeddings: NDArray[np.float16], *, threads: int, advance: Advance
) -> pd.DataFrame:
    """The nearest photo of each training photo among those that its models learned from.

    Args:
        photos: N of them.
        embeddings: [N, V, D], averaged over the views.
        threads: that search.
        advance: told of each fold.

    Returns:
        query, neighbour, cosine (-1..1, as of `Neighbour`); one row per training photo, fold by fold.
    """
    faiss.omp_set_num_threads(threads)
    parts = []
    for fold in range(photos.fold_count):
        rows = photos.rows_of("oof", fold)
        nearest, cosine = _search(photos, embeddings, fold, rows, 1)
        found = {"query": photos.ids[rows], "neighbour": photos.ids[nearest[:, 0]], "cosine": cosine[:, 0]}
        parts.append(pd.DataFrame(found))
        advance(1, f"fold {fold} searched")
    return pd.concat(parts, ignore_index=True)


def _search(
    photos: PhotoSet, embeddings: NDArray[np.float16], fold: int, rows: Rows, count: int
) -> tuple[Rows, NDArray[np.float32]]:
    """For photos [Q] the training photos nearest to each outside a fold, nearest first, and their cosines; [Q, K]."""
    others = photos.training_rows(fold, negatives=True)
    index, queries = (_unit(embeddings[at].astype(np.float32).mean(axis=1)) for at in (others, rows))
    centre = index.mean(axis=0)
    cosine, nearest = faiss.knn(
        _unit(queries - centre), _unit(index - centre), min(count, len(others)), metric=faiss.METRIC_INNER_PRODUCT
    )
    return others[nearest], cosine


def draw_neighbours(
    photos: PhotoSet, row: int, title: Sequence[str], neighbours: Sequence[Neighbour], *, max_pixels: int
) -> Image.Image:
    """A photo and its neighbours side by side, each with its landmark and cosine.

    Args:
        photos: where the photo stands.
        row: the photo.
        title: what to write below it, one line each.
        neighbours: of `nearest_photos`.
        max_pixels: limit of the photo reader.

    Raises:
        ImageError: when a photo cannot be read.
    """
    place = {name: at for at, name in enumerate(photos.ids)}
    rows = [row, *(place[near.id] for near in neighbours)]
    seen = [read_image(photos.paths[at], max_pixels=max_pixels, cover=TILE) for at in rows]
    labels = [list(title), *([near.landmark_id or "no landmark", f"{near.cosine:.3f}"] for near in neighbours)]
    return neighbours_picture(seen, labels, tile=TILE)


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Vectors [..., D] at length 1; a vector of nothing stays one, as torch's normalize leaves it."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    unit: NDArray[np.float32] = vectors / np.maximum(length, np.float32(1e-12))
    return unit
