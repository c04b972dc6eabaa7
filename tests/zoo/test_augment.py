"""A photo's changes are its own: the same for one (seed, epoch, photo), whatever batch it comes in."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.augment import augment_batch, draw_changes
from zoo.degrade import draw_degradations
from zoo.recipe import AugmentConfig

STILL = {
    "shift": 0, "rotate": 0, "scale": (1.0, 1.0), "stretch": 0, "flip": 0,
    "brightness": 0, "contrast": 0, "saturation": 0,
}  # fmt: skip
IMAGES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (6, 3, 24, 32), dtype=np.uint8))
SHIFT_X, FLIP, ROTATE, BRIGHTNESS = 0, 4, 5, 6  # columns of the draws
PHOTOS = list(range(6))
DRAWS = (draw_changes, draw_degradations)


def _changed(**changes):
    return AugmentConfig(**(STILL | changes))


# ---- draws


@pytest.mark.parametrize("draw", DRAWS)
@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 2**31 - 1),
    epoch=st.integers(0, 10_000),
    photos=st.lists(st.integers(0, 2_000_000), min_size=1, max_size=5),
)
def test_draws_depend_on_seed_epoch_and_photo_only(draw, seed, epoch, photos):
    together = draw(seed, epoch, photos)
    alone = np.concatenate([draw(seed, epoch, [photo]) for photo in photos])
    assert np.array_equal(together, alone)
    assert together.min() >= 0
    assert together.max() < 1


@pytest.mark.parametrize("draw", DRAWS)
def test_draws_of_other_seeds_epochs_and_photos_differ(draw):
    draws = [draw(*key)[0] for key in ((0, 0, [0]), (1, 0, [0]), (0, 1, [0]), (0, 0, [1]))]
    assert len({tuple(row) for row in draws}) == 4


def test_draws_are_spread_evenly():
    draws = draw_changes(0, 0, range(2000))
    np.testing.assert_allclose(draws.mean(axis=0), 0.5, atol=0.03)  # four standard errors
    assert np.abs(np.corrcoef(draws.T) - np.eye(9)).max() < 0.1


# ---- changes


@pytest.mark.parametrize("config", [_changed(), AugmentConfig(enabled=False)])
def test_without_strength_a_photo_stays_as_it_is(config):
    augmented = augment_batch(IMAGES, draw_changes(0, 0, PHOTOS), config)
    assert augmented.dtype == torch.float32
    torch.testing.assert_close(augmented, IMAGES.float(), rtol=0, atol=0.02)


def test_a_flip_mirrors_left_and_right_exactly():
    augmented = augment_batch(IMAGES, draw_changes(0, 0, PHOTOS), _changed(flip=1))
    torch.testing.assert_close(augmented, IMAGES.flip(-1).float(), rtol=0, atol=0.02)


def test_a_share_of_the_photos_is_flipped():
    draws = np.full((6, 9), 0.5, np.float32)
    draws[:3, FLIP] = 0.1
    augmented = augment_batch(IMAGES, draws, _changed(flip=0.3))
    expected = torch.cat([IMAGES[:3].flip(-1), IMAGES[3:]]).float()
    torch.testing.assert_close(augmented, expected, rtol=0, atol=0.02)


def test_a_shift_moves_by_its_share_of_the_side():
    draws = np.full((6, 9), 0.5, np.float32)
    draws[:, SHIFT_X] = 1.0
    augmented = augment_batch(IMAGES, draws, _changed(shift=0.25))  # 8 of 32 columns
    torch.testing.assert_close(augmented[..., 8:], IMAGES[..., :-8].float(), rtol=0, atol=0.02)


def test_a_quarter_turn_turns_about_the_centre():
    square = IMAGES[..., :24]
    draws = np.full((6, 9), 0.5, np.float32)
    draws[:, ROTATE] = 1.0
    augmented = augment_batch(square, draws, _changed(rotate=90))
    turned = [square.rot90(times, (2, 3)).float() for times in (1, 3)]
    assert min(float((augmented - turn).abs().max()) for turn in turned) < 0.05


def test_brightness_is_added():
    draws = np.full((6, 9), 0.5, np.float32)
    draws[:, BRIGHTNESS] = 1.0
    augmented = augment_batch(IMAGES, draws, _changed(brightness=0.2))
    torch.testing.assert_close(augmented, (IMAGES.float() + 51).clamp(0, 255), rtol=0, atol=0.02)


@pytest.mark.parametrize("strength", [AugmentConfig(), AugmentConfig(**{**STILL, "brightness": 1, "contrast": 1})])
def test_values_stay_in_the_range_of_a_photo(strength):
    extremes = torch.cat([torch.zeros_like(IMAGES[:2]), torch.full_like(IMAGES[:2], 255), IMAGES[:2]])
    for epoch in range(5):
        augmented = augment_batch(extremes, draw_changes(0, epoch, PHOTOS), strength)
        assert torch.isfinite(augmented).all()
        assert augmented.min() >= 0
        assert augmented.max() <= 255
        assert augmented.shape == extremes.shape


def test_a_batch_is_changed_photo_by_photo():
    config = AugmentConfig()
    together = augment_batch(IMAGES, draw_changes(0, 3, PHOTOS), config)
    backwards = augment_batch(IMAGES.flip(0), draw_changes(0, 3, PHOTOS[::-1]), config).flip(0)
    alone = torch.cat([augment_batch(IMAGES[i : i + 1], draw_changes(0, 3, [i]), config) for i in PHOTOS])
    torch.testing.assert_close(together, backwards, rtol=0, atol=1e-2)
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-2)
