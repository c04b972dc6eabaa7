"""Configuration: TOML in, frozen pydantic sections out, every problem shown at once.

A preset is a TOML file in `engine/presets/`; `load_config` takes a preset's name or a path. A function gets the one
section it needs, never the whole. Recipes of the zoo are read by the same `parse_section` (see `zoo.recipe`).
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from functools import reduce
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from engine.core.errors import ConfigError, did_you_mean, raise_problems

SectionT = TypeVar("SectionT", bound="Section")


class Section(BaseModel):
    """The base of every configuration section: frozen, strict about unknown keys, no NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class DataConfig(Section):
    """Which photos count as usable."""

    id_pattern: str = "[0-9a-f]{16}"  # the challenge's ids; a full match, so an id can never be a path
    max_pixels: int = Field(100_000_000, gt=0)  # 100 MP: above any camera at hand, far below a decompression bomb
    max_bad_fraction: float = Field(0.01, ge=0, le=1)  # 1 %: a few rotten downloads are normal, more is a wrong folder

    @field_validator("id_pattern")
    @classmethod
    def _compiles(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"is not a regular expression: {error}") from error
        return value


class FoldsConfig(Section):
    """How training photos are split for cross-validation."""

    count: int = Field(5, ge=2, le=100)  # five: 80 % of the photos train each model, five times the cost
    unseen_share: float = Field(0.1, ge=0, lt=1)  # landmarks kept whole in one fold, so that its models never saw them


class MemberConfig(Section):
    """One member of the zoo: a recipe and what to change in it."""

    recipe: str  # the name of a shipped recipe, or a path to a TOML file
    name: str | None = None  # what the leaderboard calls it; the recipe's own name when absent
    set: dict[str, Any] = Field(default_factory=dict)  # dotted keys of the recipe, e.g. {"train.epochs" = 3}


class GateConfig(Section):
    """The landmark / non-landmark classifier."""

    enabled: bool = True
    inverse_penalty: float = Field(0.1, gt=0)  # C of the logistic regression; see docs/decisions


CalibrationMethod = Literal["none", "temperature", "platt", "beta", "isotonic", "venn-abers"]  # the simpler first


StackMethod = Literal["linear", "softmax", "log-loss", "hybrid", "two-stage"]  # the simpler first


class StackConfig(Section):
    """The stacker: one row per (query, candidate landmark), target: is it right."""

    candidates_per_member: int = Field(5, ge=1, le=100)  # top 5: more moved GAP by less than .0001, 2 fewer by .0045
    learning_rate: float = Field(0.03, gt=0, le=1)
    trees: int = Field(200, ge=1)  # at most; how many of them are used is seen on queries left out
    leaves: int = Field(15, ge=2)
    min_rows_in_leaf: int = Field(30, ge=1)
    feature_fraction: float = Field(0.5, gt=0, le=1)
    l2: float = Field(5.0, ge=0)
    parts: int = Field(4, ge=2, le=100)  # as many models are averaged, each fitted without one part of the queries
    bags: int = Field(1, ge=1)  # times with other parts
    method: Literal["auto"] | StackMethod = "auto"  # auto: the best on queries left out, ties going to the simpler
    # of the answers' confidences; auto: what has the lowest cross-validated log loss
    calibration: Literal["auto"] | CalibrationMethod = "auto"
    # confidences to validation.prevalence, where that is set; auto: when it wins out of fold by a standard error
    correct: Literal["auto", "always", "never"] = "auto"
    transductive: bool = False  # correct them to the share of landmark photos that the test set itself suggests
    demotion: float = Field(0.0, ge=0)  # then also lower landmarks answered too often; measured, it won nothing
    blank_below: float | None = Field(None, ge=0, le=1)  # no answer below this confidence; GAP only loses by it

    @model_validator(mode="after")
    def _demotes_within_a_test_set(self) -> StackConfig:
        if self.demotion and not self.transductive:
            raise ValueError("'demotion' looks at the whole test set: it goes with transductive = true")
        return self


class ValidationConfig(Section):
    """What the reported numbers stand for."""

    prevalence: float | None = Field(None, gt=0, lt=1)  # share of queries with a known landmark; None: as in the folds
    unseen: float | None = Field(None, gt=0, lt=1)  # of the other queries, share with a landmark never trained on
    bootstrap: int = Field(1000, ge=10)  # resamples of an interval: its ends move by about 1 % of its width
    confidence_level: float = Field(0.95, gt=0, lt=1)


class EngineConfig(Section):
    """Everything a run is made from, besides the data."""

    seed: int = Field(0, ge=0, lt=2**31)
    device: str = "auto"  # auto, cpu, cuda, cuda:1, mps
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"  # auto: bf16 where the device computes it fast
    threads: int = Field(0, ge=0)  # 0: every core this process may use
    processes: int = Field(0, ge=0, le=64)  # that train one network together; 0: one per CUDA device, else one
    workers: int = Field(0, ge=0)  # processes that decode photos; 0: in this one, right when the cores are busy anyway
    logs: tuple[Literal["tensorboard", "wandb"], ...] = ()  # of trainings, beside metrics.jsonl; extras of this project
    data: DataConfig = DataConfig()
    folds: FoldsConfig = FoldsConfig()
    gate: GateConfig = GateConfig()
    stack: StackConfig = StackConfig()
    validation: ValidationConfig = ValidationConfig()
    members: tuple[MemberConfig, ...] = Field(min_length=1)

    @property
    def cores(self) -> int:
        """Threads to use: as many as asked for, or every core this process may use (in a container often not all)."""
        allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
        return self.threads or len(allowed)


def parse_section(model: type[SectionT], values: Mapping[str, Any], *, source: str) -> SectionT:
    """Validate values against a section and report every problem with its key.

    Args:
        model: the section's class.
        values: nested plain values, as TOML gives them.
        source: the file or option they came from, for the messages.

    Raises:
        ConfigError: with one line per problem; an unknown key comes with its nearest neighbours.
    """
    try:
        # as JSON, where an array is a tuple's only spelling and everything else can be strict: `true` is never a 1
        return model.model_validate_json(json.dumps(dict(values), default=str), strict=True)
    except ValidationError as error:
        problems = []
        for item in error.errors():
            location = [str(part) for part in item["loc"]]
            key = ".".join(location)
            where = f"{source}: {key}" if key else source  # a problem of the whole section has no key
            if item["type"] == "extra_forbidden":
                problems.append(f"{source}: unknown key '{key}' — {_nearest(model, location)}")
            else:
                problems.append(f"{where}: {item['msg']} (got {item['input']!r:.80})")
        raise_problems(ConfigError, problems)
        raise  # pragma: no cover - a ValidationError always has problems


def _nearest(model: type[BaseModel], location: list[str]) -> str:
    """Known keys near an unknown one; list indices in the location are stepped over."""
    current: type[BaseModel] = model
    for part in location[:-1]:
        field = current.model_fields.get(part)
        if field is None:
            continue
        inner = _section_of(field.annotation)
        if inner is not None:
            current = inner
    return did_you_mean(location[-1], current.model_fields)


def _section_of(annotation: Any) -> type[BaseModel] | None:
    """The section class inside an annotation such as `tuple[MemberConfig, ...]` or `Section | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        found = _section_of(inner)
        if found is not None:
            return found
    return None


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        ConfigError: when it is missing, not UTF-8, or not TOML (with line and column).
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})", hint="check the path") from error
    except (ValueError, RecursionError) as error:  # broken syntax, encoding, endless digits, endless brackets
        raise ConfigError(f"{path}: is not valid TOML: {error}", hint="correct that line") from error


def named_toml_files(package: str) -> dict[str, Path]:
    """The TOML files that ship inside a package, by name without ending."""
    folder = Path(str(resources.files(package)))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def resolve_toml(name_or_path: str, package: str, *, what: str) -> Path:
    """The file of a shipped name, or the path itself.

    Args:
        name_or_path: the name of a TOML file in the package, or a path ending in .toml or containing a separator.
        package: e.g. `engine.presets`.
        what: what it is called in the message: preset, recipe.

    Raises:
        ConfigError: for an unknown name, with its nearest neighbours.
    """
    known = named_toml_files(package)
    if name_or_path in known:
        return known[name_or_path]
    path = Path(name_or_path)
    if path.suffix == ".toml" or path.name != name_or_path:
        return path
    raise ConfigError(f"unknown {what} '{name_or_path}' — {did_you_mean(name_or_path, known)}")


def set_dotted(values: Mapping[str, Any], key: str, value: object) -> dict[str, Any]:
    """A copy of nested values with one dotted key set.

    >>> set_dotted({"train": {"lr": 1}}, "train.epochs", 3)
    {'train': {'lr': 1, 'epochs': 3}}
    """
    head, _, rest = key.partition(".")
    copy = dict(values)
    if rest:
        inner = copy.get(head, {})
        copy[head] = set_dotted(inner if isinstance(inner, Mapping) else {}, rest, value)
    else:
        copy[head] = value
    return copy


def apply_settings(values: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of nested values with several dotted keys set."""
    return reduce(lambda nested, item: set_dotted(nested, *item), settings.items(), dict(values))


def parse_settings(assignments: Iterable[str]) -> dict[str, Any]:
    """Read `key=value` options; the value is TOML, or text when it is not.

    >>> parse_settings(["folds.count=3", "device=cpu"])
    {'folds.count': 3, 'device': 'cpu'}

    Raises:
        ConfigError: when there is no '='.
    """
    settings: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set {assignment!r}: wanted KEY=VALUE", hint="for example --set folds.count=3")
        try:
            settings[key.strip()] = tomllib.loads(f"value = {text}")["value"]
        except ValueError:
            settings[key.strip()] = text
    return settings


def load_config(name_or_path: str, settings: Mapping[str, Any] | None = None) -> EngineConfig:
    """Read a preset or a configuration file.

    Args:
        name_or_path: a preset's name (`cpu`, `gpu`, `tiny`) or the path of a TOML file.
        settings: dotted keys to change, as from `--set`.

    Raises:
        ConfigError: with every problem found.
    """
    path = resolve_toml(name_or_path, "engine.presets", what="preset")
    values = apply_settings(read_toml(path), settings or {})
    return parse_section(EngineConfig, values, source=name_or_path)


def flatten(section: BaseModel, prefix: str = "") -> dict[str, Any]:
    """A section as dotted keys and JSON values, which is how a run remembers what an artifact was made from.

    What is off, None, leaves no trace: a new option makes no finished work stale until it is used.
    """
    flat: dict[str, Any] = {}

    def walk(value: object, key: str) -> None:
        if isinstance(value, dict) and value:
            for name, inner in value.items():
                walk(inner, f"{key}.{name}" if key else name)
        elif isinstance(value, float) and value.is_integer():
            flat[key] = int(value)  # 1 and 1.0 are the same setting
        elif value is not None:
            flat[key] = value

    walk(section.model_dump(mode="json"), prefix)
    return flat
