"""An auxiliary classifier on an inner layer of a backbone, as Inception has it: it helps training, answers nothing."""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import ConvNormAct
from torch import Tensor, nn
from torch.nn import functional

from engine.core.errors import ConfigError, did_you_mean

WEIGHT = 0.3  # of its loss: Szegedy et al. 2014 (arXiv 1409.4842), section 5
CELLS = 5  # per side of the map it sees: what Inception-v3's pooling leaves of 17 at 299 px


class AuxiliaryHead(nn.Module):
    """A classifier of a layer's map: pooled to 5 x 5, 1 x 1 to 128 channels, 5 x 5 to 768, one linear layer.

    The form is that of Inception-v3 (Szegedy et al. 2015, arXiv 1512.00567, figure 8); pooling to a fixed number of
    cells lets it stand on smaller photos and on other backbones.

    Args:
        backbone: the network; the layer's output is kept whenever it runs with gradients.
        layer: the path of one of its modules.
        classes: that it tells apart.
        size: of the photos, pixels.

    Raises:
        ConfigError: when the backbone has no such module, with the nearest names.
    """

    def __init__(self, backbone: nn.Module, layer: str, classes: int, size: int) -> None:
        super().__init__()
        modules = dict(backbone.named_modules())
        if layer not in modules:
            raise ConfigError(f"train.auxiliary: the backbone has no layer '{layer}' — {did_you_mean(layer, modules)}")
        self.layer = layer
        modules[layer].register_forward_hook(_keep)
        backbone.eval()(torch.zeros(1, 3, size, size))
        self.layers = nn.Sequential(
            nn.AdaptiveAvgPool2d(CELLS),
            ConvNormAct(self.take(backbone).shape[1], 128, kernel_size=1),
            ConvNormAct(128, 768, kernel_size=CELLS, padding=0),
            nn.Flatten(),
            nn.Linear(768, classes),
        )

    def take(self, backbone: nn.Module) -> Tensor:
        """The layer's map of the last pass, [B, C, h, w]; the backbone keeps it, and its graph, no longer."""
        kept: Tensor = backbone.get_submodule(self.layer).__dict__.pop("kept")
        return kept

    def loss(self, features: Tensor, targets: Tensor, smoothing: float) -> Tensor:
        """The weighted cross-entropy of maps [B, C, h, w] and classes int64 [B]; smoothing: of the labels, 0..1."""
        logits = self.layers(features).float()
        return WEIGHT * functional.cross_entropy(logits, targets, label_smoothing=smoothing)


def _keep(module: nn.Module, _inputs: Any, output: Tensor) -> None:
    """A hook that refers to no module but its own, so that a copied network keeps its own maps."""
    if torch.is_grad_enabled():
        module.__dict__["kept"] = output
