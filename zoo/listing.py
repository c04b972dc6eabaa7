"""What a recipe amounts to: its parameters, counted on torch's `meta` device, where nothing takes memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from zoo.auxiliary import AuxiliaryHead
from zoo.network import build_embedder, build_head, embedding_width
from zoo.recipe import Recipe

CHALLENGE_LANDMARKS = 14_951  # of the Google Landmark Recognition Challenge 2018
BYTES_PER_PARAMETER = 16  # of a training in fp32: the weight, its gradient and AdamW's two moments


@dataclass(frozen=True)
class RecipeFacts:
    """A recipe in numbers.

    Attributes:
        name: of the recipe.
        summary: in words.
        backbone: timm's name.
        weights: where they come from.
        frozen: whether the backbone stays as it is.
        head: its kind.
        size: of the input, pixels.
        features: D, what the head sees of a photo.
        backbone_parameters: weights of backbone and pooling.
        head_parameters: weights of the head that learn, for so many landmarks.
        auxiliary_parameters: of an auxiliary classifier, for as many; 0 where there is none.
        training_bytes: of everything that learns: weights, gradients and the optimiser's moments.
    """

    name: str
    summary: str
    backbone: str
    weights: str
    frozen: bool
    head: str
    size: int
    features: int
    backbone_parameters: int
    head_parameters: int
    auxiliary_parameters: int
    training_bytes: int


def describe(recipe: Recipe, *, landmarks: int = CHALLENGE_LANDMARKS) -> RecipeFacts:
    """Count a recipe's parameters for a number of landmarks; the class 'none of them' is not among them."""
    without_weights = recipe.backbone.model_copy(update={"weights": "random", "source": None})
    size, layer = recipe.input.size, recipe.train.auxiliary
    with torch.device("meta"):
        embedder = build_embedder(recipe.model_copy(update={"backbone": without_weights}), fold=False)
        features = embedding_width(embedder, size)
        head = build_head(recipe.head, features, torch.ones(landmarks, dtype=torch.long, device="cpu"))
        auxiliary = nn.Identity() if layer is None else AuxiliaryHead(embedder.backbone, layer, landmarks, size)
    backbone, top, inner = _count(embedder), _count(head), _count(auxiliary)
    learning = top if recipe.backbone.frozen else backbone + top + inner
    return RecipeFacts(
        name=recipe.name, summary=recipe.summary, backbone=recipe.backbone.name, weights=recipe.backbone.weights,
        frozen=recipe.backbone.frozen, head=recipe.head.kind, size=size, features=features,
        backbone_parameters=backbone, head_parameters=top, auxiliary_parameters=inner,
        training_bytes=learning * BYTES_PER_PARAMETER,
    )  # fmt: skip


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
