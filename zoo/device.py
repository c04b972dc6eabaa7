"""Where and in which precision a network runs, by way of Accelerate.

`auto` precision is bf16 where the device computes it at least twice as fast as fp32: CUDA since Ampere, and x86 CPUs
with AVX-512 bf16 or AMX; fp16 on older CUDA devices; else fp32.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import faiss
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from engine.core.errors import ResourceError

SMALL = 2_000_000  # parameters: a linear head of 1,500 landmarks, whose step takes a millisecond
MIXED = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}


def make_accelerator(device: str, precision: str, threads: int) -> Accelerator:
    """The accelerator of this process.

    Args:
        device: auto, cpu, cuda, cuda:<n> or mps; auto takes the best there is.
        precision: auto, fp32, bf16 or fp16.
        threads: of the CPU.

    Raises:
        ResourceError: when the device is not there.
    """
    torch.set_num_threads(threads)
    faiss.omp_set_num_threads(threads)  # it has threads of its own
    chosen = pick_device(device)
    AcceleratorState._reset_state(reset_partial_state=True)  # noqa: SLF001 - a second run in one process may choose anew
    if chosen.index is not None:
        os.environ["ACCELERATE_TORCH_DEVICE"] = str(chosen)
    mixed = pick_precision(chosen) if precision == "auto" else precision
    return Accelerator(cpu=chosen.type == "cpu", mixed_precision=MIXED[mixed])


@contextmanager
def threads_for(parameters: int, device: torch.device) -> Iterator[None]:
    """One thread of the CPU for a network that is small: others would wait, and change the last digit of its sums."""
    before = torch.get_num_threads()
    if device.type == "cpu" and parameters < SMALL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def pick_device(device: str) -> torch.device:
    """The device of a name; `auto` prefers CUDA, then MPS, then the CPU.

    Raises:
        ResourceError: for a name torch does not know or a device that is not there.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        return torch.device(next(name for name, is_there in there.items() if is_there))
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ResourceError(f"device '{device}' is not known", hint="use auto, cpu, cuda, cuda:1 or mps") from error
    too_high = chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count()
    if not there.get(chosen.type, False) or too_high:
        raise ResourceError(f"device '{device}' is not on this machine", hint="use --device cpu or --device auto")
    return chosen


def pick_precision(device: torch.device) -> str:
    """The fastest safe precision of a device."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    if device.type == "cpu":
        able = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        return "bf16" if able.get("avx512_bf16") or able.get("amx_bf16") else "fp32"
    return "fp32"
