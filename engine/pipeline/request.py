"""What a command was asked for, and the configuration, members and data that it comes to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tomli_w

from engine.core.config import (
    EngineConfig,
    MemberConfig,
    apply_settings,
    load_config,
    named_toml_files,
    parse_section,
    read_toml,
)
from engine.core.errors import ConfigError, did_you_mean
from engine.core.runs import Run
from engine.core.storage import write_text

if TYPE_CHECKING:
    from zoo.recipe import Recipe

CONFIG = "config.toml"
DEFAULT_CONFIG = "cpu"


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
        resume: go on with trainings that were interrupted, or begin those anew.
    """

    run: Path
    data: Path | None = None
    config: str | None = None
    settings: Mapping[str, Any] | None = None
    force_new: bool = False
    members: tuple[str, ...] = ()
    folds: tuple[int, ...] = ()
    fail_fast: bool = False
    resume: bool = True

    @property
    def is_partial(self) -> bool:
        """Whether members or folds are left out."""
        return bool(self.members or self.folds)


def resolve_config(run: Run, request: RunRequest) -> EngineConfig:
    """The configuration asked for; without one, the run's own, or the default in a new run."""
    saved = run.path(CONFIG)
    if request.config is None and saved.exists():
        values = apply_settings(read_toml(saved), request.settings or {})
        return parse_section(EngineConfig, values, source=str(saved))
    return load_config(request.config or DEFAULT_CONFIG, request.settings)


def resolve_zoo(run: Run, request: RunRequest) -> EngineConfig:
    """The configuration to train by: members asked for may be recipes that ship, and settings may be those of recipes.

    A recipe that ships and is no member yet becomes one. Keys of a recipe, such as train.lr, are set in the members
    asked for, in all of them when none is named.

    Raises:
        ConfigError: for an unknown name or key, with the nearest ones.
    """
    from zoo.recipe import Recipe, member_recipe

    of_recipes: dict[str, Any] = {}
    of_run: dict[str, Any] = {}
    for key, value in (request.settings or {}).items():
        of_recipe = key.partition(".")[0] in Recipe.model_fields and key not in ("name", "summary")
        (of_recipes if of_recipe else of_run)[key] = value
    config = resolve_config(run, replace(request, settings=of_run))
    named = [(member_recipe(member).name, member) for member in config.members]
    known, ships = [name for name, _ in named], named_toml_files("zoo.recipes")
    named += [(name, MemberConfig(recipe=name)) for name in request.members if name not in known and name in ships]
    asked = request.members or known
    members = (
        member.model_copy(update={"set": member.set | of_recipes}) if name in asked else member
        for name, member in named
    )
    return config.model_copy(update={"members": tuple(members)})


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


def chosen(recipes: list[Recipe], members: Sequence[str], ships: Iterable[str] = ()) -> list[Recipe]:
    """The recipes of the named members, all of them when none is named; `ships` are other names that would do.

    Raises:
        ConfigError: for an unknown name, with the nearest ones.
    """
    names = [recipe.name for recipe in recipes]
    for name in members:
        if name not in names:
            raise ConfigError(f"--members: no member is called '{name}' — {did_you_mean(name, [*names, *ships])}")
    return [recipe for recipe in recipes if not members or recipe.name in members]


def check_folds(folds: Sequence[int], count: int) -> None:
    """Refuse folds that are not there.

    Raises:
        ConfigError: naming the first.
    """
    for fold in folds:
        if not 0 <= fold < count:
            raise ConfigError(f"--folds: there is no fold {fold}", hint=f"folds are 0 to {count - 1}")


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
