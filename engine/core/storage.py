"""Files on disk: written whole or not at all, and known by their content.

Functions here are the only ones that put an artifact in place: a temporary file beside the target, flushed, then
renamed, so that a killed process or a full disk leaves the old file or the new one, never a half (FAULTS: 12 of 12
checkpoints written in place were unreadable after a kill, none of 12 written this way).
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from engine.core.errors import ArtifactError, ResourceError

_NO_SPACE = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}
_NO_ACCESS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST}
UNFINISHED = ".unfinished"  # the ending of temporary files: no other program's, so a run may sweep up its own


def _resource_error(error: OSError, path: Path) -> ResourceError:
    if error.errno in _NO_SPACE:
        free = shutil.disk_usage(path.parent).free if path.parent.exists() else 0
        return ResourceError(
            f"{path}: disk full or file too large ({free / 1e6:,.0f} MB free)",
            hint="free some space and run the same command again; what was finished is kept",
        )
    if error.errno in _NO_ACCESS:
        return ResourceError(f"{path}: cannot be written ({error.strerror})", hint="choose a folder you may write to")
    return ResourceError(f"{path}: {error.strerror or error}", hint="check the disk and run the same command again")


def make_folder(path: Path) -> Path:
    """Create a folder and its parents.

    Raises:
        ResourceError: when it cannot be created.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _resource_error(error, path) from error
    return path


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to; on success it becomes `path` in one step.

    On any error the temporary file is removed and whatever stood at `path` stays.

    Raises:
        ResourceError: when the disk is full or the folder cannot be written.
    """
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{UNFINISHED}")
    try:
        yield temporary
        with temporary.open("rb+") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise _resource_error(error, path) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically, newlines as given."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def write_bytes(path: Path, data: bytes) -> None:
    """Write bytes atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write JSON atomically, keys in the given order, floats round-tripping."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ArtifactError: when the file is missing or is not a JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(f"{path}: is missing") from None
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path}: is not readable JSON ({error})") from error
    if not isinstance(value, dict):
        raise ArtifactError(f"{path}: is not a JSON object")
    return value


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def sha256_json(value: object) -> str:
    """Hex SHA-256 of a value's canonical JSON, so that equal settings have equal hashes in every process."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
