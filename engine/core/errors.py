"""The one error tree: what went wrong, where, what to do, and the exit code it ends in.

Exit codes: 0 ok, 1 a fault of the engine, 2 usage or configuration, 3 data, 4 artifact, 5 submission, 6 resources,
7 part of the work failed, 130 interrupted. When everything failed, it is the code of the first error.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import ClassVar

SHOWN = 20  # a terminal page: enough to see the pattern, few enough to still see the summary


class EngineError(Exception):
    """Anything the engine refuses or fails at, said so that a user can act on it.

    Args:
        message: what is wrong and where (file, row or id).
        hint: what to do about it; the exact command where there is one.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} — {self.hint}" if self.hint else self.message


class ConfigError(EngineError):
    """A configuration file, preset, recipe or option that cannot be used."""

    exit_code = 2


class DataError(EngineError):
    """Photos or CSV files that cannot be used."""

    exit_code = 3


class ArtifactError(EngineError):
    """A file of a run that is missing, damaged, or made from something else."""

    exit_code = 4


class ChangedSettingsError(ArtifactError):
    """Finished or begun work of a run that was made from other settings; it is never replaced unasked."""


class SubmissionError(EngineError):
    """A submission or solution file that breaks the rules."""

    exit_code = 5


class ResourceError(EngineError):
    """Disk, memory, permission or device: the machine says no."""

    exit_code = 6


class PartialFailureError(EngineError):
    """Some of the work failed; the rest was finished and kept."""

    exit_code = 7


def raise_problems(kind: type[EngineError], problems: Sequence[str], *, hint: str | None = None) -> None:
    """Raise one error that shows every problem found (the first `SHOWN`, and how many there are).

    Args:
        kind: the error to raise.
        problems: one line each; nothing is raised when empty.
        hint: what to do about them.

    Raises:
        EngineError: of the given kind, when there is any problem.
    """
    if not problems:
        return
    lines = list(problems[:SHOWN])
    if len(problems) > SHOWN:
        lines.append(f"… and {len(problems) - SHOWN} more")
    raise kind("\n".join(lines), hint=hint)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The nearest known names as a half sentence.

    >>> did_you_mean("epoch", ["epochs", "lr"])
    "did you mean 'epochs'?"
    >>> did_you_mean("zzz", ["b", "a"])
    'known: a, b'
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    if near:
        return "did you mean " + " or ".join(f"'{n}'" for n in near) + "?"
    more = [f"… and {len(names) - SHOWN} more"] if len(names) > SHOWN else []
    return "known: " + ", ".join(names[:SHOWN] + more)
