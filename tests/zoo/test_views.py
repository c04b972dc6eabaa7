"""Each view against slices of the batch resized by Pillow, photo by photo."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from engine.core.errors import ConfigError
from zoo.recipe import VIEWS
from zoo.views import expand_views, view_batch

GROUPS = {"five-crop": 5, "ten-crop": 10, "scales": 2}
SINGLE = [name for name in VIEWS if name not in GROUPS]
BATCH = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 3, 32, 32), dtype=np.uint8))


def _resized(batch, side):
    """Bilinear, antialiased where it shrinks, by Pillow, a channel at a time."""
    channels = [
        np.asarray(Image.fromarray(channel.astype(np.float32)).resize((side, side), Image.Resampling.BILINEAR))
        for channel in batch.numpy().reshape(-1, *batch.shape[-2:])
    ]
    return torch.from_numpy(np.stack(channels).reshape(*batch.shape[:2], side, side))


def test_a_plain_view_is_the_batch_and_a_flip_its_mirror_image():
    assert view_batch(BATCH, "plain") is BATCH
    flipped = view_batch(BATCH, "flip")
    assert torch.equal(flipped[..., 0], BATCH[..., -1])
    assert torch.equal(flipped.flip(-1), BATCH)


@pytest.mark.parametrize(
    ("name", "rows", "columns"),
    [
        ("crop-top-left", slice(0, 28), slice(0, 28)),
        ("crop-top-right", slice(0, 28), slice(4, 32)),
        ("crop-bottom-left", slice(4, 32), slice(0, 28)),
        ("crop-bottom-right", slice(4, 32), slice(4, 32)),
        ("crop-centre", slice(2, 30), slice(2, 30)),
        ("zoom-in", slice(3, 29), slice(3, 29)),
    ],
)
def test_a_crop_is_a_slice_enlarged(name, rows, columns):
    torch.testing.assert_close(view_batch(BATCH, name), _resized(BATCH[:, :, rows, columns], 32), rtol=0, atol=0.01)


@pytest.mark.parametrize("name", [name for name in SINGLE if name.endswith("-flip")])
def test_a_mirrored_crop_is_the_crop_mirrored(name):
    assert torch.equal(view_batch(BATCH, name), view_batch(BATCH, name.removesuffix("-flip")).flip(-1))


def test_zooming_out_shrinks_the_whole_photo_amid_its_reflection():
    view = view_batch(BATCH, "zoom-out")
    torch.testing.assert_close(view[..., 4:28, 4:28], _resized(BATCH, 24), rtol=0, atol=0.01)
    for beyond in range(1, 5):
        assert torch.equal(view[:, :, 4 - beyond], view[:, :, 4 + beyond])
        assert torch.equal(view[..., 27 + beyond], view[..., 27 - beyond])


@pytest.mark.parametrize("name", ["zoom-out", "zoom-in", "crop-centre"])
def test_what_is_in_the_middle_stays_there(name):
    """A ramp keeps its middle value, and is as steep as things look small."""
    ramp = torch.linspace(0, 255, 64).expand(1, 3, 64, 64)
    view = view_batch(ramp, name)
    torch.testing.assert_close(view[..., 31:33].mean(), torch.tensor(127.5), rtol=0, atol=0.01)
    steepness = (view[0, 0, 32, 40] - view[0, 0, 32, 24]) / (ramp[0, 0, 32, 40] - ramp[0, 0, 32, 24])
    assert float(1 / steepness) == pytest.approx(
        {"zoom-out": 0.75, "zoom-in": 1.25, "crop-centre": 8 / 7}[name], abs=0.02
    )


@settings(deadline=None, max_examples=30)
@given(
    size=st.integers(16, 50), name=st.sampled_from(SINGLE), count=st.integers(0, 3),
    dtype=st.sampled_from([torch.uint8, torch.float32]),
)  # fmt: skip
def test_every_view_has_the_batchs_shape_and_range(size, name, count, dtype):
    chance = torch.Generator().manual_seed(size)
    batch = torch.randint(0, 256, (count, 3, size, size), generator=chance).to(dtype)
    view = view_batch(batch, name)
    assert view.shape == batch.shape
    assert view.dtype == (dtype if name in {"plain", "flip"} else torch.float32)
    assert torch.equal(view, view_batch(batch, name))
    if count:
        assert view.min() >= batch.min()
        assert view.max() <= batch.max()
        alone = torch.cat([view_batch(batch[i : i + 1], name) for i in range(count)])
        torch.testing.assert_close(view, alone)


@pytest.mark.parametrize(("group", "count"), GROUPS.items())
def test_a_group_stands_for_different_single_views(group, count):
    names = expand_views([group])
    assert len(names) == count
    assert set(names) <= set(SINGLE)
    views = [view_batch(BATCH, name).float() for name in names]
    assert len({view.numpy().tobytes() for view in views}) == count


def test_names_keep_their_order_and_come_once():
    assert expand_views(["flip", "scales", "plain", "flip"]) == ("flip", "zoom-out", "zoom-in", "plain")
    assert expand_views(["five-crop", "ten-crop"]) == expand_views(["ten-crop"])
    assert expand_views(SINGLE) == tuple(SINGLE)


def test_unknown_views_are_refused_with_their_neighbours():
    with pytest.raises(ConfigError, match="did you mean 'five-crop'"):
        expand_views(["plain", "fivecrop"])
    with pytest.raises(ConfigError, match="'ten-crop' is not a single view"):
        view_batch(BATCH, "ten-crop")
