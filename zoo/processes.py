"""One training in several processes, one per device: each takes its share of every batch, gradients are averaged.

The processes live for one training. They leave its last state as a checkpoint, and whoever started them goes on from
there as from any other checkpoint, so nothing else has to know that there were several.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from ctypes import c_byte
from dataclasses import dataclass
from multiprocessing.queues import SimpleQueue
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator
from torch import multiprocessing
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException, start_processes

from engine.core.errors import EngineError, ResourceError
from engine.core.interrupt import StopRequest
from engine.core.progress import Advance, Progress
from zoo.device import MIXED, make_accelerator

PRECISIONS = {word: name for name, word in MIXED.items()}
POLL_SECONDS = 0.1  # how soon the terminal learns of a step
Message = tuple[str, tuple[Any, ...]]


@dataclass(frozen=True)
class Worker:
    """What one of the processes is given.

    Attributes:
        accelerator: device and precision; knows the process's place among the others.
        progress: the first process's words reach the terminal, the others say nothing.
        stop: asked to stop when the process that started it was.
    """

    accelerator: Accelerator
    progress: Progress
    stop: StopRequest


def process_count(asked: int, device: str, chosen: torch.device) -> int:
    """How many processes train a network together.

    Args:
        asked: for how many; 0 is one per CUDA device, and one on anything else.
        device: as it was asked for; a number in it means this one device.
        chosen: the device that it became.

    Raises:
        ResourceError: when the devices for that many are not there.
    """
    there = torch.cuda.device_count() if chosen.type == "cuda" and ":" not in device else 1
    most = asked if chosen.type == "cpu" else there
    if asked > most:
        raise ResourceError(
            f"{asked} processes were asked for, and device '{device}' is {there}",
            hint=f"use --set processes={there}, or --device cpu",
        )
    return asked or there


def run_in_processes(
    work: Callable[..., None],
    arguments: tuple[Any, ...],
    *,
    count: int,
    accelerator: Accelerator,
    progress: Progress,
    stop: StopRequest,
) -> None:
    """Run `work(worker, *arguments)` in several processes that can talk to each other, and wait for them.

    Args:
        work: a function of a module; what it is given has to be picklable.
        arguments: given to each process.
        count: of processes.
        accelerator: device type and precision to use in each; CPU threads are shared out.
        progress: told what the first process says.
        stop: passed on to every process.

    Raises:
        EngineError: what the first process to fail raised, or that one of them died.
        KeyboardInterrupt: when asked to stop and the processes did.
    """
    context = multiprocessing.get_context("spawn")
    messages, halt = context.SimpleQueue(), _SharedStop(context.RawValue("b", 0))
    place = _Place(
        count, _free_port(), os.getpid(), accelerator.device.type, PRECISIONS[accelerator.mixed_precision],
        max(1, torch.get_num_threads() // count) if accelerator.device.type == "cpu" else torch.get_num_threads(),
    )  # fmt: skip
    processes = start_processes(  # type: ignore[no-untyped-call] # torch leaves it untyped
        _begin, (place, messages, halt, work, arguments), nprocs=count, join=False, start_method="spawn"
    )
    listener = _Listener(progress)
    try:
        done = False
        while not done:
            halt.requested = stop.requested
            try:
                done = processes.join(timeout=POLL_SECONDS)
            except (ProcessRaisedException, ProcessExitedException) as error:
                listener.hear(messages)
                raise listener.error or EngineError(
                    f"a process of the training died: {error}", hint="run the same command again to go on"
                ) from error
            listener.hear(messages)
    finally:
        listener.close()
        for process in processes.processes:
            process.kill()
            process.join()
    if listener.interrupted:
        raise KeyboardInterrupt


@dataclass(frozen=True)
class _Place:
    count: int
    port: int
    parent: int
    device: str
    precision: str
    threads: int


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _begin(
    rank: int,
    place: _Place,
    messages: SimpleQueue[Message],
    halt: StopRequest,
    work: Callable[..., None],
    arguments: tuple[Any, ...],
) -> None:
    """What a new process does: take its place, work, and tell how it ended."""

    def only_with_the_parent(_number: int, _frame: FrameType | None) -> None:
        if os.getppid() != place.parent:  # a Ctrl-C is the parent's to answer; torch sends this when the parent dies
            os._exit(130)

    signal.signal(signal.SIGINT, only_with_the_parent)
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(place.count),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(place.port),
    }  # fmt: skip
    progress = _Messenger(messages) if rank == 0 else Progress()
    try:
        accelerator = make_accelerator(place.device, place.precision, place.threads)
        try:
            work(Worker(accelerator, progress, halt), *arguments)
        finally:
            torch.distributed.destroy_process_group()
    except KeyboardInterrupt:
        messages.put(("interrupted", ()))
    except EngineError as error:
        messages.put(("failed", (error,)))
        raise


class _SharedStop(StopRequest):
    """A stop that every process sees at once: a byte of shared memory.

    Without a lock, which an event has: a process that ends while it holds it takes it along, and others wait for ever.
    """

    def __init__(self, byte: c_byte) -> None:
        self._byte = byte

    @property
    def requested(self) -> bool:
        return bool(self._byte.value)

    @requested.setter
    def requested(self, wanted: bool) -> None:
        self._byte.value = wanted


class _Messenger(Progress):
    """Sends what it is told to the process that started this one."""

    def __init__(self, messages: SimpleQueue[Message]) -> None:
        self._messages = messages

    @contextmanager
    def task(self, label: str, total: int, unit: str) -> Iterator[Advance]:
        self._messages.put(("begin", (label, total, unit)))
        yield lambda amount, note: self._messages.put(("advance", (amount, note)))
        self._messages.put(("end", ()))

    def say(self, message: str) -> None:
        self._messages.put(("say", (message,)))


class _Listener:
    """Does here what a messenger was told there."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks = ExitStack()
        self._advance: Advance | None = None
        self.interrupted = False
        self.error: EngineError | None = None

    def hear(self, messages: SimpleQueue[Message]) -> None:
        """Take everything that was sent so far."""
        while not messages.empty():
            match messages.get():
                case "begin", (label, total, unit):
                    self._advance = self._tasks.enter_context(self._progress.task(label, total, unit))
                case "advance", (amount, note) if self._advance is not None:
                    self._advance(amount, note)
                case "end", ():
                    self.close()
                case "say", (message,):
                    self._progress.say(message)
                case "interrupted", ():
                    self.interrupted = True
                case "failed", (error,):
                    self.error = self.error or error

    def close(self) -> None:
        """End what was begun."""
        self._tasks.close()
