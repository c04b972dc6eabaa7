"""What commands found, on stdout: a table for people, or with --json the same values for programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from engine.console import print_json, print_table, stdout

if TYPE_CHECKING:
    from engine.core.gap import Difference
    from submissions.score import Score
    from submissions.submission import CheckReport
    from zoo.few_shot import FewShotRow
    from zoo.listing import RecipeFacts
    from zoo.plan import Plan
    from zoo.view_gains import ViewGain


def show_views(gains: Sequence[ViewGain], *, as_json: bool) -> None:
    """What test-time views are worth."""
    if as_json:
        print_json([asdict(row) for row in gains])
        return
    rows = [(row.member, row.views, str(row.passes), f"{row.gap:.4f}", *_gain_cells(row.gain)) for row in gains]
    title = "Cross-validated GAP of single members, without verification"
    print_table(title, ("member", "views", "passes", "GAP", f"over {gains[0].views}", "interval", "p"), rows)


def _gain_cells(gain: Difference | None) -> tuple[str, str, str]:
    if gain is None:
        return ("", "", "")
    return (f"{gain.estimate:+.4f}", f"{gain.low:+.4f} .. {gain.high:+.4f}", f"{gain.p_value:.3f}")


def show_few_shot(rows: Sequence[FewShotRow], *, as_json: bool) -> None:
    """How often members are right about landmarks of few photos."""
    if as_json:
        print_json([asdict(row) for row in rows])
        return
    cells = [
        (row.member, str(row.shots), f"{row.accuracy:.3f}", f"{row.low:.3f} .. {row.high:.3f}", str(row.photos))
        for row in rows
    ]
    title = f"Right answers for {rows[0].landmarks} landmarks cut down to a few training photos"
    print_table(title, ("member", "photos seen", "right", "interval", "photos asked"), cells)


def show_plans(plans: Sequence[Plan], *, as_json: bool) -> None:
    """What is left to do for each member."""
    if as_json:
        print_json([asdict(plan) | {"seconds": plan.seconds} for plan in plans])
        return
    rows = [
        (plan.member, f"{plan.parameters:,}", f"{plan.memory_bytes / 2**20:,.0f}",
         "" if plan.images_per_second is None else f"{plan.images_per_second:,.0f}", *_time_cells(plan))
        for plan in plans
    ]  # fmt: skip
    rows.append(("total", "", "", "", "", "", "", f"{sum(plan.seconds for plan in plans):,.0f}"))
    columns = ("member", "parameters", "MiB", "images/s", "preparing", "training", "scoring", "seconds")
    print_table("What is left to do, in seconds", columns, rows)


def _time_cells(plan: Plan) -> tuple[str, str, str, str]:
    if plan.finished or not plan.fits:
        return ("", "", "", "finished" if plan.finished else "does not fit into memory")
    parts = (plan.preparing_seconds, plan.training_seconds, plan.scoring_seconds, plan.seconds)
    first, second, third, whole = (f"{seconds:,.0f}" for seconds in parts)
    return (first, second, third, whole)


def show_batch(drawn: Mapping[str, Any], *, as_json: bool) -> None:
    """Where a batch was drawn to, and what the sampler makes of the class sizes."""
    if as_json:
        print_json(drawn)
        return
    rows = [
        (band["photos"], str(band["classes"]), str(band["there"]), f"{band['shown']:.0f}") for band in drawn["classes"]
    ]
    print_table("Photos of all classes in an epoch", ("photos of a class", "classes", "there are", "are shown"), rows)
    for what, name in (("batch:", "batch"), ("class sizes:", "sizes")):
        typer.echo(f"{what:<13}{drawn[name]}")


def show_recipes(facts: Sequence[RecipeFacts], landmarks: int, *, as_json: bool) -> None:
    """The recipes that ship, with heads for so many landmarks."""
    if as_json:
        print_json([asdict(each) for each in facts])
        return
    rows = [
        (each.name, each.backbone + (", frozen" if each.frozen else ""), f"{each.backbone_parameters:,}",
         *_head_cells(each), f"{each.size}", each.weights)
        for each in facts
    ]  # fmt: skip
    title = f"Recipes, heads for {landmarks:,} landmarks"
    print_table(title, ("recipe", "backbone", "parameters", "head", "parameters", "px", "weights"), rows)


def _head_cells(facts: RecipeFacts) -> tuple[str, str]:
    if not facts.auxiliary_parameters:
        return (facts.head, f"{facts.head_parameters:,}")
    return (f"{facts.head} + auxiliary", f"{facts.head_parameters:,} + {facts.auxiliary_parameters:,}")


def show_data(data: Path, summary: Mapping[str, int], bad: Sequence[Mapping[str, Any]], *, as_json: bool) -> None:
    """What a data folder holds, and what of it cannot be used."""
    if as_json:
        print_json({**summary, "bad": bad})
        return
    print_table(str(data), ("what", "count"), [(key, str(value)) for key, value in summary.items()])
    if bad:
        print_table("cannot be used", ("photo", "reason"), [(row["path"] or row["id"], row["reason"]) for row in bad])


def show_report(path: Path, report: CheckReport, *, as_json: bool) -> None:
    """What a valid submission holds."""
    if as_json:
        print_json(asdict(report) | {"file": str(path)})
        return
    lowest = "-" if report.lowest is None else f"{report.lowest:.3g} .. {report.highest:.3g}"
    stdout().print(
        f"{path}: valid, {report.rows} rows, {report.answered} answered, {report.landmarks} landmarks, "
        f"confidence {lowest}"
    )
    if report.tied:
        typer.echo(f"notice: {report.tied} answers share a confidence with another; ties are ranked by id", err=True)
    if not report.answered:
        typer.echo("NOTICE: no query is answered; this file scores 0", err=True)


def show_score(score: Score) -> None:
    """A submission's GAP against a solution."""
    stdout().print(
        f"GAP {score.gap:.4f} (95 % interval {score.gap_low:.4f} .. {score.gap_high:.4f}), {score.queries} queries, "
        f"{score.with_landmark} with a landmark, {score.answered} answered, {score.correct} right"
    )
