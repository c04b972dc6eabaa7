"""The cross-validated leaderboard of a run, and the studies that stand beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from engine.core.config import EngineConfig, flatten
from engine.core.progress import Progress
from engine.core.runs import Run
from engine.core.storage import read_json, write_json
from engine.core.tables import ANSWERS
from engine.pipeline.artifacts import (
    ANSWERS_OOF,
    CALIBRATION,
    LEADERBOARD,
    METHODS_OOF,
    STACK,
    STACK_VERSION,
    STACKER,
    STUDIES,
    STUDY_VERSION,
)
from engine.pipeline.correction import load_calibrated, load_presence, share_to_correct_to
from engine.pipeline.evidence import Evidence, load_evidence
from engine.pipeline.photos import load_photos, load_tables
from engine.pipeline.request import RunRequest, member_recipes, resolve_config

if TYPE_CHECKING:
    from stacking.baselines import Fit, Predict
    from stacking.evaluate import Entry, Kind
    from stacking.leaderboard import Comparison

WEIGHTS = "weights.safetensors"
COMPARED: tuple[Kind, ...] = ("member", "baseline", "method")  # the best of each; the rest stands in the table pairs
COSTLIEST = 50  # queries that the leaderboard keeps: a few screens
REPEATS = 5  # permutations of each group of features
LIKEST = 10  # pairs of photos that look alike across folds, to be looked at


def make_leaderboard(run: Run, config: EngineConfig, evidence: Evidence, progress: Progress) -> None:
    """Score the members, the baselines, the methods and the stack, each without a query's own fold."""
    from stacking.evaluate import enter_baselines, enter_members
    from stacking.leaderboard import compare_stack, rank_entries

    settings = flatten(config.stack, "stack") | flatten(config.validation, "validation")
    inputs = evidence.inputs | settings | {"seed": config.seed, "version": STACK_VERSION}
    if run.is_fresh(LEADERBOARD, inputs):
        return
    queries, validation = evidence.queries, config.validation
    with progress.task("cross-validate", 4, "step") as advance:
        rows = evidence.rows(config.stack)
        advance(1, "rows made")
        entries = enter_members(evidence.candidates, queries, _fit_seconds(run, evidence.members))
        entries += enter_baselines(rows, queries, config.stack, seed=config.seed, threads=config.cores)
        advance(1, "baselines fitted")
        stacked = _enter_stack(run, config, queries)
        entries += stacked
        ranked = rank_entries(entries, queries, validation, seed=config.seed)
        pairs = compare_stack(entries, queries, validation, seed=config.seed)
        advance(1, "intervals drawn")
        more = _look_closer(run, config, evidence, rows, entries)
        advance(1, "answers looked at")
    facts = run.entry(ANSWERS_OOF).facts
    best = [next(pair for pair in pairs if pair.kind == kind) for kind in COMPARED]
    notes = [*_describe_queries(config, queries), *map(_describe_pair, best), *_describe_choice(facts, more)]
    board = {
        "title": f"Cross-validated GAP, {config.folds.count} folds",
        "interval": f"{validation.confidence_level:.0%} interval",
        "rows": ranked,
        "notes": notes,
        "pairs": [asdict(pair) for pair in pairs],
        "choice": {name: facts[name] for name in ("methods", "inner", "outer")},
    }
    write_json(run.path(LEADERBOARD), board | more)
    run.record(LEADERBOARD, kind="leaderboard", version=STACK_VERSION, inputs=inputs)


def _enter_stack(run: Run, config: EngineConfig, queries: pd.DataFrame) -> list[Entry]:
    """The stack, then each method; with a prevalence also the stack corrected to it, or as it was before."""
    from stacking.evaluate import Entry
    from stacking.prevalence import can_be_told, correct_answers

    seconds, wanted = run.entry(ANSWERS_OOF).facts["seconds"], config.validation.prevalence
    methods = run.load_table(METHODS_OOF, ANSWERS, made_by=STACK)
    parts = {str(name): part.reset_index(drop=True) for name, part in methods.groupby("decided_by", sort=False)}
    entries = [Entry(name, "method", part, seconds) for name, part in parts.items()]
    plain = run.load_table(ANSWERS_OOF, ANSWERS, made_by=STACK)
    if wanted is None or not can_be_told(queries):
        return [Entry("stack", "stack", plain, seconds), *entries]
    trained = float(queries["landmark_id"].notna().mean())
    corrected = correct_answers(load_calibrated(run, queries), load_presence(run), trained=trained, wanted=wanted)
    if share_to_correct_to(run, config, queries) is None:
        return [Entry("stack", "stack", plain, seconds), *entries, Entry("corrected", "method", corrected, seconds)]
    return [Entry("stack", "stack", corrected, seconds), *entries, Entry("not corrected", "method", plain, seconds)]


def _look_closer(
    run: Run, config: EngineConfig, evidence: Evidence, rows: pd.DataFrame, entries: Sequence[Entry]
) -> dict[str, Any]:
    """The tables beside the leaderboard."""
    from stacking.ablation import measure_gate
    from stacking.blanking import blanking_costs
    from stacking.costs import find_costs
    from stacking.evaluate import Entry
    from stacking.leaderboard import rank_entries, score_by_size, score_tail
    from stacking.oracles import enter_oracles
    from stacking.prevalence import SHARES, can_be_told, sensitivity
    from stacking.scoring import weigh_queries
    from stacking.transductive import STRENGTH, enter_transductive

    queries, validation, seed = evidence.queries, config.validation, config.seed
    [own] = [entry for entry in entries if entry.kind == "stack"]
    calibrated = load_calibrated(run, queries)
    costly = find_costs(own.answers, queries, evidence.candidates, weights=weigh_queries(queries, validation))
    gate = measure_gate(evidence.features, queries)
    found: dict[str, Any] = {
        "sizes": score_by_size(entries, queries, validation),
        "tail": score_tail(entries, queries, evidence.sizes),
        "calibration": read_json(run.verified(CALIBRATION, made_by=STACK)),
        "oracles": rank_entries([own, *enter_oracles(rows, own.answers, queries)], queries, validation, seed=seed),
        "costs": costly.head(COSTLIEST).to_dict("records"),
        "blanking": [asdict(each) for each in blanking_costs(calibrated, queries, validation, seed=seed)],
        "gate": None if gate is None else asdict(gate),
        "prevalence": [],
        "transductive": [],
    }
    if can_be_told(queries):
        plain, presence = run.load_table(ANSWERS_OOF, ANSWERS, made_by=STACK), load_presence(run)
        curve = sensitivity(plain, calibrated, queries, presence, SHARES, validation, seed=seed)
        told = [
            Entry("stack", "stack", plain, own.fit_seconds),
            *enter_transductive(
                calibrated, queries, presence, evidence.sizes, validation, strength=config.stack.demotion or STRENGTH
            ),
        ]
        found["prevalence"] = [asdict(each) for each in curve]
        found["transductive"] = rank_entries(told, queries, validation, seed=seed)
    return found


def _fit_seconds(run: Run, members: Sequence[str]) -> dict[str, float]:
    """What each member's training took over all folds; embeddings, which members may share, are not counted."""
    weights = {member: [n for n in run.names(f"zoo/{member}/") if n.endswith(WEIGHTS)] for member in members}
    return {member: sum(run.entry(name).facts["seconds"] for name in names) for member, names in weights.items()}


def _describe_queries(config: EngineConfig, queries: pd.DataFrame) -> list[str]:
    known, unseen = int(queries["landmark_id"].notna().sum()), int(queries["unseen"].sum())
    shares = {
        "{:.0%} of them show a known landmark": config.validation.prevalence,
        "{:.0%} of the others an unseen one": config.validation.unseen,
    }
    wanted = " and ".join(text.format(share) for text, share in shares.items() if share is not None)
    weighing = f"weighted so that {wanted}" if wanted else "each counts once"
    counts = f"{known} show a known landmark, {unseen} one their models never saw, {len(queries) - known - unseen} none"
    return [f"{len(queries)} queries, scored by models that saw neither them nor duplicates: {counts}; {weighing}."]


def _describe_pair(pair: Comparison) -> str:
    found = pair.difference
    return (
        f"{pair.ours} against the best {pair.kind}, {pair.theirs}: {found.estimate:+.4f} "
        f"({found.low:+.4f} .. {found.high:+.4f}, p = {found.p_value:.3f})"
    )


def _describe_choice(facts: Mapping[str, Any], more: Mapping[str, Any]) -> list[str]:
    """What was chosen, by how much the choice flatters itself, and how well the gate tells photos apart."""
    methods, inner, outer = facts["methods"], facts["inner"], facts["outer"]
    chosen = f"chosen in each fold: {', '.join(methods)}; GAP where it was chosen {inner:.4f}, in the fold that the "
    notes = [f"{chosen}choice never saw {outer:.4f} ({outer - inner:+.4f}), over photos whose landmark is a candidate"]
    gate = more["gate"]
    if gate is not None and gate["landmark"] is not None:
        notes.append(
            f"gate: area under its ROC curve {gate['landmark']:.4f} for photos that show any landmark, "
            f"expected calibration error {gate['ece']:.4f}"
        )
    return notes


def read_leaderboard(run_folder: Path) -> dict[str, Any]:
    """The leaderboard of a run: title, interval, rows, notes, and the tables beside it.

    Raises:
        ArtifactError: when there is none yet.
    """
    return read_json(Run(run_folder).verified(LEADERBOARD, made_by=STACK))


def study(request: RunRequest, name: str, progress: Progress) -> dict[str, Any]:
    """A study of the stack that takes minutes, made when it is first asked for.

    Args:
        request: the run.
        name: worth, what each member and the gate add; importance, of the features; checks, whether the validation
            itself is honest.
        progress: told of what is fitted.

    Raises:
        ArtifactError: when the run has no stack yet.
    """
    run = Run(request.run)
    with run.locked():
        config = resolve_config(run, request)
        evidence = load_evidence(run, config, "oof")
        settings = flatten(config.stack, "stack") | flatten(config.validation, "validation")
        inputs = evidence.inputs | settings | {
            "seed": config.seed, "version": STACK_VERSION, "study": STUDY_VERSION,
            "stacker": run.hash_of(STACKER, made_by=STACK),
        }  # fmt: skip
        if not run.is_fresh(STUDIES[name], inputs):
            write_json(run.path(STUDIES[name]), _MAKERS[name](run, config, evidence, progress))
            run.record(STUDIES[name], kind="study", version=STACK_VERSION, inputs=inputs)
        return read_json(run.verified(STUDIES[name], made_by=STACK))


def _study_worth(run: Run, config: EngineConfig, evidence: Evidence, progress: Progress) -> dict[str, Any]:
    """The stack without each member and without the gate, and members added one by one."""
    del run
    from stacking.ablation import add_members, leave_out

    count = len(evidence.members)
    with progress.task("study of worth", 1 + count * (count > 1) + count * (count + 1) // 2, "subset") as advance:

        def make_rows(members: Sequence[str]) -> pd.DataFrame:
            advance(1, f"{len(members)} members")
            return evidence.rows(config.stack, members)

        given, validation = (evidence.members, make_rows, evidence.queries), config.validation
        without = leave_out(*given, _linear_fit(config, evidence), validation, seed=config.seed)
        added = add_members(*given, validation)
    return {"without": [asdict(each) for each in without], "added": [asdict(each) for each in added]}


def _study_importance(run: Run, config: EngineConfig, evidence: Evidence, progress: Progress) -> dict[str, Any]:
    """What the trees used, and the GAP that is lost when features are permuted."""
    from stacking.importance import group_features, measure_gain, permute_groups
    from stacking.stacker import load_stacker

    stacker, rows = load_stacker(run.verified(STACKER, made_by=STACK)), evidence.rows(config.stack)
    grown = [model.trees for model in stacker.models if model.trees]
    groups = group_features(stacker.features)
    with progress.task("study of importance", len(groups), "group") as advance:
        lost = permute_groups(
            rows, evidence.queries, _linear_fit(config, evidence), groups, config.validation,
            repeats=REPEATS, rng=np.random.default_rng(config.seed), advance=advance,
        )  # fmt: skip
    return {"gain": measure_gain(stacker.features, grown) if grown else {}, "lost": [asdict(each) for each in lost]}


def _study_checks(run: Run, config: EngineConfig, evidence: Evidence, progress: Progress) -> dict[str, Any]:
    """Whether shuffled labels teach nothing, duplicates stay in one fold, and photos that look alike decide nothing."""
    from stacking.honesty import leaks, shuffled_gap

    learn, rng = _linear_fit(config, evidence), np.random.default_rng(config.seed)
    lookalikes = _study_lookalikes(run, config, evidence, progress)
    with progress.task("study of checks", evidence.queries["fold"].nunique(), "fold") as advance:

        def fit(rows: pd.DataFrame, right: NDArray[np.bool_]) -> Predict:
            advance(1, "shuffled")
            return learn(rows, right)

        shuffled = shuffled_gap(evidence.rows(config.stack), evidence.queries, fit, rng, config.validation)
    found = {"leaks": asdict(leaks(*load_tables(run))), "shuffled": asdict(shuffled) | {"chance?": shuffled.is_chance}}
    return found | lookalikes


def _study_lookalikes(run: Run, config: EngineConfig, evidence: Evidence, progress: Progress) -> dict[str, Any]:
    """What the stack's GAP owes to photos that look almost like one beyond their fold, and the likest of them."""
    from stacking.honesty import find_lookalikes, likest_pairs
    from zoo.neighbours import find_embeddings, nearest_across_folds

    photos = load_photos(run)
    stored = find_embeddings(run, member_recipes(config), photos)
    if stored is None:
        return {"near_by": None, "lookalikes": [], "likest": []}
    near_by, embeddings = stored
    with progress.task(f"nearest photos by {near_by}", photos.fold_count, "fold") as advance:
        nearest = nearest_across_folds(photos, embeddings, threads=config.cores, advance=advance)
    answers = run.load_table(ANSWERS_OOF, ANSWERS, made_by=STACK)
    found = find_lookalikes(nearest, answers, evidence.queries, config.validation, seed=config.seed)
    return {
        "near_by": near_by,
        "lookalikes": [asdict(each) | {"slight?": each.are_slight} for each in found],
        "likest": likest_pairs(nearest).head(LIKEST).to_dict("records"),
    }


def _linear_fit(config: EngineConfig, evidence: Evidence) -> Fit:
    """The stack's linear method, for studies that fit it dozens of times: a tenth of the time of the trees."""
    from stacking.evaluate import fit_stack

    linear = config.stack.model_copy(update={"method": "linear"})
    return fit_stack(evidence.queries, linear, seed=config.seed, threads=config.cores)


_MAKERS: Mapping[str, Callable[[Run, EngineConfig, Evidence, Progress], dict[str, Any]]] = {
    "worth": _study_worth,
    "importance": _study_importance,
    "checks": _study_checks,
}
