import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from torch import nn
from torch.nn import functional

from engine.core.errors import DataError
from zoo.delf import AttentionPool, Grid, fit_whitening, keypoints, suppress
from zoo.local import verify
from zoo.recipe import LocalConfig


@pytest.fixture
def pool() -> AttentionPool:
    torch.manual_seed(0)
    return AttentionPool(24)


def test_pooling_is_the_papers_sum(pool):
    torch.manual_seed(1)
    maps = torch.randn(2, 24, 3, 4)
    wanted = torch.zeros(2, 24)
    for photo in range(2):
        for y in range(3):
            for x in range(4):
                feature = maps[photo, :, y, x]
                alpha = pool.score(feature[None, :, None, None]).squeeze()
                wanted[photo] += alpha * feature / feature.norm()
    torch.testing.assert_close(pool(maps), wanted, rtol=1e-4, atol=1e-5)


def test_the_gradient_reaches_the_attention_and_the_features(pool):
    maps = torch.randn(4, 24, 3, 3, requires_grad=True)
    pool(maps).square().sum().backward()
    for name, value in [*pool.named_parameters(), ("maps", maps)]:
        assert value.grad is not None, name
        assert value.grad.abs().sum() > 0, name


def test_attention_learns_where_the_landmark_is():
    torch.manual_seed(0)
    network = nn.Sequential(AttentionPool(16), nn.Linear(16, 4, bias=False))
    signs = functional.normalize(torch.randn(4, 16), dim=1)
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(60):
        targets = torch.randint(4, (32,))
        maps, place = _signs_in_clutter(signs[targets])
        optimiser.zero_grad()
        functional.cross_entropy(network(maps), targets).backward()
        optimiser.step()
    maps, place = _signs_in_clutter(signs[torch.arange(4).repeat(8)])
    alpha = network[0].attention(maps).flatten(1)
    assert (alpha.argmax(dim=1) == place).float().mean() > 0.9


def _signs_in_clutter(signs):
    maps = functional.normalize(torch.randn(len(signs), 16, 25), dim=1)
    place = torch.randint(25, (len(signs),))
    maps[torch.arange(len(signs)), :, place] = signs
    return maps.unflatten(2, (5, 5)), place


def test_whitening_gives_identity_covariance_and_unit_length():
    torch.manual_seed(0)
    descriptors = torch.randn(500, 12) @ torch.randn(12, 12) + 2
    whitening = fit_whitening(descriptors, 7)
    torch.testing.assert_close(whitening.project(descriptors).T.cov(), torch.eye(7), atol=1e-3, rtol=0)
    torch.testing.assert_close(whitening(descriptors).norm(dim=1), torch.ones(500))


def test_whitening_is_scikit_learns_but_for_signs():
    torch.manual_seed(0)
    descriptors = torch.randn(300, 10) @ torch.randn(10, 10)
    directions = functional.normalize(descriptors.double(), dim=1).numpy()
    wanted = PCA(4, whiten=True, svd_solver="full").fit_transform(directions)
    got = fit_whitening(descriptors, 4).project(descriptors).numpy()
    np.testing.assert_allclose(np.abs(got), np.abs(wanted), atol=1e-3)


@pytest.mark.parametrize("descriptors", [torch.randn(5, 12), torch.ones(50, 12), torch.randn(1, 12)])
def test_too_few_descriptors_are_refused(descriptors):
    with pytest.raises(DataError, match="fewer than the 7 to keep"):
        fit_whitening(descriptors, 7)


def _whitening(width=24):
    torch.manual_seed(2)
    return fit_whitening(torch.randn(200, width), 8)


def test_keypoints_lie_on_the_grids_of_their_scales(pool):
    torch.manual_seed(3)
    maps = [torch.randn(2, 24, 8, 8), torch.randn(2, 24, 4, 4)]
    for photo, found in enumerate(
        keypoints(pool, maps, [Grid.at_scale(1.0), Grid.at_scale(0.5)], _whitening(), count=500, radius=0.1)
    ):
        alpha = torch.cat([pool.attention(features)[photo].flatten() for features in maps])
        centres = [(16 * x, 16 * y) for y in range(8) for x in range(8)]
        centres += [(32 * x + 0.5, 32 * y + 0.5) for y in range(4) for x in range(4)]
        above = (alpha > alpha.mean()).nonzero()[:, 0].tolist()
        wanted = sorted(above, key=lambda place: -alpha[place].item())
        np.testing.assert_allclose(found.positions, [centres[place] for place in wanted])
        np.testing.assert_allclose(found.scores, alpha[wanted].detach(), rtol=1e-6)
        assert found.descriptors.shape == (len(wanted), 8)


def test_keypoints_are_at_most_the_count_and_verify_a_shifted_map(pool):
    torch.manual_seed(4)
    scene = torch.randn(1, 24, 20, 24)
    here, there = scene[..., :16, :16], scene[..., 2:18, 5:21]
    found = [keypoints(pool, [part], [Grid.at_scale(1.0)], _whitening(), count=90)[0] for part in (here, there)]
    assert max(map(len, found)) <= 90
    result = verify(found[0], [found[1]], LocalConfig(threshold=16), seed=0)
    assert result.inliers[0] > 25
    np.testing.assert_allclose(result.maps[0], [[1, 0, -80], [0, 1, -32]], atol=1e-2)


@pytest.mark.parametrize("size", [(1, 1), (2, 3)])
def test_maps_without_structure_have_no_keypoints(pool, size):
    flat = torch.full((1, 24, *size), 0.3)
    (found,) = keypoints(pool, [flat], [Grid.at_scale(1.0)], _whitening(), count=10)
    assert len(found) == 0
    assert found.descriptors.shape == (0, 8)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 999), st.integers(1, 40), st.floats(0.1, 60))
def test_suppression_keeps_what_no_higher_kept_place_is_near(seed, count, radius):
    generator = torch.Generator().manual_seed(seed)
    places = torch.rand(count, 2, generator=generator) * 100
    scores = torch.rand(count, generator=generator)
    wanted = []
    for place in sorted(range(count), key=lambda p: -scores[p].item()):
        far = all(((places[place] - places[other]) ** 2).sum() ** 0.5 >= radius for other in wanted)
        if far and scores[place] > scores.mean() * (1 + 1e-5):
            wanted.append(place)
    assert suppress(places, scores, radius).tolist() == wanted
