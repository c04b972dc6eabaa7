"""Checkpoints of a training in progress: one self-checking safetensors file each, the newest two kept.

`state/<step>-<first 16 hex digits of its SHA-256>.safetensors` holds the model, the optimiser and the average, and in
its header the step and what the training is made from. A file whose bytes do not match its name is passed over, so a
kill, a full disk or a flipped bit costs at most the steps since the checkpoint before. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from engine.core.storage import make_folder, sha256_file, write_bytes

KEPT = 2  # the newest, and the one before it should the newest be damaged


@dataclass(frozen=True)
class Checkpoint:
    """A training in progress.

    Attributes:
        step: optimiser steps done.
        inputs: what the training is made from.
        tensors: `model.*`, `optimizer.*` and, with an average, `ema.*`.
        facts: other state as JSON values.
    """

    step: int
    inputs: dict[str, Any]
    tensors: dict[str, Tensor]
    facts: dict[str, Any]


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint whole, then remove all but the newest two.

    Raises:
        ResourceError: when the disk is full; earlier checkpoints are untouched.
    """
    make_folder(folder)
    header = {
        "step": str(checkpoint.step),
        "inputs": json.dumps(checkpoint.inputs),
        "facts": json.dumps(checkpoint.facts),
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
    data = save(tensors, metadata=header)
    named = folder / f"{checkpoint.step:08d}-{hashlib.sha256(data).hexdigest()[:16]}.safetensors"
    write_bytes(named, data)
    for old in _newest_first(folder)[KEPT:]:
        old.unlink()
    return named


def load_checkpoint(folder: Path) -> tuple[Checkpoint | None, list[Path]]:
    """The newest checkpoint that is whole.

    Returns:
        The checkpoint, or None when there is none; and the damaged files that were passed over.
    """
    damaged: list[Path] = []
    for path in _newest_first(folder):
        if sha256_file(path)[:16] == path.stem.partition("-")[2]:
            return _read(path), damaged
        damaged.append(path)
    return None, damaged


def clear_checkpoints(folder: Path) -> None:
    """Remove the checkpoints of a training that is finished or is to begin anew."""
    for path in _newest_first(folder):
        path.unlink()
    if folder.exists() and not any(folder.iterdir()):
        folder.rmdir()


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("????????-*.safetensors"), reverse=True)


def _read(path: Path) -> Checkpoint:
    with safe_open(path, framework="pt") as file:
        header: Mapping[str, str] = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict, has no __iter__
    return Checkpoint(int(header["step"]), json.loads(header["inputs"]), tensors, json.loads(header["facts"]))
