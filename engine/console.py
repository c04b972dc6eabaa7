"""What a person sees: talk on stderr, data on stdout, a bar where there is a terminal and plain lines where not."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table

from engine.core.progress import Advance, Progress

QUIET_SECONDS = 10.0  # between two lines of one task where there is no terminal: a log that stays readable
UNBOUNDED = 10_000  # columns of a file or a pipe, where rich would fold a table at 80


def stdout() -> Console:
    """For data."""
    return _console(on_stderr=False)


def stderr() -> Console:
    """For talk."""
    return _console(on_stderr=True)


def _console(*, on_stderr: bool) -> Console:
    plain = bool(os.environ.get("NO_COLOR"))  # rich alone would still write the codes of bold and italic
    return Console(
        stderr=on_stderr,
        soft_wrap=True,
        color_system=None if plain else "auto",
        # names and paths are printed as they are: `[a]` is no style, `:100:` no emoji, a number needs no colour
        markup=False,
        emoji=False,
        highlight=False,
    )


class ConsoleProgress(Progress):
    """Progress on stderr."""

    def __init__(self) -> None:
        self.console = stderr()

    def say(self, message: str) -> None:
        """One line of talk."""
        self.console.print(message)

    @contextmanager
    def task(self, label: str, total: int, unit: str) -> Iterator[Advance]:
        """A bar in a terminal; elsewhere a line now and then."""
        drawn = self._bar if self.console.is_terminal else self._lines
        with drawn(label, total, unit) as advance:
            yield advance

    @contextmanager
    def _bar(self, label: str, total: int, unit: str) -> Iterator[Advance]:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit + "s"),
            TaskProgressColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[note]}", markup=False),
        )
        with Bars(*columns, console=self.console) as bars:
            task = bars.add_task(label, total=total, note="")

            def advance(amount: int, note: str) -> None:
                bars.update(task, advance=amount, note=note)

            yield advance

    @contextmanager
    def _lines(self, label: str, total: int, unit: str) -> Iterator[Advance]:
        began = spoke = time.monotonic()
        done, last_note = 0, ""

        def advance(amount: int, note: str) -> None:
            nonlocal done, spoke, last_note
            done, last_note = done + amount, note
            if time.monotonic() - spoke > QUIET_SECONDS:
                spoke = time.monotonic()
                left = (spoke - began) / max(done, 1) * (total - done)
                self.say(f"{label}: {done}/{total} {unit}s, about {left:.0f} s left {note}")

        yield advance
        self.say(f"{label}: {done}/{total} {unit}s in {time.monotonic() - began:.1f} s {last_note}".rstrip())


def print_json(value: Any) -> None:
    """A value as JSON on stdout."""
    print(json.dumps(value, indent=1, allow_nan=False))  # noqa: T201 - stdout is for data


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on stdout, numbers to the right."""
    console = stdout()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = UNBOUNDED
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table)
