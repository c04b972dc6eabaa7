"""What a member of the zoo is made of: a recipe in TOML, read into frozen sections.

A recipe is a file in `zoo/recipes/` or of your own. `load_recipe` takes a name or a path and dotted changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, PositiveFloat, model_validator

from engine.core.config import (
    MemberConfig,
    Section,
    apply_settings,
    parse_section,
    read_toml,
    resolve_toml,
)


class BackboneConfig(Section):
    """The network that turns a photo into an embedding."""

    name: str  # any timm model
    weights: Literal["hub", "file", "package", "random"] = "hub"
    source: str | None = None  # file: a safetensors path; package: a name of zoo.weights.PACKAGES
    frozen: bool = False  # frozen: each photo is embedded once for all folds and only the head is trained
    pooling: Literal["avg", "max", "avgmax", "catavgmax"] = "avg"

    @model_validator(mode="after")
    def _has_source(self) -> BackboneConfig:
        if (self.source is not None) != (self.weights in {"file", "package"}):
            raise ValueError("'source' goes with weights = 'file' or 'package', and only with them")
        return self


class InputConfig(Section):
    """What the backbone sees."""

    size: int = Field(224, ge=16, le=2048)  # pixels, square
    fit: Literal["stretch", "crop"] = "stretch"  # stretch keeps the whole photo, crop keeps its aspect ratio
    # test-time views, merged on logits
    views: tuple[Literal["plain", "flip"], ...] = Field(("plain", "flip"), min_length=1)


class HeadConfig(Section):
    """From the embedding to all landmarks, and to one more class for 'none of them' when there are negatives."""

    kind: Literal["linear", "neighbours"] = (
        "linear"  # neighbours needs no training, and one photo of a landmark is enough
    )
    norm: Literal["none", "batch", "l2"] = "none"  # of the embedding, before the linear layer
    cosine: bool = False  # compare directions only: photos of rare landmarks are not outvoted by large weights
    scale: float = Field(16.0, gt=0, le=50)  # of the cosines of a cosine or neighbours head: logits in -16..16
    dropout: float = Field(0.0, ge=0, lt=1)
    none_class: bool = True


class TrainConfig(Section):
    """AdamW with warm-up and a cosine decay."""

    epochs: float = Field(8, gt=0)
    batch_size: int = Field(32, ge=2)
    lr: float = Field(1e-3, gt=0)
    head_lr_factor: float = Field(1.0, gt=0)  # the head starts from nothing, a pretrained backbone does not
    weight_decay: float = Field(0.05, ge=0)
    warmup: float = Field(0.1, ge=0, lt=1)  # share of the steps
    label_smoothing: float = Field(0.1, ge=0, lt=1)
    clip_norm: float = Field(5.0, gt=0)  # above what a healthy step shows; catches the rare exploding one
    ema_decay: float | None = Field(None, gt=0, lt=1)  # None: the last weights; 0.999 averages about 1,000 steps
    freeze_stages: int = Field(0, ge=0)  # leading stages of the backbone that stay as they are; the stem is the first
    # Batch norms folded into their convolutions: a step costs a third less, and small batches cannot disturb the
    # pretrained statistics.
    fold_norm: bool = False
    landmark_power: float = Field(0.0, ge=0, le=1)  # photos are drawn by class size ** -power; at 1 each class equally
    checkpoint_seconds: float = Field(120, gt=0)  # what a kill may cost


class AugmentConfig(Section):
    """Random changes of a training photo, all geometric ones in one resampling."""

    enabled: bool = True
    shift: float = Field(0.08, ge=0, le=0.5)  # of the side
    rotate: float = Field(8.0, ge=0, le=180)  # degrees
    scale: tuple[PositiveFloat, PositiveFloat] = (0.85, 1.35)  # zoom; above 1 crops
    stretch: float = Field(0.15, ge=0, lt=1)  # of the aspect ratio
    flip: float = Field(0.5, ge=0, le=1)  # probability
    brightness: float = Field(0.2, ge=0, le=1)
    contrast: float = Field(0.2, ge=0, le=1)
    saturation: float = Field(0.3, ge=0, le=1)


class Recipe(Section):
    """One member of the zoo."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")  # it becomes a folder and a file name
    summary: str = ""
    backbone: BackboneConfig
    input: InputConfig = InputConfig()
    head: HeadConfig = HeadConfig()
    train: TrainConfig = TrainConfig()
    augment: AugmentConfig = AugmentConfig()
    candidates: int = Field(20, ge=1, le=1000)  # kept per query; the stacker uses the first few

    @model_validator(mode="after")
    def _neighbours_are_frozen(self) -> Recipe:
        if self.head.kind == "neighbours" and not self.backbone.frozen:
            raise ValueError("head.kind = 'neighbours' goes with backbone.frozen = true")
        return self


def load_recipe(name_or_path: str, settings: Mapping[str, Any] | None = None) -> Recipe:
    """Read a recipe.

    Args:
        name_or_path: the name of a recipe that ships, or the path of a TOML file.
        settings: dotted keys to change.

    Raises:
        ConfigError: for an unknown recipe or key, with the nearest names, and for every bad value.
    """
    path = resolve_toml(name_or_path, "zoo.recipes", what="recipe")
    return parse_section(Recipe, apply_settings(read_toml(path), settings or {}), source=f"recipe {name_or_path}")


def member_recipe(member: MemberConfig) -> Recipe:
    """The recipe of a configured member, with its changes and its name."""
    settings = dict(member.set)
    if member.name is not None:
        settings["name"] = member.name
    return load_recipe(member.recipe, settings)
