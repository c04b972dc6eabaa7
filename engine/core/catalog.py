"""The catalog: a folder of CSVs and photos in, one checked table with a row per photo out (`tables.CATALOG`).

    <data>/train.csv                id,url,landmark_id   photos in train/
    <data>/train_nonlandmark.csv    id,url               photos in train_nonlandmark/; optional
    <data>/test.csv                 id,url               photos in test/; optional: without it nothing can be submitted

`url` may be absent, further columns are ignored. A photo is `<id>.jpg`, `.jpeg`, `.png` or `.webp` anywhere below its
folder, so the challenge's `a/b/c/<id>.jpg` is found too. Photos are looked up in a listing of the folder: an id never
becomes a path. Only this module knows how data lies on disk; nothing is written here.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from engine.core.config import DataConfig
from engine.core.csvfile import read_rows
from engine.core.duplicates import group_duplicates
from engine.core.errors import DataError, raise_problems
from engine.core.images import MISSING, THUMBNAIL, ImageError, ImageFacts, inspect_image
from engine.core.progress import Progress
from engine.core.storage import sha256_file

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")

_LANDMARK = re.compile("[0-9A-Za-z_-]{1,64}")  # no blank (it parts a submission's answer), nothing a path is made of
_NO_LANDMARK = ("", "None")  # how the challenge's train.csv marks the rows of photos that lost their landmark
_BATCH = 4096  # photos in flight: enough for any pool, and a million futures never exist at once


@dataclass(frozen=True)
class _Source:
    """One CSV of a data folder and the folder of its photos."""

    split: str
    csv: str
    folder: str
    columns: tuple[str, ...]
    required: bool = False


_SOURCES = (
    _Source("train", "train.csv", "train", ("id", "landmark_id"), required=True),
    _Source("nonlandmark", "train_nonlandmark.csv", "train_nonlandmark", ("id",)),
    _Source("test", "test.csv", "test", ("id",)),
)


@dataclass(frozen=True)
class _Row:
    """A checked row of a CSV."""

    id: str
    split: str
    landmark_id: str | None
    folder: str
    place: str  # file:line, for messages


_Inspected = tuple[ImageFacts, str | None]  # the second is the problem


def build_catalog(data: Path, config: DataConfig, *, progress: Progress | None = None) -> pd.DataFrame:
    """Read the CSVs of a data folder, find and decode every photo, and group those that show the same picture.

    A photo that is missing or broken keeps its row, with the reason in `problem`; whether that may stand is for
    `check_missing` and `check_bad_fraction` to say.

    Args:
        data: the data folder.
        config: which ids are legal and how many pixels a photo may have.
        progress: told of each photo, from the calling thread.

    Returns:
        `tables.CATALOG`: the rows of train.csv, train_nonlandmark.csv and test.csv, in their order. A row of train.csv
        whose landmark_id is empty or `None` becomes a nonlandmark photo.

    Raises:
        DataError: with every problem found in the CSVs, or for links that leave the data folder.
    """
    rows = _read_sources(data, re.compile(config.id_pattern))
    photos = _find_photos(data, rows)
    paths = [None if photo is None else data / photo for photo in photos]
    return _table(rows, photos, _inspect_all(paths, config.max_pixels, progress or Progress()))


def scan(data: Path) -> dict[str, str | int]:
    """What a catalog is made from, cheap enough to ask at every start: no photo is opened.

    Returns:
        The SHA-256 of each CSV that is there, the number of photos, and one SHA-256 over the sorted (relative path,
        size, modification time) of them all.

    Raises:
        DataError: when there is no train.csv, or for links that leave the data folder.
    """
    found: dict[str, str | int] = {source.csv: sha256_file(data / source.csv) for source in _present(data)}
    digest = hashlib.sha256()
    photos = _photos_on_disk(data)
    for path in photos:
        stat = (data / path).stat()
        digest.update(os.fsencode(f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}\n"))
    return found | {"photos": len(photos), "photos_sha256": digest.hexdigest()}


def usable(catalog: pd.DataFrame, *splits: str) -> pd.DataFrame:
    """The photos of these splits (train, nonlandmark, test) that have no problem; row order and index are kept."""
    return catalog[catalog["problem"].isna() & catalog["split"].isin(splits)]


def bad_images(catalog: pd.DataFrame) -> pd.DataFrame:
    """The photos that were set aside: id, split, path, reason."""
    bad = catalog.loc[catalog["problem"].notna(), ["id", "split", "path", "problem"]]
    return bad.rename(columns={"problem": "reason"}).reset_index(drop=True)


def check_missing(catalog: pd.DataFrame, *splits: str) -> None:
    """Refuse a catalog that names photos which are not on disk.

    Args:
        catalog: `tables.CATALOG`.
        splits: where to look; leave `test` out to answer its missing photos with nothing.

    Raises:
        DataError: listing them.
    """
    missing = catalog[(catalog["problem"] == MISSING) & catalog["split"].isin(splits)]
    raise_problems(
        DataError,
        [f"{path}: is missing" for path in missing["path"]],
        hint=f"{len(missing)} photos to fetch again, or to remove from the CSVs",
    )


def check_bad_fraction(catalog: pd.DataFrame, config: DataConfig) -> None:
    """Refuse a catalog in which too many of the photos on disk cannot be used; the missing are `check_missing`'s.

    Raises:
        DataError: listing them with their reasons.
    """
    present = catalog[catalog["problem"] != MISSING]
    bad = present[present["problem"].notna()]
    if len(bad) <= config.max_bad_fraction * len(present):
        return
    raise_problems(
        DataError,
        [f"{path}: {reason}" for path, reason in zip(bad["path"], bad["problem"], strict=True)],
        hint=f"{len(bad)} of {len(present)} photos cannot be used: replace them, or raise data.max_bad_fraction "
        f"(now {config.max_bad_fraction:g})",
    )


def extra_photos(data: Path, catalog: pd.DataFrame) -> list[str]:
    """The photos on disk that no CSV names, as sorted paths relative to the data folder.

    Raises:
        DataError: for links that leave the data folder.
    """
    named = set(catalog["path"])
    return [path for path in _photos_on_disk(data) if path not in named]


# --- CSV files -------------------------------------------------------------------------------------------------------


def _present(data: Path) -> list[_Source]:
    present = [source for source in _SOURCES if (data / source.csv).exists()]
    missing = [source.csv for source in _SOURCES if source.required and source not in present]
    if missing:
        raise DataError(f"{data / missing[0]}: is missing", hint="--data takes the folder that holds train.csv")
    return present


def _read_sources(data: Path, id_pattern: re.Pattern[str]) -> list[_Row]:
    """Every row of every CSV, once all of them are known to be right."""
    problems: list[str] = []
    rows: list[_Row] = []
    for source in _present(data):
        path = data / source.csv
        try:
            for line, record in read_rows(path, source.columns, error=DataError):
                row = _parse_row(source, f"{path}:{line}", record)
                problems += _row_problems(row, id_pattern)
                rows.append(row)
        except DataError as error:  # the other files may have problems too
            problems.append(str(error))
    raise_problems(DataError, problems + _duplicate_ids(rows), hint="correct the CSVs and run the same command again")
    return rows


def _parse_row(source: _Source, place: str, record: Mapping[str, str]) -> _Row:
    landmark = record["landmark_id"] if source.split == "train" else None
    if landmark in _NO_LANDMARK:
        return _Row(record["id"], "nonlandmark", None, source.folder, place)
    return _Row(record["id"], source.split, landmark, source.folder, place)


def _row_problems(row: _Row, id_pattern: re.Pattern[str]) -> list[str]:
    problems = []
    if not id_pattern.fullmatch(row.id):
        problems.append(f"{row.place}: id {row.id!r:.60} does not match {id_pattern.pattern} (data.id_pattern)")
    if row.landmark_id is not None and not _LANDMARK.fullmatch(row.landmark_id):
        problems.append(f"{row.place}: landmark_id {row.landmark_id!r:.60} does not match {_LANDMARK.pattern}")
    return problems


def _duplicate_ids(rows: Iterable[_Row]) -> list[str]:
    first: dict[str, _Row] = {}
    problems = []
    for row in rows:
        earlier = first.setdefault(row.id, row)
        if earlier is not row:
            labels = "" if earlier.landmark_id == row.landmark_id else " with another landmark_id"
            problems.append(f"{row.place}: id '{row.id}' stands already at {earlier.place}{labels}")
    return problems


# --- photos ----------------------------------------------------------------------------------------------------------


def _photos_on_disk(data: Path) -> list[str]:
    return sorted(path for source in _SOURCES for path in _list_photos(data, source.folder))


def _list_photos(data: Path, folder: str) -> list[str]:
    """The photo files below a folder, relative to the data folder with forward slashes, sorted.

    Raises:
        DataError: for links that lead out of the data folder, and folders that cannot be read.
    """
    root = data.resolve()
    photos: list[str] = []
    escaped: list[str] = []
    pending = [folder] if (data / folder).exists() else []
    while pending:
        current = pending.pop()
        if _leaves(data / current, root):
            escaped.append(current)
            continue
        for entry in _entries(data / current):
            path = f"{current}/{entry.name}"
            if entry.is_symlink() and _leaves(Path(entry.path), root):
                escaped.append(path)
            elif entry.is_dir(follow_symlinks=False):  # following links inside could go round in circles
                pending.append(path)
            elif entry.name.lower().endswith(SUFFIXES) and Path(entry.path).is_file():
                photos.append(path)
    raise_problems(
        DataError,
        [f"{data / path}: is a link that leaves the data folder" for path in sorted(escaped)],
        hint="copy the photos there, or give --data the folder that really holds them",
    )
    return sorted(photos)


def _leaves(path: Path, root: Path) -> bool:
    return not Path(os.path.realpath(path)).is_relative_to(root)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror})", hint="photos lie in that folder") from error


def _find_photos(data: Path, rows: Sequence[_Row]) -> list[str | None]:
    """The photo of each row, relative to the data folder, or None.

    Raises:
        DataError: for two files of one id.
    """
    problems: list[str] = []
    listings: dict[str, dict[str, str]] = {row.folder: {} for row in rows}
    for folder, listing in listings.items():
        for path in _list_photos(data, folder):
            photo_id = PurePosixPath(path).stem
            if listing.setdefault(photo_id, path) != path:
                problems.append(f"{data / path}: {data / listing[photo_id]} has the same id")
    raise_problems(DataError, problems, hint="keep one of the two")
    return [listings[row.folder].get(row.id) for row in rows]


def _inspect_all(paths: Sequence[Path | None], max_pixels: int, progress: Progress) -> list[_Inspected]:
    """Inspect every photo; decoding and hashing release Python's lock, so threads use every core."""
    inspected: list[_Inspected] = []
    with ThreadPoolExecutor() as pool, progress.task("measure photos", len(paths), "photo") as advance:
        for start in range(0, len(paths), _BATCH):
            for found in pool.map(partial(_inspect, max_pixels=max_pixels), paths[start : start + _BATCH]):
                inspected.append(found)
                advance(1, "")
    return inspected


def _inspect(path: Path | None, *, max_pixels: int) -> _Inspected:
    if path is None:
        return _unread("", MISSING)
    try:
        return inspect_image(path, max_pixels=max_pixels), None
    except ImageError as error:
        return _unread(_digest(path), error.reason)


def _unread(sha256: str, problem: str) -> _Inspected:
    return ImageFacts(0, 0, sha256, np.zeros(THUMBNAIL, dtype=np.uint8)), problem


def _digest(path: Path) -> str:
    """The SHA-256 of a broken photo, or nothing where not even its bytes can be read."""
    try:
        return sha256_file(path)
    except OSError:
        return ""


def _table(rows: Sequence[_Row], photos: Sequence[str | None], inspected: Sequence[_Inspected]) -> pd.DataFrame:
    facts = [found for found, _ in inspected]
    sha256 = [fact.sha256 for fact in facts]
    return pd.DataFrame(
        {
            "id": [row.id for row in rows],
            "path": [photo or f"{row.folder}/{row.id}.jpg" for row, photo in zip(rows, photos, strict=True)],
            "split": [row.split for row in rows],
            "landmark_id": [row.landmark_id for row in rows],
            "width": np.array([fact.width for fact in facts], dtype=np.int32),
            "height": np.array([fact.height for fact in facts], dtype=np.int32),
            "sha256": sha256,
            "duplicate_group": group_duplicates(sha256, np.stack([fact.thumbnail for fact in facts])),
            "problem": [problem for _, problem in inspected],
        }
    )
