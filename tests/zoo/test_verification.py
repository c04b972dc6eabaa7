"""Landmarks that share their shapes and not their colours: embeddings see the colours, local features the shapes."""

import dataclasses
import hashlib
from contextlib import contextmanager

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image, ImageDraw

import zoo.verification
from engine.core.images import read_image
from engine.core.interrupt import StopRequest
from engine.core.progress import Progress
from engine.core.runs import Run
from engine.core.tables import CANDIDATES, read_table
from zoo.local import inliers, sift_features
from zoo.members import run_member
from zoo.photo_heads import NeighbourHead
from zoo.photo_set import PhotoSet
from zoo.recipe import HeadConfig, LocalConfig, load_recipe
from zoo.verification import Verifier, describe_photos, local_series

SIDE = 160
TINTS = {"a": (255, 40, 0), "b": (0, 255, 40), "c": (40, 0, 255)}
WRONG = {"a": "b", "b": "c", "c": "a"}  # the landmark whose colour a query has
CPU = torch.device("cpu")
LOCAL = LocalConfig(size=SIDE, keypoints=120)
SETTINGS = {"head.kind": "neighbours", "head.scale": 4.0, "candidates": 3}  # logits in -4..4
VERIFIED = {"local.size": SIDE, "local.keypoints": 120, "local.weight": 5.0, "local.candidates": 3}


def _draw(landmark, tint, shift):
    """Polygons of a landmark's own in one colour, seen from a little aside."""
    chance = np.random.default_rng(ord(landmark))
    image = Image.new("L", (2 * SIDE, 2 * SIDE))
    for _ in range(60):
        corners = chance.uniform(0, 2 * SIDE, 2) + chance.normal(0, 40, (4, 2)) + 2 * shift
        ImageDraw.Draw(image).polygon([tuple(xy) for xy in corners.tolist()], int(chance.integers(0, 256)))
    grey = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX))[..., None] / 255
    return (grey * 0.5 * 255 + 0.5 * np.array(tint)).astype(np.uint8)


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    """Three shards for the nine photos."""
    monkeypatch.setattr(zoo.verification, "SHARD", 4)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Two folds of a photo of each landmark, and a test set of one query of each in another one's colour."""
    data = tmp_path_factory.mktemp("shapes")
    rows = []
    for landmark, tint in TINTS.items():
        for fold in (0, 1, -1):
            name = f"{landmark}{fold}"
            seen = TINTS[WRONG[landmark]] if fold < 0 else tint
            Image.fromarray(_draw(landmark, seen, 3 * fold)).save(data / f"{name}.png")
            digest = hashlib.sha256((data / f"{name}.png").read_bytes()).hexdigest()
            rows.append((name, f"{name}.png", landmark if fold >= 0 else None, digest, fold))
    table = pd.DataFrame(rows, columns=["id", "path", "landmark_id", "sha256", "fold"])
    table["duplicate_group"] = range(len(table))
    return PhotoSet.from_tables(table, table[table["fold"] >= 0][["id", "fold"]], data)


@pytest.fixture(scope="module")
def recipe():
    return load_recipe("tiny-frozen", SETTINGS | VERIFIED | {"name": "verified"})


@pytest.fixture(scope="module")
def plain():
    return load_recipe("tiny-frozen", SETTINGS | {"name": "plain"})


@pytest.fixture
def context(tmp_path, drawn, make_context):
    """An empty run for up to 64,000 pixels a photo."""
    return dataclasses.replace(make_context(tmp_path / "run", drawn), max_pixels=64_000)


def _describe(run, photos, *, config=LOCAL, stop=None):
    return describe_photos(
        run, config, photos.paths, photos.hashes,
        max_pixels=64_000, device=CPU, progress=Progress(), stop=stop or StopRequest(),
    )  # fmt: skip


def _times(root):
    return {str(path.relative_to(root)): path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}


def _touched(root, before):
    return {name for name, time in _times(root).items() if time != before.get(name)}


def _ranks(run, member):
    """The rank of each query's true landmark, which its name begins with."""
    table = read_table(run.path(f"scores/{member}.test.parquet"), CANDIDATES)
    return {row.query: row.rank for row in table.itertuples() if row.query[0] == row.landmark_id}


# ---- features on disk


def test_a_photos_features_come_back_as_they_were_extracted(tmp_path, drawn):
    store = _describe(Run(tmp_path, create=True), drawn)
    for row, path in enumerate(drawn.paths):
        (expected,) = sift_features([read_image(path, max_pixels=64_000)], LOCAL, device=CPU)
        assert len(store[row]) == len(expected) > 50
        np.testing.assert_array_equal(store[row].positions, expected.positions)
        np.testing.assert_allclose(store[row].descriptors, expected.descriptors, atol=2e-3)
        np.testing.assert_allclose(store[row].scores, expected.scores, rtol=1e-4)


def test_photos_without_keypoints_come_back_empty(tmp_path, photos):
    store = _describe(Run(tmp_path, create=True), dataclasses.replace(photos, paths=photos.paths[:2]))
    assert store[0].descriptors.shape[1] == 128
    assert store[0].positions.shape == (len(store[0]), 2)


def test_an_interrupted_description_goes_on_at_its_shard(tmp_path, drawn):
    stop = StopRequest()
    stop.requested = True
    run = Run(tmp_path / "stopped", create=True)
    with pytest.raises(KeyboardInterrupt):
        _describe(run, drawn, stop=stop)
    before = _times(run.path("local"))
    assert [name.split("/")[-1] for name in before] == ["00000.npy"]
    _describe(run, drawn)
    assert {name.split("/")[-1] for name in _touched(run.path("local"), before)} == {"00001.npy", "00002.npy"}
    whole = Run(tmp_path / "whole", create=True)
    _describe(whole, drawn)
    for name in whole.names("local/"):
        assert run.path(name).read_bytes() == whole.path(name).read_bytes()


def test_only_settings_that_change_features_make_new_ones(tmp_path, drawn):
    run = Run(tmp_path, create=True)
    _describe(run, drawn)
    before = _times(run.path("local"))
    _describe(run, drawn, config=LOCAL.model_copy(update={"weight": 2.0, "ratio": 0.8, "candidates": 7}))
    assert not _touched(run.path("local"), before)
    _describe(run, drawn, config=LOCAL.model_copy(update={"keypoints": 60}))
    assert len(_touched(run.path("local"), before)) == 3


def test_what_sift_features_are_made_from_is_what_it_was_in_version_1():
    assert dataclasses.asdict(local_series(LocalConfig())) == {
        "folder": "local/sift-256-a9ecb85b", "kind": "local features", "label": "describe sift-256-a9ecb85b",
        "size": 4, "inputs": {"local.size": 256, "local.keypoints": 300, "local.upright": True, "version": 1},
    }  # fmt: skip


def test_pairs_seen_before_count_the_same(tmp_path, drawn):
    store = _describe(Run(tmp_path, create=True), drawn)
    verifier = Verifier(store, LOCAL, 0, CPU)
    assert verifier.count_inliers(0, [1, 2]) == verifier.count_inliers(0, [1, 2])
    expected = inliers(store[0], [store[row] for row in (5, 2, 1)], LOCAL, seed=0).tolist()
    assert verifier.count_inliers(0, [5, 2, 1]) == expected
    assert expected[2] >= LOCAL.minimum > expected[0]


# ---- evidence


def test_inliers_are_those_of_the_candidates_best_verified_photo(tmp_path, drawn):
    store = _describe(Run(tmp_path, create=True), drawn)
    verifier = Verifier(store, LOCAL.model_copy(update={"candidates": 4}), 0, CPU)
    indexed, queries = np.flatnonzero(drawn.folds >= 0), np.flatnonzero(drawn.folds < 0)
    targets = np.array([sorted(TINTS).index(name) for name in drawn.landmarks[indexed]])
    photos, asked = (
        torch.randn(len(rows), 8, generator=torch.Generator().manual_seed(1)) for rows in (indexed, queries)
    )
    head = NeighbourHead(8, 4, len(indexed), HeadConfig(), none_class=3)
    head.fill(photos, torch.from_numpy(targets))
    compared, logits = head.compare(asked), torch.zeros(len(queries), 4)
    refined, tell = verifier.rerank_batch(head, indexed, queries, compared, logits)

    classes = np.array([[2, 0, 1], [0, 1, 2], [1, 2, 0]])
    expected, verified = np.zeros((3, 3)), head.nearest(compared, 4).numpy()
    for (row, column), number in np.ndenumerate(classes):
        own = [indexed[photo] for photo in verified[row] if targets[photo] == number]
        counts = verifier.count_inliers(queries[row], own) if own else [0]
        expected[row, column] = np.log1p(max(counts))
    told = tell(torch.from_numpy(classes))
    assert expected.max() > np.log1p(LOCAL.minimum)
    assert 0 < expected[expected > 0].min() < np.log1p(LOCAL.minimum)  # few count too
    np.testing.assert_allclose(told["inliers"].numpy(), expected, rtol=1e-6)
    assert told.keys() == {"inliers", *head.evidence(compared, torch.from_numpy(classes))}
    assert refined.gather(1, torch.from_numpy(classes)).argmax(dim=1).tolist() == expected.argmax(axis=1).tolist()


def test_the_nearest_photo_of_a_landmark_joins_its_logit(tmp_path, drawn):
    head = NeighbourHead(3, 3, 4, HeadConfig(kind="neighbours"), none_class=2)
    head.fill(torch.tensor([[1.0, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 1]]), torch.tensor([0, 0, 1, 2]))
    compared = head.compare(torch.tensor([[1.0, 0.2, 0], [0.1, 0.1, 1]]))
    expected = np.zeros((2, 3), np.float32)
    for row, cosine in enumerate(compared.products.tolist()):
        expected[row, :2] = max(cosine[:2]), cosine[2]
    np.testing.assert_array_equal(head.nearest_cosines(compared), expected)

    verifier = Verifier(_describe(Run(tmp_path, create=True), drawn), LOCAL, 0, torch.device("cpu"))
    logits, asked = torch.tensor([[0.0, 1, 2], [2, 1, 0]]), (head, np.arange(4), np.array([4, 5]), compared)
    without, _ = verifier.rerank_batch(*asked, logits)
    config = LOCAL.model_copy(update={"cosine_weight": 3.0})
    with_it, _ = dataclasses.replace(verifier, config=config).rerank_batch(*asked, logits)
    np.testing.assert_allclose((with_it - without).numpy(), 3 * expected, atol=1e-6)


@pytest.mark.parametrize("kind", ["linear", "neighbours", "prototypes"])
def test_a_verified_member_tells_its_neighbours_and_inliers_of_each_candidate(context, recipe, kind):
    run_member(context, recipe.model_copy(update={"head": recipe.head.model_copy(update={"kind": kind})}))
    for part in ("oof", "test"):
        table = read_table(context.run.path(f"scores/verified.{part}.parquet"), CANDIDATES)
        assert set(table.columns) == {*CANDIDATES.columns, "cosine", "mean_cosine", "votes", "inliers"}
        assert table["votes"].groupby(table["query"]).sum().to_numpy() == pytest.approx(1)  # all landmarks are listed
        assert table["cosine"].between(-1, 1).all()
        assert (table["cosine"] >= table["mean_cosine"]).all()
        true = table[
            [query[0] == landmark for query, landmark in zip(table["query"], table["landmark_id"], strict=True)]
        ]
        assert (true["inliers"] > np.log1p(LOCAL.minimum)).all()


# ---- the member


def test_verification_lifts_the_true_landmark_above_where_neighbours_had_it(context, plain, recipe):
    run_member(context, plain)
    run_member(context, recipe)
    before, after = _ranks(context.run, "plain"), _ranks(context.run, "verified")
    assert set(before) == {"a-1", "b-1", "c-1"}
    assert min(before.values()) > 1  # the case is what it claims to be
    assert after == dict.fromkeys(before, 1)


def test_verified_scores_are_probabilities_in_order_and_nobody_verifies_himself(context, recipe, drawn):
    run_member(context, recipe)
    for part, queries in (("oof", drawn.ids[drawn.folds >= 0]), ("test", drawn.ids[drawn.folds < 0])):
        table = read_table(context.run.path(f"scores/verified.{part}.parquet"), CANDIDATES)
        assert set(table["query"]) == set(queries)
        assert table["score"].between(0, 1).all()
        assert table.groupby("query")["score"].apply(lambda scores: scores.is_monotonic_decreasing).all()


def test_a_second_run_does_nothing(context, recipe, drawn, make_context):
    run_member(context, recipe)
    before = _times(context.run.root)
    again = dataclasses.replace(make_context(context.run.root, drawn), max_pixels=64_000)
    run_member(again, recipe)
    assert not _touched(context.run.root, before)


def test_a_new_weight_makes_new_scores_from_the_same_model_and_features(context, recipe):
    run_member(context, recipe)
    before = _times(context.run.root)
    run_member(context, recipe.model_copy(update={"local": recipe.local.model_copy(update={"weight": 0.5})}))
    touched = _touched(context.run.root, before) - {"manifest.json"}
    assert touched
    assert all(name.endswith(".parquet") for name in touched)


def test_weights_do_not_depend_on_verification(context, plain, recipe):
    run_member(context, recipe)
    before = _times(context.run.root)
    run_member(context, plain.model_copy(update={"name": "verified"}))
    assert not any(name.endswith(".safetensors") for name in _touched(context.run.root, before))


def test_a_stop_while_verifying_keeps_what_is_finished(context, recipe, drawn, make_context):
    class StopAtSecondVerification(Progress):
        def __init__(self, stop):
            self.stop, self.seen = stop, 0

        @contextmanager
        def task(self, label, total, unit):
            self.seen += label.startswith("verify")
            self.stop.requested = self.seen == 2
            yield lambda _amount, _note: None

    stop = StopRequest()
    stopping = dataclasses.replace(context, progress=StopAtSecondVerification(stop), stop=stop)
    with pytest.raises(KeyboardInterrupt):
        run_member(stopping, recipe)
    before = _times(context.run.root)
    assert context.run.find("zoo/verified/fold0/oof.parquet") is not None
    assert context.run.find("zoo/verified/fold0/test.parquet") is None
    run_member(dataclasses.replace(make_context(context.run.root, drawn), max_pixels=64_000), recipe)
    assert "zoo/verified/fold0/oof.parquet" not in _touched(context.run.root, before)
    assert context.run.path("scores/verified.test.parquet").exists()


@pytest.mark.parametrize("kind", ["linear", "prototypes"])
def test_any_member_can_be_verified(context, recipe, kind):
    plain = load_recipe("tiny-frozen", SETTINGS | {"head.kind": kind, "name": "plain"})
    run_member(context, plain)
    run_member(context, plain.model_copy(update={"name": "verified", "local": recipe.local}))
    before, after = _ranks(context.run, "plain"), _ranks(context.run, "verified")
    assert max(before.values()) > 1
    assert after == dict.fromkeys(before, 1)
