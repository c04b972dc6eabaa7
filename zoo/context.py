"""Where and how members are trained: what every step of the zoo is handed."""

from __future__ import annotations

from dataclasses import dataclass

from accelerate import Accelerator

from engine.core.interrupt import StopRequest
from engine.core.progress import Progress
from engine.core.runs import Run
from zoo.photo_set import PhotoSet


@dataclass(frozen=True, eq=False)
class Context:
    """Where and how members are trained.

    Attributes:
        run: where everything goes.
        photos: what everything is made from.
        accelerator: device and precision.
        progress: told of what is going on.
        stop: looked at between steps.
        seed: of everything random.
        max_pixels: limit of the photo reader.
        workers: decoding processes.
        processes: that train a network together.
        force_new: make finished work of other settings anew instead of refusing.
        logs: that trainings write, see `zoo.logs`.
    """

    run: Run
    photos: PhotoSet
    accelerator: Accelerator
    progress: Progress
    stop: StopRequest
    seed: int
    max_pixels: int
    workers: int
    processes: int = 1
    force_new: bool = False
    logs: tuple[str, ...] = ()
