import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from torch import nn
from torch.nn import functional

from engine.core.errors import ConfigError, DataError
from zoo.delf import AttentionPool, Grid, fit_whitening, keypoints, measure_grid, suppress
from zoo.local import verify
from zoo.recipe import BackboneConfig, LocalConfig
from zoo.weights import build_backbone


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


# ---- where cells lie


def _network(name, stage=3):
    torch.manual_seed(0)
    return build_backbone(BackboneConfig(name=name, weights="random", pooling="attention", stage=stage)).eval()


@pytest.mark.parametrize(
    ("name", "stage", "stride", "offset"),
    [
        ("resnet18", 3, 16, 0),  # 3 x 3 with one pixel of padding on either side: each stride begins on pixel 0
        ("tf_efficientnet_lite0", 3, 16, 15),  # none before and one behind: 1 + 2 + 4 + 8
        ("tf_efficientnet_lite0", 2, 8, 7),
        ("densenet121", 2, 8, 2),  # its third halving is a mean of 2 x 2: half of a stride of 4
        ("test_efficientnet", 3, 16, 0),  # gates see the whole picture
    ],
)
def test_the_grid_is_that_of_the_networks_padding(name, stage, stride, offset):
    assert measure_grid(_network(name, stage)) == Grid(stride, offset)


@pytest.mark.parametrize("name", ["resnet18", "tf_efficientnet_lite0"])
def test_the_grid_is_where_receptive_fields_are_centred(name):
    network = _network(name)
    seen = torch.rand(1, 3, 32, 1024).requires_grad_()
    features = network(seen)
    features[..., 32].square().sum().backward()
    columns = seen.grad.abs().sum(dim=(0, 1, 2)).nonzero()[:, 0]
    assert 100 < columns[0] < columns[-1] < 924  # a field that the picture does not cut
    grid = measure_grid(network)
    assert (columns[0] + columns[-1]) / 2 == pytest.approx(32 * grid.stride + grid.offset, abs=1)


def test_measuring_leaves_the_network_as_it_was():
    network = _network("test_resnet")
    before = {name: value.clone() for name, value in network.state_dict().items()}
    measure_grid(network)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(weight.requires_grad for weight in network.parameters())


def test_a_network_whose_features_lie_nowhere_is_refused():
    with pytest.raises(ConfigError, match="cannot be told"):
        measure_grid(_network("convnext_atto"))


@given(st.floats(1, 999), st.floats(1, 999))
def test_sides_become_the_nearest_whole_cells(height, width):
    for side, fitted in zip((height, width), Grid(16, 0).fit(height, width), strict=True):
        assert fitted % 16 == 0
        assert abs(fitted - side) <= 8 or (fitted == 16 and side < 16)


@pytest.mark.parametrize("zoom", [1, 2, 3])
def test_the_middle_of_a_photo_stays_there_in_whatever_size_it_is_seen(zoom):
    places = Grid(16, 7.5).places(3 * zoom, 5 * zoom, (float(zoom), float(zoom)))  # of a photo of 80 x 48 pixels
    assert places.mean(dim=0).tolist() == pytest.approx([39.5, 23.5])


# ---- keypoints


def test_keypoints_lie_on_the_grids_of_their_scales(pool):
    torch.manual_seed(3)
    maps = [torch.randn(2, 24, 8, 8), torch.randn(2, 24, 4, 4)]
    places = [Grid(16, 0).places(8, 8), Grid(16, 0).places(4, 4, (0.5, 0.5))]
    for photo, found in enumerate(keypoints(pool, maps, places, _whitening(), count=500, radius=0.1)):
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
    places = [Grid(16, 0).places(16, 16)]
    found = [keypoints(pool, [part], places, _whitening(), count=90)[0] for part in (here, there)]
    assert max(map(len, found)) <= 90
    result = verify(found[0], [found[1]], LocalConfig(threshold=16), seed=0)
    assert result.inliers[0] > 25
    np.testing.assert_allclose(result.maps[0], [[1, 0, -80], [0, 1, -32]], atol=1e-2)


@pytest.mark.parametrize("size", [(1, 1), (2, 3)])
def test_maps_without_structure_have_no_keypoints(pool, size):
    flat = torch.full((1, 24, *size), 0.3)
    (found,) = keypoints(pool, [flat], [Grid(16, 0).places(*size)], _whitening(), count=10)
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
