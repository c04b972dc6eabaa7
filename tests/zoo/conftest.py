"""A competition of a few dozen drawn photos, and what the members of the zoo make of it, shared by the whole folder."""

import gc
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from engine.core.config import GateConfig
from engine.core.interrupt import StopRequest
from engine.core.progress import Advance, Progress
from engine.core.runs import Run
from zoo.context import Context
from zoo.device import make_accelerator
from zoo.gate import run_gate
from zoo.members import run_member
from zoo.photo_set import PhotoSet
from zoo.recipe import Recipe, load_recipe

SIDE = 40  # pixels: more than the 32 that the tiny networks see, so that photos are really resized
FOLDS = {  # landmark -> the fold of each of its photos; "" are the photos of nothing, "test" the queries
    "a": [0, 1, 2] * 4,
    "b": [0, 1, 2] * 4,
    "c": [0, 1, 2],
    "whole": [1, 1],  # kept in one fold: its model never saw the landmark
    "single": [2],
    "": [0, 1, 2] * 4,
    "test": [-1] * 7,
}


@pytest.fixture(scope="session", autouse=True)
def _quick_garbage_collection() -> None:
    """Each training ends in a garbage collection, half a second of it spent on what torch and timm imported."""
    gc.collect()
    gc.freeze()


class Watch(Progress):
    """Remembers what was said, and asks to stop when a training reaches a step, by a flag or in another way."""

    def __init__(self, stop_at: int | None = None, ask: Callable[[], None] | None = None) -> None:
        self.said: list[str] = []
        self.stop = StopRequest()
        self.stop_at = stop_at
        self.ask = ask or self._raise_flag

    @contextmanager
    def task(self, label: str, total: int, unit: str) -> Iterator[Advance]:
        del label, total
        done = 0

        def advance(amount: int, _note: str) -> None:
            nonlocal done
            done += amount
            if unit == "step" and done == self.stop_at:
                self.ask()

        yield advance

    def _raise_flag(self) -> None:
        self.stop.requested = True

    def say(self, message: str) -> None:
        self.said.append(message)


def _draw(path: Path, landmark: str, chance: np.random.Generator) -> None:
    """A landmark is a mosaic of colours of its own, seen in noise; a photo of nothing is grey noise."""
    if landmark:
        digest = hashlib.sha256(landmark.encode()).digest()
        mosaic = np.frombuffer(digest[:27], np.uint8).reshape(3, 3, 3)
        picture = np.asarray(Image.fromarray(mosaic).resize((SIDE, SIDE), Image.Resampling.NEAREST)).astype(float)
    else:
        picture = np.full((SIDE, SIDE, 3), 128.0) + chance.normal(0, 60, (SIDE, SIDE, 1))
    noisy = (picture + chance.normal(0, 20, picture.shape)).clip(0, 255).astype(np.uint8)
    Image.fromarray(noisy).save(path, quality=90)


@pytest.fixture(scope="session")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> tuple[pd.DataFrame, pd.DataFrame, Path]:
    """Catalog rows and folds of the drawn photos, and the folder they lie in."""
    data = tmp_path_factory.mktemp("competition")
    chance = np.random.default_rng(0)
    photos, folds = [], []
    for landmark, places in FOLDS.items():
        for number, fold in enumerate(places):
            name = f"{landmark or 'nothing'}{number:02d}"
            shown = ["a", "b", "c", "single", "whole", ""][number % 6] if landmark == "test" else landmark
            _draw(data / f"{name}.jpg", shown, chance)
            photos.append((name, f"{name}.jpg", landmark if fold >= 0 and landmark else None))
            if fold >= 0:
                folds.append((name, fold))
    table = pd.DataFrame(photos, columns=["id", "path", "landmark_id"])
    table["duplicate_group"] = range(len(table))
    table["sha256"] = [hashlib.sha256((data / path).read_bytes()).hexdigest() for path in table["path"]]
    return table, pd.DataFrame(folds, columns=["id", "fold"]), data


@pytest.fixture(scope="session")
def photos(catalog: tuple[pd.DataFrame, pd.DataFrame, Path]) -> PhotoSet:
    """The drawn photos in three folds, seven of them a test set."""
    return PhotoSet.from_tables(*catalog)


def _context(
    root: Path, photos: PhotoSet, progress: Watch | None = None, *, seed: int = 0, force_new: bool = False
) -> Context:
    progress = progress or Watch()
    accelerator = make_accelerator("cpu", "fp32", 1)
    return Context(
        Run(root, create=True), photos, accelerator, progress, progress.stop,
        seed=seed, max_pixels=10_000, workers=0, force_new=force_new,
    )  # fmt: skip


@pytest.fixture(scope="session")
def make_context() -> Callable[..., Context]:
    """A context on one CPU thread: (run folder, photos, watch, seed=, force_new=)."""
    return _context


@pytest.fixture(scope="session")
def watch() -> type[Watch]:
    """The class of progress that remembers and stops: Watch(stop_at=None, ask=None)."""
    return Watch


@pytest.fixture(scope="session")
def frozen() -> Recipe:
    """A frozen member with two views."""
    return load_recipe("tiny-frozen", {"input.views": ["plain", "flip"], "train.epochs": 2, "train.batch_size": 8})


@pytest.fixture(scope="session")
def scratch() -> Recipe:
    """A member that is trained from scratch, with everything that draws random numbers in a step."""
    return load_recipe("tiny-scratch", {"head.dropout": 0.2, "train.ema_decay": 0.9, "train.batch_size": 8})


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, photos: PhotoSet, frozen: Recipe, scratch: Recipe) -> Path:
    """A run folder with both members and the gate; copy it before changing anything."""
    root = tmp_path_factory.mktemp("runs") / "finished"
    context = _context(root, photos)
    for recipe in (frozen, scratch):
        run_member(context, recipe)
    run_gate(context, GateConfig(), [frozen, scratch])
    return root
