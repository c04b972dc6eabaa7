"""The training photos that look most like one photo, by a frozen member's stored embeddings; nothing is embedded here.

In: the photos and the embeddings of a run, see `zoo.embedding`. Out: neighbours as plain values, or a picture of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import faiss
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from engine.core.images import read_image
from engine.core.runs import Run
from zoo.embedding import embedding_series
from zoo.photo_set import PhotoSet
from zoo.pictures import neighbours_picture
from zoo.recipe import Recipe
from zoo.shards import count_missing

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


def nearest_photos(photos: PhotoSet, embeddings: NDArray[np.float16], row: int, count: int) -> list[Neighbour]:
    """The training photos nearest to a photo, nearest first, as a `zoo.photo_heads.NeighbourHead` finds them.

    Args:
        photos: N of them.
        embeddings: [N, V, D], averaged over the views.
        row: the photo; if it is a training photo, its own fold is left out: its models did not see it either.
        count: how many, or all there are.
    """
    others = photos.training_rows(int(photos.folds[row]), negatives=True)
    index = _unit(embeddings[others].astype(np.float32).mean(axis=1))  # [n, D]
    centre = index.mean(axis=0)
    query = _unit(_unit(embeddings[row].astype(np.float32).mean(axis=0)) - centre)  # [D]
    cosine, nearest = faiss.knn(
        query[None], _unit(index - centre), min(count, len(others)), metric=faiss.METRIC_INNER_PRODUCT
    )
    return [
        Neighbour(str(photos.ids[at]), str(photos.paths[at]), str(photos.landmarks[at]) or None, float(near))
        for at, near in zip(others[nearest[0]], cosine[0], strict=True)
    ]


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
