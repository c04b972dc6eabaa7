"""Photos to candidates: training the zoo and the gate, and what else looks at members."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from shutil import copy2
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import tomli_w

from engine.core.config import EngineConfig, named_toml_files
from engine.core.errors import ChangedSettingsError, ConfigError, EngineError, PartialFailureError
from engine.core.folds import oof_truth
from engine.core.interrupt import StopRequest, graceful_stop
from engine.core.progress import Progress
from engine.core.runs import MANIFEST, Run
from engine.core.storage import atomic_path, write_json
from engine.pipeline.photos import load_photos, load_tables, make_photo_set
from engine.pipeline.request import (
    RunRequest,
    check_folds,
    chosen,
    find_data,
    member_recipes,
    resolve_config,
    resolve_zoo,
    save_config,
)

if TYPE_CHECKING:
    from zoo.context import Context
    from zoo.few_shot import FewShotRow
    from zoo.listing import RecipeFacts
    from zoo.photo_set import PhotoSet
    from zoo.plan import Plan
    from zoo.recipe import Recipe
    from zoo.view_gains import ViewGain


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
        photos = make_photo_set(run, config, data, progress)
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
        photos = make_photo_set(scratch, config, data, progress)
        from zoo.plan import plan_members

        return plan_members(make_context(run, config, photos, progress, stop), recipes, request.folds)


def _settle(run: Run, request: RunRequest) -> tuple[EngineConfig, list[Recipe], Path]:
    """Configuration, members and data, before any photo is read: typing errors are cheap."""
    config = resolve_zoo(run, request)
    recipes = chosen(member_recipes(config), request.members, named_toml_files("zoo.recipes"))
    from zoo.logs import check_logs

    check_logs(config.logs)
    check_folds(request.folds, config.folds.count)
    return config, recipes, find_data(run, request.data)


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

    context = make_context(run, config, photos, progress, stop, force_new=request.force_new)
    failures: dict[str, EngineError] = {}
    for recipe in recipes:
        try:
            run_member(context, recipe, request.folds, resume=request.resume)
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


def make_context(
    run: Run, config: EngineConfig, photos: PhotoSet, progress: Progress, stop: StopRequest, *, force_new: bool = False
) -> Context:
    """Where and how members are trained and scored."""
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
        recipes = chosen(member_recipes(config), request.members)
        check_folds(request.folds, config.folds.count)
        from zoo.logs import check_logs

        check_logs(config.logs)
        if not shots or min(shots) < 1:
            raise ConfigError("--shots: a landmark needs photos to be learned from", hint="for example --shots 1,2,5")
        from zoo.few_shot import evaluate_few_shot

        with graceful_stop() as stop:
            context = make_context(run, config, load_photos(run), progress, stop)
            rows = evaluate_few_shot(context, recipes, config.validation, shots=shots, folds=request.folds)
        write_json(run.path("few_shot.json"), {"rows": [asdict(row) for row in rows]})
    return rows


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
        recipes = chosen(member_recipes(config), request.members)
        truth = oof_truth(*load_tables(run))
        with graceful_stop() as stop:
            context = make_context(run, config, load_photos(run), progress, stop)
            gains = measure_views(context, recipes, truth, config.validation, names)
        write_json(run.path("views.json"), {"rows": [asdict(row) for row in gains]})
    return gains


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
        load_photos(run), recipe, seed=config.seed, epoch=epoch, count=count, max_pixels=config.data.max_pixels
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
