"""Training logs for other programs to draw, beside `metrics.jsonl`: TensorBoard's and Weights & Biases'.

In: a row for each epoch. Out: `logs/<member>/fold<k>/` in a run: TensorBoard's event files, or the folders that
`wandb sync` uploads. Both belong to extras of the project, and are imported only when a log is asked for.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from engine.core.errors import ConfigError, raise_problems
from engine.core.storage import make_folder, sha256_json

Curves = Mapping[str, float]
WriteRow = Callable[[Mapping[str, Any]], None]

CURVES = ("loss", "validation_gap", "learning_rate", "images_per_second")  # of a row, what is drawn over its `step`
PROJECT = "landmark-engine"  # as Weights & Biases files it


def check_logs(kinds: Sequence[str]) -> None:
    """Look for what logs need before anything is trained; a kind, its package and the extra share one name.

    Raises:
        ConfigError: with the line that installs what is missing.
    """
    missing = [kind for kind in kinds if find_spec(kind) is None]
    problems = [f"logs: the package '{kind}' is not installed" for kind in missing]
    raise_problems(ConfigError, problems, hint=f"pip install 'landmark-engine[{','.join(missing)}]'")


@dataclass(frozen=True)
class Logs:
    """Which logs a training writes, and where.

    Attributes:
        kinds: of `KINDS`.
        folder: for all of them.
        name: what the training is called.
    """

    kinds: tuple[str, ...] = ()
    folder: Path = Path()
    name: str = ""

    @contextmanager
    def open(self, step: int, inputs: Mapping[str, Any]) -> Iterator[WriteRow]:
        """The logs of a training that begins, or goes on; what an earlier try wrote past the step is struck out.

        Args:
            step: optimiser steps done, 0 for a new training.
            inputs: what the training is made from: the same make the same log, others a new one.
        """
        with ExitStack() as opened:
            logs = [opened.enter_context(KINDS[kind](self, step, inputs)) for kind in sorted(set(self.kinds))]

            def write_row(row: Mapping[str, Any]) -> None:
                curves = {name: row[name] for name in CURVES if row[name] is not None}
                for write in logs:
                    write(curves, row["step"])

            yield write_row


Write = Callable[[Curves, int], None]  # (values by the name of their curve, step)


@contextmanager
def _open_tensorboard(logs: Logs, step: int, _inputs: Mapping[str, Any]) -> Iterator[Write]:
    """An event file; with `purge_step`, TensorBoard drops what the folder's earlier ones hold from that step on."""
    tensorboard = import_module("torch.utils.tensorboard")
    with tensorboard.SummaryWriter(str(logs.folder), purge_step=step + 1) as writer:

        def write(curves: Curves, at: int) -> None:
            for name, value in curves.items():
                writer.add_scalar(name, value, at)
            writer.flush()

        yield write


@contextmanager
def _open_wandb(logs: Logs, step: int, inputs: Mapping[str, Any]) -> Iterator[Write]:
    """A run of a fixed id, which takes no step twice; on this disk only, unless WANDB_MODE says otherwise."""
    del step
    wandb = import_module("wandb")
    make_folder(logs.folder)  # else it takes a temporary one
    run = wandb.init(
        project=PROJECT,
        name=logs.name,
        id=sha256_json([str(logs.folder.resolve()), dict(inputs)])[:16],
        dir=str(logs.folder),
        config=dict(inputs),
        mode=os.environ.get("WANDB_MODE", "offline"),
        resume="allow",
        settings=wandb.Settings(quiet=True, console="off"),  # else a page for each fold, and the terminal is taken
    )
    with run:
        yield lambda curves, at: run.log(dict(curves), step=at)


KINDS: Mapping[str, Callable[[Logs, int, Mapping[str, Any]], AbstractContextManager[Write]]] = {
    "tensorboard": _open_tensorboard,
    "wandb": _open_wandb,
}
