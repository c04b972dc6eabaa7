"""How a long stage tells what it is doing, without knowing about terminals.

A stage gets a `Progress` and calls it; this base class says nothing, `engine.console` draws it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[[int, str], None]  # (how many more are done, a short note such as "loss 1.23")


class Progress:
    """The silent progress: the interface, and what tests use."""

    @contextmanager
    def task(self, label: str, total: int, unit: str) -> Iterator[Advance]:
        """Announce `total` units of work; yields the function that advances it."""
        del label, total, unit
        yield lambda _amount, _note: None

    def say(self, message: str) -> None:
        """One line of talk: a notice, a finished step."""
        del message
