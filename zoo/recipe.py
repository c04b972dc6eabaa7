"""What a member of the zoo is made of: a recipe in TOML, read into frozen sections.

A recipe is a file in `zoo/recipes/` or of your own. `load_recipe` takes a name or a path and dotted changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    PositiveFloat,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from engine.core.config import (
    MemberConfig,
    Section,
    apply_settings,
    parse_section,
    read_toml,
    resolve_toml,
)
from engine.core.errors import ConfigError, did_you_mean
from zoo.samplers import SamplerConfig

Quality = Annotated[int, Field(ge=1, le=95)]  # of a JPEG; above 95 files grow and nothing is seen of it
CROPS = ("crop-top-left", "crop-top-right", "crop-bottom-left", "crop-bottom-right", "crop-centre")
MIRRORED_CROPS = tuple(f"{name}-flip" for name in CROPS)
SINGLE_VIEWS = ("plain", "flip", *CROPS, *MIRRORED_CROPS, "zoom-in", "zoom-out")
VIEW_GROUPS = {"five-crop": CROPS, "ten-crop": (*CROPS, *MIRRORED_CROPS), "scales": ("zoom-out", "zoom-in")}
VIEWS = (*SINGLE_VIEWS, *VIEW_GROUPS)  # what a recipe may name
OWN_POOLINGS = frozenset({"gem", "flat", "attention"})  # those that timm does not have
LEARNED_POOLINGS = frozenset({"gem", "attention"})
PHOTO_HEADS = frozenset({"neighbours", "prototypes"})  # those that keep training photos as they were looked at


class BackboneConfig(Section):
    """The network that turns a photo into an embedding."""

    name: str  # any timm model
    weights: Literal["hub", "file", "package", "random"] = "hub"
    source: str | None = None  # file: a safetensors path; package: a name of zoo.weights.PACKAGES
    frozen: bool = False  # frozen: each photo is embedded once for all folds and only the head is trained
    # token: a transformer's class token; flat: 4x4 cells, none averaged away; attention: DELF's
    pooling: Literal["avg", "max", "avgmax", "catavgmax", "token", "gem", "flat", "attention"] = "avg"
    stage: int | None = Field(None, ge=0)  # the last one that is kept, 3 is ResNet's conv4; None: all of them

    @model_validator(mode="after")
    def _stage_has_a_pooling(self) -> BackboneConfig:
        if self.stage is not None and self.pooling not in OWN_POOLINGS:
            raise ValueError(f"'stage' goes with pooling = {', '.join(map(repr, sorted(OWN_POOLINGS)))}")
        return self

    @model_validator(mode="after")
    def _has_source(self) -> BackboneConfig:
        if (self.source is not None) != (self.weights in {"file", "package"}):
            raise ValueError("'source' goes with weights = 'file' or 'package', and only with them")
        return self


class InputConfig(Section):
    """What the backbone sees."""

    size: int = Field(224, ge=16, le=2048)  # pixels, square
    fit: Literal["stretch", "crop"] = "stretch"  # stretch keeps the whole photo, crop keeps its aspect ratio
    # test-time views: plain, flip, five-crop, ten-crop, scales, or single ones of zoo.views; with a learned head on
    # photos they come after the weights, so that other ones train nothing anew
    views: tuple[str, ...] = Field(("plain", "flip"), min_length=1)
    merge: Literal["embeddings"] | None = None  # what is averaged over the views; None: their logits

    @field_validator("views")
    @classmethod
    def _are_known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name not in VIEWS:
                raise ValueError(f"unknown view '{name}' — {did_you_mean(name, VIEWS)}")
        return value


class HeadConfig(Section):
    """From the embedding to all landmarks, and to one more class for 'none of them' when there are negatives."""

    # linear, hadamard and arcface are learned; neighbours and prototypes answer from the training photos and need no
    # training, and one photo of a landmark is enough for them
    kind: Literal["linear", "hadamard", "arcface", "neighbours", "prototypes"] = "linear"
    norm: Literal["none", "batch", "l2"] = "none"  # of the embedding, before a learned head
    cosine: bool = False  # linear: directions only, so photos of rare landmarks are not outvoted by large weights
    scale: float = Field(16.0, gt=0, le=50)  # of cosines, of every head but a plain linear one: logits in -16..16
    dropout: float = Field(0.0, ge=0, lt=1)  # before a learned head
    none_class: bool = True
    centres: int = Field(3, ge=1)  # arcface, per landmark: 3 is its paper's best, room for day, night and another side
    # arcface, radians: margins of the largest and the smallest landmark, as in GLR 2020's third place
    margin_low: float = Field(0.05, ge=0, le=1.57)
    margin_high: float = Field(0.50, ge=0, le=1.57)
    triplet_margin: float = Field(0.2, gt=0, le=4)  # neighbours, prototypes: squared distance; FaceNet's
    vote: Literal["kernel", "top-k"] = "kernel"  # neighbours: all photos by their angle, or K nearest / class size
    neighbours: int = Field(5, ge=1)  # K of top-k: landmarks of up to five photos are what it is for
    # prototypes: photos at the centre that each landmark is given; of 0, 0.5, 1, 2, 4 the best on one few-shot split
    shrink: float = Field(1.0, ge=0)

    @model_validator(mode="after")
    def _margins_are_in_order(self) -> HeadConfig:
        if self.margin_low > self.margin_high:
            raise ValueError("'margin_low' is above 'margin_high'")
        return self


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
    # alphas of Beta(alpha, alpha), from which the share of a photo in a mixture of two is drawn; None: never mixed
    mixup: float | None = Field(None, gt=0)
    cutmix: float | None = Field(None, gt=0)
    auxiliary: str | None = None  # a layer of the backbone that one more classifier learns from while it is trained
    # pixels of the input until the last epochs; None: input.size throughout
    first_size: int | None = Field(None, ge=16)
    last_epochs: float = Field(2.0, gt=0)  # at input.size, after epochs at first_size
    freeze_stages: int = Field(0, ge=0)  # leading stages of the backbone that stay as they are; the stem is the first
    # Batch norms folded into their convolutions: a step costs a third less, and small batches cannot disturb the
    # pretrained statistics.
    fold_norm: bool = False
    min_photos: int = Field(1, ge=1)  # landmarks with fewer in a fold's training part are dropped from the classes
    sampler: SamplerConfig = SamplerConfig()
    checkpoint_seconds: float = Field(120, gt=0)  # what a kill may cost


class DegradeConfig(Section):
    """How many photos are made worse, and how far."""

    probability: float = Field(0.0, ge=0, le=1)  # of each photo in each epoch; 0: nothing is done and nothing drawn
    smallest: int = Field(16, ge=1)  # pixels of the side; the smallest photos have 15 x 10
    quality: tuple[Quality, Quality] = (20, 90)  # of the JPEG: from visible blocks to what cameras write

    @model_validator(mode="after")
    def _is_a_range(self) -> DegradeConfig:
        if self.quality[0] > self.quality[1]:
            raise ValueError("'quality' goes from the lower to the higher")
        return self


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
    degrade: DegradeConfig = DegradeConfig()


class LocalConfig(Section):
    """Local features and their verification; AUC below: pairs of one landmark against others, in landmarks-mini.

    Defaults are those of SIFT; `delf` has other ones in the recipe lite0-delf.
    """

    kind: Literal["sift", "delf"] = "sift"  # delf: the member's own, where its attention is; needs pooling = attention
    # delf: of the photo, times `size`; larger ones place keypoints more finely. The paper has 0.25 too, where a small
    # photo has a few cells
    scales: tuple[PositiveFloat, ...] = Field((1.0, 1.41, 2.0), min_length=1)
    size: int = Field(256, ge=32, le=2048)  # pixels of the longest side; 384 took 1.6 times as long for no clear gain
    keypoints: int = Field(300, ge=3, le=4096)  # 200: .33 of true pairs above 99 % of others, 300: .42, 400: no more
    upright: bool = True  # sift: landmarks stand: descriptors turned to the gradient's direction lost .03 AUC
    ratio: float = Field(0.95, gt=0, le=1)  # nearest / second distance; Lowe's 0.8 left AUC .58 of .76
    threshold: float = Field(6.0, gt=0)  # pixels an inlier may be off: 2 % of the side, as landmarks are not flat
    hypotheses: int = Field(256, ge=1)  # finds a map that 3 in 10 matches obey with probability 0.999
    minimum: int = Field(8, ge=3)  # inliers that count; 1 % of the pairs of different landmarks have as many
    candidates: int = Field(20, ge=1)  # nearest training photos verified per query: about 0.03 s
    weight: float = Field(1.0, ge=0)  # of the evidence; at 1 a photo's inliers multiply its landmark's odds by 1 + n
    # of the cosine to a landmark's nearest photo, which joins the logit too; None: a head that is learned goes without
    cosine_weight: float | None = Field(None, ge=0)

    @model_serializer(mode="wrap")
    def _sift_is_not_told(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What is made by SIFT was made before there was another kind, and has to stay fresh."""
        values: dict[str, Any] = handler(self)
        return {key: value for key, value in values.items() if self.kind != "sift" or key not in {"kind", "scales"}}


class Recipe(Section):
    """One member of the zoo."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")  # it becomes a folder and a file name
    summary: str = ""
    backbone: BackboneConfig
    input: InputConfig = InputConfig()
    head: HeadConfig = HeadConfig()
    train: TrainConfig = TrainConfig()
    augment: AugmentConfig = AugmentConfig()
    local: LocalConfig | None = None  # verify the nearest training photos by local features
    candidates: int = Field(20, ge=1, le=1000)  # kept per query; the stacker uses the first few

    @model_validator(mode="after")
    def _trains_on_photos(self) -> Recipe:
        asked = [name for name in ("first_size", "cutmix", "auxiliary") if getattr(self.train, name)]
        if self.backbone.frozen and asked:
            raise ValueError(f"train.{asked[0]} is for photos, and goes with backbone.frozen = false")
        return self

    @model_validator(mode="after")
    def _mixes_what_has_classes(self) -> Recipe:
        if self.head.kind in PHOTO_HEADS and (self.train.mixup or self.train.cutmix):
            raise ValueError("train.mixup and train.cutmix mix classes, and a triplet has none")
        return self

    @model_validator(mode="after")
    def _pooling_is_fixed(self) -> Recipe:
        pooling = self.backbone.pooling
        if self.backbone.frozen and pooling in LEARNED_POOLINGS:
            raise ValueError(f"backbone.pooling = '{pooling}' learns, and goes with backbone.frozen = false")
        return self

    @model_validator(mode="after")
    def _has_attention(self) -> Recipe:
        if self.local is not None and self.local.kind == "delf" and self.backbone.pooling != "attention":
            raise ValueError("local.kind = 'delf' goes with backbone.pooling = 'attention', which finds its keypoints")
        return self


def load_recipe(name_or_path: str, settings: Mapping[str, Any] | None = None) -> Recipe:
    """Read a recipe; a file that names another recipe as its `base` only says what differs.

    Args:
        name_or_path: the name of a recipe that ships, or the path of a TOML file.
        settings: dotted keys to change.

    Raises:
        ConfigError: for an unknown recipe or key, with the nearest names, and for every bad value.
    """
    return parse_section(Recipe, apply_settings(_read(name_or_path), settings or {}), source=f"recipe {name_or_path}")


def _read(name_or_path: str, above: tuple[str, ...] = ()) -> dict[str, Any]:
    """The values of a recipe's file, laid over those of the recipe that it calls its `base`.

    Raises:
        ConfigError: as `load_recipe`, and for a recipe that is its own base.
    """
    if name_or_path in above:
        raise ConfigError(f"recipe {name_or_path}: is its own base, by {' -> '.join((*above, name_or_path))}")
    values = read_toml(resolve_toml(name_or_path, "zoo.recipes", what="recipe"))
    base = values.pop("base", None)
    return values if base is None else _lay_over(_read(str(base), (*above, name_or_path)), values)


def _lay_over(base: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested values over others; a table of another `kind` takes the place of the base's whole table."""
    merged = dict(base)
    for key, value in values.items():
        below = merged.get(key)
        if isinstance(value, Mapping) and isinstance(below, Mapping) and value.get("kind") in {None, below.get("kind")}:
            merged[key] = _lay_over(below, value)
        else:
            merged[key] = value
    return merged


def member_recipe(member: MemberConfig) -> Recipe:
    """The recipe of a configured member, with its changes and its name."""
    settings = dict(member.set)
    if member.name is not None:
        settings["name"] = member.name
    return load_recipe(member.recipe, settings)
