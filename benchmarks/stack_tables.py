"""The stack of a finished run, looked at from every side: the tables of docs/stacking.md, as Markdown.

    python benchmarks/stack_tables.py [RUN]

RUN is a run whose members are trained (default: runs/zoo, as benchmarks/zoo_members.py makes it). Its stack is made or
found fresh; the studies of members, features and checks fit the stack some dozen times, which takes minutes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from zoo_members import ask, print_rows, run

from engine.boards import TABLES

PREVALENCE = 0.45  # about as in the test set of landmarks-mini
Cells = tuple[str, ...]


def print_table(title: str, head: Cells, rows: Iterable[Cells]) -> None:
    """A table with its title."""
    print(f"### {title}\n")
    print_rows(head, *rows)


def interval(row: Mapping[str, float]) -> str:
    """The interval of a GAP."""
    return f"{row['gap_low']:.4f} .. {row['gap_high']:.4f}"


def difference(found: Mapping[str, float]) -> Cells:
    """A paired difference: estimate, interval, p."""
    return f"{found['estimate']:+.4f}", f"{found['low']:+.4f} .. {found['high']:+.4f}", f"{found['p_value']:.3f}"


def print_board(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Entries with their GAP."""
    cells = ((r["name"], r["kind"], f"{r['gap']:.4f}", interval(r), f"{r['accuracy']:.3f}") for r in rows)
    print_table(title, ("entry", "kind", "GAP", "95 % interval", "right of those with a landmark"), cells)


def main(folder: Path) -> None:
    """Cross-validate the stack twice, as the folds are and at another prevalence, and print every table."""
    place = ("--run", str(folder))
    run("stack", "--oof", *place, "--prevalence", str(PREVALENCE))
    print_board(f"Weighted to {PREVALENCE:.0%} with a known landmark", ask("leaderboard", *place))
    run("stack", "--oof", *place)
    print_board("As the folds are", ask("leaderboard", *place))
    print_table(
        "The stack minus the others",
        ("against", "kind", "difference", "95 % interval", "p"),
        (
            (r["theirs"], r["kind"], *difference(r["difference"]))
            for r in ask("leaderboard", *place, "--table", "pairs")
        ),
    )
    print_board("With one part perfect", ask("leaderboard", *place, "--table", "oracles"))
    found = ask("leaderboard", *place, "--table", "calibration")
    print_table(
        f"Calibration: {found['calibration']['method']}",
        ("", "expected calibration error", "Brier score", "log loss"),
        (
            (name, f"{found[name]['ece']:.4f}", f"{found[name]['brier']:.4f}", f"{found[name]['log_loss']:.4f}")
            for name in ("before", "after")
        ),
    )
    print_table(
        "By prevalence",
        ("with a known landmark", "GAP", "corrected to it", "difference", "95 % interval", "p"),
        (
            (f"{r['prevalence']:.0%}", f"{r['plain']:.4f}", f"{r['corrected']:.4f}", *difference(r["difference"]))
            for r in ask("leaderboard", *place, "--table", "prevalence")
        ),
    )
    print_table(
        "Blank answers",
        ("confidence below", "blank", "GAP", "difference", "95 % interval", "p"),
        (
            (f"{r['threshold']:.4f}", f"{r['blanked']:.1%}", f"{r['gap']:.4f}", *difference(r["difference"]))
            for r in ask("leaderboard", *place, "--table", "blanking")
        ),
    )
    print_board("Transductive", ask("leaderboard", *place, "--table", "transductive"))
    print_studies(place)


def print_studies(place: Cells) -> None:
    """What is fitted anew: each member's worth, the features' importance, the checks."""
    worth = ask("leaderboard", *place, "--table", "worth")
    print_table(
        "Left out",
        ("without", "GAP", "lost", "95 % interval", "p"),
        ((r["without"], f"{r['gap']:.4f}", *difference(r["worth"])) for r in worth["without"]),
    )
    added = ((r["member"], f"{r['gap']:.4f}", f"{r['gain']:+.4f}") for r in worth["added"])
    print_table("Added one by one", ("member", "GAP", "gain"), added)
    importance = ask("leaderboard", *place, "--table", "importance")
    lost = ((r["name"], str(r["features"]), f"{r['loss']:+.4f}", f"{r['spread']:.4f}") for r in importance["lost"])
    print_table("Permuted", ("features of", "how many", "GAP lost", "spread"), lost)
    _, columns, rows = TABLES["checks"](ask("leaderboard", *place, "--table", "checks"))
    print_table("Checks", tuple(columns), rows)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/zoo"))
