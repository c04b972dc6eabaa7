"""Grouping of photos that show the same picture: copies are found, look-alikes and flat photos are left apart."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from engine.core import duplicates
from engine.core.duplicates import connected, difference_hash, group_duplicates
from engine.core.images import inspect_image


def thumbnail(path, image, **options):
    image.save(path, **options)
    return inspect_image(path, max_pixels=10**8).thumbnail


def groups(thumbnails):
    """As if no two files had equal bytes."""
    return group_duplicates([f"{row:x}" for row in range(len(thumbnails))], np.stack(thumbnails)).tolist()


def all_pairs_groups(thumbnails):
    """The slow reference: every pair is compared, and groups are painted over one another."""
    count = len(thumbnails)
    group = list(range(count))
    for i in range(count):
        for j in range(i):
            for other in (thumbnails[j], thumbnails[j][:, ::-1]):
                hashes = difference_hash(np.stack([thumbnails[i], other]))
                bits = int(hashes[0] ^ hashes[1]).bit_count()
                correlation = np.corrcoef(thumbnails[i].ravel(), other.ravel())[0, 1]
                if bits <= duplicates.MAX_BITS and correlation >= duplicates.MIN_CORRELATION:
                    low, high = sorted((group[i], group[j]))
                    group = [low if g == high else g for g in group]
    return group


@pytest.mark.faults
def test_resaved_resized_recoloured_and_mirrored_copies_share_a_group(tmp_path, draw):
    photo = Image.fromarray(draw(1, (320, 240)))
    copies = [
        thumbnail(tmp_path / "a.jpg", photo),
        thumbnail(tmp_path / "b.jpg", photo, quality=30),
        thumbnail(tmp_path / "c.png", photo.resize((200, 150))),
        thumbnail(tmp_path / "d.webp", photo.resize((64, 64))),
        thumbnail(tmp_path / "e.jpg", photo.convert("L")),
        thumbnail(tmp_path / "f.jpg", photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
        thumbnail(tmp_path / "g.jpg", photo.point(lambda value: value * 0.8)),
    ]
    assert groups(copies) == [0] * len(copies)


def test_different_pictures_stay_apart(tmp_path, draw):
    photos = [thumbnail(tmp_path / "a.jpg", Image.fromarray(draw(seed))) for seed in range(60)]
    assert groups(photos) == list(range(60))


@pytest.mark.parametrize("size", [(64, 64), (15, 10), (48, 32)])
def test_tiny_and_square_photos_do_not_collapse(tmp_path, draw, size):
    photos = [thumbnail(tmp_path / "a.jpg", Image.fromarray(draw(seed, size)), quality=88) for seed in range(60)]
    assert groups(photos) == list(range(60))


@pytest.mark.faults
def test_flat_photos_are_copies_only_byte_for_byte():
    flat = [np.full((16, 18), grey, dtype=np.uint8) for grey in (0, 0, 200, 255)]
    noise = np.random.default_rng(0).integers(99, 102, (2, 16, 18), dtype=np.uint8)
    assert groups([*flat, *noise]) == list(range(6))
    assert group_duplicates(["x", "x", "y", "x"], np.stack(flat)).tolist() == [0, 0, 2, 0]


@pytest.mark.faults
def test_equal_bytes_share_a_group_and_photos_without_a_digest_do_not():
    nothing = np.zeros((5, 16, 18), dtype=np.uint8)
    assert group_duplicates(["a", "", "b", "", "a"], nothing).tolist() == [0, 1, 2, 3, 0]


def test_groups_reach_over_chains_of_copies(draw):
    rng = np.random.default_rng(0)
    chain = [draw(1, (18, 16))[:, :, 0].astype(float)]
    for _ in range(12):
        chain.append(chain[-1] * 0.97 + rng.uniform(0, 255, (16, 18)) * 0.03)
    order = rng.permutation(13)
    found = groups([chain[row].astype(np.uint8) for row in order])
    assert set(found) == {0}


def test_no_photos_and_one_photo_are_fine(draw):
    assert group_duplicates([], np.empty((0, 16, 18), dtype=np.uint8)).tolist() == []
    assert groups([draw(1, (18, 16))[:, :, 0]]) == [0]


def test_a_photo_that_is_its_own_mirror_image_is_one_photo(draw):
    half = draw(1, (9, 16))[:, :, 0]
    assert groups([np.concatenate([half, half[:, ::-1]], axis=1)]) == [0]


def test_the_difference_hash_of_brightness_rising_to_the_right_is_all_ones():
    ramp = np.tile(np.arange(18, dtype=np.uint8) * 10, (16, 1))
    assert difference_hash(np.stack([ramp, ramp[:, ::-1]])).tolist() == [2**64 - 1, 0]


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 10**6), strength=st.floats(0, 0.3))
def test_sorted_neighbours_find_what_all_pairs_find(seed, strength):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (6, 4, 5), dtype=np.uint8)
    bases = [np.asarray(Image.fromarray(base).resize((18, 16), Image.Resampling.BICUBIC)) for base in coarse]
    photos = []
    for _ in range(20):
        base = bases[rng.integers(6)][:, :: rng.choice([-1, 1])]
        photos.append((base * (1 - strength) + rng.uniform(0, 255, base.shape) * strength).astype(np.uint8))
    assert groups(photos) == all_pairs_groups(photos)


@given(pairs=st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=30), seed=st.integers(0, 99))
def test_connected_gives_the_smallest_row_whatever_the_order_of_pairs(pairs, seed):
    group = list(range(20))
    for left, right in pairs:
        low, high = sorted((group[left], group[right]))
        group = [low if g == high else g for g in group]
    shuffled = np.random.default_rng(seed).permutation(np.array(pairs, dtype=np.int64).reshape(-1, 2))
    assert connected(20, shuffled.T).tolist() == group


def test_more_copies_than_a_window_holds_share_one_group(draw):
    # More look-alikes than a window holds: not every pair is compared, but chains join them all.
    rng = np.random.default_rng(0)
    base = draw(1, (18, 16))[:, :, 0].astype(int)
    photos = np.clip(base + rng.integers(-3, 4, (500, 16, 18)), 0, 255).astype(np.uint8)
    assert set(group_duplicates([f"{row:x}" for row in range(500)], photos).tolist()) == {0}
