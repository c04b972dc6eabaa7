"""Frozen backbones: each photo is embedded once, for all folds and every member that shares the backbone.

`embeddings/<key>/<shard>.npy` holds float16 [n, V, D] for up to `SHARD` photos in catalog order, see `zoo.shards`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray

from engine.core.config import flatten
from engine.core.interrupt import StopRequest
from engine.core.progress import Advance, Progress
from engine.core.runs import Run
from engine.core.storage import sha256_json
from zoo.network import Embedder, build_embedder
from zoo.recipe import Recipe
from zoo.shards import Series, make_shards
from zoo.sources import PhotoSource
from zoo.weights import weights_content

SHARD = 2048  # photos: a minute of two cores at 224 px, the most that an interruption costs
BATCH = 16  # photos per forward pass; larger batches leave the cache of a CPU and were slower there
VERSION = 1


def embedding_key(recipe: Recipe) -> str:
    """The folder of a recipe's embeddings: readable, and equal for recipes that share backbone and input."""
    return f"{recipe.backbone.name}-{recipe.input.size}-{sha256_json(_made_from(recipe))[:8]}"


def _made_from(recipe: Recipe) -> dict[str, Any]:
    return flatten(recipe.backbone, "backbone") | flatten(recipe.input, "input") | weights_content(recipe.backbone)


def embed_photos(
    run: Run,
    recipe: Recipe,
    source: PhotoSource,
    hashes: Sequence[str],
    *,
    accelerator: Accelerator,
    progress: Progress,
    stop: StopRequest,
) -> NDArray[np.float16]:
    """Embed every photo in every view, shard by shard; shards that are whole and fresh are not made again.

    Args:
        run: where the shards go.
        recipe: of a frozen member.
        source: its photos.
        hashes: SHA-256 of each photo, what a shard is made from.
        accelerator: device and precision.
        progress: told of each batch.
        stop: looked at after each shard.

    Returns:
        float16 [N, V, D] in the order of the photos.

    Raises:
        KeyboardInterrupt: when asked to stop; finished shards are kept.
    """

    @cache  # made when the first shard is missing
    def embedder() -> Embedder:
        return frozen_embedder(recipe, accelerator.device)

    def embed(part: slice, advance: Advance) -> NDArray[np.float16]:
        return embed_rows(embedder(), source, np.arange(part.start, part.stop), accelerator, advance)

    return np.concatenate(make_shards(run, embedding_series(recipe), hashes, embed, progress=progress, stop=stop))


def embedding_series(recipe: Recipe) -> Series:
    """The shards of a recipe's embeddings."""
    key = embedding_key(recipe)
    return Series(f"embeddings/{key}", "embeddings", f"embed {key}", SHARD, _made_from(recipe) | {"version": VERSION})


def frozen_embedder(recipe: Recipe, device: torch.device) -> Embedder:
    """The backbone of a frozen member, as fast as it can be."""
    torch.manual_seed(0)  # of random weights: every process that adds a shard must draw the same ones
    embedder = build_embedder(recipe, fold=True).eval().requires_grad_(requires_grad=False)
    return embedder.to(memory_format=torch.channels_last).to(device)


@torch.inference_mode()
def embed_rows(
    embedder: Embedder, source: PhotoSource, rows: NDArray[np.int64], accelerator: Accelerator, advance: Advance
) -> NDArray[np.float16]:
    """Embeddings of some photos in every view, float16 [n, V, D]."""
    parts = []
    for views in source.view_batches(rows, batch_size=BATCH):
        with accelerator.autocast():
            stacked = torch.stack([embedder(view).float() for view in views], dim=1)  # [B, V, D]
        parts.append(stacked.cpu().numpy().astype(np.float16))
        advance(len(views[0]), "")
    return np.concatenate(parts)
