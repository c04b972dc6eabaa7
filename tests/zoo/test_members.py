"""A member goes from photos to its tables; what is finished stays, and no photo is scored by who learned from it."""

import dataclasses
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from engine.core.errors import ArtifactError
from engine.core.runs import Run
from engine.core.tables import CANDIDATES, QUERY_FEATURES, read_table
from zoo.candidates import FEATURES
from zoo.members import embeddings_of, run_fold, run_member
from zoo.photo_heads import NeighbourHead
from zoo.recipe import load_recipe
from zoo.weights import build_backbone

MEMBERS = ("tiny-frozen", "tiny-scratch")
WEIGHTS = "zoo/{}/fold{}/weights.safetensors"


def _times(root):
    return {str(path.relative_to(root)): path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}


def _touched(root, before):
    return {name for name, time in _times(root).items() if time != before.get(name)}


def _weights(root, member):
    return [root.joinpath(WEIGHTS.format(member, fold)).read_bytes() for fold in range(3)]


def _flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of the finished run, to be changed."""
    return shutil.copytree(finished, tmp_path / "run")


@pytest.fixture(params=MEMBERS)
def recipe(request, frozen, scratch):
    """Either member of the finished run."""
    return {"tiny-frozen": frozen, "tiny-scratch": scratch}[request.param]


# ---- the photos


@pytest.mark.parametrize("changes", [{}, {"augment.degrade.probability": 0.5}], ids=["plain", "degraded"])
def test_photos_of_15_by_10_pixels_train_and_score(changes, tmp_path, photos, make_context):
    def shrink(path):
        small = tmp_path / "photos" / path.name
        small.parent.mkdir(exist_ok=True)
        Image.open(path).resize((15, 10)).save(small)
        return small

    small = dataclasses.replace(photos, paths=[shrink(path) for path in photos.paths])
    recipe = load_recipe("tiny-scratch", changes | {"train.epochs": 12})
    run_member(make_context(tmp_path / "run", small), recipe)
    oof = read_table(tmp_path / "run" / f"scores/{recipe.name}.oof.parquet", CANDIDATES)
    assert set(oof["query"]) == set(photos.ids[photos.folds >= 0])
    best = oof[oof["rank"] == 1].set_index("query")["landmark_id"]
    shown = np.isin(photos.landmarks, ["a", "b", "c"]) & (photos.folds >= 0)
    assert (best.loc[photos.ids[shown]].to_numpy() == photos.landmarks[shown]).mean() > 0.5  # of five landmarks


def test_the_photos_of_a_fold_are_those_of_the_tables(photos, catalog):
    table, folds, data = catalog
    fold_of = dict(zip(folds["id"], folds["fold"], strict=True))
    assert photos.fold_count == 3
    assert [path.exists() and path.parent == data for path in photos.paths] == [True] * len(table)
    for fold in range(3):
        learned = set(photos.ids[photos.training_rows(fold, negatives=True)])
        scored = set(photos.ids[photos.rows_of("oof", fold)])
        assert scored == {name for name, place in fold_of.items() if place == fold}
        assert learned == fold_of.keys() - scored
        landmarks_only = photos.training_rows(fold, negatives=False)
        assert (photos.landmarks[landmarks_only] != "").all()
    assert set(photos.ids[photos.rows_of("test", 0)]) == set(table["id"]) - fold_of.keys()


def test_a_landmark_that_lies_in_one_fold_is_unknown_to_its_model(photos):
    assert [("whole" in photos.known_landmarks(fold)) for fold in range(3)] == [True, False, True]
    assert [("single" in photos.known_landmarks(fold)) for fold in range(3)] == [True, True, False]
    assert photos.known_landmarks(0) == sorted(photos.known_landmarks(0))


# ---- the tables


@pytest.mark.parametrize("member", MEMBERS)
def test_every_training_photo_is_scored_once_by_the_model_of_its_fold(finished, photos, member):
    seen = []
    for fold in range(3):
        table = read_table(finished / f"zoo/{member}/fold{fold}/oof.parquet", CANDIDATES)
        learned = set(photos.ids[photos.training_rows(fold, negatives=True)])
        assert not learned & set(table["query"])
        assert set(table["landmark_id"]) <= set(photos.known_landmarks(fold))
        seen += sorted(set(table["query"]))
    assert sorted(seen) == sorted(photos.ids[photos.folds >= 0])
    merged = read_table(finished / f"scores/{member}.oof.parquet", CANDIDATES)
    assert sorted(merged["query"].unique()) == sorted(seen)


@pytest.mark.parametrize("member", MEMBERS)
@pytest.mark.parametrize("part", ["oof", "test"])
def test_each_query_has_its_best_candidates_and_its_features(finished, photos, member, part):
    queries = set(photos.ids[(photos.folds < 0) == (part == "test")])
    candidates = read_table(finished / f"scores/{member}.{part}.parquet", CANDIDATES)
    assert set(candidates["query"]) == queries
    assert set(candidates["member"]) == {member}
    assert candidates["score"].between(0, 1).all()
    for _, rows in candidates.groupby("query"):
        assert rows["rank"].tolist() == list(range(1, len(rows) + 1))
        assert rows["score"].is_monotonic_decreasing
        assert rows["landmark_id"].is_unique
        assert len(rows) <= 5
    features = read_table(finished / f"scores/{member}.{part}.queries.parquet", QUERY_FEATURES)
    assert sorted(features["query"]) == sorted(queries)
    assert features.columns.tolist() == ["member", "query", *FEATURES]
    assert features["p_none"].between(0, 1).all()


def test_the_test_sets_scores_are_the_mean_over_the_models_that_know_the_landmark(finished, photos):
    known = [set(photos.known_landmarks(fold)) for fold in range(3)]
    tables = [
        read_table(finished / f"zoo/tiny-frozen/fold{fold}/test.parquet", CANDIDATES).set_index(
            ["query", "landmark_id"]
        )
        for fold in range(3)
    ]
    merged = read_table(finished / "scores/tiny-frozen.test.parquet", CANDIDATES)
    assert {"whole", "single"} & set(merged["landmark_id"])
    for row in merged.itertuples():
        scores = [
            table["score"].get((row.query, row.landmark_id), 0.0)
            for table, names in zip(tables, known, strict=True)
            if row.landmark_id in names
        ]
        assert row.score == pytest.approx(np.mean(scores), rel=1e-5)


def test_a_fold_of_landmarks_and_nothing_has_a_class_for_none(finished, tmp_path, photos, make_context):
    features = read_table(finished / "scores/tiny-frozen.oof.queries.parquet", QUERY_FEATURES)
    assert (features["p_none"] > 0).all()
    closed = load_recipe("tiny-frozen", {"head.none_class": False, "name": "closed"})
    run_member(make_context(tmp_path, photos), closed)
    features = read_table(tmp_path / "scores/closed.oof.queries.parquet", QUERY_FEATURES)
    assert (features["p_none"] == 0).all()
    assert set(features["query"]) == set(photos.ids[photos.folds >= 0])  # negatives are queries all the same


def test_held_out_photos_and_their_labels_leave_no_trace_in_the_weights(
    finished, tmp_path, photos, recipe, make_context
):
    held_out = np.flatnonzero(photos.folds == 0)
    paths, landmarks = list(photos.paths), photos.landmarks.copy()
    for row, other in zip(held_out, held_out[::-1], strict=True):
        paths[row] = photos.paths[other]
    landmarks[held_out] = np.where(photos.landmarks[held_out] == "a", "b", "a")
    hashes = [f"{number:064x}" for number in range(len(paths))]
    other = dataclasses.replace(photos, paths=paths, landmarks=landmarks, hashes=hashes)
    run_member(make_context(tmp_path, other), recipe)
    expected, found = (_weights(root, recipe.name) for root in (finished, tmp_path))
    assert found[0] == expected[0]
    assert found[1] != expected[1]  # where they were learned from, they count
    assert found[2] != expected[2]


# ---- finished work


def test_a_second_run_does_nothing(copy, photos, recipe, make_context):
    before = _times(copy)
    run_member(make_context(copy, photos), recipe)
    assert _touched(copy, before) == set()


def test_the_same_run_elsewhere_is_the_same_byte_for_byte(finished, tmp_path, photos, recipe, make_context):
    torch.manual_seed(99)
    run_member(make_context(tmp_path, photos), recipe)
    made = [name for name in _times(tmp_path) if name.endswith((".parquet", ".safetensors", ".npy"))]
    assert len(made) >= 3 + 3 * 4 + 4
    different = [name for name in made if tmp_path.joinpath(name).read_bytes() != finished.joinpath(name).read_bytes()]
    assert not different


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"train.epochs": 3}, "train.epochs: 2 -> 3"),
        ({"head.cosine": True}, "head.cosine: False -> True"),
        ({"input.size": 48}, "input.size: 32 -> 48"),
    ],
)
def test_a_changed_recipe_is_refused_with_what_changed(copy, photos, frozen, make_context, setting, said):
    settings = {"input.views": ["plain", "flip"], "train.epochs": 2, "train.batch_size": 8}
    before = _times(copy)
    with pytest.raises(ArtifactError) as caught:
        run_member(make_context(copy, photos), load_recipe("tiny-frozen", settings | setting))
    assert caught.value.message.splitlines()[1:] == [said]
    assert "fold0/weights.safetensors" in caught.value.message
    assert "--force-new" in caught.value.hint
    assert _touched(copy, before) == set()
    run_member(make_context(copy, photos), frozen)  # and what was made before is still whole
    assert _touched(copy, before) == set()


def test_changed_folds_or_seed_are_refused(copy, photos, frozen, make_context):
    folds = photos.folds.copy()
    folds[:2] = folds[1::-1]
    with pytest.raises(ArtifactError, match=r"training photos: \w+… -> \w+…"):
        run_member(make_context(copy, dataclasses.replace(photos, folds=folds)), frozen)
    with pytest.raises(ArtifactError, match="seed: 0 -> 1"):
        run_member(make_context(copy, photos, seed=1), frozen)


def test_force_new_trains_a_changed_recipe_anew(copy, finished, photos, make_context):
    changed = load_recipe("tiny-frozen", {"train.epochs": 1})
    run_member(make_context(copy, photos, force_new=True), changed)
    assert all(new != old for new, old in zip(*(_weights(r, "tiny-frozen") for r in (copy, finished)), strict=True))
    before = _times(copy)
    run_member(make_context(copy, photos), changed)
    assert _touched(copy, before) == set()


def test_another_summary_or_pause_between_checkpoints_is_no_other_training(copy, photos, frozen, make_context):
    before = _times(copy)
    train = frozen.train.model_copy(update={"checkpoint_seconds": 7.0})
    run_member(make_context(copy, photos), frozen.model_copy(update={"summary": "other words", "train": train}))
    assert _touched(copy, before) == set()


def test_scores_of_an_older_version_are_made_anew_from_the_weights_there_are(
    copy, photos, recipe, make_context, monkeypatch
):
    before = _times(copy)
    monkeypatch.setattr("zoo.members.SCORES_VERSION", 1_000)
    run_member(make_context(copy, photos), recipe)
    scores = {f"fold{fold}/{part}" for fold in range(3) for part in ("oof", "test")}
    scores = {f"zoo/{recipe.name}/{name}{ending}" for name in scores for ending in (".parquet", ".queries.parquet")}
    assert _touched(copy, before) == scores | {"manifest.json"}


def test_fewer_candidates_are_taken_from_the_models_there_are(copy, photos, frozen, make_context):
    weights = _weights(copy, "tiny-frozen")
    run_member(make_context(copy, photos), frozen.model_copy(update={"candidates": 1}))
    assert _weights(copy, "tiny-frozen") == weights
    for part in ("oof", "test"):
        assert set(read_table(copy / f"scores/tiny-frozen.{part}.parquet", CANDIDATES)["rank"]) == {1}


@pytest.mark.parametrize("changed", [{"views": ("plain",)}, {"views": ("flip", "scales"), "merge": "embeddings"}])
def test_other_views_are_looked_at_by_the_models_there_are(copy, photos, scratch, make_context, changed):
    def scores():
        return [path.read_bytes() for path in sorted(copy.glob(f"scores/{scratch.name}.*"))]

    weights, before = _weights(copy, scratch.name), scores()
    other = scratch.model_copy(update={"input": scratch.input.model_copy(update=changed)})
    run_member(make_context(copy, photos), other)
    assert _weights(copy, scratch.name) == weights
    assert len(before) == 4
    assert all(new != old for new, old in zip(scores(), before, strict=True))
    run_member(make_context(copy, photos), scratch)
    assert scores() == before


@pytest.mark.parametrize("head", ["neighbours", "prototypes"])
def test_a_head_that_keeps_photos_as_they_were_looked_at_takes_them_in_anew(tmp_path, photos, make_context, head):
    settings = {"head.kind": head, "train.epochs": 1}
    run_member(make_context(tmp_path, photos), load_recipe("tiny-scratch", settings))
    other = load_recipe("tiny-scratch", settings | {"input.views": ["plain"]})
    with pytest.raises(ArtifactError, match=r"input\.views"):
        run_member(make_context(tmp_path, photos), other)


@pytest.mark.faults
def test_a_flipped_bit_in_weights_is_noticed_and_mended(copy, finished, photos, recipe, make_context):
    name = WEIGHTS.format(recipe.name, 1)
    _flip_a_bit(copy / name)
    before = _times(copy)
    with pytest.raises(ArtifactError, match=r"weights\.safetensors: its SHA-256 is not the manifest's"):
        Run(copy).verified(name, made_by="engine train-zoo")
    run_member(make_context(copy, photos), recipe)
    assert _weights(copy, recipe.name) == _weights(finished, recipe.name)
    assert _touched(copy, before) == {name, f"zoo/{recipe.name}/fold1/metrics.jsonl", "manifest.json"}


@pytest.mark.faults
@pytest.mark.parametrize("name", ["zoo/tiny-frozen/fold2/oof.queries.parquet", "scores/tiny-frozen.test.parquet"])
def test_a_flipped_bit_in_scores_is_noticed_and_mended(copy, finished, photos, frozen, make_context, name):
    _flip_a_bit(copy / name)
    before = _times(copy)
    run_member(make_context(copy, photos), frozen)
    assert copy.joinpath(name).read_bytes() == finished.joinpath(name).read_bytes()
    with_its_twin = {name, name.replace(".queries", "")}  # a fold's two tables are made together
    assert {name, "manifest.json"} <= _touched(copy, before) <= with_its_twin | {"manifest.json"}


def test_other_weights_in_the_same_file_are_noticed(tmp_path, photos, make_context):
    source = tmp_path / "w.safetensors"
    recipe = load_recipe("tiny-frozen", {"backbone.weights": "file", "backbone.source": str(source)})
    for seed in (1, 2):
        torch.manual_seed(seed)
        random = recipe.backbone.model_copy(update={"weights": "random", "source": None})
        save_file(build_backbone(random).state_dict(), source)
        if seed == 1:
            run_member(make_context(tmp_path / "run", photos), recipe)
    with pytest.raises(ArtifactError, match=r"backbone\.source content: \w+… -> \w+…"):
        run_member(make_context(tmp_path / "run", photos), recipe)
    run_member(make_context(tmp_path / "run", photos, force_new=True), recipe)
    assert len(list((tmp_path / "run" / "embeddings").iterdir())) == 2


def test_folded_norms_are_found_again_when_the_model_is_loaded(tmp_path, photos, make_context):
    recipe = load_recipe("tiny-scratch", {"train.fold_norm": True, "train.freeze_stages": 2, "train.epochs": 1})
    run_member(make_context(tmp_path, photos), recipe)
    assert len(read_table(tmp_path / "scores/tiny-scratch.test.parquet", CANDIDATES))


def test_a_neighbours_member_learns_from_the_photos_outside_its_fold_only(tmp_path, photos, make_context):
    recipe = load_recipe("tiny-frozen", {"name": "near", "head.kind": "neighbours"})
    run_member(make_context(tmp_path, photos), recipe)
    embeddings = embeddings_of(make_context(tmp_path, photos), recipe)[:, 0]
    for fold in range(3):
        rows = photos.training_rows(fold, negatives=True)
        head = NeighbourHead(embeddings.shape[1], 1, len(rows), recipe.head)
        learned = torch.from_numpy(embeddings[rows].astype(np.float32))
        head.fill(learned, torch.zeros(len(rows), dtype=torch.long))
        stored = load_file(tmp_path / WEIGHTS.format("near", fold))
        torch.testing.assert_close(stored["head.index"], head.index)
    oof = read_table(tmp_path / "scores/near.oof.parquet", CANDIDATES)
    best = oof[oof["rank"] == 1].set_index("query")["landmark_id"]
    shows = np.isin(photos.landmarks, ["a", "b"])
    assert (best.loc[photos.ids[shows]].to_numpy() == photos.landmarks[shows]).mean() > 0.8
    before = _times(tmp_path)
    run_member(make_context(tmp_path, photos), recipe)
    assert _touched(tmp_path, before) == set()


TOLD = ["none_cosine", "nearest_none_cosine", "trust"]
EVIDENCE = ["cosine", "mean_cosine", "votes", "support_none_cosine"]


def _only(photos, keep):
    """The photos of a mask, as a competition of their own."""
    paths = [path for path, kept in zip(photos.paths, keep, strict=True) if kept]
    hashes = [digest for digest, kept in zip(photos.hashes, keep, strict=True) if kept]
    masked = {name: getattr(photos, name)[keep] for name in ("ids", "folds", "landmarks", "groups")}
    return dataclasses.replace(photos, paths=paths, hashes=hashes, **masked)


def _near_features(root, part):
    return read_table(root / f"scores/near.{part}.queries.parquet", QUERY_FEATURES)


def test_a_neighbours_member_tells_how_near_its_queries_are_to_nothing(tmp_path, photos, make_context):
    run_member(make_context(tmp_path, photos), load_recipe("tiny-frozen", {"name": "near", "head.kind": "neighbours"}))
    for part in ("oof", "test"):
        assert _near_features(tmp_path, part).columns.tolist() == ["member", "query", *FEATURES, *TOLD]
        candidates = read_table(tmp_path / f"scores/near.{part}.parquet", CANDIDATES)
        assert candidates.columns.tolist() == [*CANDIDATES.columns, *EVIDENCE]
    trust = _near_features(tmp_path, "oof").set_index("query")["trust"]
    is_none = photos.landmarks == ""
    assert trust[photos.ids[is_none & (photos.folds >= 0)]].max() < trust[photos.ids[photos.landmarks == "a"]].median()


def test_a_verified_member_with_a_class_for_none_tells_how_near_a_landmarks_photos_are_to_nothing(
    tmp_path, photos, make_context
):
    local = {"local.size": 64, "local.keypoints": 8, "local.candidates": 2}
    table = run_fold(make_context(tmp_path, photos), load_recipe("tiny-frozen", local), 0)
    assert table.columns.tolist() == [*CANDIDATES.columns, *EVIDENCE, "inliers"]
    assert table["support_none_cosine"].abs().max() > 0


@pytest.mark.parametrize("folds", [[], [0]], ids=["no negatives", "negatives that one model has not seen"])
def test_what_not_every_fold_can_tell_is_neither_feature_nor_evidence(tmp_path, photos, make_context, folds):
    kept = _only(photos, (photos.folds < 0) | (photos.landmarks != "") | np.isin(photos.folds, folds))
    run_member(make_context(tmp_path, kept), load_recipe("tiny-frozen", {"name": "near", "head.kind": "neighbours"}))
    for part in ("oof", "test"):
        assert _near_features(tmp_path, part).columns.tolist() == ["member", "query", *FEATURES]
        candidates = read_table(tmp_path / f"scores/near.{part}.parquet", CANDIDATES)
        assert candidates.columns.tolist() == [*CANDIDATES.columns, *EVIDENCE[:-1]]


# ---- stopped and killed


def test_a_stopped_member_keeps_what_is_finished_and_goes_on(tmp_path, finished, photos, recipe, make_context, watch):
    stopped = watch(stop_at=4)
    with pytest.raises(KeyboardInterrupt):
        run_member(make_context(tmp_path, photos, stopped), recipe)
    assert list((tmp_path / f"zoo/{recipe.name}/fold0/state").iterdir())
    stopped_before = _times(tmp_path)
    run_member(make_context(tmp_path, photos), recipe)
    assert _weights(tmp_path, recipe.name) == _weights(finished, recipe.name)
    assert not list(tmp_path.rglob("state"))
    embeddings = {name for name in stopped_before if name.startswith("embeddings")}
    assert not embeddings & _touched(tmp_path, stopped_before)


_CHILD = """
import sys
from contextlib import contextmanager
from pathlib import Path
import pandas as pd
from engine.core.interrupt import StopRequest
from engine.core.progress import Progress
from engine.core.runs import Run
from zoo.device import make_accelerator
from zoo.context import Context
from zoo.members import run_member
from zoo.photo_set import PhotoSet
from zoo.recipe import Recipe

class Aloud(Progress):
    @contextmanager
    def task(self, label, total, unit):
        def advance(amount, note):
            print(label, flush=True)
        yield advance

tables, data, root, recipe = sys.argv[1:]
photos = PhotoSet.from_tables(*(pd.read_parquet(Path(tables, name)) for name in ("photos", "folds")), Path(data))
context = Context(
    Run(Path(root), create=True), photos, make_accelerator("cpu", "fp32", 1), Aloud(), StopRequest(),
    seed=0, max_pixels=10_000, workers=0,
)
run_member(context, Recipe.model_validate_json(recipe))
"""


@pytest.mark.faults
@pytest.mark.slow
def test_a_killed_process_loses_nothing_that_was_finished(tmp_path, finished, photos, catalog, scratch, make_context):
    table, folds, data = catalog
    table.to_parquet(tmp_path / "photos")
    folds.to_parquet(tmp_path / "folds")
    often = scratch.model_copy(update={"train": scratch.train.model_copy(update={"checkpoint_seconds": 1e-9})})
    arguments = [tmp_path, data, tmp_path / "run", often.model_dump_json()]
    with subprocess.Popen(
        [sys.executable, "-c", _CHILD, *map(str, arguments)], stdout=subprocess.PIPE, text=True
    ) as child:
        for line in child.stdout:
            if "fold 2/3" in line:
                break
        for _ in range(3):  # steps of the second fold; it is not waited for, so the kill may fall anywhere
            child.stdout.readline()
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    first = tmp_path / "run" / WEIGHTS.format("tiny-scratch", 0)
    finished_at = first.stat().st_mtime_ns

    run_member(make_context(tmp_path / "run", photos), scratch)
    assert first.stat().st_mtime_ns == finished_at
    assert _weights(tmp_path / "run", "tiny-scratch") == _weights(finished, "tiny-scratch")
    for part in ("oof", "test"):
        name = f"scores/tiny-scratch.{part}.parquet"
        assert (tmp_path / "run" / name).read_bytes() == (finished / name).read_bytes()


# ---- some folds


def test_folds_may_come_one_after_another(tmp_path, finished, photos, recipe, make_context):
    for folds in ([2], [0]):
        run_member(make_context(tmp_path, photos), recipe, folds)
        assert not (tmp_path / "scores").exists()
    run_member(make_context(tmp_path, photos), recipe, [1])
    for part in ("oof", "test"):
        name = f"scores/{recipe.name}.{part}.parquet"
        assert (tmp_path / name).read_bytes() == (finished / name).read_bytes()


def test_folds_of_other_settings_are_never_merged_with_new_ones(tmp_path, finished, photos, recipe, make_context):
    shutil.copytree(finished, tmp_path / "run")
    merged = tmp_path / f"run/scores/{recipe.name}.oof.parquet"
    before = merged.read_bytes()
    longer = recipe.model_copy(update={"train": recipe.train.model_copy(update={"epochs": 3.0})})
    for fold in (0, 1):
        run_member(make_context(tmp_path / "run", photos, force_new=True), longer, [fold])
        assert merged.read_bytes() == before
    run_member(make_context(tmp_path / "run", photos, force_new=True), longer, [2])
    assert merged.read_bytes() != before


def test_a_fold_without_its_test_scores_is_not_merged(tmp_path, photos, recipe, make_context):
    run_fold(make_context(tmp_path, photos), recipe, 1)
    for fold in (0, 2):
        run_member(make_context(tmp_path, photos), recipe, [fold])
    assert not (tmp_path / "scores").exists()
    run_member(make_context(tmp_path, photos), recipe)
    assert (tmp_path / f"scores/{recipe.name}.test.parquet").exists()


def test_much_memory_is_told_before_it_is_taken(tmp_path, photos, scratch, make_context, watch, monkeypatch):
    monkeypatch.setattr("zoo.members.NOTEWORTHY_BYTES", 1 << 20)
    watching = watch()
    run_member(make_context(tmp_path, photos, watching), scratch, [0])
    assert any("the optimiser take 0.0 GiB" in said for said in watching.said)
