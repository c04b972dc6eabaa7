"""The network of a member: normalisation, backbone, head, one function from a uint8 batch to logits."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from itertools import pairwise

import torch
from timm.models import group_modules
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from zoo.recipe import HeadConfig, Recipe
from zoo.weights import build_backbone


class Head(nn.Module):
    """Embedding to logits over the classes: one linear layer, on the embedding as `config` says.

    Args:
        width: D of the embedding.
        classes: L landmarks, plus one for 'none of them' when the member has that class.
        config: norm, cosine and dropout.
    """

    def __init__(self, width: int, classes: int, config: HeadConfig) -> None:
        super().__init__()
        self.config = config
        self.norm = nn.BatchNorm1d(width, affine=False) if config.norm == "batch" else nn.Identity()
        self.dropout = nn.Dropout(config.dropout)
        self.linear = nn.Linear(width, classes, bias=not config.cosine)
        nn.init.normal_(self.linear.weight, std=0.01)  # starts at equal odds whatever the embedding's length
        if not config.cosine:
            nn.init.zeros_(self.linear.bias)

    def forward(self, embedding: Tensor) -> Tensor:
        """[B, D] -> logits [B, C]."""
        if self.config.norm == "l2":
            embedding = functional.normalize(embedding, dim=1) * embedding.shape[1] ** 0.5  # unit variance per feature
        embedding = self.dropout(self.norm(embedding))
        if not self.config.cosine:
            logits: Tensor = self.linear(embedding)
            return logits
        weight = functional.normalize(self.linear.weight, dim=1)
        return self.config.scale * functional.linear(functional.normalize(embedding, dim=1), weight)


class NeighbourHead(nn.Module):
    """Embedding to logits by the training photos themselves: each votes for its class with exp(scale * cosine).

    Cosines are taken between embeddings minus their mean over the training photos, which all photos share. The logit of
    a class is the logarithm of its photos' votes, so the softmax is a kernel density estimate of the classes.

    Args:
        width: D of the embedding.
        classes: C.
        photos: N training photos.
        scale: how fast a vote falls with the angle.
    """

    def __init__(self, width: int, classes: int, photos: int, scale: float) -> None:
        super().__init__()
        self.classes, self.scale = classes, scale
        self.register_buffer("centre", torch.zeros(width))
        self.register_buffer("index", torch.zeros(photos, width))
        self.register_buffer("targets", torch.zeros(photos, dtype=torch.long))

    def fill(self, embeddings: Tensor, targets: Tensor) -> None:
        """Take the training photos in: embeddings [N, D] and their classes [N]."""
        centre = functional.normalize(embeddings, dim=1).mean(dim=0)
        self.load_state_dict({"centre": centre, "index": self._direction(embeddings, centre), "targets": targets})

    def forward(self, embedding: Tensor) -> Tensor:
        """[B, D] -> logits [B, C]; a class without photos has the logit of a vote at the far side, -scale."""
        direction = self._direction(embedding, self.get_buffer("centre"))
        votes = torch.exp(self.scale * (direction @ self.get_buffer("index").T - 1))  # [B, N] in 0..1
        total = torch.full((len(votes), self.classes), math.exp(-2 * self.scale), device=votes.device)
        return total.index_add(1, self.get_buffer("targets"), votes).log() + self.scale

    @staticmethod
    def _direction(embeddings: Tensor, centre: Tensor) -> Tensor:
        return functional.normalize(functional.normalize(embeddings, dim=1) - centre, dim=1)


class Embedder(nn.Module):
    """A backbone from uint8 images to embeddings; the normalisation lives here, beside the weights it belongs to.

    Args:
        backbone: from normalised float [B, 3, S, S] to [B, D].
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        statistics = backbone.pretrained_cfg
        for name in ("mean", "std"):
            value = torch.tensor(statistics[name]).view(1, 3, 1, 1) * 255  # type: ignore[index] # timm's dict
            self.register_buffer(name, value, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """uint8 or float [B, 3, S, S] in 0..255 -> embeddings [B, D]."""
        pixels = (images.float() - self.get_buffer("mean")) / self.get_buffer("std")
        embedding: Tensor = self.backbone(pixels.contiguous(memory_format=torch.channels_last))
        return embedding


class Network(nn.Module):
    """Embedder and head: one function from a uint8 batch to logits.

    Args:
        recipe: the member.
        classes: C, width of the logits.
    """

    def __init__(self, recipe: Recipe, classes: int) -> None:
        super().__init__()
        backbone = build_backbone(recipe.backbone)
        self.embed = Embedder(fold_batch_norms(backbone, recipe.input.size) if recipe.train.fold_norm else backbone)
        self.head = Head(embedding_width(self.embed, recipe.input.size), classes, recipe.head)

    def forward(self, images: Tensor) -> Tensor:
        """uint8 or float [B, 3, S, S] in 0..255 -> logits [B, C]."""
        logits: Tensor = self.head(self.embed(images))
        return logits


class FrozenNetwork(nn.Module):
    """A head alone, fed with embeddings that a frozen backbone made before.

    Args:
        head: from embeddings [B, D] to logits [B, C].
    """

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.embed = nn.Identity()
        self.head = head

    def forward(self, embeddings: Tensor) -> Tensor:
        """Embeddings [B, D] -> logits [B, C]."""
        logits: Tensor = self.head(embeddings)
        return logits


@torch.inference_mode()
def embedding_width(embedder: nn.Module, size: int) -> int:
    """D of an embedder, asked of the network itself since poolings and architectures differ."""
    return int(embedder.eval()(torch.zeros(1, 3, size, size)).shape[1])


def trains_faster_mixed(network: nn.Module, device: torch.device) -> bool:
    """Whether a training step gains from mixed precision: not on a CPU with convolutions in groups.

    The backward pass of a depthwise convolution took four times as long in bf16 as in fp32 on two AVX-512 cores.
    """
    grouped = any(isinstance(module, nn.Conv2d) and module.groups > 1 for module in network.modules())
    return device.type != "cpu" or not grouped


def train_mode(recipe: Recipe) -> Callable[[nn.Module], None]:
    """How a recipe's network is put in training mode: frozen stages stay as they are."""

    def set_mode(network: nn.Module) -> None:
        network.train()
        if isinstance(network, Network):
            for stage in frozen_stages(network.embed.backbone, recipe.train.freeze_stages):
                stage.requires_grad_(requires_grad=False).eval()

    return set_mode


def frozen_stages(backbone: nn.Module, count: int) -> list[nn.Module]:
    """The layers of the first `count` stages of a timm backbone; the stem is the first stage.

    Stages are timm's own coarse groups: `layer1` … in ResNet, `blocks.0` … in EfficientNet.
    """
    if count == 0:
        return []
    groups = group_modules(backbone, backbone.group_matcher(coarse=True), return_values=True)  # type: ignore[operator]
    return [layer for stage in range(count) for layer in groups.get(stage, [])]


def fold_batch_norms(network: nn.Module, size: int) -> nn.Module:
    """Fold each batch norm into the convolution before it, which about doubles the speed of light networks on a CPU.

    Pairs are found by their order among a module's children; the result is compared with the network's own output, and
    the network is returned as it was when they differ (its modules then run in another order than they stand in).

    Args:
        network: from float [B, 3, size, size] to [B, D].
        size: of the trial images, in pixels.
    """
    trial = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    was_training = network.training
    network.eval()
    folded = copy.deepcopy(network)
    for parent in list(folded.modules()):
        _fold_children(parent)
    with torch.inference_mode():
        same = torch.allclose(network(trial), folded(trial), rtol=1e-2, atol=1e-3)
    return (folded if same else network).train(was_training)


def _fold_children(parent: nn.Module) -> None:
    children = list(parent.named_children())
    for (conv_name, conv), (norm_name, norm) in pairwise(children):
        if not isinstance(conv, nn.Conv2d) or not isinstance(norm, nn.BatchNorm2d):
            continue
        if conv.out_channels == norm.num_features:
            fused = fuse_conv_bn_eval(conv, norm)
            fused.requires_grad_(conv.weight.requires_grad)  # torch leaves the bias it adds without a gradient
            setattr(parent, conv_name, fused)
            after = [getattr(norm, part) for part in ("drop", "act") if hasattr(norm, part)]  # timm's BatchNormAct2d
            setattr(parent, norm_name, nn.Sequential(*after))
