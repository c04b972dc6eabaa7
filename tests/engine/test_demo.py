"""The demo draws the same competition from the same seed, and never overwrites anything."""

from __future__ import annotations

import csv
import hashlib
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from engine.core.catalog import build_catalog
from engine.core.config import DataConfig
from engine.core.errors import ConfigError, DataError
from engine.core.gap import score_answers
from engine.demo import make_demo
from submissions.score import read_solution

SIZE = {"landmarks": 8, "photos": 60, "negatives": 8, "queries": 24}
DRAW = "import sys; from pathlib import Path; from engine.demo import make_demo; make_demo(Path(sys.argv[1]), {})"


def _bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as handle:
        return list(csv.DictReader(handle))


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return make_demo(tmp_path_factory.mktemp("demo") / "competition", **SIZE)


def test_the_same_seed_gives_the_same_bytes_in_another_process(demo, tmp_path):
    words = ", ".join(f"{name}={value}" for name, value in SIZE.items())
    subprocess.run([sys.executable, "-c", DRAW.format(words), tmp_path / "other"], check=True)
    assert _bytes_of(tmp_path / "other") == _bytes_of(demo.solution.parent)


def test_another_seed_gives_other_photos(demo, tmp_path):
    other = make_demo(tmp_path / "other", seed=1, **SIZE)
    assert not {p.name for p in (other.data / "train").iterdir()} & {p.name for p in (demo.data / "train").iterdir()}


def test_the_catalog_reads_the_demo_without_a_problem(demo):
    catalog = build_catalog(demo.data, DataConfig())
    assert catalog["problem"].isna().all()
    assert catalog["landmark_id"].nunique() == SIZE["landmarks"]
    assert (catalog["split"] == "nonlandmark").any()


def test_an_id_is_the_hash_of_its_photo(demo):
    for path in (demo.data / "test").iterdir():
        assert path.stem == hashlib.sha1(path.read_bytes(), usedforsecurity=False).hexdigest()[:16]


def test_the_truth_stands_outside_the_data_and_covers_the_test_set(demo):
    truth = read_solution(demo.solution)
    assert demo.data not in demo.solution.parents
    assert truth["id"].tolist() == [row["id"] for row in _rows(demo.data / "test.csv")]
    known = {row["landmark_id"] for row in _rows(demo.data / "train.csv")}
    assert set(truth["landmark_id"].dropna()) <= known
    assert 0 < truth["landmark_id"].notna().mean() < 0.6
    perfect = truth.assign(confidence=1.0)
    assert score_answers(perfect, truth) == 1.0


def test_classes_have_a_long_tail_and_some_photos_are_tiny(tmp_path):
    demo = make_demo(tmp_path / "demo", landmarks=12, photos=150, negatives=40, queries=110)
    sizes = Counter(row["landmark_id"] for row in _rows(demo.data / "train.csv"))
    assert min(sizes.values()) <= 2
    assert max(sizes.values()) >= 20
    shapes = []
    for path in demo.data.rglob("*.jpg"):
        with Image.open(path) as image:
            shapes.append(image.size)
    assert min(max(shape) for shape in shapes) <= 15
    assert max(max(shape) for shape in shapes) <= 128


def test_a_demo_is_reused_and_never_drawn_over(demo):
    before = {path: path.stat().st_mtime_ns for path in demo.solution.parent.rglob("*")}
    assert make_demo(demo.solution.parent, **SIZE) == demo
    assert {path: path.stat().st_mtime_ns for path in demo.solution.parent.rglob("*")} == before


@pytest.mark.faults
def test_a_demo_of_other_settings_or_with_changed_photos_is_refused(tmp_path):
    demo = make_demo(tmp_path / "demo", **SIZE)
    with pytest.raises(DataError, match="seed"):
        make_demo(tmp_path / "demo", seed=1, **SIZE)
    next((demo.data / "train").iterdir()).unlink()
    with pytest.raises(DataError):
        make_demo(tmp_path / "demo", **SIZE)


@pytest.mark.faults
def test_a_folder_that_holds_something_else_is_left_alone(tmp_path):
    mine = tmp_path / "thesis.txt"
    mine.write_text("years of work")
    with pytest.raises(DataError):
        make_demo(tmp_path, **SIZE)
    assert list(tmp_path.iterdir()) == [mine]


@pytest.mark.faults
@pytest.mark.parametrize("wrong", [{"landmarks": 1}, {"photos": 3}, {"queries": -1}, {"negatives": -1}])
def test_sizes_that_make_no_competition_are_refused(tmp_path, wrong):
    with pytest.raises(ConfigError):
        make_demo(tmp_path / "demo", **(SIZE | wrong))
    assert not list(tmp_path.iterdir())
