"""Neighbours from stored embeddings are those that a neighbour head finds, and never of the photo's own fold."""

import numpy as np
import pytest
import torch

import zoo.embedding
from zoo.members import embeddings_of
from zoo.neighbours import (
    draw_neighbours,
    find_embeddings,
    nearest_across_folds,
    nearest_photos,
    stored_embeddings,
)
from zoo.photo_heads import NeighbourHead
from zoo.recipe import HeadConfig


@pytest.fixture(scope="module")
def context(tmp_path_factory, photos, frozen, make_context):
    """A run that holds the frozen member's embeddings and nothing else, in four shards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zoo.embedding, "SHARD", 16)
        context = make_context(tmp_path_factory.mktemp("embedded") / "run", photos)
        embeddings_of(context, frozen)
        yield context


@pytest.fixture(scope="module")
def embeddings(context, photos, frozen):
    return stored_embeddings(context.run, frozen, photos)


def _row(photos, name):
    return photos.ids.tolist().index(name)


def test_stored_embeddings_are_those_that_were_made(context, frozen, embeddings):
    assert np.array_equal(embeddings, embeddings_of(context, frozen))


def test_what_is_not_all_in_the_run_is_not_there(context, frozen, scratch, photos, make_context, tmp_path):
    assert stored_embeddings(context.run, scratch, photos) is None
    other = frozen.model_copy(update={"input": frozen.input.model_copy(update={"size": 48})})
    assert stored_embeddings(context.run, other, photos) is None
    assert stored_embeddings(make_context(tmp_path / "empty", photos).run, frozen, photos) is None


@pytest.mark.parametrize("name", ["a00", "nothing04", "test03", "single00"])
def test_the_nearest_are_those_of_a_neighbour_head_that_never_saw_the_fold(photos, embeddings, name):
    row = _row(photos, name)
    found = nearest_photos(photos, embeddings, row, 10)
    seen = np.flatnonzero((photos.folds >= 0) & (photos.folds != photos.folds[row]))
    vectors = torch.from_numpy(embeddings.astype(np.float32)).mean(dim=1)
    head = NeighbourHead(vectors.shape[1], 1, len(seen), HeadConfig(kind="neighbours"))
    head.fill(vectors[seen], torch.zeros(len(seen), dtype=torch.long))
    nearest = head.nearest(head.compare(vectors[[row]]), 10)[0].numpy()
    assert [each.id for each in found] == photos.ids[seen[nearest]].tolist()
    direction = torch.nn.functional.normalize(
        torch.nn.functional.normalize(vectors[row], dim=0) - head.get_buffer("centre"), dim=0
    )
    expected = (head.get_buffer("index")[nearest] @ direction).numpy()
    np.testing.assert_allclose([each.cosine for each in found], expected, atol=1e-5)


def test_a_training_photo_has_neighbours_of_other_folds_alone_and_a_test_photo_of_all(photos, embeddings):
    folds = dict(zip(photos.ids, photos.folds, strict=True))
    for name, expected in (("b01", {0, 2}), ("test00", {0, 1, 2})):
        found = nearest_photos(photos, embeddings, _row(photos, name), 1000)
        assert {folds[each.id] for each in found} == expected
        assert len(found) == sum(fold in expected for fold in photos.folds)
        assert [each.cosine for each in found] == sorted((each.cosine for each in found), reverse=True)


def test_each_training_photo_has_its_nearest_of_the_other_folds(photos, embeddings):
    found = nearest_across_folds(photos, embeddings, threads=1, advance=lambda _done, _note: None)
    assert sorted(found["query"]) == sorted(photos.ids[photos.folds >= 0])
    for each in found.itertuples():
        [nearest] = nearest_photos(photos, embeddings, _row(photos, each.query), 1)
        assert (each.neighbour, each.cosine) == (nearest.id, pytest.approx(nearest.cosine, abs=1e-6))


def test_embeddings_are_those_of_the_first_recipe_that_has_them(context, frozen, scratch, photos, embeddings):
    name, found = find_embeddings(context.run, [scratch, frozen], photos)
    assert name == frozen.name
    assert np.array_equal(found, embeddings)
    assert find_embeddings(context.run, [scratch], photos) is None


def test_neighbours_tell_their_landmark_or_none_and_where_they_lie(photos, embeddings):
    for each in nearest_photos(photos, embeddings, _row(photos, "test00"), 1000):
        row = _row(photos, each.id)
        assert each.path == str(photos.paths[row])
        assert each.landmark_id == (photos.landmarks[row] or None)


def test_a_picture_holds_the_photo_and_each_neighbour(photos, embeddings):
    row = _row(photos, "a00")
    found = nearest_photos(photos, embeddings, row, 3)
    one = draw_neighbours(photos, row, ["a"], [], max_pixels=10_000)
    four = draw_neighbours(photos, row, ["a"], found, max_pixels=10_000)
    assert four.width > 3.5 * one.width
