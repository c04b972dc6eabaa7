"""Mixup and CutMix: what is mixed, how much of it, and the loss of a mixture."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from engine.core.errors import ConfigError
from zoo.mixing import Mix, mix_batch
from zoo.network import Network, build_head
from zoo.recipe import HeadConfig, TrainConfig, load_recipe

BATCH = torch.arange(6.0)[:, None, None, None].expand(6, 3, 24, 16)  # each photo is one number throughout


def _mixes(config, count=200):
    torch.manual_seed(3)
    return [mix_batch(BATCH, config) for _ in range(count)]


def test_nothing_is_drawn_when_it_is_off():
    before = torch.get_rng_state()
    assert mix_batch(BATCH, TrainConfig()) is None
    assert torch.equal(torch.get_rng_state(), before)


def test_mixup_is_the_weighted_sum_of_two_photos():
    for mix in _mixes(TrainConfig(mixup=0.4)):
        expected = mix.share * BATCH + (1 - mix.share) * BATCH[mix.partner]
        torch.testing.assert_close(mix.batch, expected)


def test_shares_follow_the_beta_distribution():
    shares = np.array([mix.share for mix in _mixes(TrainConfig(mixup=0.4), 2000)])
    assert abs(shares.mean() - 0.5) < 0.03
    assert abs(shares.var() - 1 / (4 * (2 * 0.4 + 1))) < 0.015  # of Beta(a, a)


def test_cutmix_is_one_rectangle_of_the_partner_and_tells_what_is_left():
    whole = 0
    for mix in _mixes(TrainConfig(cutmix=1.0)):
        row = int((mix.partner - torch.arange(6)).abs().argmax())
        if mix.partner[row] == row:  # every photo was mixed with itself
            continue
        foreign = (mix.batch[row] != BATCH[row]).all(dim=0)
        assert foreign.float().mean().item() == pytest.approx(1 - mix.share, abs=1e-6)
        rows, columns = foreign.any(dim=1), foreign.any(dim=0)
        assert torch.equal(foreign, rows[:, None] & columns)
        whole += mix.share in (0, 1)
    assert whole < 30


def test_both_together_take_turns():
    kinds = [bool((mix.batch == mix.batch.round()).all()) for mix in _mixes(TrainConfig(mixup=1.0, cutmix=1.0))]
    assert 60 < sum(kinds) < 140


def test_the_same_seed_mixes_the_same():
    config = TrainConfig(mixup=1.0, cutmix=1.0)
    for one, two in zip(_mixes(config, 5), _mixes(config, 5), strict=True):
        assert torch.equal(one.batch, two.batch)
        assert torch.equal(one.partner, two.partner)


def test_the_loss_is_that_of_soft_labels():
    torch.manual_seed(0)
    network = Network(nn.Identity(), build_head(HeadConfig(), 5, torch.ones(4, dtype=torch.long)))
    nn.init.normal_(network.head.linear.weight)
    batch, targets, partner = torch.randn(6, 5), torch.tensor([0, 1, 2, 3, 0, 1]), torch.tensor([3, 2, 1, 0, 5, 4])
    soft = 0.7 * functional.one_hot(targets, 4) + 0.3 * functional.one_hot(targets[partner], 4)
    expected = functional.cross_entropy(network(batch), soft, label_smoothing=0.1)
    torch.testing.assert_close(network(batch, targets, 0.1, Mix(batch, partner, 0.7)), expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backbone.frozen": True, "train.cutmix": 1.0}, r"train\.cutmix is for photos"),
        ({"backbone.frozen": True, "train.first_size": 16}, r"train\.first_size is for photos"),
        ({"head.kind": "prototypes", "train.mixup": 1.0}, "a triplet has none"),
    ],
)
def test_what_cannot_be_mixed_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        load_recipe("tiny-scratch", settings)
