"""Every kind of member that two cores can train, on real photos: the tables of docs/zoo.md, as Markdown.

    python benchmarks/zoo_members.py [DATA [RUN]]

DATA is a folder with train.csv, test.csv and photos (default: ../shared/data/landmarks-mini). RUN is made or gone on
with (default: runs/zoo), so what is finished is not done again. The trainings alone take two hours on two cores.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

VIEWED = "lite0-gem-arcface,lite1-finetune"  # fine-tuned; a frozen one would embed every photo anew
FEW_SHOT = "lite1-frozen,lite1-neighbours,lite1-few-shot,lite1-prototypes,lite1-verified"  # those that train in seconds
ENGINE = [sys.executable, "-m", "engine"]


def run(*words: str) -> None:
    """Run an engine command to its end; what it prints goes to stderr.

    Raises:
        SystemExit: when it fails.
    """
    code = subprocess.run([*ENGINE, *words], stdout=sys.stderr, check=False).returncode
    if code:
        raise SystemExit(f"engine {' '.join(words)}: exit code {code}")


def ask(*words: str) -> Any:
    """The JSON that an engine command prints.

    Raises:
        CalledProcessError: when it fails.
    """
    return json.loads(subprocess.run([*ENGINE, *words, "--json"], stdout=subprocess.PIPE, check=True).stdout)


def print_rows(*cells: tuple[str, ...]) -> None:
    """A Markdown table, its first row the head."""
    head, *rows = cells
    for row in (head, ("---",) * len(head), *rows):
        print(f"| {' | '.join(row)} |")
    print(flush=True)


def main(data: Path, folder: Path) -> None:
    """Train, cross-validate, and print members, sizes, the tail, few-shot accuracy and views."""
    place = ("--run", str(folder))
    run("train-zoo", "--config", "zoo", "--data", str(data), *place)
    run("stack", "--oof", *place)
    board = ask("leaderboard", *place)
    members = [row["name"] for row in board if row["kind"] == "member"]
    print_rows(
        ("entry", "kind", "GAP", "95 % interval", "right of those with a landmark", "training s, all folds"),
        *(
            (row["name"], row["kind"], f"{row['gap']:.4f}", f"{row['gap_low']:.4f} .. {row['gap_high']:.4f}",
             f"{row['accuracy']:.3f}", f"{row['fit_seconds']:.0f}")
            for row in board
        ),
    )  # fmt: skip
    bands = ask("leaderboard", "--table", "sizes", *place)
    print_rows(
        ("shorter side", "photos", "with a known landmark", "best member's GAP", "stack's GAP"),
        *(
            (band["shorter_side"], str(band["queries"]), str(band["landmarks"]),
             number(greatest(band["gaps"], members)), number(band["gaps"]["stack"]))
            for band in bands
        ),
    )  # fmt: skip
    tail = ask("leaderboard", "--table", "tail", *place)
    print_rows(
        (
            "right answers by training photos of the landmark",
            *(f"{band['photos']} ({band['queries']})" for band in tail),
        ),
        *((row["name"], *(f"{band['accuracies'][row['name']]:.3f}" for band in tail)) for row in board),
    )
    shots = ask("few-shot", "--members", FEW_SHOT, "--shots", "1,2,3,5", *place)
    print_rows(
        ("member", "photos seen", "right", "95 % interval", "photos asked"),
        *(
            (row["member"], str(row["shots"]), f"{row['accuracy']:.3f}", f"{row['low']:.3f} .. {row['high']:.3f}",
             str(row["photos"]))
            for row in shots
        ),
    )  # fmt: skip
    print_rows(
        ("member", "views", "passes", "GAP", "over one view", "95 % interval"),
        *(
            (row["member"], row["views"], str(row["passes"]), f"{row['gap']:.4f}", *gain_cells(row["gain"]))
            for row in ask("leaderboard", "--tta", "none,flip,ten-crop,scales", "--members", VIEWED, *place)
        ),
    )
    load = " ".join(f"{value:.2f}" for value in os.getloadavg())
    print(f"{os.cpu_count()} cores, load {load}", file=sys.stderr)


def greatest(gaps: dict[str, float | None], names: list[str]) -> float | None:
    """The greatest GAP of some entries in a band; None where no query shows a landmark."""
    return max((gap for name in names if (gap := gaps[name]) is not None), default=None)


def number(value: float | None) -> str:
    """A GAP, or nothing where there is none."""
    return "" if value is None else f"{value:.4f}"


def gain_cells(gain: dict[str, float] | None) -> tuple[str, str]:
    """The gain of some views and its interval; nothing for those that others are compared with."""
    return ("", "") if gain is None else (f"{gain['estimate']:+.4f}", f"{gain['low']:+.4f} .. {gain['high']:+.4f}")


if __name__ == "__main__":
    words = sys.argv[1:]
    photos = Path(words[0] if words else "../shared/data/landmarks-mini")
    if not photos.exists():
        raise SystemExit(f"{photos}: no photos there; name a data folder")
    main(photos, Path(words[1] if len(words) > 1 else "runs/zoo"))
