"""A small competition of one's own: drawn landmarks in the files of the challenge, with the truth beside them.

In: a seed and how much of everything. Out, in one folder that appears whole or not at all:

    data/train.csv, data/train/<id>.jpg                          id,url,landmark_id
    data/train_nonlandmark.csv, data/train_nonlandmark/<id>.jpg  id,url
    data/test.csv, data/test/<id>.jpg                            id,url
    data/index.csv                                               landmark_id,name
    solution.csv                                                 id,landmarks; empty when training has no such landmark
    demo.json                                                    what it was drawn from, and its content's hash

It has what makes the real challenge hard: a long tail, look-alikes, landmarks that training never sees, queries
without a landmark (anonymous streets among them), tiny photos, near duplicates, wrong labels.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance

from engine.core.errors import ArtifactError, ConfigError, DataError, ResourceError
from engine.core.progress import Progress
from engine.core.runs import describe_changes
from engine.core.storage import make_folder, read_json, sha256_file, sha256_json, write_json
from engine.demo.landmarks import Landmark, Rng, make_landmark
from engine.demo.scenes import landmark_photo, other_photo

FACTS = "demo.json"
_VERSION = 1  # raised when the same seed draws other pictures
_TAIL = 1.6  # exponent of the class sizes: at 40 landmarks and 1,100 photos from 70 photos down to 1
_STYLES = 0.8  # styles per landmark: below 1, so that some landmarks look alike
_UNSEEN_LANDMARKS = 0.25  # landmarks that only queries show, per landmark of the training set
_KNOWN_QUERIES = 0.45  # of the queries; as in landmarks-mini, where more than half have an empty truth
_UNSEEN_QUERIES = 0.15
_WRONG_LABELS = 0.02  # of the training photos: labels of the challenge were mined, not checked
_COPIES = 0.02  # of the training photos and of the known queries: the same photo, saved again
_TINY = 0.012  # of all photos
_TINY_SIZE = (15, 10)  # the smallest photo of the challenge
_LANDMARK_IDS = 14_951  # of the challenge; ids are drawn from these, so that they are not contiguous


@dataclass(frozen=True)
class DemoData:
    """Where a demo competition lies.

    Attributes:
        data: the folder with the CSV files and photos, as the catalog reads it.
        solution: the truth of its test set; outside `data`, so that nothing learns from it.
    """

    data: Path
    solution: Path


@dataclass(frozen=True)
class _Size:
    landmarks: int
    photos: int
    negatives: int
    queries: int


@dataclass(frozen=True)
class _Shot:
    """A photo to be drawn.

    Attributes:
        split: the folder it goes to.
        scene: the number that it is drawn from.
        subject: the landmark it shows, or None.
        label: the landmark that its CSV row or the solution gives it, or None.
        tiny: shrunk to a thumbnail.
        copy: saved a second time, a little brighter and smaller.
    """

    split: str
    scene: int
    subject: int | None = None
    label: int | None = None
    tiny: bool = False
    copy: bool = False


def make_demo(
    folder: Path,
    *,
    seed: int = 0,
    landmarks: int = 40,
    photos: int = 1100,
    negatives: int = 150,
    queries: int = 400,
    progress: Progress | None = None,
) -> DemoData:
    """Draw a small competition, or reuse the one that was drawn with the same settings.

    Args:
        folder: where it goes; must not exist, be empty, or hold the same demo.
        seed: of everything; the same seed gives the same bytes.
        landmarks: of the training set.
        photos: of the training set, about; each landmark has at least one.
        negatives: training photos without a landmark.
        queries: test photos; 45 % show a landmark of the training set.
        progress: told of each photo.

    Raises:
        ConfigError: for sizes that make no competition.
        DataError: when the folder holds anything else; nothing is overwritten.
        ResourceError: when it cannot be written.
    """
    size = _checked(_Size(landmarks, photos, negatives, queries))
    settings = {"version": _VERSION, "seed": seed, **vars(size)}
    folder = folder.absolute()  # also gives a name to "."
    if _is_taken(folder):
        return _reuse(folder, settings)
    make_folder(folder.parent)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        _draw_all(temporary, seed, size, progress or Progress())
        write_json(temporary / FACTS, {"settings": settings, "content": _content(temporary)})
        if folder.exists():
            folder.rmdir()  # empty; some systems do not rename onto a folder
        os.replace(temporary, folder)
    except OSError as error:
        if _is_taken(folder):  # another process was faster
            return _reuse(folder, settings)
        raise ResourceError(
            f"{folder}: the demo cannot be written ({error.strerror or error})",
            hint="free some space or choose another folder",
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return _where(folder)


def _checked(size: _Size) -> _Size:
    if size.landmarks < 2 or size.photos < size.landmarks or size.negatives < 0 or size.queries < 0:
        raise ConfigError(
            f"a demo of {size.landmarks} landmarks, {size.photos} photos, {size.negatives} negatives, "
            f"{size.queries} queries cannot be drawn",
            hint="it takes two landmarks, a photo for each, and no negative numbers",
        )
    return size


def _where(folder: Path) -> DemoData:
    return DemoData(folder / "data", folder / "solution.csv")


def _is_taken(folder: Path) -> bool:
    return folder.exists() and not (folder.is_dir() and next(folder.iterdir(), None) is None)


def _reuse(folder: Path, settings: dict[str, int]) -> DemoData:
    """The demo in a folder, if it is the one that is wanted and as it was drawn."""
    hint = "choose another folder, or delete this one"
    try:
        facts = read_json(folder / FACTS)
    except ArtifactError:
        raise DataError(f"{folder}: holds something else than a demo", hint=hint) from None
    drawn = facts.get("settings")
    changes = describe_changes(drawn if isinstance(drawn, dict) else {}, settings)
    if changes:
        raise DataError(f"{folder}: holds another demo ({'; '.join(changes)})", hint=hint)
    if facts.get("content") != _content(folder):
        raise DataError(f"{folder}: its files are not those that were drawn", hint=hint)
    return _where(folder)


def _content(folder: Path) -> str:
    """One hash over the names and bytes of everything but the facts."""
    files = [folder / "solution.csv", *(folder / "data").rglob("*")]
    return sha256_json({file.relative_to(folder).as_posix(): sha256_file(file) for file in files if file.is_file()})


def _draw_all(folder: Path, seed: int, size: _Size, progress: Progress) -> None:
    rng = np.random.default_rng([seed, 0])
    models = _make_landmarks(seed, size, rng)
    names = [str(number) for number in np.sort(rng.choice(_LANDMARK_IDS, size.landmarks, replace=False))]
    shots = _plan(size, len(models), rng)
    ids: dict[str, _Shot] = {}
    for split in ("train", "train_nonlandmark", "test"):
        make_folder(folder / "data" / split)
    with progress.task("draw photos", len(shots), "photo") as advance:
        for number, shot in enumerate(shots, start=1):
            photo = _take(shot, models, seed, number)
            name = hashlib.sha1(photo, usedforsecurity=False).hexdigest()[:16]
            if name not in ids:  # two photos of the same bytes would be one id with two rows
                ids[name] = shot
                (folder / "data" / shot.split / f"{name}.jpg").write_bytes(photo)
            advance(1, "")
    _write_tables(folder, ids, names, models)


def _make_landmarks(seed: int, size: _Size, rng: Rng) -> list[Landmark]:
    """The landmarks of the training set, and after them those that only queries show."""
    count = size.landmarks + max(1, round(_UNSEEN_LANDMARKS * size.landmarks))
    first = np.arange(round(_STYLES * count))
    styles = rng.permutation([*first, *rng.choice(first, count - len(first))]).tolist()
    return [
        make_landmark(style, np.random.default_rng([seed, 1, style]), np.random.default_rng([seed, 2, number]))
        for number, style in enumerate(styles)
    ]


def _class_sizes(landmarks: int, photos: int) -> list[int]:
    """Photos per landmark, a long tail: many for the first, one for the last."""
    weights = (1 - (np.arange(landmarks) + 0.5) / landmarks) ** _TAIL
    return [max(1, round(share)) for share in (photos * weights / weights.sum()).tolist()]


def _plan(size: _Size, models: int, rng: Rng) -> list[_Shot]:
    """Every photo of the competition."""
    sizes = _class_sizes(size.landmarks, size.photos)
    train = [_Shot("train", 0, n, n) for n, count in enumerate(sizes) for _ in range(count)]
    known, unseen = round(_KNOWN_QUERIES * size.queries), round(_UNSEEN_QUERIES * size.queries)
    asked = np.sqrt(sizes) / np.sqrt(sizes).sum()  # flatter than training: the tail is asked for as well
    queries = [_Shot("test", 0, n, n) for n in rng.choice(size.landmarks, known, p=asked).tolist()]
    strangers = [_Shot("test", 0, n) for n in rng.integers(size.landmarks, models, unseen).tolist()]
    none = [_Shot("test", 0)] * (size.queries - known - unseen)
    negatives = [_Shot("train_nonlandmark", 0)] * size.negatives
    shots = [replace(shot, scene=scene) for scene, shot in enumerate([*train, *queries, *strangers, *none, *negatives])]
    _spoil(shots, len(train), known, models, rng)
    return [replace(shot, tiny=bool(rng.random() < _TINY)) for shot in shots]


def _spoil(shots: list[_Shot], train: int, known: int, models: int, rng: Rng) -> None:
    """Turn a few training photos into wrong labels, and a few photos into copies of another training photo."""
    for place in rng.choice(train, round(_WRONG_LABELS * train), replace=False).tolist():
        other = int(rng.integers(models)) if rng.random() < 0.5 else None
        shots[place] = replace(shots[place], subject=other)
    for place in np.flatnonzero(rng.random(train + known) < _COPIES).tolist():
        twins = [shot for shot in shots[:train] if shot.label == shots[place].label and not shot.copy]
        twin = twins[int(rng.integers(len(twins)))] if twins else shots[place]
        shots[place] = replace(shots[place], subject=twin.subject, scene=twin.scene, copy=True)


def _take(shot: _Shot, models: Sequence[Landmark], seed: int, number: int) -> bytes:
    """The JPEG of a photo."""
    scene = np.random.default_rng([seed, 3, shot.scene])
    image = other_photo(scene) if shot.subject is None else landmark_photo(models[shot.subject], scene)
    rng = np.random.default_rng([seed, 4, number])
    if shot.copy:
        image = ImageEnhance.Brightness(image).enhance(rng.uniform(0.93, 1.07))
        image = image.resize((image.width * 9 // 10, image.height * 9 // 10), Image.Resampling.BILINEAR)
    if shot.tiny:
        size = _TINY_SIZE if image.width >= image.height else _TINY_SIZE[::-1]
        image = image.resize(size, Image.Resampling.BOX)
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=int(rng.integers(70, 95)))
    return stream.getvalue()


def _write_tables(folder: Path, ids: dict[str, _Shot], names: Sequence[str], models: Sequence[Landmark]) -> None:
    data, rows = folder / "data", sorted(ids.items())
    labels = {name: "" if shot.label is None else names[shot.label] for name, shot in rows}
    train, negatives, test = (
        [name for name, shot in rows if shot.split == split] for split in ("train", "train_nonlandmark", "test")
    )
    _write_csv(data / "train.csv", ("id", "url", "landmark_id"), [(name, "", labels[name]) for name in train])
    _write_csv(data / "train_nonlandmark.csv", ("id", "url"), [(name, "") for name in negatives])
    _write_csv(data / "test.csv", ("id", "url"), [(name, "") for name in test])
    _write_csv(data / "index.csv", ("landmark_id", "name"), [(names[n], models[n].name) for n in range(len(names))])
    _write_csv(folder / "solution.csv", ("id", "landmarks"), [(name, labels[name]) for name in test])


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
