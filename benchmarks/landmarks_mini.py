"""The whole job on real photos: wall time and peak memory of each command, and the leaderboard.

    python benchmarks/landmarks_mini.py [DATA [RUN]]

DATA is a folder with train.csv, test.csv and photos (default: ../shared/data/landmarks-mini); RUN must not exist yet
(default: a temporary folder). Takes about half an hour on two cores.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MEBI = 1024  # getrusage counts in KiB


def run_timed(command: list[str]) -> tuple[float, float]:
    """Run a command to its end; returns wall seconds and peak resident memory in MiB.

    Raises:
        SystemExit: when the command fails.
    """
    began = time.monotonic()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}")
    return time.monotonic() - began, usage.ru_maxrss / MEBI


def main(data: Path, run: Path) -> None:
    """Run the four commands in a new run folder and print their cost."""
    engine = [sys.executable, "-m", "engine"]
    commands = {
        "train-zoo": ["train-zoo", "--config", "cpu", "--data", str(data), "--run", str(run)],
        "stack --oof": ["stack", "--oof", "--run", str(run)],
        "submit": ["submit", "--run", str(run)],
        "cv (reusing the run)": ["cv", "--data", str(data), "--run", str(run)],
    }
    costs = {name: run_timed(engine + words) for name, words in commands.items()}
    load = " ".join(f"{value:.2f}" for value in os.getloadavg())
    print(f"\n{os.cpu_count()} cores, load {load}\n\n| command | wall s | peak MiB |\n|---|---|---|")
    for name, (seconds, peak) in costs.items():
        print(f"| {name} | {seconds:.0f} | {peak:.0f} |")


if __name__ == "__main__":
    words = sys.argv[1:]
    photos = Path(words[0] if words else "../shared/data/landmarks-mini")
    if not photos.exists():
        raise SystemExit(f"{photos}: no photos there; name a data folder")
    with tempfile.TemporaryDirectory() as folder:
        main(photos, Path(words[1]) if len(words) > 1 else Path(folder) / "run")
