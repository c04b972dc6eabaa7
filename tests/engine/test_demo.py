"""The demo's competition: its files, its truth, its difficulty's ingredients, and what happens to folders."""

import csv
import hashlib
import io
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.core.catalog import build_catalog
from engine.core.config import DataConfig
from engine.core.errors import ConfigError, DataError, ResourceError
from engine.core.gap import score_answers
from engine.core.progress import Advance, Progress
from engine.demo import FACTS, DemoData, _make_landmarks, _plan, _Shot, _Size, _take, make_demo
from engine.demo.drawing import assemble, look_at
from engine.demo.landmarks import make_landmark, make_street
from engine.demo.scenes import LONGEST, landmark_photo, other_photo
from engine.demo.solids import block
from submissions.score import read_solution

LANDMARKS, PHOTOS, NEGATIVES, QUERIES = 6, 40, 8, 20


class Counted(Progress):
    """Counts what is advanced, and interrupts where it is told to."""

    def __init__(self, *, interrupt_at: int = -1) -> None:
        self.done, self.total, self.interrupt_at = 0, 0, interrupt_at

    @contextmanager
    def task(self, label: str, total: int, unit: str) -> Iterator[Advance]:
        self.total = total

        def advance(amount: int, _note: str) -> None:
            self.done += amount
            if self.done == self.interrupt_at:
                raise KeyboardInterrupt

        yield advance


def small_demo(folder: Path, *, seed: int = 0) -> DemoData:
    return make_demo(folder, seed=seed, landmarks=LANDMARKS, photos=PHOTOS, negatives=NEGATIVES, queries=QUERIES)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def thumbnail_correlation(first: bytes, second: bytes) -> float:
    thumbnails = [Image.open(io.BytesIO(photo)).convert("L").resize((16, 16)) for photo in (first, second)]
    return float(np.corrcoef([np.asarray(thumbnail).ravel() for thumbnail in thumbnails])[0, 1])


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> DemoData:
    return small_demo(tmp_path_factory.mktemp("demo") / "competition")


def test_demo_has_the_files_of_the_challenge(demo):
    assert {path.name for path in demo.data.glob("*.csv")} == {
        "train.csv",
        "test.csv",
        "train_nonlandmark.csv",
        "index.csv",
    }
    for split in ("train", "test", "train_nonlandmark"):
        named = {row["id"] for row in rows(demo.data / f"{split}.csv")}
        assert {path.stem for path in (demo.data / split).iterdir()} == named
    assert list(rows(demo.data / "train.csv")[0]) == ["id", "url", "landmark_id"]
    assert list(rows(demo.data / "test.csv")[0]) == ["id", "url"]
    assert abs(len(rows(demo.data / "train.csv")) - PHOTOS) <= LANDMARKS
    assert len(rows(demo.data / "test.csv")) == QUERIES
    assert len(rows(demo.data / "train_nonlandmark.csv")) == NEGATIVES


def test_photo_ids_are_the_start_of_their_sha1(demo):
    for path in demo.data.rglob("*.jpg"):
        assert path.stem == hashlib.sha1(path.read_bytes(), usedforsecurity=False).hexdigest()[:16]


def test_photos_are_small_rgb_jpegs(demo):
    for path in demo.data.rglob("*.jpg"):
        with Image.open(path) as image:
            image.load()
            assert (image.format, image.mode) == ("JPEG", "RGB")
            assert max(image.size) <= LONGEST


def test_solution_lies_outside_the_data_and_answers_every_query(demo):
    solution = rows(demo.solution)
    assert demo.data not in demo.solution.parents
    assert [row["id"] for row in solution] == [row["id"] for row in rows(demo.data / "test.csv")]
    known = {row["landmark_id"] for row in rows(demo.data / "train.csv")}
    answers = [row["landmarks"] for row in solution]
    assert set(answers) - {""} <= known
    assert sum(answer != "" for answer in answers) == round(0.45 * QUERIES)


def test_truth_scores_itself_as_perfect(demo):
    truth = read_solution(demo.solution)
    assert score_answers(truth.assign(confidence=1.0), truth) == 1.0


def test_index_names_every_training_landmark(demo):
    index = {row["landmark_id"]: row["name"] for row in rows(demo.data / "index.csv")}
    assert set(index) == {row["landmark_id"] for row in rows(demo.data / "train.csv")}
    assert all(" of " in name for name in index.values())


def test_landmarks_have_a_long_tail(demo):
    sizes = sorted(Counter(row["landmark_id"] for row in rows(demo.data / "train.csv")).values())
    assert len(sizes) == LANDMARKS
    assert sizes[0] == 1
    assert sizes[-1] >= PHOTOS / 3


def test_catalog_reads_the_demo_without_a_problem(demo):
    catalog = build_catalog(demo.data, DataConfig())
    assert catalog["problem"].isna().all()
    assert len(catalog) == len(list(demo.data.rglob("*.jpg")))


def test_same_seed_draws_the_same_bytes_in_another_process(demo, tmp_path):
    code = (
        "import sys; from pathlib import Path; from engine.demo import make_demo;"
        f"make_demo(Path(sys.argv[1]), landmarks={LANDMARKS}, photos={PHOTOS}, "
        f"negatives={NEGATIVES}, queries={QUERIES})"
    )
    again = tmp_path / "again"
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-c", code, str(again)], check=True, env=environment, timeout=120)
    assert files(again) == files(demo.data.parent)


def test_another_seed_draws_other_photos(demo, tmp_path):
    other = small_demo(tmp_path / "other", seed=1)
    assert not {path.name for path in other.data.rglob("*.jpg")} & {path.name for path in demo.data.rglob("*.jpg")}


def test_default_plan_holds_tiny_photos_copies_wrong_labels_and_unseen_landmarks():
    shots = _plan(_Size(landmarks=40, photos=1100, negatives=150, queries=400), 50, np.random.default_rng(0))
    train = [shot for shot in shots if shot.split == "train"]
    queries = [shot for shot in shots if shot.split == "test"]
    assert 1000 <= len(train) <= 1300
    assert sum(shot.label is not None for shot in queries) == 180
    assert sum(shot.label is None and shot.subject is not None for shot in queries) == 60
    assert {shot.subject for shot in queries if shot.label is None and shot.subject is not None} <= set(range(40, 50))
    assert 10 <= sum(shot.tiny for shot in shots) <= 40
    assert 10 <= sum(shot.copy for shot in shots) <= 50
    assert 10 <= sum(shot.subject != shot.label for shot in train) <= 30
    sizes = Counter(shot.label for shot in train)
    assert min(sizes.values()) == 1
    assert 50 <= max(sizes.values()) <= 80


def test_copies_are_near_duplicates_of_a_photo_with_the_same_label():
    size = _Size(landmarks=6, photos=300, negatives=0, queries=0)
    rng = np.random.default_rng([0, 0])
    models = _make_landmarks(0, size, rng)
    shots = _plan(size, len(models), rng)
    copy = next(shot for shot in shots if shot.copy and not shot.tiny)
    twin = next(shot for shot in shots if shot.scene == copy.scene and not shot.copy)
    assert copy.label == twin.label
    photos = [_take(replace(shot, tiny=False), models, 0, number) for number, shot in enumerate((copy, twin))]
    assert photos[0] != photos[1]
    assert thumbnail_correlation(*photos) > 0.98  # what the catalog calls a near duplicate


def test_photos_of_one_landmark_are_not_near_duplicates():
    models = _make_landmarks(0, _Size(landmarks=2, photos=4, negatives=0, queries=0), np.random.default_rng(0))
    photos = [_take(_Shot("train", scene, 0, 0), models, 0, scene) for scene in range(8)]
    assert max(thumbnail_correlation(photos[0], other) for other in photos[1:]) < 0.98


def test_a_tiny_photo_has_the_smallest_size_of_the_challenge():
    models = _make_landmarks(0, _Size(landmarks=2, photos=4, negatives=0, queries=0), np.random.default_rng(0))
    for scene in range(6):
        with Image.open(io.BytesIO(_take(_Shot("train", scene, 0, 0, tiny=True), models, 0, scene))) as image:
            assert sorted(image.size) == [10, 15]


def test_progress_counts_every_photo(tmp_path):
    progress = Counted()
    make_demo(tmp_path / "d", landmarks=2, photos=4, negatives=1, queries=3, progress=progress)
    assert progress.done == progress.total >= 8


def test_finished_demo_is_reused_without_drawing(demo):
    before = {path: path.stat().st_mtime_ns for path in demo.data.rglob("*")}
    assert small_demo(demo.data.parent) == demo
    assert {path: path.stat().st_mtime_ns for path in demo.data.rglob("*")} == before


def test_empty_folder_is_used(tmp_path):
    folder = tmp_path / "with a space and é"
    folder.mkdir()
    assert small_demo(folder).solution.exists()
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


@pytest.mark.faults
def test_folder_of_something_else_is_refused_and_kept(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(DataError, match="something else than a demo"):
        small_demo(tmp_path)
    assert files(tmp_path) == {"thesis.txt": b"mine"}


@pytest.mark.faults
def test_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "demo").write_text("mine", encoding="utf-8")
    with pytest.raises(DataError, match="something else"):
        small_demo(tmp_path / "demo")


@pytest.mark.faults
def test_demo_of_other_settings_is_refused_with_the_difference(demo):
    before = files(demo.data.parent)
    with pytest.raises(DataError, match="seed: 0 -> 5"):
        small_demo(demo.data.parent, seed=5)
    assert files(demo.data.parent) == before


@pytest.mark.faults
@pytest.mark.parametrize("damage", ["edited", "removed", "added"])
def test_demo_that_was_changed_is_refused(tmp_path, damage):
    made = make_demo(tmp_path / "d", landmarks=2, photos=3, negatives=1, queries=2)
    if damage == "edited":
        made.solution.write_text("id,landmarks\n", encoding="utf-8")
    elif damage == "removed":
        next(made.data.rglob("*.jpg")).unlink()
    else:
        (made.data / "train" / "more.jpg").write_bytes(b"")
    with pytest.raises(DataError, match="not those that were drawn"):
        make_demo(tmp_path / "d", landmarks=2, photos=3, negatives=1, queries=2)


@pytest.mark.faults
@pytest.mark.parametrize("facts", ["", "[]", "{}", '{"settings": 3}'])
def test_damaged_facts_are_refused(tmp_path, facts):
    made = make_demo(tmp_path / "d", landmarks=2, photos=3, negatives=1, queries=2)
    (made.data.parent / FACTS).write_text(facts, encoding="utf-8")
    with pytest.raises(DataError, match="demo"):
        make_demo(tmp_path / "d", landmarks=2, photos=3, negatives=1, queries=2)


@pytest.mark.faults
def test_interrupted_drawing_leaves_nothing_behind(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        make_demo(tmp_path / "d", landmarks=2, photos=20, progress=Counted(interrupt_at=5))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.faults
def test_folder_that_cannot_be_written_is_a_resource_error(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(ResourceError, match="cannot be written"):
        small_demo(tmp_path / "file" / "demo")


@pytest.mark.faults
@pytest.mark.parametrize("sizes", [(1, 10, 0, 0), (5, 4, 0, 0), (5, 9, -1, 0), (5, 9, 0, -1)])
def test_sizes_that_make_no_competition_are_refused(tmp_path, sizes):
    landmarks, photos, negatives, queries = sizes
    with pytest.raises(ConfigError, match="cannot be drawn"):
        make_demo(tmp_path / "d", landmarks=landmarks, photos=photos, negatives=negatives, queries=queries)


def test_every_family_can_be_built_and_fits_its_box():
    for family in range(13):
        for number in range(4):
            landmark = make_landmark(family, np.random.default_rng(family), np.random.default_rng([family, number]))
            points = landmark.model.points
            assert np.isfinite(points).all()
            assert points.min(axis=0)[2] >= -1e-9
            assert np.isclose((points.max(axis=0) - points.min(axis=0)).max(), 1)
            assert ((landmark.model.albedo >= 0) & (landmark.model.albedo <= 1)).all()


def test_look_alikes_differ_in_detail():
    first, second = (make_landmark(0, np.random.default_rng(0), np.random.default_rng(n)).model for n in (1, 2))
    assert first.points.shape != second.points.shape or not np.allclose(first.points, second.points)


def test_photos_of_every_kind_fit_the_size():
    street = make_street(np.random.default_rng(0))
    assert len(street.centres) > 4
    landmark = make_landmark(0, np.random.default_rng(0), np.random.default_rng(1))
    for number in range(30):
        for photo in (
            landmark_photo(landmark, np.random.default_rng(number)),
            other_photo(np.random.default_rng(number)),
        ):
            assert max(photo.size) <= LONGEST
            assert min(photo.size) >= 64
            assert np.asarray(photo).std() > 2


def test_camera_sees_up_as_up_and_right_as_right():
    camera = look_at(np.zeros(3), azimuth=0.0, elevation=0.2, distance=3.0, focal=100.0, centre=np.array([50.0, 40.0]))
    middle, above, right = camera.project(np.array([[0.0, 0, 0], [0, 0, 0.5], [0.5, 0, 0]]))
    assert np.allclose(middle, (50, 40))
    assert above[1] < middle[1]
    assert right[0] > middle[0]
    far = camera.project(np.array([[0.0, 1e6, 0]]))
    assert camera.horizon == pytest.approx(far[0, 1], abs=0.01)


def test_faces_of_a_block_point_outwards():
    model = assemble([block(0, 1, 0.5, (0.5, 0.5, 0.5))])
    middle = model.points.mean(axis=0)
    assert (np.einsum("fd,fd->f", model.centres - middle, model.normals) > 0).all()
