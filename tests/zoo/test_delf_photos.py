"""Photos are described by the model of each fold, its queries verified by what it sees, and nothing is done twice."""

import dataclasses
import shutil
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file
from torch.nn import functional

import zoo.delf_photos
from engine.core.config import flatten
from engine.core.errors import ConfigError
from engine.core.interrupt import StopRequest
from engine.core.progress import Progress
from engine.core.tables import CANDIDATES, read_table
from zoo.delf import DIM, Whitening, fit_whitening
from zoo.delf_photos import Describer
from zoo.device import make_accelerator
from zoo.local import verify
from zoo.members import Member, run_fold, run_member
from zoo.network import build_network
from zoo.plan import _Trial, plan_members
from zoo.recipe import LocalConfig, load_recipe

ATTENTION = {"backbone.pooling": "attention", "backbone.stage": 3, "head.norm": "batch", "name": "tiny-delf"}
LOCAL = {
    "local.kind": "delf", "local.size": 64, "local.scales": [1.0, 2.0], "local.keypoints": 40,
    "local.threshold": 8.0, "local.minimum": 3, "local.candidates": 3,
}  # fmt: skip
CONFIG = LocalConfig(kind="delf", size=160, scales=(1.0, 2.0), threshold=8.0)
SIDE = 160


def _draw(shift, size=(SIDE, SIDE)):
    """Polygons seen through a window that is moved by some pixels, uint8 [H, W, 3]."""
    chance = np.random.default_rng(0)
    image = Image.new("RGB", (2 * size[0], 2 * size[1]))
    for _ in range(80):
        corners = chance.uniform(0, 2 * SIDE, 2) + chance.normal(0, 40, (4, 2)) - 2 * np.array(shift)
        colour = tuple(chance.integers(0, 256, 3).tolist())
        ImageDraw.Draw(image).polygon([tuple(xy) for xy in corners.tolist()], colour)
    return np.asarray(image.resize(size, Image.Resampling.BOX))


def _describer(backbone, config=CONFIG):
    torch.manual_seed(0)
    recipe = load_recipe("tiny-scratch", ATTENTION | {"backbone.name": backbone})
    network = build_network(recipe, torch.ones(3, dtype=torch.long)).eval()
    return Describer.of(network, config, make_accelerator("cpu", "fp32", 1))


def _unit(descriptors):
    return functional.normalize(descriptors, dim=-1)


# ---- one photo


@pytest.mark.parametrize("backbone", ["test_resnet", "tf_efficientnet_lite0"])
@pytest.mark.parametrize("shift", [(24, -8), (32, 16)])
def test_a_photo_and_the_same_moved_by_some_pixels_verify_with_that_map(backbone, shift):
    describer = _describer(backbone)
    images = [_draw((0, 0)), _draw(shift)]
    seen = torch.cat([torch.from_numpy(photo.descriptors) for photo in describer.describe(images, _unit)])
    here, there = describer.describe(images, fit_whitening(seen, 20))
    found = verify(here, [there], CONFIG, seed=0)
    assert found.inliers[0] > 40
    middle = found.maps[0] @ [SIDE / 2, SIDE / 2, 1]
    np.testing.assert_allclose(middle, SIDE / 2 - np.array(shift), atol=2)
    np.testing.assert_allclose(found.maps[0][:, :2], np.eye(2), atol=0.05)


def test_features_do_not_depend_on_the_company_a_photo_is_described_in():
    describer = _describer("test_resnet")
    images = [_draw((0, 0)), _draw((5, 5), (SIDE, 96)), _draw((9, 9)), _draw((0, 0), (40, 90)), _draw((2, 0), (15, 10))]
    together = describer.describe(images, _unit)
    for image, found in zip(images, together, strict=True):
        [alone] = describer.describe([image], _unit)
        np.testing.assert_array_equal(alone.positions, found.positions)
        np.testing.assert_allclose(alone.descriptors, found.descriptors, atol=2e-3)
        height, width = describer.fit(*image.shape[:2])
        assert (found.positions >= -0.5).all()
        assert (found.positions <= [width - 0.5, height - 0.5]).all()


def test_a_photo_keeps_its_shape_and_is_enlarged_at_most_twice():
    describer = _describer("test_resnet")
    assert describer.fit(3000, 4500) == (112, 160)
    assert describer.fit(160, 50) == (160, 48)
    assert describer.fit(48, 32) == (96, 64)


def test_a_member_without_attention_has_no_keypoints_of_its_own():
    recipe = load_recipe("tiny-scratch", {"backbone.pooling": "gem"})
    network = build_network(recipe, torch.ones(3, dtype=torch.long))
    with pytest.raises(ConfigError, match=r"backbone\.pooling = 'attention'"):
        Describer.of(network, CONFIG, make_accelerator("cpu", "fp32", 1))


# ---- the member


@pytest.fixture(scope="module")
def recipe():
    return load_recipe("tiny-scratch", ATTENTION | LOCAL)


@pytest.fixture(scope="module")
def plain():
    """The same member, not verified."""
    return load_recipe("tiny-scratch", ATTENTION)


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    """Three shards for the 46 photos."""
    monkeypatch.setattr(zoo.delf_photos, "SHARD", 20)


@pytest.mark.faults
def test_a_network_that_cannot_tell_places_is_refused_before_it_is_trained(tmp_path, make_context, photos):
    changes = {"backbone.name": "convnext_atto", "train.fold_norm": False, "train.freeze_stages": 0}
    recipe = load_recipe("tiny-scratch", ATTENTION | LOCAL | changes)
    with pytest.raises(ConfigError, match="cannot be told"):
        run_fold(make_context(tmp_path, photos), recipe, 0)
    assert not list(tmp_path.rglob("*.safetensors"))


def _times(root):
    return {str(path.relative_to(root)): path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}


def _touched(root, before):
    return {name for name, time in _times(root).items() if time != before.get(name)} - {"manifest.json"}


def _features(names):
    return {name for name in names if "/local/" in name}


@pytest.fixture(scope="module")
def verified(tmp_path_factory, make_context, photos, recipe):
    """A finished run of the member."""
    root = tmp_path_factory.mktemp("delf")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zoo.delf_photos, "SHARD", 20)
        run_member(make_context(root, photos), recipe)
    return root


@pytest.fixture
def copy(verified, tmp_path):
    """A copy of the finished run, to be changed."""
    return shutil.copytree(verified, tmp_path / "copy")


def test_each_fold_describes_what_it_learned_from_and_is_asked(verified, photos, recipe, make_context):
    member = Member(make_context(verified, photos), recipe)
    for fold in range(3):
        rows = member.described_rows(fold, ["oof", "test"])
        assert sorted(rows) == list(range(len(photos.ids)))
        folder = verified / f"zoo/tiny-delf/fold{fold}/local"
        shards = [np.load(path) for path in sorted(folder.glob("*.npy"))]
        assert [len(shard) for shard in shards] == [20, 20, 9]
        assert shards[0]["descriptor"].shape[1:] == (40, DIM)
        verifier = member.verifier_of(member.load(fold), fold, ["oof", "test"])
        describer = Describer.of(member.load(fold), recipe.local, member.context.accelerator)
        whitening = Whitening(**load_file(folder / "whitening.safetensors"))
        for row in (0, 30, len(photos.ids) - 1):
            [expected] = describer.describe(describer.read([photos.paths[row]], 10_000), whitening)
            np.testing.assert_array_equal(verifier.store[row].positions, expected.positions)
            np.testing.assert_allclose(verifier.store[row].descriptors, expected.descriptors, atol=5e-3)
            assert len(expected) > 10


def test_what_verifies_is_lifted(verified, photos, plain, recipe, make_context):
    run_member(make_context(verified, photos), plain.model_copy(update={"name": "plain"}))
    before, after = (read_table(verified / f"scores/{name}.oof.parquet", CANDIDATES) for name in ("plain", "tiny-delf"))
    member = Member(make_context(verified, photos), recipe)
    lesson, verifier = member.lesson(0), member.verifier_of(member.load(0), 0, ["oof", "test"])
    expected = set()
    for query in photos.rows_of("oof", 0):
        counts = np.array(verifier.count_inliers(int(query), lesson.rows.tolist()))
        if counts.max() >= recipe.local.minimum:
            expected.add(photos.ids[query])
    changed = before.merge(after, on=["query", "landmark_id"], suffixes=("", "_after"))
    moved = set(changed.loc[(changed["score"] - changed["score_after"]).abs() > 1e-6, "query"])
    assert moved
    assert moved & set(photos.ids[photos.rows_of("oof", 0)]) <= expected


def test_a_second_run_does_nothing(copy, photos, recipe, make_context):
    before = _times(copy)
    run_member(make_context(copy, photos), recipe)
    assert not _touched(copy, before)


def test_the_weights_are_those_of_the_member_that_is_not_verified(copy, photos, plain, make_context):
    before = _times(copy)
    run_member(make_context(copy, photos), plain)
    touched = _touched(copy, before)
    assert touched
    assert all(name.endswith(".parquet") for name in touched)


def test_another_way_to_compare_leaves_models_and_features(copy, photos, recipe, make_context):
    before = _times(copy)
    changed = recipe.local.model_copy(update={"weight": 2.0, "ratio": 0.9, "threshold": 5.0})
    run_member(make_context(copy, photos), recipe.model_copy(update={"local": changed}))
    touched = _touched(copy, before)
    assert touched
    assert all(name.endswith(".parquet") for name in touched)


def test_other_scales_are_looked_at_by_the_same_models(copy, photos, recipe, make_context):
    before = _times(copy)
    changed = recipe.local.model_copy(update={"scales": (1.0, 1.5)})
    run_member(make_context(copy, photos), recipe.model_copy(update={"local": changed}))
    touched = _touched(copy, before)
    assert _features(touched) == _features(before)
    assert not any("weights" in name for name in touched)


def test_another_model_sees_the_photos_anew(copy, photos, recipe, make_context):
    before = _times(copy)
    train = recipe.train.model_copy(update={"lr": 1e-3})
    changed = recipe.model_copy(update={"train": train})
    run_member(make_context(copy, photos, force_new=True), changed, [0])
    assert _features(_touched(copy, before)) == {name for name in _features(before) if "/fold0/" in name}


def test_without_test_scores_the_test_set_is_not_described(tmp_path, photos, recipe, make_context):
    run_fold(make_context(tmp_path, photos), recipe, 0)
    shards = sorted(tmp_path.glob("zoo/tiny-delf/fold0/local/*.npy"))
    described = len(photos.ids) - len(photos.rows_of("test", 0))
    assert sum(len(np.load(shard)) for shard in shards) == described
    before = _times(tmp_path)
    run_member(make_context(tmp_path, photos), recipe, [0])
    again = _features(_touched(tmp_path, before))
    assert again == {"zoo/tiny-delf/fold0/local/00002.npy"}  # the one that was not full


def test_an_interrupted_description_goes_on_at_its_shard(tmp_path, verified, photos, recipe, make_context):
    class StopAtDescription(Progress):
        @contextmanager
        def task(self, label, total, unit):
            stop.requested |= label.startswith("describe")
            yield lambda _amount, _note: None

    stop = StopRequest()
    context = dataclasses.replace(make_context(tmp_path, photos), progress=StopAtDescription(), stop=stop)
    with pytest.raises(KeyboardInterrupt):
        run_member(context, recipe)
    before = _times(tmp_path)
    assert {Path(name).name for name in _features(before)} == {"whitening.safetensors", "00000.npy"}
    run_member(make_context(tmp_path, photos), recipe)
    assert not _features(_touched(tmp_path, before)) & _features(before)
    for name in _features(_times(verified)):
        assert tmp_path.joinpath(name).read_bytes() == verified.joinpath(name).read_bytes()


def test_features_of_another_whitening_are_made_anew(copy, photos, recipe, make_context):
    """Learned anew on another machine, a direction may have another sign than in the features on disk."""
    name = "zoo/tiny-delf/fold1/local/whitening.safetensors"
    whitening = load_file(copy / name)
    save_file({"mean": whitening["mean"], "basis": -whitening["basis"]}, copy / name)
    before = _times(copy)
    run = make_context(copy, photos).run
    run.record(name, kind="whitening", version=1, inputs=run.entry(name).inputs)
    run.forget("zoo/tiny-delf/fold1/oof.parquet")
    run_member(make_context(copy, photos), recipe)
    touched = _features(_touched(copy, before))
    assert touched == {f"zoo/tiny-delf/fold1/local/{shard:05d}.npy" for shard in range(3)}


def test_the_plan_counts_what_each_fold_is_to_describe(tmp_path, copy, photos, recipe, plain, make_context):
    [new] = plan_members(make_context(tmp_path / "new", photos), [recipe])
    [unverified] = plan_members(make_context(tmp_path / "new", photos), [plain])
    assert new.preparing_seconds > unverified.preparing_seconds
    [finished] = plan_members(make_context(copy, photos), [recipe])
    assert finished.finished
    heavier = recipe.model_copy(update={"local": recipe.local.model_copy(update={"weight": 2.0})})
    assert _Trial(make_context(copy, photos), heavier, set())._undescribed(heavier.local, [0, 1, 2]) == 0
    wider = recipe.local.model_copy(update={"scales": (1.0,)})
    trial = _Trial(make_context(copy, photos), recipe.model_copy(update={"local": wider}), set())
    assert trial._undescribed(wider, [0, 1]) == 2 * len(photos.ids)


def test_what_weights_are_made_from_does_not_know_of_verification(tmp_path, photos, plain, recipe, make_context):
    context = make_context(tmp_path, photos)
    sift = plain.model_copy(update={"local": LocalConfig()})
    inputs = [Member(context, each).inputs(1) for each in (plain, sift, recipe)]
    assert inputs[0] == inputs[1] == inputs[2]
    assert not any(key.startswith("local") for key in inputs[0])
    known = flatten(plain) | {"seed": 0, "fold": 1, "training photos": photos.training_digest, "version": 1}
    for name in ("summary", "candidates", "train.checkpoint_seconds"):
        del known[name]
    assert inputs[0] == known
