"""An auxiliary classifier adds to the loss, reaches the layers below it, and leaves the answers alone."""

import copy

import pytest
import torch
from torch.nn import functional

from engine.core.errors import ConfigError
from zoo.auxiliary import WEIGHT
from zoo.network import build_network
from zoo.recipe import load_recipe

LAYER = "blocks.1"
TARGETS = torch.tensor([0, 1, 2, 0])


def _network(**settings):
    torch.manual_seed(0)
    return build_network(load_recipe("tiny-scratch", settings), torch.ones(3, dtype=torch.long))


@pytest.fixture
def network():
    return _network(**{"train.auxiliary": LAYER})


@pytest.fixture
def batch():
    return torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 255


def test_it_adds_its_share_to_the_loss(network, batch):
    network.eval()
    maps = []
    network.embed.backbone.get_submodule(LAYER).register_forward_hook(lambda _m, _i, output: maps.append(output))
    loss = network(batch, TARGETS)
    own = functional.cross_entropy(network(batch), TARGETS)
    extra = functional.cross_entropy(network.auxiliary.layers(maps[0]), TARGETS)
    torch.testing.assert_close(loss, own + WEIGHT * extra)


def test_its_gradient_reaches_the_layers_below_and_none_above(network, batch):
    network.eval()
    network.embed(batch)
    network.auxiliary.loss(network.auxiliary.take(network.embed.backbone), TARGETS, 0.0).backward()
    backbone = network.embed.backbone
    assert backbone.conv_stem.weight.grad.abs().sum() > 0
    assert backbone.conv_head.weight.grad is None


def test_answers_are_those_of_the_head_alone(network, batch):
    network.eval()
    with torch.inference_mode():
        assert torch.equal(network(batch), network.head(network.embed(batch)))
    assert "kept" not in network.embed.backbone.get_submodule(LAYER).__dict__


def test_a_copy_keeps_its_own_maps(network, batch):
    network.eval()
    twin = copy.deepcopy(network)
    network.embed(batch)
    twin.embed(batch[:2])
    assert len(network.auxiliary.take(network.embed.backbone)) == 4
    assert len(twin.auxiliary.take(twin.embed.backbone)) == 2


def test_inceptions_own_stands_where_its_paper_has_it():
    recipe = load_recipe("inception-v3-scratch")
    network = build_network(recipe, torch.ones(3, dtype=torch.long))
    assert network.auxiliary.layers[1].conv.in_channels == 768
    assert network.auxiliary.layers[2].conv.weight.shape == (768, 128, 5, 5)


def test_an_unknown_layer_is_told_with_its_nearest_names():
    with pytest.raises(ConfigError, match=r"no layer 'blocks\.11'.*blocks\.1"):
        _network(**{"train.auxiliary": "blocks.11"})


def test_a_frozen_backbone_has_none():
    with pytest.raises(ConfigError, match=r"train\.auxiliary is for photos"):
        load_recipe("tiny-frozen", {"train.auxiliary": LAYER})
