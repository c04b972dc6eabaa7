import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from zoo.local import (
    RADIUS,
    LocalFeatures,
    fit_longest,
    inliers,
    match,
    rerank,
    sift_features,
    verify,
)
from zoo.recipe import LocalConfig

CPU = torch.device("cpu")
SIDE = 256
CONFIG = LocalConfig(size=SIDE)


def draw(seed: int) -> np.ndarray:
    """A picture of 70 random polygons, drawn at twice its size and shrunk, as a camera would blur its edges."""
    chance = np.random.default_rng(seed)
    image = Image.new("RGB", (2 * SIDE, 2 * SIDE), tuple(chance.integers(0, 256, 3).tolist()))
    for _ in range(70):
        corners = chance.uniform(0, 2 * SIDE, 2) + chance.normal(0, 45, (chance.integers(3, 6), 2))
        ImageDraw.Draw(image).polygon(
            [tuple(xy) for xy in corners.tolist()], tuple(chance.integers(0, 256, 3).tolist())
        )
    return np.array(image.resize((SIDE, SIDE), Image.Resampling.BOX))


def change(degrees: float, zoom: float, shift: tuple[float, float]) -> np.ndarray:
    """The map [2, 3] that turns and zooms about the picture's middle and then shifts, in pixels."""
    angle = np.deg2rad(degrees)
    linear = zoom * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    middle = np.full(2, (SIDE - 1) / 2)
    return np.column_stack([linear, middle - linear @ middle + shift])


def warp(image: np.ndarray, forward: np.ndarray) -> np.ndarray:
    """The picture seen through a map of pixel centres; PIL wants the inverse, of pixel corners."""
    linear = np.linalg.inv(forward[:, :2])
    back = np.column_stack([linear, 0.5 - linear @ (forward[:, 2] + 0.5)])
    method = Image.Transform.AFFINE
    warped = Image.fromarray(image).transform((SIDE, SIDE), method, back.ravel().tolist(), Image.Resampling.BICUBIC)
    return np.array(warped)


def features(*images: np.ndarray, config: LocalConfig = CONFIG) -> list[LocalFeatures]:
    return sift_features(images, config, device=CPU)


def random_features(seed: int, count: int, width: int = 16) -> LocalFeatures:
    chance = np.random.default_rng(seed)
    descriptors = chance.normal(size=(count, width))
    descriptors /= np.linalg.norm(descriptors, axis=1, keepdims=True)
    positions = chance.uniform(0, SIDE, (count, 2)).astype(np.float32)
    return LocalFeatures(positions, descriptors.astype(np.float16), np.linspace(1, 0.1, count, dtype=np.float32))


@pytest.fixture(scope="module")
def drawn() -> list[LocalFeatures]:
    return features(*(draw(seed) for seed in range(4)))


@pytest.mark.parametrize(
    ("degrees", "zoom", "shift", "upright"),
    [
        (0, 1.0, (40, -30), True),  # a crop
        (10, 1.0, (0, 0), True),
        (0, 0.7, (10, 5), True),
        (-8, 1.4, (-12, 20), True),
        (75, 1.0, (0, 0), False),
        (180, 0.8, (15, 0), False),
    ],
)
def test_a_changed_picture_matches_and_its_map_is_found(degrees, zoom, shift, upright):
    config = CONFIG.model_copy(update={"upright": upright})
    truth = change(degrees, zoom, shift)
    picture = draw(0)
    here, there = features(picture, warp(picture, truth), config=config)
    found = verify(here, [there], config, seed=0)
    assert found.inliers[0] >= 30
    corners = np.array([[0, 0, 1], [SIDE, 0, 1], [0, SIDE, 1], [SIDE, SIDE, 1.0]])
    assert np.abs(corners @ found.maps[0].T - corners @ truth.T).max() < 4  # pixels at the corners


def test_different_pictures_have_few_inliers(drawn):
    for query in range(4):
        others = [drawn[other] for other in range(4) if other != query]
        assert inliers(drawn[query], others, CONFIG, seed=0).max() < CONFIG.minimum


def test_keypoints_lie_inside_and_the_strongest_come_first(drawn):
    for photo in drawn:
        assert 50 < len(photo) <= CONFIG.keypoints
        assert photo.positions.min() >= RADIUS
        assert photo.positions.max() <= SIDE - 1 - RADIUS
        assert (np.diff(photo.scores) <= 0).all()
        assert (photo.scores > 0).all()
        np.testing.assert_allclose(np.linalg.norm(photo.descriptors.astype(float), axis=1), 1, atol=1e-2)


def test_a_bright_disc_is_found_at_its_centre():
    image = Image.new("RGB", (4 * SIDE, 4 * SIDE), (40, 40, 40))
    ImageDraw.Draw(image).ellipse([4 * 90, 4 * 130, 4 * 100, 4 * 140], (220, 220, 220))  # centre 94.5, 134.5
    (found,) = features(np.array(image.resize((SIDE, SIDE), Image.Resampling.BOX)))
    np.testing.assert_allclose(found.positions[0], [94.5, 134.5], atol=1)


def test_a_picture_turned_upside_down_has_its_keypoints_there(drawn):
    (turned,) = features(np.ascontiguousarray(draw(0)[::-1, ::-1]))
    mirrored = SIDE - 1 - turned.positions
    apart = np.linalg.norm(drawn[0].positions[:100, None] - mirrored[None], axis=2).min(axis=1)
    assert apart.max() < 0.1


def test_padding_shows_no_keypoints():
    wide = draw(1)[:120]
    (found,) = features(wide)
    assert len(found) > 20
    assert found.positions[:, 1].max() <= 119 - RADIUS


def test_a_photo_is_described_alike_alone_and_in_a_batch(drawn):
    (alone,) = features(draw(2))
    np.testing.assert_array_equal(alone.positions, drawn[2].positions)
    np.testing.assert_allclose(alone.descriptors, drawn[2].descriptors, atol=2e-3)


@pytest.mark.parametrize("shape", [(10, 15, 3), (15, 10, 3), (1, 1, 3), (1, 300, 3), (300, 2, 3)])
def test_tiny_photos_have_no_keypoints(shape):
    noise = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    (found,) = features(noise)
    assert len(found) == 0
    assert found.descriptors.shape == (0, 128)


@pytest.mark.parametrize("level", [0, 77, 255])
def test_uniform_photos_have_no_keypoints(level):
    (found,) = features(np.full((200, 256, 3), level, np.uint8))
    assert len(found) == 0


def test_photos_without_keypoints_verify_nothing(drawn):
    empty = random_features(0, 0, 128)
    lone = random_features(0, 1, 128)
    assert inliers(empty, [drawn[0], empty], CONFIG, seed=0).tolist() == [0, 0]
    assert inliers(drawn[0], [], CONFIG, seed=0).tolist() == []
    mixed = verify(drawn[0], [empty, drawn[0], lone], CONFIG, seed=0)
    assert mixed.inliers[[0, 2]].tolist() == [0, 0]
    assert mixed.inliers[1] == len(drawn[0])
    assert np.isnan(mixed.maps[[0, 2]]).all()


def test_verification_is_repeated_by_its_seed_and_never_depends_on_its_company(drawn):
    together = verify(drawn[0], drawn, CONFIG, seed=3)
    again = verify(drawn[0], drawn, CONFIG, seed=3)
    np.testing.assert_array_equal(together.inliers, again.inliers)
    np.testing.assert_array_equal(together.maps, again.maps)
    alone = [inliers(drawn[0], [other], CONFIG, seed=3)[0] for other in drawn]
    assert together.inliers.tolist() == alone


def _slow_matches(query: LocalFeatures, other: LocalFeatures, ratio: float) -> set[tuple[int, int]]:
    a, b = query.descriptors.astype(np.float32), other.descriptors.astype(np.float32)
    distance = np.sqrt(np.maximum(2 - 2 * a @ b.T, 0))
    pairs = set()
    for i, row in enumerate(distance if len(other) else []):
        j = int(row.argmin())
        second = np.delete(row, j).min(initial=np.inf)
        if distance[:, j].argmin() == i and row[j] < ratio * second:
            pairs.add((i, j))
    return pairs


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 999), st.integers(1, 30), st.lists(st.integers(0, 30), min_size=1, max_size=3), st.floats(0.5, 1))
def test_matches_are_mutual_and_pass_the_ratio(seed, count, sizes, ratio):
    query = random_features(seed, count, 4)
    others = [random_features(seed + 1 + row, size, 4) for row, size in enumerate(sizes)]
    found = match(query, others, ratio)
    for row, other in enumerate(others):
        wanted = sorted(_slow_matches(query, other, ratio))
        assert found.count[row] == len(wanted)
        for place, (i, j) in enumerate(wanted):
            np.testing.assert_array_equal(found.source[row, place].numpy(), query.positions[i])
            np.testing.assert_array_equal(found.target[row, place].numpy(), other.positions[j])


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 999), st.floats(-180, 180), st.floats(0.4, 2.5), st.integers(12, 40), st.integers(0, 25))
def test_ransac_counts_the_matches_that_obey_the_map(seed, degrees, zoom, right, wrong):
    query = random_features(seed, right + wrong, 64)
    chance = np.random.default_rng(seed)
    truth = change(degrees, zoom, (30, -20))
    moved = query.positions @ truth[:, :2].T + truth[:, 2]
    moved[right:] += chance.choice([-1, 1], (wrong, 2)) * chance.uniform(100, 900, (wrong, 2))
    other = LocalFeatures(moved.astype(np.float32), query.descriptors, query.scores)
    found = verify(query, [other], CONFIG.model_copy(update={"hypotheses": 1024}), seed=seed)
    assert right <= found.inliers[0] <= right + 2  # a wrong one may fall in place by chance
    np.testing.assert_allclose(found.maps[0][:, :2], truth[:, :2], atol=0.05)


@pytest.mark.parametrize(
    "linear",
    [
        [[-1.0, 0.0], [0.0, 1.0]],  # a mirror
        [[8.0, 0.0], [0.0, 8.0]],  # too near
        [[0.01, 0.0], [0.0, 0.01]],  # everything on one spot
        [[1.0, 0.0], [0.0, 0.1]],  # seen along the wall
        [[1.0, 1.0], [1.0, 1.0]],  # a line
    ],
)
def test_maps_no_camera_makes_are_not_believed(linear):
    query = random_features(0, 40, 64)
    moved = (query.positions @ np.array(linear).T).astype(np.float32)
    other = LocalFeatures(moved, query.descriptors, query.scores)
    config = CONFIG.model_copy(update={"threshold": 0.5})
    assert inliers(query, [other], config, seed=0)[0] < CONFIG.minimum


def test_identical_points_are_no_map():
    query = random_features(0, 20, 64)
    piled = LocalFeatures(np.full_like(query.positions, 50), query.descriptors, query.scores)
    assert inliers(piled, [piled], CONFIG, seed=0).tolist() == [0]


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 9999))
def test_reranking_adds_the_best_photo_of_each_class(seed):
    chance = np.random.default_rng(seed)
    logits = chance.normal(size=(3, 5)).astype(np.float32)
    classes = chance.integers(-1, 5, (3, 7))
    counts = chance.integers(0, 40, (3, 7))
    config = LocalConfig(minimum=10, weight=0.7)
    wanted = logits.astype(np.float64)
    for query in range(3):
        for landmark in range(5):
            shown = [int(n) for n, c in zip(counts[query], classes[query], strict=True) if c == landmark and n >= 10]
            wanted[query, landmark] += 0.7 * np.log(1 + max(shown, default=0))
    np.testing.assert_allclose(rerank(logits, classes, counts, config), wanted, atol=1e-5)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 600), st.integers(1, 600), st.integers(32, 512))
def test_photos_are_fitted_to_the_longest_side_and_at_most_doubled(height, width, size):
    fitted = fit_longest(np.zeros((height, width, 3), np.uint8), size)
    assert max(fitted.shape[:2]) == min(size, 2 * max(height, width))
    assert abs(fitted.shape[0] * width - fitted.shape[1] * height) <= max(height, width)
