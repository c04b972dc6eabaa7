"""What each sampler shows of each class, by its definition, for any class sizes."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core.config import parse_section
from engine.core.errors import ConfigError
from zoo.samplers import SamplerConfig, epoch_order, sampled_sizes

KINDS = ["shuffled", "power", "log", "class-aware", "under", "over"]
SIZES = [90, 9, 1]
TARGETS = np.repeat([0, 1, 2], SIZES)
LAW = settings(deadline=None, max_examples=40)


@st.composite
def _targets(draw):
    """Classes in any order, some of them without photos."""
    sizes = draw(st.lists(st.integers(0, 12), min_size=2, max_size=6).filter(any))
    return np.array(draw(st.permutations(np.repeat(np.arange(len(sizes)), sizes).tolist())), np.int64)


def _order(targets, epoch=0, *, seed=0, batch_size=4, **config):
    return epoch_order(targets, SamplerConfig(**config), seed=seed, epoch=epoch, batch_size=batch_size)


def _counts(targets, order):
    """Photos shown of each class that has any."""
    return np.array([np.isin(order, np.flatnonzero(targets == one)).sum() for one in np.unique(targets)])


# ---- every sampler


@LAW
@given(targets=_targets(), kind=st.sampled_from(KINDS), seed=st.integers(0, 2**31 - 1), epoch=st.integers(0, 10_000))
def test_an_order_is_valid_and_depends_on_seed_and_epoch_only(targets, kind, seed, epoch):
    order = _order(targets, epoch, seed=seed, kind=kind)
    assert order.dtype == np.int64
    assert order.min() >= 0
    assert order.max() < len(targets)
    assert np.array_equal(order, _order(targets, epoch, seed=seed, kind=kind, batch_size=7))
    assert len(order) == len(_order(targets, epoch + 1, seed=seed, kind=kind))  # a resume counts steps per epoch


@pytest.mark.parametrize("kind", [*KINDS, "pk"])
def test_other_seeds_and_epochs_give_other_orders(kind):
    orders = [_order(TARGETS, epoch, seed=seed, kind=kind, batch_size=8) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    assert len({tuple(order) for order in orders}) == 3


# ---- shuffled, power, log


def test_shuffled_shows_each_photo_once():
    assert sorted(_order(TARGETS)) == list(range(100))


def test_power_draws_as_it_always_did():
    """Members that were trained before there were other samplers train to the same weights."""
    for power in (0.5, 1.0):
        chance = np.random.Generator(np.random.Philox(key=[3, 5]))
        weight = np.bincount(TARGETS)[TARGETS] ** -power
        expected = chance.choice(100, size=100, p=weight / weight.sum())
        assert np.array_equal(_order(TARGETS, 5, seed=3, kind="power", power=power), expected)
    assert np.array_equal(
        _order(TARGETS, 5, seed=3), np.random.Generator(np.random.Philox(key=[3, 5])).permutation(100)
    )


@pytest.mark.parametrize(
    ("config", "weights"),
    [
        ({"kind": "power", "power": 1.0}, [1.0, 1.0, 1.0]),
        ({"kind": "power", "power": 0.5}, [90**0.5, 9**0.5, 1.0]),
        ({"kind": "log"}, [90 / np.log(91), 9 / np.log(10), 1 / np.log(2)]),
    ],
)
def test_drawn_classes_come_by_their_weight(config, weights):
    shown = sampled_sizes(TARGETS, SamplerConfig(**config), seed=0, epochs=60, batch_size=4)
    np.testing.assert_allclose(shown / 100, weights / np.sum(weights), atol=4 * np.sqrt(0.25 / 6000))  # 4 std. errors


# ---- class-aware, under, over


@LAW
@given(targets=_targets(), seed=st.integers(0, 100), epoch=st.integers(0, 50))
def test_class_aware_counts_and_repeats_differ_by_at_most_one(targets, seed, epoch):
    order = _order(targets, epoch, seed=seed, kind="class-aware")
    assert len(order) == len(targets)
    counts = _counts(targets, order)
    assert counts.max() - counts.min() <= 1
    for one in np.unique(targets):
        times = np.bincount(order, minlength=len(targets))[targets == one]
        assert times.max() - times.min() <= 1


@LAW
@given(targets=_targets(), most=st.integers(1, 15), epoch=st.integers(0, 50))
def test_under_shows_at_most_so_many_photos_of_a_class_and_none_twice(targets, most, epoch):
    order = _order(targets, epoch, kind="under", most=most)
    sizes = np.unique(targets, return_counts=True)[1]
    assert _counts(targets, order).tolist() == np.minimum(sizes, most).tolist()
    assert len(set(order)) == len(order)


@LAW
@given(targets=_targets(), least=st.integers(1, 15), epoch=st.integers(0, 50))
def test_over_shows_every_photo_and_at_least_so_many_of_a_class(targets, least, epoch):
    order = _order(targets, epoch, kind="over", least=least)
    sizes = np.unique(targets, return_counts=True)[1]
    assert _counts(targets, order).tolist() == np.maximum(sizes, least).tolist()
    assert set(order) == set(range(len(targets)))


@LAW
@given(targets=_targets(), config=st.sampled_from([{"kind": "class-aware"}, {"kind": "under", "most": 3}]))
def test_photos_take_turns_over_the_epochs(targets, config):
    seen = np.concatenate([_order(targets, epoch, **config) for epoch in range(7)])
    for one in np.unique(targets):
        times = np.bincount(seen, minlength=len(targets))[targets == one]
        assert times.max() - times.min() <= 1


@pytest.mark.parametrize("kind", ["class-aware", "under", "over"])
def test_classes_are_mixed_within_an_epoch(kind):
    shown = np.repeat([0, 1], 50)[_order(np.repeat([0, 1], 50), kind=kind)]
    assert 25 < (np.diff(shown) != 0).sum() < 75  # about every second photo is of the other class


# ---- pk


@LAW
@given(targets=_targets(), photos=st.integers(2, 5), epoch=st.integers(0, 50), data=st.data())
def test_pk_batches_are_so_many_landmarks_with_so_many_photos(targets, photos, epoch, data):
    known = len(np.unique(targets))
    landmarks = data.draw(st.integers(2, max(known, 2)))
    config, batch_size = {"kind": "pk", "photos": photos}, landmarks * photos
    if known < 2:
        with pytest.raises(ConfigError, match="pk"):
            _order(targets, epoch, batch_size=batch_size, **config)
        return
    order = _order(targets, epoch, batch_size=batch_size, **config)
    assert np.array_equal(order, _order(targets, epoch, batch_size=batch_size, **config))
    batches = order.reshape(-1, batch_size)
    assert len(batches) == max(1, len(targets) // batch_size)
    for batch in batches:
        assert sorted(Counter(targets[batch].tolist()).values()) == [photos] * landmarks
        for one in np.unique(targets[batch]):
            different = len(set(batch[targets[batch] == one]))
            assert different == min(photos, (targets == one).sum())  # repeated only where there are fewer
    counts = _counts(targets, order)
    assert counts.max() - counts.min() in {0, photos}


def test_pk_mixes_other_landmarks_in_each_batch():
    targets = np.repeat(np.arange(20), 20)
    batches = targets[_order(targets, kind="pk", photos=4, batch_size=20)].reshape(-1, 20)
    assert len({tuple(sorted(set(batch))) for batch in batches.tolist()}) > 15  # of 20


@pytest.mark.parametrize("batch_size", [4, 6, 16])
def test_pk_refuses_a_batch_it_cannot_fill(batch_size):
    with pytest.raises(ConfigError, match=r"2 to 3 landmarks x 4 photos.*batch size of 4 times"):
        _order(TARGETS, kind="pk", batch_size=batch_size)


# ---- configuration, sizes


def test_an_unknown_sampler_and_a_power_beyond_its_range_are_refused():
    with pytest.raises(ConfigError, match="'class-aware'"):
        parse_section(SamplerConfig, {"kind": "classaware"}, source="here")
    with pytest.raises(ConfigError, match="power"):
        parse_section(SamplerConfig, {"kind": "power", "power": 0}, source="here")


def test_sampled_sizes_are_means_and_keep_classes_without_photos():
    targets = np.repeat([0, 2, 3], [1, 5, 4])
    found = sampled_sizes(targets, SamplerConfig(kind="class-aware"), seed=0, epochs=3, batch_size=4)
    np.testing.assert_allclose(found, [10 / 3, 0, 10 / 3, 10 / 3])
    assert sampled_sizes(targets, SamplerConfig(), seed=0, epochs=2, batch_size=4).tolist() == [1, 0, 5, 4]
