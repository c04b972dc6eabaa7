"""The leaderboard and the tables beside it, on stdout: for people, or with --json the same values for programs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import typer

from engine.console import print_json, print_table

Table = tuple[str, Sequence[str], Sequence[tuple[str, ...]]]  # title, columns, rows


def show_leaderboard(board: Mapping[str, Any], *, as_json: bool) -> None:
    """The GAP of members, baselines, methods and stack."""
    if as_json:
        print_json(board["rows"])
        return
    rows = [
        (row["name"], row["kind"], f"{row['gap']:.4f}", f"{row['gap_low']:.4f} .. {row['gap_high']:.4f}",
         f"{row['fit_seconds']:.0f}")
        for row in board["rows"]
    ]  # fmt: skip
    print_table(board["title"], ("name", "kind", "GAP", board["interval"], "fit s"), rows)
    for note in board["notes"]:
        typer.echo(note)


def show_table(board: Mapping[str, Any], name: str, *, as_json: bool) -> None:
    """One of `TABLES`, of the leaderboard or of a study."""
    if as_json:
        print_json(board if name in STUDIED else board[name])
        return
    print_table(*TABLES[name](board))
    if name in _NOTES:
        for note in _NOTES[name](board):
            typer.echo(note)


def _sizes(board: Mapping[str, Any]) -> Table:
    bands = board["sizes"]
    columns = [f"{band['shorter_side']}: {band['landmarks']} of {band['queries']}" for band in bands]
    rows = [(row["name"], *(_gap(band["gaps"][row["name"]]) for band in bands)) for row in board["rows"]]
    return "GAP by the photos' shorter side; photos with a known landmark of all", ("name", *columns), rows


def _tail(board: Mapping[str, Any]) -> Table:
    bands = board["tail"]
    columns = [f"{band['photos']}: {band['queries']}" for band in bands]
    rows = [(row["name"], *(f"{band['accuracies'][row['name']]:.3f}" for band in bands)) for row in board["rows"]]
    return "Share of right answers by training photos of the landmark: queries", ("name", *columns), rows


def _gap(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _over_the_stack(board: Mapping[str, Any], name: str, title: str) -> Table:
    [own] = [row["gap"] for row in board[name] if row["name"] == "stack"] or [0.0]
    rows = [
        (row["name"], f"{row['gap']:.4f}", f"{row['gap_low']:.4f} .. {row['gap_high']:.4f}", f"{row['gap'] - own:+.4f}")
        for row in board[name]
    ]
    return title, ("name", "GAP", board["interval"], "over the stack"), rows


def _oracles(board: Mapping[str, Any]) -> Table:
    return _over_the_stack(board, "oracles", "GAP with one part perfect")


def _transductive(board: Mapping[str, Any]) -> Table:
    title = "GAP with what the other queries of a test set tell; each fold as a test set of its own"
    return _over_the_stack(board, "transductive", title)


def _calibration(board: Mapping[str, Any]) -> Table:
    found = board["calibration"]
    rows = [
        (str(count), f"{said:.4f}", f"{right:.4f}", f"{then_said:.4f}", f"{then_right:.4f}")
        for (said, right, count), (then_said, then_right, _) in zip(
            found["before"]["bins"], found["after"]["bins"], strict=True
        )
    ]
    title = f"Answers out of fold by confidence; calibration: {found['calibration']['method']}"
    return title, ("answers", "confidence", "right", "calibrated", "right"), rows


def _calibration_notes(board: Mapping[str, Any]) -> list[str]:
    found = board["calibration"]
    return [
        f"{name}: expected calibration error {found[name]['ece']:.4f}, Brier score {found[name]['brier']:.4f}, "
        f"log loss {found[name]['log_loss']:.4f}"
        for name in ("before", "after")
    ]


def _choice(board: Mapping[str, Any]) -> Table:
    found = board["choice"]
    inner, outer = found["inner"], found["outer"]
    rows = [(", ".join(found["methods"]), f"{inner:.4f}", f"{outer:.4f}", f"{outer - inner:+.4f}")]
    columns = ("chosen in each fold", "GAP where it was chosen", "in the fold never seen", "difference")
    title = "By how much the choice of a method flatters itself, over photos whose landmark is a candidate"
    return title, columns, rows


def _gate(board: Mapping[str, Any]) -> Table:
    found = board["gate"]
    columns = ("any landmark, ROC AUC", "known landmark, ROC AUC", "expected calibration error", "Brier score")
    rows = [] if found is None else [tuple(_gap(found[name]) for name in ("landmark", "known", "ece", "brier"))]
    return "How well the gate tells photos apart, out of fold", columns, rows


def _costs(board: Mapping[str, Any]) -> Table:
    rows = [
        (row["id"], row["kind"], row["answer"] or "", row["truth"] or "", f"{row['confidence']:.4f}",
         f"{row['cost']:.5f}")
        for row in board["costs"]
    ]  # fmt: skip
    columns = ("query", "what is wrong", "answer", "truth", "confidence", "GAP that it costs")
    return "The queries that cost most; engine explain shows one", columns, rows


def _pairs(board: Mapping[str, Any]) -> Table:
    rows = [(row["theirs"], row["kind"], *_difference(row["difference"])) for row in board["pairs"]]
    return "The stack's GAP minus theirs, paired", ("against", "kind", "difference", board["interval"], "p"), rows


def _prevalence(board: Mapping[str, Any]) -> Table:
    rows = [
        (f"{row['prevalence']:.0%}", f"{row['plain']:.4f}", f"{row['corrected']:.4f}", *_difference(row["difference"]))
        for row in board["prevalence"]
    ]
    columns = ("with a known landmark", "GAP", "corrected to it", "difference", board["interval"], "p")
    return "GAP by the share of queries that show a known landmark", columns, rows


def _blanking(board: Mapping[str, Any]) -> Table:
    rows = [
        (f"{row['threshold']:.4f}", f"{row['blanked']:.1%}", f"{row['gap']:.4f}", *_difference(row["difference"]))
        for row in board["blanking"]
    ]
    columns = ("confidence below", "answers left blank", "GAP", "difference", board["interval"], "p")
    return "What it costs to leave queries without an answer", columns, rows


def _worth(found: Mapping[str, Any]) -> Table:
    added = {row["member"]: (number, row) for number, row in enumerate(found["added"], start=1)}
    rows = []
    for row in found["without"]:
        number, step = added.get(row["without"], ("", None))
        cells = ("", "") if step is None else (f"{step['gap']:.4f}", f"{step['gain']:+.4f}")
        rows.append((row["without"], *_difference(row["worth"]), str(number), *cells))
    columns = ("member", "lost without it", "interval", "p", "added as", "GAP with it", "gain")
    return "What each member is worth: left out of all, and added one by one", columns, rows


def _importance(found: Mapping[str, Any]) -> Table:
    rows = [(row["name"], str(row["features"]), f"{row['loss']:+.4f}", f"{row['spread']:.4f}") for row in found["lost"]]
    return "GAP lost when features are permuted", ("features of", "how many", "lost", "spread"), rows


def _importance_notes(found: Mapping[str, Any]) -> list[str]:
    most = list(found["gain"].items())[:10]
    return [f"most gain in the trees: {', '.join(f'{name} {share:.1%}' for name, share in most)}"] if most else []


def _checks(found: Mapping[str, Any]) -> Table:
    shuffled, leaks = found["shuffled"], found["leaks"]
    rows = [
        ("duplicates in several folds", str(leaks["queries"]), "0", _verdict(not leaks["queries"])),
        ("GAP on shuffled labels", f"{shuffled['gap']:.4f}",
         f"{shuffled['chance']:.4f}, spread {shuffled['spread']:.4f}", _verdict(shuffled["chance?"])),
        *((f"GAP without {each['photos']} photos like one in another fold, cosine >= {each['cosine']}",
           _gap(each["gap"]), f"{each['low']:.4f} .. {each['high']:.4f}", "ok" if each["slight?"] else "look at them")
          for each in found["lookalikes"]),
    ]  # fmt: skip
    return "Whether the validation is honest", ("check", "found", "wanted", "verdict"), rows


def _checks_notes(found: Mapping[str, Any]) -> list[str]:
    if found["near_by"] is None:
        return ["no frozen member's embeddings are in the run, so photos that look alike were not searched for"]
    pairs = [f"{pair['query']} beside {pair['neighbour']} ({pair['cosine']:.3f})" for pair in found["likest"]]
    return [
        f"cosines by {found['near_by']}; engine explain shows a photo beside its neighbours; the likest are:",
        *pairs,
    ]


def _verdict(good: bool) -> str:
    return "ok" if good else "LEAK"


def _difference(found: Mapping[str, float]) -> tuple[str, str, str]:
    """Estimate, interval, p."""
    return f"{found['estimate']:+.4f}", f"{found['low']:+.4f} .. {found['high']:+.4f}", f"{found['p_value']:.3f}"


STUDIED = ("worth", "importance", "checks")  # those that are made when they are asked for
TABLES: Mapping[str, Callable[[Mapping[str, Any]], Table]] = {
    "pairs": _pairs,
    "sizes": _sizes,
    "tail": _tail,
    "oracles": _oracles,
    "calibration": _calibration,
    "choice": _choice,
    "gate": _gate,
    "costs": _costs,
    "prevalence": _prevalence,
    "blanking": _blanking,
    "transductive": _transductive,
    "worth": _worth,
    "importance": _importance,
    "checks": _checks,
}
_NOTES: Mapping[str, Callable[[Mapping[str, Any]], list[str]]] = {
    "calibration": _calibration_notes,
    "importance": _importance_notes,
    "checks": _checks_notes,
}


def show_explanation(found: Mapping[str, Any], *, as_json: bool) -> None:
    """One query and everything that led to its answer."""
    if as_json:
        print_json(found)
        return
    rank = "not ranked" if found["rank"] is None else f"rank {found['rank']} of {found['answers']}"
    typer.echo(f"{found['query']}: answer {found['answer'] or 'none'}, confidence {found['confidence']:.4f}, {rank}")
    typer.echo(f"photo: {found['path']} ({found['split']}); {_truth(found)}")
    if found["gate"] is not None:
        typer.echo(f"gate: shows a landmark with probability {found['gate']:.4f}")
    listed = [
        (member, str(each["rank"]), each["landmark_id"], f"{each['score']:.4f}")
        for member, candidates in found["members"].items()
        for each in candidates
    ]
    print_table("What each member says", ("member", "rank", "landmark", "score"), listed)
    for judged in found["judged"]:
        moved = [(each["feature"], f"{each['value']:.4f}", f"{each['contribution']:+.3f}") for each in judged["movers"]]
        title = f"What moved {judged['landmark_id']}: log-odds {judged['base']:+.3f} to {judged['log_odds']:+.3f}"
        print_table(title, ("feature", "value", "moved by"), moved)
    if found["near"]:
        near = [(row["id"], row["landmark_id"] or "none", f"{row['cosine']:.4f}", row["path"]) for row in found["near"]]
        print_table(f"Nearest training photos by {found['near_by']}", ("photo", "landmark", "cosine", "file"), near)
    if found["picture"]:
        typer.echo(f"picture: {found['picture']}")


def _truth(found: Mapping[str, Any]) -> str:
    if found["split"] == "test":
        return "its truth is not known here"
    if found["truth"] is None:
        return "it shows no landmark"
    seen = "which its fold's models never saw" if found["unseen"] else "right" if found["right"] else "wrong"
    return f"it shows {found['truth']}: {seen}"
