"""Small drawn photos and data folders in the challenge's layout."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from PIL import Image

from engine.core.catalog import build_catalog
from engine.core.config import DataConfig

MINI = Path(__file__).parents[3] / ".." / "shared" / "data" / "landmarks-mini"

Draw = Callable[..., NDArray[np.uint8]]


def _draw(seed: int, size: tuple[int, int] = (96, 72)) -> NDArray[np.uint8]:
    """A smooth random photo of (width, height); another seed is another picture, another size the same one."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return np.array(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC))


def _photo_id(number: int) -> str:
    return f"{number:016x}"


def _write_csv(path: Path, header: str, lines: Iterable[str]) -> None:
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")


@pytest.fixture
def draw() -> Draw:
    return _draw


@pytest.fixture
def photo_id() -> Callable[[int], str]:
    """The 16 hex digits of a number; its photo in `make_data` is drawn with the number as seed."""
    return _photo_id


@pytest.fixture
def make_data(tmp_path):
    """Write a data folder: landmark -> photo numbers, and the numbers of the photos without one and of the test set."""

    def make(
        train: Mapping[str, Iterable[int]], nonlandmark: Iterable[int] = (), test: Iterable[int] = (), *, root=tmp_path
    ) -> Path:
        data = root / "data"
        labelled = [(number, landmark) for landmark, numbers in train.items() for number in numbers]
        splits = {
            "train": [number for number, _ in labelled],
            "train_nonlandmark": list(nonlandmark),
            "test": list(test),
        }
        for folder, numbers in splits.items():
            (data / folder).mkdir(parents=True, exist_ok=True)
            for number in numbers:
                Image.fromarray(_draw(number)).save(data / folder / f"{_photo_id(number)}.jpg")
            if numbers and folder != "train":
                _write_csv(data / f"{folder}.csv", "id,url", [f"{_photo_id(number)}," for number in numbers])
        _write_csv(data / "train.csv", "id,url,landmark_id", [f"{_photo_id(n)},,{name}" for n, name in labelled])
        return data

    return make


@pytest.fixture
def table() -> Callable[..., pd.DataFrame]:
    """A catalog without photos on disk: one row per (landmark or None), each its own picture unless groups say more."""

    def make(landmarks: Iterable[str | None], groups: Mapping[int, int] | None = None) -> pd.DataFrame:
        names = list(landmarks)
        rows = range(len(names))
        return pd.DataFrame(
            {
                "id": [_photo_id(row) for row in rows],
                "path": [f"train/{_photo_id(row)}.jpg" for row in rows],
                "split": ["nonlandmark" if name is None else "train" for name in names],
                "landmark_id": names,
                "width": np.int32(8),
                "height": np.int32(8),
                "sha256": [f"{row:064x}" for row in rows],
                "duplicate_group": [(groups or {}).get(row, row) for row in rows],
                "problem": None,
            }
        )

    return make


@pytest.fixture(scope="session")
def mini() -> Path:
    """The real photos beside the project."""
    if not (MINI / "train.csv").exists():
        pytest.skip(f"{MINI} is not there")
    return MINI


@pytest.fixture(scope="session")
def mini_catalog(mini) -> pd.DataFrame:
    """Their catalog; not to be changed."""
    return build_catalog(mini, DataConfig())
