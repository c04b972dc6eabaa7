"""A network is one function from uint8 photos to logits, and parts that are frozen stay as they are."""

import copy

import numpy as np
import pytest
import timm
import torch
from torch import nn

from engine.core.errors import ConfigError
from zoo.heads import Head
from zoo.network import (
    Embedder,
    Network,
    build_embedder,
    build_network,
    embedding_width,
    fold_batch_norms,
    frozen_stages,
    train_mode,
    trains_faster_mixed,
)
from zoo.recipe import HeadConfig, load_recipe

COUNTS = torch.tensor([5, 4, 3, 2, 1])
CHANCE = np.random.default_rng(0)
PHOTOS = torch.from_numpy(CHANCE.integers(0, 256, (4, 3, 32, 32), dtype=np.uint8))


def _batch_norms(network):
    return [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]


def _with_real_statistics(network):
    """As after a training: every batch norm has its own statistics and weights."""
    torch.manual_seed(0)
    for norm in _batch_norms(network):
        nn.init.uniform_(norm.weight, 0.5, 2)
        nn.init.uniform_(norm.bias, -1, 1)
        nn.init.uniform_(norm.running_mean, -1, 1)
        nn.init.uniform_(norm.running_var, 0.5, 2)
    return network.eval()


# ---- the embedder and the network


def test_the_embedder_normalises_as_the_weights_were_trained():
    backbone = timm.create_model("test_resnet", num_classes=0).eval()
    mean, std = (torch.tensor(backbone.pretrained_cfg[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    expected = backbone((PHOTOS.float() / 255 - mean) / std)
    torch.testing.assert_close(Embedder(backbone)(PHOTOS), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(Embedder(backbone)(PHOTOS.float()), Embedder(backbone)(PHOTOS))


def _with_backbone(name, **settings):
    changes = {"backbone.name": name, "backbone.weights": "random", **settings}
    return load_recipe("tiny-scratch", changes)


@pytest.mark.parametrize(
    ("name", "settings", "size"),
    [
        ("vit_tiny_patch16_224", {"input.size": 40}, 40),
        ("vit_tiny_patch16_224", {"input.size": 64, "train.first_size": 40}, 40),
        ("mixer_s32_224", {"input.size": 64}, 64),
    ],
)
def test_photos_that_a_backbone_does_not_take_are_told_with_what_it_was_made_for(name, settings, size):
    with pytest.raises(ConfigError, match=rf"backbone '{name}' does not take photos of {size} px") as caught:
        build_embedder(_with_backbone(name, **settings), fold=True)
    assert caught.value.hint == "it was made for 224 px"


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_a_pooling_of_maps_is_not_given_patches(name):
    with pytest.raises(ConfigError, match=r"makes no map of channels, which backbone\.pooling = 'gem' takes"):
        build_embedder(_with_backbone(name, **{"input.size": 64, "backbone.pooling": "gem"}), fold=True)


def test_a_network_is_its_embedder_and_then_its_head(scratch):
    network = build_network(scratch, COUNTS).eval()
    assert network(PHOTOS).shape == (4, 5)
    assert torch.equal(network(PHOTOS), network.head(network.embed(PHOTOS)))
    assert embedding_width(network.embed, 32) == network.embed(PHOTOS).shape[1]


def test_a_frozen_network_is_a_head_on_given_embeddings():
    network = Network(nn.Identity(), Head(6, 3, HeadConfig())).eval()
    embeddings = torch.randn(4, 6)
    assert torch.equal(network(embeddings), network.head(network.embed(embeddings)))
    assert {name.split(".")[0] for name in network.state_dict()} == {"head"}


@pytest.mark.parametrize(
    ("name", "device", "gains"),
    [("test_resnet", "cpu", True), ("test_efficientnet", "cpu", False), ("test_efficientnet", "cuda", True)],
)
def test_a_training_step_gains_from_mixed_precision_but_for_grouped_convolutions_on_a_cpu(name, device, gains):
    assert trains_faster_mixed(timm.create_model(name, num_classes=0), torch.device(device)) == gains


# ---- frozen stages


@pytest.mark.parametrize(
    ("architecture", "stages"),
    [
        ("test_resnet", [{"conv1", "bn1"}, {"layer1"}, {"layer2"}]),
        ("resnet18", [{"conv1", "bn1"}, {"layer1"}, {"layer2"}]),
        ("test_efficientnet", [{"conv_stem", "bn1"}, {"blocks.0"}, {"blocks.1"}]),
    ],
)
def test_stages_are_counted_from_the_stem(architecture, stages):
    backbone = timm.create_model(architecture, num_classes=0)
    for count in range(len(stages) + 1):
        frozen = {id(layer) for layer in frozen_stages(backbone, count)}
        names = [name for name, module in backbone.named_modules() if id(module) in frozen]
        # blocks.0.1.conv_pw -> blocks.0, layer1.0.conv1 -> layer1
        found = {".".join(name.split(".")[: 1 + name.startswith("blocks")]) for name in names}
        assert found == set().union(*stages[:count])


def test_frozen_stages_get_no_gradient_and_keep_their_statistics(scratch):
    recipe = scratch.model_copy(update={"train": scratch.train.model_copy(update={"freeze_stages": 2})})
    network = build_network(recipe, COUNTS)
    before = copy.deepcopy(network.state_dict())
    train_mode(recipe)(network)
    network(PHOTOS).sum().backward()
    frozen = ("embed.backbone.conv_stem", "embed.backbone.bn1", "embed.backbone.blocks.0")
    for name, parameter in network.named_parameters():
        assert (parameter.grad is None) == name.startswith(frozen), name
    after = network.state_dict()
    moved = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert moved
    assert not any(name.startswith(frozen) for name in moved)


def test_a_network_without_frozen_stages_trains_whole(scratch):
    network = build_network(scratch, COUNTS).eval()
    train_mode(scratch)(network)
    assert all(module.training for module in network.modules())
    assert all(parameter.requires_grad for parameter in network.parameters())


# ---- folded batch norms


@pytest.mark.parametrize(
    ("name", "left"),
    [("test_resnet", 1), ("test_efficientnet", 0)],  # ResNet's deep stem ends inside a Sequential, its norm outside
)
def test_folding_keeps_the_output_and_leaves_fewer_batch_norms(name, left):
    network = _with_real_statistics(timm.create_model(name, num_classes=0))
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        expected = network(images)
        folded = fold_batch_norms(network, 32)
        torch.testing.assert_close(folded(images), expected, rtol=1e-3, atol=1e-4)
    assert len(_batch_norms(folded)) == left < len(_batch_norms(network))


class _BackToFront(nn.Module):
    """Its modules stand in one order and run in the other."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, images):
        return self.conv(self.norm(images)).mean(dim=(2, 3))


def test_a_network_that_runs_in_another_order_is_returned_as_it_was():
    network = _with_real_statistics(_BackToFront())
    images = torch.randn(2, 3, 8, 8)
    expected = network(images)
    assert fold_batch_norms(network, 8) is network
    assert torch.equal(network(images), expected)


def test_a_batch_norm_of_another_width_is_left_alone():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.PixelShuffle(2), nn.BatchNorm2d(1), nn.Flatten())
    assert len(_batch_norms(fold_batch_norms(network.eval(), 8))) == 1


@pytest.mark.parametrize("training", [True, False])
def test_folding_leaves_the_mode_as_it_was(training):
    network = timm.create_model("test_resnet", num_classes=0).train(training)
    assert all(module.training == training for module in fold_batch_norms(network, 32).modules())


def test_a_recipe_may_train_with_folded_norms():
    recipe = load_recipe("tiny-scratch", {"train.fold_norm": True})
    network = build_network(recipe, COUNTS)
    assert not _batch_norms(network)
    network.eval()
    train_mode(recipe)(network)
    network(PHOTOS).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
