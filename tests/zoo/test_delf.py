import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from torch.nn import functional

from engine.core.errors import DataError
from zoo.delf import DelfHead, Grid, fit_whitening, keypoints, suppress
from zoo.local import verify
from zoo.recipe import LocalConfig


@pytest.fixture
def head() -> DelfHead:
    torch.manual_seed(0)
    return DelfHead(24, 5)


def test_logits_are_the_papers_sum(head):
    torch.manual_seed(1)
    maps = torch.randn(2, 24, 3, 4)
    wanted = torch.zeros(2, 5)
    for photo in range(2):
        for y in range(3):
            for x in range(4):
                feature = maps[photo, :, y, x]
                alpha = head.score(feature[None, :, None, None]).squeeze()
                wanted[photo] += head.linear.weight @ (alpha * feature / feature.norm())
    torch.testing.assert_close(head(maps), wanted, rtol=1e-4, atol=1e-5)


def test_the_gradient_reaches_attention_and_w(head):
    head.loss(torch.randn(4, 24, 3, 3), torch.tensor([0, 1, 2, 4]), 0.1).backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_loss_is_smoothed_cross_entropy(head):
    maps, targets = torch.randn(4, 24, 3, 3), torch.tensor([0, 1, 2, 4])
    logs = head(maps).log_softmax(dim=1)
    wanted = -(0.9 * logs[torch.arange(4), targets] + 0.1 * logs.mean(dim=1)).mean()
    torch.testing.assert_close(head.loss(maps, targets, 0.1), wanted)


def test_attention_learns_where_the_landmark_is():
    torch.manual_seed(0)
    head = DelfHead(16, 4)
    signs = functional.normalize(torch.randn(4, 16), dim=1)
    optimiser = torch.optim.Adam(head.parameters(), lr=1e-2)
    for _ in range(60):
        targets = torch.randint(4, (32,))
        maps, place = _signs_in_clutter(signs[targets])
        optimiser.zero_grad()
        head.loss(maps, targets, 0.0).backward()
        optimiser.step()
    maps, place = _signs_in_clutter(signs[torch.arange(4).repeat(8)])
    alpha = head.attention(maps).flatten(1)
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


def test_keypoints_lie_on_the_grids_of_their_scales(head):
    torch.manual_seed(3)
    maps = [torch.randn(2, 24, 8, 8), torch.randn(2, 24, 4, 4)]
    for photo, found in enumerate(
        keypoints(head, maps, [Grid.at_scale(1.0), Grid.at_scale(0.5)], _whitening(), count=500, radius=0.1)
    ):
        alpha = torch.cat([head.attention(features)[photo].flatten() for features in maps])
        centres = [(16 * x, 16 * y) for y in range(8) for x in range(8)]
        centres += [(32 * x + 0.5, 32 * y + 0.5) for y in range(4) for x in range(4)]
        above = (alpha > alpha.mean()).nonzero()[:, 0].tolist()
        wanted = sorted(above, key=lambda place: -alpha[place].item())
        np.testing.assert_allclose(found.positions, [centres[place] for place in wanted])
        np.testing.assert_allclose(found.scores, alpha[wanted].detach(), rtol=1e-6)
        assert found.descriptors.shape == (len(wanted), 8)


def test_keypoints_are_at_most_the_count_and_verify_a_shifted_map(head):
    torch.manual_seed(4)
    scene = torch.randn(1, 24, 20, 24)
    here, there = scene[..., :16, :16], scene[..., 2:18, 5:21]
    found = [keypoints(head, [part], [Grid.at_scale(1.0)], _whitening(), count=90)[0] for part in (here, there)]
    assert max(map(len, found)) <= 90
    result = verify(found[0], [found[1]], LocalConfig(threshold=16), seed=0)
    assert result.inliers[0] > 25
    np.testing.assert_allclose(result.maps[0], [[1, 0, -80], [0, 1, -32]], atol=1e-2)


@pytest.mark.parametrize("size", [(1, 1), (2, 3)])
def test_maps_without_structure_have_no_keypoints(head, size):
    flat = torch.full((1, 24, *size), 0.3)
    (found,) = keypoints(head, [flat], [Grid.at_scale(1.0)], _whitening(), count=10)
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
