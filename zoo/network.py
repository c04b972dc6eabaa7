"""The network of a member: normalisation, backbone, head, one function from a uint8 batch to logits."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise
from typing import cast

import torch
from timm.models import group_modules
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from engine.core.errors import ConfigError
from zoo.auxiliary import AuxiliaryHead
from zoo.delf import AttentionPool
from zoo.heads import ArcFaceHead, HadamardHead, Head, LandmarkHead
from zoo.mixing import Mix
from zoo.photo_heads import NeighbourHead, PrototypeHead
from zoo.pooling import make_pooling
from zoo.recipe import OWN_POOLINGS, BackboneConfig, HeadConfig, Recipe
from zoo.weights import TimmNetwork, build_backbone


class Embedder(nn.Module):
    """A backbone from uint8 images to embeddings; the normalisation lives here, beside the weights it belongs to.

    Args:
        backbone: from normalised float [B, 3, S, S] to [B, D], or to a map [B, C, h, w] for `pool`.
        pool: from what the backbone gives to [B, D].
    """

    def __init__(self, backbone: nn.Module, pool: nn.Module | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.pool = pool or nn.Identity()
        statistics = cast("TimmNetwork", backbone).pretrained_cfg
        for name in ("mean", "std"):
            value = torch.tensor(statistics[name]).view(1, 3, 1, 1) * 255
            self.register_buffer(name, value, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """uint8 or float [B, 3, S, S] in 0..255 -> embeddings [B, D]."""
        pixels = (images.float() - self.get_buffer("mean")) / self.get_buffer("std")
        embedding: Tensor = self.pool(self.backbone(pixels.contiguous(memory_format=torch.channels_last)))
        return embedding


class Network(nn.Module):
    """Embedder and head: one function from a batch to logits, and with targets to the loss.

    Args:
        embed: from a batch to embeddings [B, D]; the identity where a frozen backbone made them before.
        head: from embeddings to logits [B, C].
        auxiliary: one more classifier for the loss, on the embedder's backbone.
    """

    def __init__(self, embed: nn.Module, head: LandmarkHead, auxiliary: AuxiliaryHead | None = None) -> None:
        super().__init__()
        self.embed = embed
        self.head = head
        self.auxiliary = auxiliary

    def forward(
        self, batch: Tensor, targets: Tensor | None = None, smoothing: float = 0.0, mix: Mix | None = None
    ) -> Tensor:
        """Photos [B, 3, S, S] in 0..255, or embeddings [B, D] -> logits [B, C]; with classes int64 [B] the loss.

        The loss of a mixed batch is that of each photo's own class and its partner's, by their shares.
        """
        embedding = self.embed(batch)
        if targets is None:
            logits: Tensor = self.head(embedding)
            return logits
        inner = None if self.auxiliary is None else self.auxiliary.take(self.embed.get_submodule("backbone"))
        loss = self._loss(embedding, inner, targets, smoothing)
        if mix is None:
            return loss
        return mix.share * loss + (1 - mix.share) * self._loss(embedding, inner, targets[mix.partner], smoothing)

    def _loss(self, embedding: Tensor, inner: Tensor | None, targets: Tensor, smoothing: float) -> Tensor:
        loss = self.head.loss(embedding, targets, smoothing)
        if self.auxiliary is None or inner is None:
            return loss
        return loss + self.auxiliary.loss(inner, targets, smoothing)


def build_network(recipe: Recipe, counts: Tensor, *, none_class: int | None = None) -> Network:
    """The whole network of a recipe.

    Args:
        recipe: the member.
        counts: training photos of each class, int64 [C].
        none_class: the class of 'none of them', if there is one.
    """
    embed, size = build_embedder(recipe, fold=recipe.train.fold_norm), recipe.input.size
    head = build_head(recipe.head, embedding_width(embed, size), counts, none_class=none_class)
    layer = recipe.train.auxiliary
    return Network(embed, head, None if layer is None else AuxiliaryHead(embed.backbone, layer, len(counts), size))


def build_head(config: HeadConfig, width: int, counts: Tensor, *, none_class: int | None = None) -> LandmarkHead:
    """The head a recipe asks for.

    Args:
        config: the recipe's head.
        width: D of the embedding.
        counts: training photos of each class, int64 [C].
        none_class: the class of 'none of them', if there is one.

    Raises:
        ConfigError: when the embedding is too narrow for a Hadamard head.
    """
    classes = len(counts)
    match config.kind:
        case "linear":
            return Head(width, classes, config)
        case "hadamard":
            return HadamardHead(width, classes, config)
        case "arcface":
            return ArcFaceHead(width, counts, config)
        case "neighbours":
            return NeighbourHead(width, classes, int(counts.sum()), config, none_class)
        case "prototypes":
            return PrototypeHead(width, classes, config, none_class)


def build_embedder(recipe: Recipe, *, fold: bool) -> Embedder:
    """The backbone of a recipe with its pooling, its batch norms folded into its convolutions or not.

    Raises:
        ConfigError: when the backbone does not take photos of the recipe's sizes, or makes no map for its pooling; and
            as `build_backbone`.
    """
    backbone = build_backbone(recipe.backbone)
    channels = _try_out(backbone, recipe.backbone, recipe.input.size)
    if recipe.train.first_size is not None:
        _try_out(backbone, recipe.backbone, recipe.train.first_size)
    if fold:
        backbone = fold_batch_norms(backbone, recipe.input.size)
    if recipe.backbone.pooling == "attention":
        return Embedder(backbone, AttentionPool(channels))
    return Embedder(backbone, make_pooling(recipe.backbone.pooling))


@torch.inference_mode()
def _try_out(backbone: nn.Module, config: BackboneConfig, size: int) -> int:
    """The channels of what a backbone makes, or what does not fit, while that can still be told from a fault."""
    try:
        made = backbone.eval()(torch.zeros(1, 3, size, size))
    except (AssertionError, RuntimeError) as error:
        own = cast("TimmNetwork", backbone).pretrained_cfg["input_size"][-1]
        raise ConfigError(
            f"backbone '{config.name}' does not take photos of {size} px: {error}", hint=f"it was made for {own} px"
        ) from error
    if config.pooling in OWN_POOLINGS and (made.ndim != 4 or getattr(backbone, "output_fmt", "NCHW") != "NCHW"):
        raise ConfigError(
            f"backbone '{config.name}' makes no map of channels, which backbone.pooling = '{config.pooling}' takes",
            hint="a transformer has 'avg' and mostly 'token'",
        )
    return int(made.shape[1])


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
        if isinstance(network, Network) and isinstance(network.embed, Embedder):
            for stage in frozen_stages(network.embed.backbone, recipe.train.freeze_stages):
                stage.requires_grad_(requires_grad=False).eval()

    return set_mode


def frozen_stages(backbone: nn.Module, count: int) -> list[nn.Module]:
    """The layers of the first `count` stages of a timm backbone; the stem is the first stage.

    Stages are timm's own coarse groups: `layer1` … in ResNet, `blocks.0` … in EfficientNet.
    """
    if count == 0:
        return []
    groups = group_modules(backbone, cast("TimmNetwork", backbone).group_matcher(coarse=True), return_values=True)
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
