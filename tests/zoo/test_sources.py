"""Photos and embeddings come through one door: batches in the order asked for, random in the same way each time."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from zoo.photos import Photos
from zoo.recipe import AugmentConfig, DegradeConfig
from zoo.sources import EmbeddingSource, PhotoSource

CPU = torch.device("cpu")
EMBEDDINGS = np.random.default_rng(0).normal(size=(40, 2, 5)).astype(np.float16)
ROWS = np.array([7, 3, 30, 12, 3, 0, 21])


def _embedding_source(seed=0):
    return EmbeddingSource(EMBEDDINGS, seed, CPU)


@pytest.fixture(scope="module")
def photo_source(photos):
    decoded = Photos(photos.paths, size=32, fit="stretch", max_pixels=10_000)
    return PhotoSource(decoded, AugmentConfig(), ("plain", "flip"), 0, CPU)


def _train(source, rows, *, epoch=0, batch_size=3):
    return torch.cat(list(source.train_batches(rows, epoch=epoch, batch_size=batch_size)))


@pytest.fixture(params=["embeddings", "photos"])
def source(request):
    """Either source."""
    return _embedding_source() if request.param == "embeddings" else request.getfixturevalue("photo_source")


# ---- what both promise


def test_an_epoch_repeats_itself_and_the_next_one_differs(source):
    assert torch.equal(_train(source, ROWS), _train(source, ROWS))
    assert not torch.equal(_train(source, ROWS), _train(source, ROWS, epoch=1))


@pytest.mark.parametrize("done", [3, 6])
def test_the_rest_of_an_epoch_is_what_it_would_have_been(source, done):
    whole = _train(source, ROWS)
    torch.testing.assert_close(_train(source, ROWS[done:]), whole[done:], rtol=0, atol=0)


def test_batches_are_full_but_for_the_last(source):
    assert [len(batch) for batch in source.train_batches(ROWS, epoch=0, batch_size=3)] == [3, 3, 1]
    assert [len(views[0]) for views in source.view_batches(ROWS, batch_size=3)] == [3, 3, 1]


def test_views_are_the_same_whatever_the_batch(source):
    def stacked(size):
        return torch.cat([torch.stack(views, dim=1) for views in source.view_batches(ROWS, batch_size=size)])

    assert stacked(2).shape[:2] == (7, 2)
    assert torch.equal(stacked(2), stacked(7))


def test_one_view_is_the_first(source):
    ones, all_of_them = (list(each.view_batches(ROWS, batch_size=3)) for each in (source.in_one_view(), source))
    assert [len(views) for views in ones] == [1, 1, 1]
    assert all(torch.equal(one, views[0]) for (one,), views in zip(ones, all_of_them, strict=True))


# ---- embeddings


def test_training_sees_one_view_of_a_photo_and_over_time_all():
    seen = {0: 0, 1: 0}
    for epoch in range(20):
        batch = _train(_embedding_source(), ROWS, epoch=epoch).numpy()
        for row, vector in zip(ROWS, batch, strict=True):
            view = int(np.abs(EMBEDDINGS[row] - vector).sum(axis=1).argmin())
            assert np.array_equal(EMBEDDINGS[row, view].astype(np.float32), vector)
            seen[view] += 1
    assert min(seen.values()) > 40  # of 140


def test_another_seed_chooses_other_views():
    assert not torch.equal(_train(_embedding_source(0), np.arange(40)), _train(_embedding_source(1), np.arange(40)))


def test_prediction_sees_every_view_of_an_embedding():
    views = next(_embedding_source().view_batches(ROWS, batch_size=7))
    for number, view in enumerate(views):
        assert view.dtype == torch.float32
        assert np.array_equal(view.numpy(), EMBEDDINGS[ROWS, number].astype(np.float32))


# ---- photos


def test_prediction_sees_a_photo_and_its_mirror_image(photo_source):
    plain, flipped = next(photo_source.view_batches(ROWS, batch_size=7))
    assert torch.equal(plain, torch.stack([photo_source.photos[row] for row in ROWS]))
    assert torch.equal(flipped, plain.flip(-1))


def test_training_sees_changed_photos_in_the_range_of_a_photo(photo_source):
    batch = _train(photo_source, ROWS)
    assert batch.dtype == torch.float32
    assert batch.min() >= 0
    assert batch.max() <= 255
    assert not torch.equal(batch, next(photo_source.view_batches(ROWS, batch_size=7))[0].float())


def test_a_photos_change_is_its_own_in_any_order(photo_source):
    assert torch.equal(_train(photo_source, ROWS[:4]), _train(photo_source, ROWS[3::-1]).flip(0))


def test_photos_are_degraded_in_training_only_where_augmentation_is_on(photo_source):
    degrade = DegradeConfig(probability=1.0, quality=(1, 5))
    for enabled in (True, False):
        given = AugmentConfig(enabled=enabled)
        plain, worse = (
            _train(replace(photo_source, augment=given.model_copy(update={"degrade": each})), ROWS)
            for each in (DegradeConfig(), degrade)
        )
        assert torch.equal(plain, worse) != enabled


def test_photos_are_trained_at_another_size_as_they_would_be_if_decoded_there(photos, photo_source):
    batches = photo_source.train_batches(ROWS, epoch=0, batch_size=3, size=16)
    small = torch.cat(list(batches))
    assert small.shape[1:] == (3, 16, 16)
    decoded = Photos(photos.paths, size=16, fit="stretch", max_pixels=10_000)
    expected = _train(PhotoSource(decoded, AugmentConfig(), ("plain",), 0, CPU), ROWS)
    assert (small - expected).abs().mean() < 4  # of 255: resized twice and not once
    assert (small - expected.flip(3)).abs().mean() > 20
