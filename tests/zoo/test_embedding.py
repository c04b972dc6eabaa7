"""Each photo is embedded once, and an interrupted embedding goes on where it was."""

import numpy as np
import pytest
import torch

import zoo.embedding
from engine.core.runs import Run
from zoo.embedding import embed_photos, embedding_key
from zoo.members import embeddings_of
from zoo.network import Embedder
from zoo.photos import Photos
from zoo.recipe import load_recipe
from zoo.weights import build_backbone


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    """Four shards for the drawn photos."""
    monkeypatch.setattr(zoo.embedding, "SHARD", 16)


def _mtimes(run):
    return {path.name: path.stat().st_mtime_ns for path in run.path("embeddings").rglob("*.npy")}


@pytest.fixture
def context(tmp_path, photos, make_context):
    """A context in an empty run."""
    return make_context(tmp_path / "run", photos)


def test_each_photo_and_view_is_embedded_as_by_the_network_itself(context, frozen, photos):
    embeddings = embeddings_of(context, frozen)
    torch.manual_seed(0)
    embedder = Embedder(build_backbone(frozen.backbone)).eval()
    decoded = Photos(photos.paths, size=32, fit="stretch", max_pixels=10_000)
    batch = torch.stack([decoded[row] for row in range(len(decoded))])
    with torch.inference_mode():
        expected = torch.stack([embedder(batch), embedder(batch.flip(-1))], dim=1).numpy()
    assert embeddings.shape == (len(photos.ids), 2, expected.shape[2])
    assert embeddings.dtype == np.float16
    np.testing.assert_allclose(embeddings, expected, rtol=0.01, atol=0.01)


def test_what_is_finished_and_fresh_is_not_embedded_again(context, frozen, photos, make_context):
    first = embeddings_of(context, frozen)
    before = _mtimes(context.run)
    assert sorted(before) == ["00000.npy", "00001.npy", "00002.npy", "00003.npy"]
    again = embeddings_of(make_context(context.run.root, photos), frozen)
    assert np.array_equal(first, again)
    assert _mtimes(context.run) == before


@pytest.mark.faults
@pytest.mark.parametrize("damage", ["missing", "cut", "flipped"])
def test_a_damaged_shard_is_made_again_and_the_same(context, frozen, photos, make_context, damage):
    first = embeddings_of(context, frozen)
    shard = next(context.run.path("embeddings").rglob("00002.npy"))
    whole, before = shard.read_bytes(), _mtimes(context.run)
    shard.write_bytes(whole[:-10] if damage == "cut" else whole[:-1] + bytes([whole[-1] ^ 1]))
    if damage == "missing":
        shard.unlink()
    torch.manual_seed(99)  # another process, where chance stands elsewhere: random weights must be the same ones
    assert np.array_equal(embeddings_of(make_context(context.run.root, photos), frozen), first)
    assert shard.read_bytes() == whole
    assert {name for name, time in _mtimes(context.run).items() if time != before[name]} == {"00002.npy"}


def test_a_stop_keeps_finished_shards_and_the_next_start_goes_on(context, frozen, photos, make_context, watch):
    stopped = watch()
    stopped.stop.requested = True
    with pytest.raises(KeyboardInterrupt):
        embeddings_of(make_context(context.run.root, photos, stopped), frozen)
    before = _mtimes(context.run)
    assert list(before) == ["00000.npy"]
    torch.manual_seed(99)
    resumed = embeddings_of(make_context(context.run.root, photos), frozen)
    assert _mtimes(context.run)["00000.npy"] == before["00000.npy"]
    assert np.array_equal(resumed, embeddings_of(make_context(context.run.root / "other", photos), frozen))


def test_a_changed_photo_is_embedded_again_with_its_shard_only(context, frozen, photos):
    embeddings_of(context, frozen)
    before = _mtimes(context.run)
    hashes = [*photos.hashes[:20], "0" * 64, *photos.hashes[21:]]
    source = zoo.embedding.PhotoSource(
        Photos(photos.paths, size=32, fit="stretch", max_pixels=10_000),
        frozen.augment, frozen.input.views, 0, torch.device("cpu"),
    )  # fmt: skip
    embed_photos(
        Run(context.run.root), frozen, source, hashes,
        accelerator=context.accelerator, progress=context.progress, stop=context.stop,
    )  # fmt: skip
    assert {name for name, time in _mtimes(context.run).items() if time != before[name]} == {"00001.npy"}


def test_members_that_share_backbone_and_input_share_the_embeddings(context, frozen):
    twin = frozen.model_copy(update={"name": "twin", "train": frozen.train.model_copy(update={"epochs": 9.0})})
    assert embedding_key(twin) == embedding_key(frozen)
    embeddings_of(context, frozen)
    before = _mtimes(context.run)
    embeddings_of(context, twin)
    assert _mtimes(context.run) == before


@pytest.mark.parametrize(
    "changes",
    [{"input.size": 48}, {"input.fit": "crop"}, {"input.views": ["plain"]}, {"backbone.pooling": "max"}],
)
def test_another_backbone_or_input_has_embeddings_of_its_own(frozen, changes):
    other = load_recipe("tiny-frozen", {"input.views": ["plain", "flip"], **changes})
    assert embedding_key(other) != embedding_key(frozen)
    assert embedding_key(other).startswith(f"test_resnet-{other.input.size}-")
