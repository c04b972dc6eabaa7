"""Arrays of one row per photo, made and kept in shards: files of the run that are artifacts of their own.

So an interrupted run goes on at the shard it was at, and everyone who needs the same rows shares them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.core.interrupt import StopRequest
from engine.core.progress import Advance, Progress
from engine.core.runs import Run
from engine.core.storage import atomic_path, sha256_json


@dataclass(frozen=True)
class Series:
    """Shards that belong together.

    Attributes:
        folder: in the run; shards are `<folder>/<number>.npy`.
        kind: what the manifest calls them.
        label: what the progress is called.
        size: photos in a full shard.
        inputs: what each of them is made from beside its photos, and the `version` of the code.
    """

    folder: str
    kind: str
    label: str
    size: int
    inputs: Mapping[str, Any]


def make_shards(
    run: Run,
    series: Series,
    hashes: Sequence[str],
    make: Callable[[slice, Advance], NDArray[Any]],
    *,
    progress: Progress,
    stop: StopRequest,
) -> list[NDArray[Any]]:
    """A series of shards for photos in their order; those that are whole and fresh are not made again.

    Args:
        run: where the shards go.
        series: which they are.
        hashes: SHA-256 of each photo, part of what a shard is made from.
        make: the array [n, ...] of some photos; tells of each batch.
        progress: told of each batch.
        stop: looked at after each shard.

    Returns:
        The shards, read from disk when they are looked at.

    Raises:
        KeyboardInterrupt: when asked to stop; finished shards are kept.
    """
    shards = []
    with progress.task(series.label, len(hashes), "photo") as advance:
        for name, part, made_from in _shards(series, hashes):
            if run.is_fresh(name, made_from):
                advance(part.stop - part.start, "")
            else:
                shard = make(part, advance)
                with atomic_path(run.path(name)) as temporary, temporary.open("wb") as handle:
                    np.save(handle, shard)
                run.record(name, kind=series.kind, version=series.inputs["version"], inputs=made_from)
                if stop.requested:
                    raise KeyboardInterrupt
            shards.append(np.load(run.path(name), mmap_mode="r"))
    return shards


def count_missing(run: Run, series: Series, hashes: Sequence[str]) -> int:
    """How many photos `make_shards` would make rows of."""
    shards = _shards(series, hashes)
    return sum(part.stop - part.start for name, part, made_from in shards if not run.is_fresh(name, made_from))


def _shards(series: Series, hashes: Sequence[str]) -> Iterator[tuple[str, slice, dict[str, Any]]]:
    """The name, the photos and the inputs of each shard."""
    for start in range(0, len(hashes), series.size):
        part = slice(start, min(start + series.size, len(hashes)))
        made_from = {**series.inputs, "photos": sha256_json(list(hashes[part]))}
        yield f"{series.folder}/{start // series.size:05d}.npy", part, made_from
