"""A run: the folder everything is made in, and the manifest that says what each file was made from.

`runs/<name>/manifest.json` holds, for every artifact, its kind, schema version, SHA-256, size, and its inputs: the
settings and the hashes of the files that it was made from. A stage resumes by that content: an artifact whose inputs
and bytes both still agree is not made again; nothing is ever decided by "the file exists".
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock, Timeout

from engine.core.errors import ArtifactError, ResourceError
from engine.core.storage import UNFINISHED, make_folder, read_json, sha256_file, sha256_json, write_json, write_text
from engine.core.tables import TableSchema, read_table, write_table

MANIFEST = "manifest.json"
MANIFEST_VERSION = 1
TRAIN_ZOO = "engine train-zoo"  # the command that makes what most others read
Inputs = Mapping[str, Any]  # dotted key -> JSON value


@dataclass(frozen=True)
class Artifact:
    """One manifest entry.

    Attributes:
        kind: what the file is, e.g. `catalog`, `candidates`, `weights`.
        schema_version: the version of the kind's layout.
        sha256: of the file's bytes.
        bytes: its size.
        inputs: what it was made from.
        facts: what was measured while making it (seconds, photos), never compared.
    """

    kind: str
    schema_version: int
    sha256: str
    bytes: int
    inputs: dict[str, Any]
    facts: dict[str, Any] = field(default_factory=dict)


class Run:
    """A run folder with its manifest.

    Args:
        root: the folder; created when missing.
        create: False refuses a folder that is not a run.

    Raises:
        ArtifactError: when the manifest is damaged or of another version, or there is none and `create` is False.
        ResourceError: when the folder cannot be made.
    """

    def __init__(self, root: Path, *, create: bool = False) -> None:
        self.root = root
        self._artifacts: dict[str, Artifact] = {}
        self._verified: dict[str, tuple[int, int]] = {}  # name -> (mtime_ns, size) of bytes already hashed
        manifest = root / MANIFEST
        if manifest.exists():
            self._artifacts = _read_manifest(manifest)
        elif create:
            make_folder(root)
        else:
            raise ArtifactError(
                f"{root}: is not a run (no {MANIFEST})", hint=f"start with 'engine train-zoo --run {root}'"
            )

    def path(self, name: str) -> Path:
        """Where an artifact stands; `name` is its path inside the run, with forward slashes."""
        return self.root / name

    def find(self, name: str) -> Artifact | None:
        """The manifest's entry of an artifact, or None."""
        return self._artifacts.get(name)

    def entry(self, name: str) -> Artifact:
        """The manifest's entry of an artifact that is known to be there."""
        return self._artifacts[name]

    def names(self, prefix: str = "") -> list[str]:
        """The names of all artifacts that begin with a prefix, sorted."""
        return sorted(name for name in self._artifacts if name.startswith(prefix))

    def is_fresh(self, name: str, inputs: Inputs) -> bool:
        """Whether the artifact was made from exactly these inputs and its bytes are whole."""
        entry = self._artifacts.get(name)
        return entry is not None and not describe_changes(entry.inputs, inputs) and self._is_whole(name, entry)

    def changes(self, name: str, inputs: Inputs) -> list[str]:
        """What differs between the inputs an artifact was made from and these; empty when it was never made."""
        entry = self._artifacts.get(name)
        return [] if entry is None else describe_changes(entry.inputs, inputs)

    def verified(self, name: str, *, made_by: str) -> Path:
        """The path of an artifact whose bytes are those that the manifest promises.

        Args:
            name: the artifact.
            made_by: the command that makes it, for the message.

        Raises:
            ArtifactError: when it was never made, is missing, or was damaged since.
        """
        entry = self._artifacts.get(name)
        path = self.path(name)
        if entry is None or not path.exists():
            raise ArtifactError(f"{path}: has not been made yet", hint=f"run '{made_by}' first")
        if not self._is_whole(name, entry):
            raise ArtifactError(
                f"{path}: its SHA-256 is not the manifest's; the file was damaged or edited",
                hint=f"delete it and run '{made_by}' again",
            )
        return path

    def record(
        self, name: str, *, kind: str, version: int, inputs: Inputs, facts: Mapping[str, Any] | None = None
    ) -> None:
        """Enter a file that was just written into the manifest, and save the manifest."""
        path = self.path(name)
        digest = sha256_file(path)
        self._artifacts[name] = Artifact(kind, version, digest, path.stat().st_size, dict(inputs), dict(facts or {}))
        self._remember(name)
        self._save()

    def save_table(
        self,
        name: str,
        table: pd.DataFrame,
        schema: TableSchema,
        inputs: Inputs,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        """Write a table into the run and enter it into the manifest."""
        write_table(self.path(name), table, schema)
        self.record(name, kind=schema.name, version=schema.version, inputs=inputs, facts=facts)

    def load_table(self, name: str, schema: TableSchema, *, made_by: str) -> pd.DataFrame:
        """Read a table whose bytes are those that the manifest promises.

        Raises:
            ArtifactError: when it was never made, is damaged, or of another version.
        """
        return read_table(self.verified(name, made_by=made_by), schema)

    def forget(self, name: str) -> None:
        """Remove an artifact's file and its entry."""
        self.path(name).unlink(missing_ok=True)
        if self._artifacts.pop(name, None) is not None:
            self._save()

    def hash_of(self, name: str, *, made_by: str) -> str:
        """The SHA-256 of an artifact, verified; use it as an input of what is made from it."""
        self.verified(name, made_by=made_by)
        return self._artifacts[name].sha256

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run for writing, so that two commands never write one run at the same time.

        The manifest is read again, since another command may have added to it, and half files that a killed command
        left are removed: nobody else can be writing them now.

        Raises:
            ResourceError: when another live process holds it, with that process's id, or the folder is not writable.
        """
        lock = FileLock(self.root / ".lock")
        holder = self.root / ".lock.pid"
        try:
            lock.acquire(timeout=0)
        except Timeout:
            pid = holder.read_text(encoding="utf-8").strip() if holder.exists() else "unknown"
            raise ResourceError(
                f"{self.root}: another process (pid {pid}) is working on this run",
                hint="wait for it, stop it, or choose another --run",
            ) from None
        except OSError as error:
            raise ResourceError(
                f"{self.root}: cannot be locked ({error.strerror})", hint="choose a --run folder you may write to"
            ) from error
        try:
            write_text(holder, f"{os.getpid()}\n")
            self._refresh()
            yield
        finally:
            lock.release()

    def _refresh(self) -> None:
        for half_file in self.root.rglob(f".*{UNFINISHED}"):
            half_file.unlink(missing_ok=True)
        if (self.root / MANIFEST).exists():
            self._artifacts = _read_manifest(self.root / MANIFEST)

    def _is_whole(self, name: str, entry: Artifact) -> bool:
        path = self.path(name)
        if not path.exists():
            return False
        stat = path.stat()
        if self._verified.get(name) == (stat.st_mtime_ns, stat.st_size):
            return True
        if stat.st_size != entry.bytes or sha256_file(path) != entry.sha256:
            return False
        self._remember(name)
        return True

    def _remember(self, name: str) -> None:
        stat = self.path(name).stat()
        self._verified[name] = (stat.st_mtime_ns, stat.st_size)

    def _save(self) -> None:
        entries = {name: vars(entry) for name, entry in sorted(self._artifacts.items())}
        write_json(self.root / MANIFEST, {"schema_version": MANIFEST_VERSION, "artifacts": entries})


def _read_manifest(path: Path) -> dict[str, Artifact]:
    manifest = read_json(path)
    if manifest.get("schema_version") != MANIFEST_VERSION:
        raise ArtifactError(
            f"{path}: schema version {manifest.get('schema_version')}, this engine reads {MANIFEST_VERSION}",
            hint="use the engine that made the run, or another --run",
        )
    try:
        return {name: Artifact(**entry) for name, entry in manifest["artifacts"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{path}: is damaged ({error})", hint="restore it, or choose another --run") from error


def describe_changes(old: Inputs, new: Inputs) -> list[str]:
    """One line for each input that differs, hashes shortened.

    >>> describe_changes({"train.epochs": 3, "catalog": "ab"}, {"train.epochs": 5, "catalog": "ab"})
    ['train.epochs: 3 -> 5']
    """
    lines = []
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key, "(absent)"), new.get(key, "(absent)")
        if sha256_json(before) != sha256_json(after):  # a tuple is read back as a list, and True is not 1
            lines.append(f"{key}: {_short(before)} -> {_short(after)}")
    return lines


def _short(value: object) -> str:
    text = str(value)
    return text[:12] + "…" if len(text) == 64 and set(text) <= set("0123456789abcdef") else text
