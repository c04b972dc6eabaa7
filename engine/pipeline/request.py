"""What a command was asked for, and the configuration, members and data that it comes to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tomli_w

from engine.core.config import EngineConfig, apply_settings, load_config, parse_section, read_toml
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


def chosen(recipes: list[Recipe], members: Sequence[str]) -> list[Recipe]:
    """The recipes of the named members, all of them when none is named.

    Raises:
        ConfigError: for an unknown name, with the nearest ones.
    """
    names = [recipe.name for recipe in recipes]
    for name in members:
        if name not in names:
            raise ConfigError(f"--members: no member is called '{name}' — {did_you_mean(name, names)}")
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
