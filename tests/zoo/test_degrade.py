"""A degraded photo has lost detail and nothing else, and is degraded alike in any batch."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from engine.core.config import parse_section
from engine.core.errors import ConfigError
from zoo.augment import draw_changes
from zoo.degrade import degrade_batch, draw_degradations
from zoo.recipe import DegradeConfig

SIDE = 64
BATCH = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (6, 3, SIDE, SIDE), dtype=np.uint8))
PHOTOS = list(range(6))
ALWAYS = DegradeConfig(probability=1.0)


def _drawn(largeness, fineness, whether=0.0):
    return np.tile(np.array([whether, largeness, fineness], np.float32), (6, 1))


def _smooth(size):
    """A picture without detail: slow waves, other ones in each channel."""
    wave = torch.linspace(0, 3, size)
    channels = [127 + 90 * torch.sin(wave[:, None] * a + wave * b) for a, b in ((1, 1), (2, 0), (0, 2))]
    return torch.stack(channels)[None].repeat(6, 1, 1, 1)


# ---- draws


def test_draws_are_spread_evenly_and_independent_of_the_augmentation():
    draws = np.hstack([draw_degradations(0, 0, range(2000)), draw_changes(0, 0, range(2000))])
    np.testing.assert_allclose(draws.mean(axis=0), 0.5, atol=0.03)  # four standard errors
    assert np.abs(np.corrcoef(draws.T) - np.eye(12)).max() < 0.1


# ---- degradation


def test_off_by_default_and_then_the_batch_is_not_even_copied():
    assert degrade_batch(BATCH, _drawn(0.5, 0.5), DegradeConfig()) is BATCH


def test_only_drawn_photos_change_and_the_batch_given_stays():
    before = BATCH.clone()
    drawn = _drawn(0.2, 0.5, whether=0.5)
    drawn[[1, 4], 0] = 0.1
    degraded = degrade_batch(BATCH, drawn, DegradeConfig(probability=0.3))
    changed = [photo for photo in PHOTOS if not torch.equal(degraded[photo], BATCH[photo])]
    assert changed == [1, 4]
    assert torch.equal(BATCH, before)


@pytest.mark.parametrize("probability", [0.25, 1.0])
def test_the_share_of_degraded_photos_is_the_probability(probability):
    batch = BATCH[:1, :, :8, :8].repeat(800, 1, 1, 1)
    config = DegradeConfig(probability=probability, smallest=1)
    degraded = degrade_batch(batch, draw_degradations(0, 0, range(800)), config)
    share = (degraded != batch).flatten(1).any(dim=1).float().mean()
    assert float(share) == pytest.approx(probability, abs=4 * np.sqrt(0.25 / 800))


def test_each_photo_is_degraded_as_by_pillow():
    """Shrunk and enlarged by another library, and compressed at the drawn quality."""
    drawn = _drawn(0.5, 0.999)
    config = DegradeConfig(probability=1.0, smallest=16, quality=(20, 90))
    degraded = degrade_batch(BATCH, drawn, config)  # 16 * sqrt(64 / 16) = 32 px, quality 90
    for photo, found in zip(BATCH, degraded, strict=True):
        image = Image.fromarray(photo.permute(1, 2, 0).numpy())
        small = image.resize((32, 32), Image.Resampling.BILINEAR).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        file = io.BytesIO()
        small.save(file, "JPEG", quality=90)
        expected = np.asarray(Image.open(file), np.float32)
        difference = np.abs(found.permute(1, 2, 0).numpy() - expected)
        assert difference.mean() < 2  # Pillow rounds between its steps, which JPEG enlarges
        assert np.abs(found.permute(1, 2, 0).numpy() - photo.permute(1, 2, 0).numpy().astype(float)).mean() > 20


def test_detail_is_lost_down_to_the_smallest_side_and_the_photo_is_not():
    spread = [float(degrade_batch(BATCH, _drawn(large, 0.999), ALWAYS).float().std()) for large in (0, 0.5, 0.99)]
    assert spread[0] < spread[1] < spread[2]  # noise is detail only
    smooth = _smooth(SIDE)
    assert float((degrade_batch(smooth, _drawn(0.5, 0.999), ALWAYS) - smooth).abs().mean()) < 2


def test_a_lower_quality_errs_more():
    smooth = _smooth(SIDE)
    errors = [
        float((degrade_batch(smooth, _drawn(0.99, fine), ALWAYS) - smooth).abs().mean()) for fine in (0, 0.5, 0.99)
    ]
    assert errors[0] > errors[1] > errors[2]


@pytest.mark.parametrize("size", [5, 16, 33])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_type_shape_and_range_stay_even_for_photos_below_the_smallest_side(size, dtype):
    batch = torch.cat([BATCH[:2, :, :size, :size], torch.zeros(2, 3, size, size), torch.full((2, 3, size, size), 255)])
    degraded = degrade_batch(batch.to(dtype), draw_degradations(1, 2, PHOTOS), ALWAYS)
    assert degraded.dtype == dtype
    assert degraded.shape == batch.shape
    assert degraded.min() >= 0
    assert degraded.max() <= 255


def test_a_batch_is_degraded_photo_by_photo():
    drawn = draw_degradations(0, 3, PHOTOS)
    together = degrade_batch(BATCH, drawn, ALWAYS)
    backwards = degrade_batch(BATCH.flip(0), draw_degradations(0, 3, PHOTOS[::-1]), ALWAYS).flip(0)
    alone = torch.cat([degrade_batch(BATCH[i : i + 1], drawn[i : i + 1], ALWAYS) for i in PHOTOS])
    assert torch.equal(together, backwards)
    assert torch.equal(together, alone)


# ---- configuration


@pytest.mark.parametrize("bad", [{"quality": [90, 20]}, {"quality": [0, 50]}, {"probability": 1.1}, {"smallest": 0}])
def test_settings_out_of_range_are_refused(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        parse_section(DegradeConfig, bad, source="here")
