"""The command line for tests, a competition of some eighty drawn photos, and one run of everything on it."""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.cli import main

LANDMARKS = {"a": 14, "b": 12, "c": 12, "d": 9, "e": 2, "f": 1}  # photos of each
NEGATIVES = 14
QUERIES = ["a", "", "b", "new", "c", "a", "d", "", "b", "e", "a", "", "c", "d"]  # "new" stands in no training photo
SIZE = (48, 40)  # pixels: more than the 32 that the tiny networks see, so that photos are really resized


@dataclass(frozen=True)
class Said:
    """What a command ended in."""

    code: int
    out: str
    err: str

    @property
    def next_command(self) -> list[str]:
        """The words of the command that it told to run next."""
        [line] = [line for line in self.err.splitlines() if line.startswith("next: engine ")]
        return shlex.split(line.removeprefix("next: engine "))


@dataclass(frozen=True)
class Finished:
    """A run that went through every stage, and what each said; copy it before changing anything."""

    root: Path
    data: Path
    said: Mapping[str, Said]


def _run_here(*words: str | Path) -> Said:
    """The command line in this process: torch is imported once for all of them."""
    out, err = io.StringIO(), io.StringIO()
    before = sys.argv, signal.getsignal(signal.SIGPIPE)
    sys.argv = ["engine", *map(str, words)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
            main()
    finally:
        sys.argv = before[0]
        signal.signal(signal.SIGPIPE, before[1])
    return Said(int(ended.value.code or 0), out.getvalue(), err.getvalue())


def _run_apart(*words: str | Path, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> Said:
    """The command line as a process of its own, with another environment or working directory."""
    command = [sys.executable, "-m", "engine", *map(str, words)]
    ended = subprocess.run(
        command,
        cwd=cwd,
        env=os.environ | dict(env or {}),
        capture_output=True,
        encoding="utf-8",
        timeout=300,
        check=False,
    )
    return Said(ended.returncode, ended.stdout, ended.stderr)


def _draw(path: Path, landmark: str) -> None:
    """A landmark is a mosaic of colours of its own, seen in noise; what is no landmark is a mosaic never seen again."""
    seed = hashlib.sha256((landmark or path.stem).encode()).digest()
    mosaic = Image.fromarray(np.frombuffer(seed[:27], np.uint8).reshape(3, 3, 3))
    noise = np.random.default_rng(int(path.stem, 16)).normal(0, 25, (SIZE[1], SIZE[0], 3))
    picture = np.asarray(mosaic.resize(SIZE, Image.Resampling.NEAREST)) + noise
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(path, quality=90)


def _draw_split(data: Path, split: str, shown: Sequence[str], ids: Iterable[int], header: str) -> None:
    """The photos of a split and its CSV; the last of three columns is the landmark."""
    lines = [header]
    for number, landmark in zip(ids, shown, strict=False):
        _draw(data / split / f"{number:016x}.jpg", landmark)
        lines.append(f"{number:016x},," + landmark if header.count(",") == 2 else f"{number:016x},")
    (data / f"{split}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _draw_competition(data: Path) -> None:
    known = [landmark for landmark, count in LANDMARKS.items() for _ in range(count)]
    _draw_split(data, "train", known, itertools.count(), "id,url,landmark_id")
    _draw_split(data, "train_nonlandmark", [""] * NEGATIVES, itertools.count(1000), "id,url")
    backwards = range(9999, 0, -1)  # against the alphabet: the order of test.csv must be kept
    _draw_split(data, "test", QUERIES, backwards, "id,url")
    truth = [f"{i:016x},{name if name in known else ''}" for i, name in zip(backwards, QUERIES, strict=False)]
    (data / "solution.csv").write_text("\n".join(["id,landmarks", *truth]) + "\n", encoding="utf-8")


@pytest.fixture(scope="session")
def here() -> Callable[..., Said]:
    """Run a command in this process: here("stack", "--run", path)."""
    return _run_here


@pytest.fixture(scope="session")
def apart() -> Callable[..., Said]:
    """Run a command as a process of its own: apart("--help", cwd=, env=)."""
    return _run_apart


@pytest.fixture(scope="session")
def competition(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with its solution.csv; copy it before changing anything."""
    data = tmp_path_factory.mktemp("drawn") / "photos"
    _draw_competition(data)
    return data


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory, competition: Path) -> Finished:
    """Every stage of the tiny preset, each told by the one before; the folder has a blank and an accent."""
    root = tmp_path_factory.mktemp("finished") / "à run"
    words = ["train-zoo", "--config", "tiny", "--set", "threads=1", "--data", str(competition), "--run", str(root)]
    said: dict[str, Said] = {}
    for stage in ("train-zoo", "stack", "submit"):
        assert words[0] == stage
        said[stage] = _run_here(*words)
        assert said[stage].code == 0, said[stage].err
        words = said[stage].next_command if stage != "submit" else []
    return Finished(root, competition, said)


@pytest.fixture
def run(finished_run: Finished, tmp_path: Path) -> Path:
    """A copy of the finished run, times of change included, to be changed."""
    return shutil.copytree(finished_run.root, tmp_path / "run")


@pytest.fixture
def data(competition: Path, tmp_path: Path) -> Path:
    """A copy of the competition, to be changed."""
    return shutil.copytree(competition, tmp_path / "data")
