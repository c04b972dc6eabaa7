"""Candidates to answers: the stacker, its calibration, and the cross-validated leaderboard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from engine.core.catalog import usable
from engine.core.config import EngineConfig, StackConfig, flatten
from engine.core.folds import TEST_FOLD, class_sizes, oof_truth
from engine.core.progress import Progress
from engine.core.runs import TRAIN_ZOO, Run
from engine.core.storage import read_json, write_json
from engine.core.tables import ANSWERS, CANDIDATES, QUERY_FEATURES, TableSchema
from engine.pipeline.photos import load_tables
from engine.pipeline.request import RunRequest, member_recipes, resolve_config

if TYPE_CHECKING:
    from stacking.evaluate import Kind
    from stacking.leaderboard import Comparison, LeaderboardRow
    from zoo.photo_set import Part

STACK = "engine stack --oof"
STACK_VERSION = 5  # of what the stack writes; raised when a change of code changes results
STACKER = "stack/stacker.json"
ANSWERS_OOF = "stack/answers.oof.parquet"
ANSWERS_TEST = "stack/answers.test.parquet"
CALIBRATION = "stack/calibration.json"
LEADERBOARD = "stack/leaderboard.json"
WEIGHTS = "weights.safetensors"
COMPARED: tuple[Kind, ...] = ("member", "baseline")  # what the stack has to beat
PARTS: tuple[Part, ...] = ("oof", "test")


def stack(request: RunRequest, progress: Progress, *, cross_validate: bool) -> None:
    """Fit the stacker, calibrate it out of fold, and answer the test set; cross-validate all else when asked to.

    Raises:
        ArtifactError: when the members' scores are not there or are damaged.
    """
    run = Run(request.run)
    with run.locked():
        config = resolve_config(run, request)
        evidence = {part: _load_evidence(run, config, part) for part in PARTS}
        _answer_out_of_fold(run, config, evidence["oof"], progress)
        _calibrate(run, config, evidence["oof"], progress)
        _answer_test_set(run, config, evidence, progress)
        if cross_validate:
            _cross_validate(run, config, evidence["oof"], progress)


@dataclass(frozen=True, eq=False)
class Evidence:
    """What the stacker knows of some queries.

    Attributes:
        candidates: of all members.
        features: of all members and the gate.
        sizes: of the classes, per fold.
        queries: id, fold, landmark_id, width, height.
        members: their names.
        inputs: hashes of the files this was read from.
    """

    candidates: pd.DataFrame
    features: pd.DataFrame
    sizes: pd.DataFrame
    queries: pd.DataFrame
    members: list[str]
    inputs: dict[str, Any]

    def rows(self, config: StackConfig) -> pd.DataFrame:
        """The stacker's rows."""
        from stacking.features import build_rows

        return build_rows(
            self.candidates, self.features, self.sizes, self.queries, self.members,
            per_member=config.candidates_per_member,
        )  # fmt: skip


def _load_evidence(run: Run, config: EngineConfig, part: Part) -> Evidence:
    catalog, folds = load_tables(run)
    if part == "oof":
        queries = oof_truth(catalog, folds)
    else:
        queries = usable(catalog, "test")[["id"]].assign(fold=TEST_FOLD, landmark_id=None)
    members = [recipe.name for recipe in member_recipes(config)]
    scored = [f"scores/{member}.{part}.parquet" for member in members] if len(queries) else []
    heard = [f"scores/{member}.{part}.queries.parquet" for member in members] if len(queries) else []
    if config.gate.enabled and len(queries):
        heard.append(f"gate/{part}.parquet")
    return Evidence(
        candidates=_load_all(run, scored, CANDIDATES),
        features=_load_all(run, heard, QUERY_FEATURES),
        sizes=class_sizes(catalog, folds),
        queries=queries.merge(catalog[["id", "width", "height"]], on="id"),
        members=members,
        inputs={
            name: run.hash_of(name, made_by=TRAIN_ZOO) for name in ["catalog.parquet", "folds.parquet", *scored, *heard]
        },
    )


def _load_all(run: Run, names: Sequence[str], schema: TableSchema) -> pd.DataFrame:
    tables = [run.load_table(name, schema, made_by=TRAIN_ZOO) for name in names]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=list(schema.columns))


def _answer_out_of_fold(run: Run, config: EngineConfig, evidence: Evidence, progress: Progress) -> None:
    """The stack's answers to every query, each by a stacker fitted on the other folds."""
    from stacking.evaluate import enter_stack

    inputs = _fitted_from(config, evidence)
    if run.is_fresh(ANSWERS_OOF, inputs):
        return
    rows = evidence.rows(config.stack)
    with progress.task("stack out of fold", 1, "stack") as advance:
        entry = enter_stack(rows, evidence.queries, config.stack, seed=config.seed, threads=config.cores)
        advance(1, "")
    run.save_table(ANSWERS_OOF, entry.answers, ANSWERS, inputs, {"seconds": entry.fit_seconds})


def _fitted_from(config: EngineConfig, evidence: Evidence) -> dict[str, Any]:
    """What a stacker is made from; its confidences are calibrated later."""
    settings = flatten(config.stack, "stack")
    del settings["stack.calibration"]
    return evidence.inputs | settings | {"seed": config.seed, "version": STACK_VERSION}


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


def _answer_test_set(run: Run, config: EngineConfig, evidence: Mapping[Part, Evidence], progress: Progress) -> None:
    from stacking.calibration import Calibration
    from stacking.evaluate import answer_queries
    from stacking.features import mark_right
    from stacking.stacker import fit_stacker, load_stacker, save_stacker

    learned, asked = evidence["oof"], evidence["test"]
    inputs = _fitted_from(config, learned)
    if not run.is_fresh(STACKER, inputs):
        rows = learned.rows(config.stack)
        right = mark_right(rows, learned.queries)
        save_stacker(run.path(STACKER), fit_stacker(rows, right, config.stack, seed=config.seed, threads=config.cores))
        run.record(STACKER, kind="stacker", version=STACK_VERSION, inputs=inputs, facts={"rows": len(rows)})
        progress.say(f"stacker: fitted on {len(rows)} candidates of {len(learned.queries)} queries")
    made_from = {name: run.hash_of(name, made_by=STACK) for name in (STACKER, CALIBRATION)}
    inputs = asked.inputs | made_from | {"version": STACK_VERSION}
    if len(asked.queries) and not run.is_fresh(ANSWERS_TEST, inputs):
        stacker = load_stacker(run.verified(STACKER, made_by=STACK))
        calibration = Calibration(**read_json(run.verified(CALIBRATION, made_by=STACK))["calibration"])
        rows = asked.rows(config.stack)
        answers = answer_queries(stacker, calibration, rows, asked.queries, threads=config.cores)
        run.save_table(ANSWERS_TEST, answers, ANSWERS, inputs)
        progress.say(f"stacker: answered {len(answers)} test queries")


def _cross_validate(run: Run, config: EngineConfig, evidence: Evidence, progress: Progress) -> None:
    """Nested cross-validation of the members, the baselines and the stack; writes the leaderboard."""
    from stacking.evaluate import Entry, enter_baselines, enter_members
    from stacking.leaderboard import compare_stack, rank_entries, score_by_size
    from stacking.oracles import enter_oracles

    settings = flatten(config.stack, "stack") | flatten(config.validation, "validation")
    inputs = evidence.inputs | settings | {"seed": config.seed, "version": STACK_VERSION}
    if run.is_fresh(LEADERBOARD, inputs):
        return
    queries = evidence.queries
    with progress.task("cross-validate", 3, "step") as advance:
        rows = evidence.rows(config.stack)
        advance(1, "rows made")
        entries = enter_members(evidence.candidates, queries, _fit_seconds(run, evidence.members))
        entries += enter_baselines(rows, queries)
        advance(1, "baselines fitted")
        answers = run.load_table(ANSWERS_OOF, ANSWERS, made_by=STACK)
        stacked = Entry("stack", "stack", answers, run.entry(ANSWERS_OOF).facts["seconds"])
        entries.append(stacked)
        ranked = rank_entries(entries, queries, config.validation, seed=config.seed)
        pairs = {
            kind: compare_stack(entries, queries, config.validation, seed=config.seed, against=kind)
            for kind in COMPARED
        }
        oracles = [stacked, *enter_oracles(rows, stacked.answers, queries)]
        more = {
            "sizes": score_by_size(entries, queries, config.validation),
            "calibration": read_json(run.verified(CALIBRATION, made_by=STACK)),
            "oracles": rank_entries(oracles, queries, config.validation, seed=config.seed),
        }
        advance(1, "intervals drawn")
    write_json(run.path(LEADERBOARD), _describe_board(config, queries, ranked, pairs) | more)
    run.record(LEADERBOARD, kind="leaderboard", version=STACK_VERSION, inputs=inputs)


def _fit_seconds(run: Run, members: Sequence[str]) -> dict[str, float]:
    """What each member's training took over all folds; embeddings, which members may share, are not counted."""
    weights = {member: [n for n in run.names(f"zoo/{member}/") if n.endswith(WEIGHTS)] for member in members}
    return {member: sum(run.entry(name).facts["seconds"] for name in names) for member, names in weights.items()}


def _describe_board(
    config: EngineConfig,
    queries: pd.DataFrame,
    rows: Sequence[LeaderboardRow],
    pairs: Mapping[Kind, Comparison],
) -> dict[str, Any]:
    known, unseen = int(queries["landmark_id"].notna().sum()), int(queries["unseen"].sum())
    share = config.validation.prevalence
    weighing = "each counts once" if share is None else f"weighted so that {share:.0%} of them show a known landmark"
    counts = f"{known} show a known landmark, {unseen} one their models never saw, {len(queries) - known - unseen} none"
    notes = [f"{len(queries)} queries, scored by models that saw neither them nor duplicates: {counts}; {weighing}."]
    notes += [
        f"{pair.ours} against the best {kind}, {pair.theirs}: {pair.difference.estimate:+.4f} "
        f"({pair.difference.low:+.4f} .. {pair.difference.high:+.4f}, p = {pair.difference.p_value:.3f})"
        for kind, pair in pairs.items()
    ]
    return {
        "title": f"Cross-validated GAP, {config.folds.count} folds",
        "interval": f"{config.validation.confidence_level:.0%} interval",
        "rows": list(rows),
        "notes": notes,
    }


def read_leaderboard(run_folder: Path) -> dict[str, Any]:
    """The leaderboard of a run: title, interval, rows, notes, sizes, oracles, calibration.

    Raises:
        ArtifactError: when there is none yet.
    """
    return read_json(Run(run_folder).verified(LEADERBOARD, made_by=STACK))
