"""Photos of any shape become squares of one size, and are decoded no more often than they must."""

import numpy as np
import pytest
import torch
from PIL import Image

import zoo.photos
from engine.core.images import ImageError
from zoo.photos import Photos, fit_square, photo_loader

PIXELS = 1_000_000


def _save(path, array):
    Image.fromarray(array).save(path)
    return path


@pytest.fixture
def paths(tmp_path):
    """Five photos, each of one grey value: 0, 50, 100, 150, 200."""
    return [_save(tmp_path / f"{i}.png", np.full((20, 30, 3), 50 * i, np.uint8)) for i in range(5)]


def _photos(paths, **options):
    return Photos(paths, size=16, fit="stretch", max_pixels=PIXELS, **options)


def test_a_photo_is_a_square_of_bytes_channels_first(tmp_path):
    red = np.zeros((20, 30, 3), np.uint8)
    red[..., 0] = 200
    photo = _photos([_save(tmp_path / "red.png", red)])[0]
    assert photo.shape == (3, 16, 16)
    assert photo.dtype == torch.uint8
    assert photo.is_contiguous()
    assert photo.float().mean(dim=(1, 2)).tolist() == [200, 0, 0]


@pytest.mark.parametrize("shape", [(1, 1), (1, 2000), (2000, 1), (15, 10), (500, 700), (16, 16)])
@pytest.mark.parametrize("fit", ["stretch", "crop"])
def test_any_shape_fits(shape, fit):
    image = np.full((*shape, 3), 77, np.uint8)
    square = fit_square(image, 16, fit)
    assert square.shape == (16, 16, 3)
    assert (square == 77).all()


def test_stretching_keeps_the_edges_and_cropping_the_proportions():
    wide = np.zeros((16, 48, 3), np.uint8)
    wide[:, :16] = 90
    wide[:, 32:] = 90  # the outer thirds are grey, the middle is black
    assert (fit_square(wide, 16, "crop")[:, 2:-2] == 0).all()
    assert (fit_square(wide, 16, "stretch")[:, :4] == 90).all()


def test_photos_come_in_the_order_asked_for(paths):
    batches = list(photo_loader(_photos(paths), [4, 0, 2], batch_size=2, workers=0, pin_memory=False))
    assert [batch[:, 0, 0, 0].tolist() for batch in batches] == [[200, 0], [100]]


def test_a_photo_that_is_kept_is_decoded_once(paths):
    photos = _photos(paths)
    first = photos[3].clone()
    paths[3].unlink()
    assert torch.equal(photos[3], first)


@pytest.mark.parametrize("limit", ["not asked to", "no room"])
def test_photos_that_are_not_kept_are_read_each_time(paths, monkeypatch, limit):
    if limit == "no room":
        monkeypatch.setattr(zoo.photos, "CACHE_BYTES", 5 * 3 * 16 * 16 - 1)
    photos = _photos(paths, keep=limit == "no room")
    assert photos[3][0, 0, 0] == 150
    _save(paths[3], np.full((20, 30, 3), 10, np.uint8))
    assert photos[3][0, 0, 0] == 10


@pytest.mark.faults
def test_a_photo_that_vanished_or_broke_is_named(paths):
    paths[0].unlink()
    paths[1].write_bytes(b"<html>")
    photos = _photos(paths)
    for index in (0, 1):
        with pytest.raises(ImageError, match=paths[index].name):
            photos[index]
    with pytest.raises(ImageError, match="too large"):
        Photos(paths, size=16, fit="stretch", max_pixels=10)[2]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")  # Python 3.12 on, where torch forks workers
def test_worker_processes_read_the_same_photos(paths):
    here, there = (
        torch.cat(
            list(photo_loader(_photos(paths, share=True), range(5), batch_size=2, workers=workers, pin_memory=False))
        )
        for workers in (0, 1)
    )
    assert torch.equal(here, there)
