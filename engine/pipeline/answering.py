"""Candidates to answers: the stack out of fold, its calibration, and its answers to the test set."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from engine.core.config import EngineConfig, flatten
from engine.core.folds import TEST_FOLD
from engine.core.progress import Progress
from engine.core.runs import TRAIN_ZOO, Run
from engine.core.storage import read_json, write_json
from engine.core.tables import ANSWERS, QUERY_FEATURES
from engine.pipeline.artifacts import (
    ANSWERS_OOF,
    ANSWERS_TEST,
    CALIBRATION,
    METHODS_OOF,
    PRESENCE,
    PRESENCE_OOF,
    STACK,
    STACK_VERSION,
    STACKER,
)
from engine.pipeline.correction import correct_to_share
from engine.pipeline.evidence import Evidence, load_evidence
from engine.pipeline.leaderboard import make_leaderboard
from engine.pipeline.request import RunRequest, resolve_config

# settings that change confidences alone
AFTER_FITTING = ("calibration", "correct", "transductive", "demotion", "blank_below")


def stack(request: RunRequest, progress: Progress, *, cross_validate: bool) -> None:
    """Fit the stack, calibrate it out of fold, and answer the test set; cross-validate all else when asked to.

    Raises:
        ArtifactError: when the members' scores are not there or are damaged.
    """
    run = Run(request.run)
    with run.locked():
        config = resolve_config(run, request)
        evidence = load_evidence(run, config, "oof")
        _answer_out_of_fold(run, config, evidence, progress)
        _calibrate(run, config, evidence, progress)
        _fit(run, config, evidence, progress)
        _answer_test_set(run, config, evidence.queries, progress)
        if cross_validate:
            make_leaderboard(run, config, evidence, progress)


def describe_stack(run_folder: Path) -> dict[str, Any]:
    """What a run's stack is: method, GAP out of sample over queries with a right candidate, rows, calibration.

    Raises:
        ArtifactError: when there is none yet.
    """
    run = Run(run_folder)
    calibration = read_json(run.verified(CALIBRATION, made_by=STACK))["calibration"]["method"]
    run.verified(STACKER, made_by=STACK)
    return {**run.entry(STACKER).facts, "calibration": calibration}


def _fitted_from(config: EngineConfig, evidence: Evidence) -> dict[str, Any]:
    """What a stack is made from, before its confidences are changed."""
    settings = flatten(config.stack, "stack")
    for name in AFTER_FITTING:
        settings.pop(f"stack.{name}", None)
    return evidence.inputs | settings | {"seed": config.seed, "version": STACK_VERSION}


def _answer_out_of_fold(run: Run, config: EngineConfig, evidence: Evidence, progress: Progress) -> None:
    """The stack's answers to every query, each by a stack that was fitted and chosen on the other folds."""
    from stacking.evaluate import cross_stack
    from stacking.prevalence import can_be_told, cross_presence, fit_presence, query_table
    from stacking.stacker import save_stacker

    inputs, tells = _fitted_from(config, evidence), can_be_told(evidence.queries)
    made = (METHODS_OOF, PRESENCE_OOF, ANSWERS_OOF, *([PRESENCE] if tells else []))
    if all(run.is_fresh(name, inputs) for name in made):
        return
    rows, queries = evidence.rows(config.stack), evidence.queries
    with progress.task("stack out of fold", config.folds.count, "fold") as advance:
        found = cross_stack(rows, queries, config.stack, seed=config.seed, threads=config.cores, advance=advance)
    own, *methods = found.entries
    presence = pd.Series(1.0, index=queries["id"])  # as long as nothing tells it, every photo may show one
    if tells:
        table = query_table(rows, found.scores)
        with progress.task("presence", config.folds.count + 1, "fit") as advance:
            presence = cross_presence(
                table, queries, config.stack, seed=config.seed, threads=config.cores, advance=advance
            )
            teller = fit_presence(table, queries, config.stack, seed=config.seed, threads=config.cores)
            advance(1, "")
        save_stacker(run.path(PRESENCE), teller)
        run.record(PRESENCE, kind="presence", version=STACK_VERSION, inputs=inputs)
    run.save_table(METHODS_OOF, pd.concat([each.answers for each in methods]), ANSWERS, inputs)
    features = pd.DataFrame({"member": "stack", "query": presence.index, "presence": presence.to_numpy()})
    run.save_table(PRESENCE_OOF, features, QUERY_FEATURES, inputs)
    facts = {"seconds": own.fit_seconds, "methods": list(found.methods), "inner": found.inner, "outer": found.outer}
    run.save_table(ANSWERS_OOF, own.answers, ANSWERS, inputs, facts)


def _calibrate(run: Run, config: EngineConfig, evidence: Evidence, progress: Progress) -> None:
    """What the stack's confidences are worth, learned from its answers out of fold."""
    from stacking.evaluate import calibrate

    inputs = {
        "answers": run.hash_of(ANSWERS_OOF, made_by=STACK),
        "folds": run.hash_of("folds.parquet", made_by=TRAIN_ZOO),
        "method": config.stack.calibration,
        "version": STACK_VERSION,
    }
    if run.is_fresh(CALIBRATION, inputs):
        return
    answers = run.load_table(ANSWERS_OOF, ANSWERS, made_by=STACK)
    calibration, before, after = calibrate(answers, evidence.queries, config.stack.calibration)
    found = {"calibration": asdict(calibration), "before": asdict(before), "after": asdict(after)}
    write_json(run.path(CALIBRATION), found)
    run.record(CALIBRATION, kind="calibration", version=STACK_VERSION, inputs=inputs)
    progress.say(f"calibration: {calibration.method}, expected error {before.ece:.4f} before, {after.ece:.4f} after")


def _fit(run: Run, config: EngineConfig, learned: Evidence, progress: Progress) -> None:
    """The stack of all queries out of fold."""
    from stacking.evaluate import groups_of
    from stacking.features import mark_right
    from stacking.fitting import fit_stacker
    from stacking.stacker import save_stacker

    inputs = _fitted_from(config, learned)
    if not run.is_fresh(STACKER, inputs):
        rows = learned.rows(config.stack)
        right, groups = mark_right(rows, learned.queries), groups_of(rows, learned.queries)
        with progress.task("stack", 1, "fit") as advance:
            best = fit_stacker(rows, right, groups, config.stack, seed=config.seed, threads=config.cores)
            advance(1, best.stacker.method)
        save_stacker(run.path(STACKER), best.stacker)
        facts = {"rows": len(rows), "method": best.stacker.method, "gap": best.gap}
        run.record(STACKER, kind="stacker", version=STACK_VERSION, inputs=inputs, facts=facts)
        progress.say(
            f"stack: {best.stacker.method}, fitted on {len(rows)} candidates of {len(learned.queries)} queries"
        )


def _answer_test_set(run: Run, config: EngineConfig, learned: pd.DataFrame, progress: Progress) -> None:
    """The stack's answers to the test set; `learned` are the queries that it was fitted on."""
    from stacking.prevalence import can_be_told

    asked = load_evidence(run, config, "test")
    told = (STACKER, CALIBRATION, PRESENCE_OOF, ANSWERS_OOF, *([PRESENCE] if can_be_told(learned) else []))
    made_from = {name: run.hash_of(name, made_by=STACK) for name in told}
    chosen = {f"stack.{name}": getattr(config.stack, name) for name in AFTER_FITTING}
    shares = {"prevalence": config.validation.prevalence, "unseen": config.validation.unseen}
    made_from |= chosen | shares | {"version": STACK_VERSION}
    inputs = asked.inputs | made_from
    if len(asked.queries) and not run.is_fresh(ANSWERS_TEST, inputs):
        run.save_table(ANSWERS_TEST, _answer(run, config, asked, learned, progress), ANSWERS, inputs)
        progress.say(f"stack: answered {len(asked.queries)} test queries")


def _answer(run: Run, config: EngineConfig, asked: Evidence, learned: pd.DataFrame, progress: Progress) -> pd.DataFrame:
    """The stack's answers to the test set, with all that is done to their confidences."""
    from stacking.blanking import blank_below
    from stacking.calibration import Calibration
    from stacking.evaluate import answer_queries
    from stacking.stacker import load_stacker
    from stacking.transductive import demote_frequent

    stacker = load_stacker(run.verified(STACKER, made_by=STACK))
    calibration = Calibration(**read_json(run.verified(CALIBRATION, made_by=STACK))["calibration"])
    rows = asked.rows(config.stack)
    scores = stacker.predict(rows, threads=config.cores)
    answers = answer_queries(scores, calibration, rows, asked.queries)
    answers = correct_to_share(run, config, answers, rows, scores, learned, progress)
    if config.stack.demotion:
        sizes = asked.sizes[asked.sizes["fold"] == TEST_FOLD].set_index("landmark_id")["size"]
        answers = demote_frequent(answers, sizes, strength=config.stack.demotion)
        progress.say(f"transductive: landmarks that are answered too often are lowered by {config.stack.demotion:g}")
    return answers if config.stack.blank_below is None else blank_below(answers, config.stack.blank_below)
