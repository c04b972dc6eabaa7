"""Generalised-mean pooling lies between the average and the maximum; flat pooling keeps places."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from zoo.pooling import FlatPool, GeM, make_pooling


def _features(*shape, dtype=torch.float32):
    return torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32).to(dtype)


# ---- generalised mean


@pytest.mark.parametrize("p", [0.5, 2.0, 3.0, 7.5])
def test_gem_is_its_definition(p):
    features = _features(2, 5, 4, 3).double()
    by_hand = (features**p).mean(dim=(2, 3)) ** (1 / p)
    torch.testing.assert_close(GeM(p)(features), by_hand, rtol=1e-5, atol=1e-6)


def test_gem_starts_at_three_and_has_one_parameter():
    assert [parameter.item() for parameter in GeM().parameters()] == [3.0]


def test_at_one_gem_is_the_average_and_for_a_large_p_nears_the_maximum():
    features = _features(2, 5, 7, 7)
    torch.testing.assert_close(GeM(1.0)(features), features.mean(dim=(2, 3)))
    highest = features.amax(dim=(2, 3))
    distances = [(highest - GeM(p)(features)).max().item() for p in (10.0, 100.0, 1000.0, 10_000.0)]
    assert distances == sorted(distances, reverse=True)
    assert 0 <= distances[-1] < 1e-3 < distances[0]


@settings(max_examples=25, deadline=None)
@given(
    p=st.floats(1, 200), times=st.floats(0.01, 1000), seed=st.integers(0, 2**16), side=st.integers(1, 5)
)  # fmt: skip
def test_gem_lies_between_average_and_maximum_and_scales_with_its_input(p, times, seed, side):
    features = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(seed)) + 0.1
    pooled = GeM(p)(features)
    assert (pooled >= features.mean(dim=(2, 3)) * 0.9999).all()
    assert (pooled <= features.amax(dim=(2, 3)) * 1.0001).all()
    torch.testing.assert_close(GeM(p)(features * times), pooled * times, rtol=1e-3, atol=0)


def test_negative_activations_count_as_nothing():
    features = _features(1, 2, 3, 3)
    features[0, 0, 0] = 0
    negative = features.clone()
    negative[0, 0, 0] = -5
    torch.testing.assert_close(GeM()(negative), GeM()(features))
    assert GeM()(torch.full((1, 2, 3, 3), -1.0)).abs().max() < 1e-5


def test_gradients_of_p_and_of_the_features_are_those_of_the_definition():
    pool, features = GeM(2.5), _features(2, 3, 3, 4).double() + 0.1
    p = torch.tensor(2.5, dtype=torch.float64, requires_grad=True)
    ours, theirs = features.clone().requires_grad_(), features.clone().requires_grad_()
    weight = torch.arange(6.0).view(2, 3)
    (pool(ours) * weight).sum().backward()
    (((theirs**p).mean(dim=(2, 3)) ** (1 / p)) * weight).sum().backward()
    torch.testing.assert_close(pool.p.grad.double(), p.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)


def test_an_empty_map_has_finite_gradients():
    pool, features = GeM(30.0), torch.zeros(1, 2, 3, 3, requires_grad=True)
    pool(features).sum().backward()
    assert torch.isfinite(features.grad).all()
    assert torch.isfinite(pool.p.grad)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("p", [3.0, 50.0])
def test_half_precision_neither_overflows_nor_loses_digits(dtype, p):
    features = (_features(2, 5, 7, 7) * 60_000).to(dtype)  # the cube overflows fp16, the 50th power fp32
    pooled = GeM(p)(features)
    assert pooled.dtype == dtype
    expected = (features.double() ** p).mean(dim=(2, 3)) ** (1 / p)
    torch.testing.assert_close(pooled.double(), expected, rtol=torch.finfo(dtype).eps, atol=0)


def test_a_dead_channel_in_half_precision_is_finite():
    pooled = GeM(eps=1e-9)(torch.zeros(1, 2, 3, 3, dtype=torch.float16))  # where eps itself is rounded to zero
    assert pooled.isfinite().all()


def test_under_autocast_powers_are_taken_in_full_precision():
    pool, features = GeM(), _features(2, 5, 7, 7)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(pool(features), GeM()(features))
    torch.testing.assert_close(pool(features), (features**3).mean(dim=(2, 3)) ** (1 / 3))


# ---- flat


def test_flat_pooling_averages_within_cells_and_keeps_their_order():
    features = _features(2, 3, 8, 8)
    pooled = FlatPool(4)(features)
    by_hand = features.view(2, 3, 4, 2, 4, 2).mean(dim=(3, 5)).flatten(1)
    torch.testing.assert_close(pooled, by_hand)


@pytest.mark.parametrize("shape", [(1, 3, 4, 4), (2, 5, 7, 7), (1, 3, 1, 1), (1, 2, 3, 5)])
def test_flat_pooling_has_sixteen_features_per_channel_whatever_the_map(shape):
    assert FlatPool()(_features(*shape)).shape == (shape[0], 16 * shape[1])


def test_one_cell_is_average_pooling():
    features = _features(2, 3, 5, 6)
    torch.testing.assert_close(FlatPool(1)(features), functional.adaptive_avg_pool2d(features, 1).flatten(1))


# ---- by name


@pytest.mark.parametrize(("name", "kind", "width"), [("gem", GeM, 2048), ("flat", FlatPool, 32_768)])
def test_a_pooling_is_made_by_its_name(name, kind, width):
    pool = make_pooling(name)
    assert isinstance(pool, kind)
    assert pool(torch.ones(1, 2048, 7, 7)).shape == (1, width)
