"""The gate tells photos of landmarks from photos of nothing, by models that never saw the photo in question."""

import dataclasses

import numpy as np
import pytest

from engine.core.config import GateConfig
from engine.core.errors import ConfigError
from engine.core.tables import QUERY_FEATURES, read_table
from zoo.gate import fit_gate, gate_table, run_gate, score_gate_fold
from zoo.photo_set import PhotoSet

FOLDS = 3


def _two_kinds(per_fold=20, tests=10, distance=4.0):
    """Photos of a landmark and of nothing, by turns, whose embeddings lie a distance apart in every direction."""
    count = FOLDS * per_fold + tests
    rows = np.arange(count)
    shows = rows % 2 == 0
    folds = np.where(rows < FOLDS * per_fold, rows % FOLDS, -1)
    landmarks = np.where(shows & (folds >= 0), "a", "").astype(object)
    features = np.random.default_rng(0).normal(size=(count, 8)) + distance * shows[:, None]
    ids = np.array([f"{row:04d}" for row in rows], object)
    return PhotoSet(ids, [], [str(row) for row in rows], landmarks, rows, folds), features.astype(np.float16), shows


@pytest.fixture
def without_negatives(photos):
    """The drawn photos without those of nothing."""
    kept = np.flatnonzero((photos.landmarks != "") | (photos.folds < 0))
    return PhotoSet(
        photos.ids[kept], [photos.paths[row] for row in kept], [photos.hashes[row] for row in kept],
        photos.landmarks[kept], photos.groups[kept], photos.folds[kept],
    )  # fmt: skip


# ---- the classifier


def test_two_clearly_different_kinds_are_told_apart():
    photos, features, shows = _two_kinds()
    for fold in range(FOLDS):
        scores = score_gate_fold(features, photos, fold, GateConfig())
        for part in ("oof", "test"):
            right = shows[photos.rows_of(part, fold)]
            assert scores[part][right].min() > 0.8
            assert scores[part][~right].max() < 0.2


def test_two_kinds_that_look_the_same_are_not():
    photos, features, _ = _two_kinds(distance=0, per_fold=200)
    scores = score_gate_fold(features, photos, 0, GateConfig(inverse_penalty=0.001))["oof"]
    assert np.abs(scores - 0.5).max() < 0.35


def test_a_stronger_penalty_makes_the_gate_less_sure():
    photos, features, shows = _two_kinds(distance=1.0)
    inside = photos.folds >= 0
    sure, unsure = (
        fit_gate(features[inside], shows[inside], GateConfig(inverse_penalty=c)).predict_proba(features)[:, 1].std()
        for c in (1.0, 1e-4)
    )
    assert unsure < sure / 2


def test_a_photos_own_label_never_reaches_its_score():
    photos, features, _ = _two_kinds()
    held_out = photos.folds == 1
    turned = np.where(held_out, np.where(photos.landmarks == "", "a", ""), photos.landmarks).astype(object)
    lied_to = dataclasses.replace(photos, landmarks=turned)
    honest, misled = (score_gate_fold(features, each, 1, GateConfig()) for each in (photos, lied_to))
    for part in ("oof", "test"):
        assert np.array_equal(honest[part], misled[part])


def test_the_test_sets_score_is_the_mean_over_the_folds():
    photos, _, _ = _two_kinds(tests=2)
    table = gate_table([np.array([0.1, 0.2]), np.array([0.3, 0.2]), np.array([0.5, 0.2])], "test", photos)
    assert table["p_landmark"].tolist() == pytest.approx([0.3, 0.2])
    assert table["query"].tolist() == photos.ids[-2:].tolist()


# ---- the stage


def test_every_photo_has_one_score_between_0_and_1(finished, photos):
    for part, inside in (("oof", photos.folds >= 0), ("test", photos.folds < 0)):
        table = read_table(finished / "gate" / f"{part}.parquet", QUERY_FEATURES)
        assert sorted(table["query"]) == sorted(photos.ids[inside])
        assert set(table["member"]) == {"gate"}
        assert table["p_landmark"].between(0, 1).all()


def test_landmarks_score_above_photos_of_nothing_out_of_fold(finished, photos):
    table = read_table(finished / "gate" / "oof.parquet", QUERY_FEATURES).set_index("query")["p_landmark"]
    shows = photos.landmarks[photos.folds >= 0] != ""
    score = table.loc[photos.ids[photos.folds >= 0]].to_numpy()
    assert score[shows].mean() > score[~shows].mean() + 0.3


def test_a_second_run_does_nothing(tmp_path, photos, frozen, scratch, make_context):
    context = make_context(tmp_path, photos)
    run_gate(context, GateConfig(), [scratch, frozen])
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}
    run_gate(make_context(tmp_path, photos), GateConfig(), [scratch, frozen])
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")} == before
    run_gate(make_context(tmp_path, photos), GateConfig(inverse_penalty=0.5), [scratch, frozen])
    assert all(path.stat().st_mtime_ns != time for path, time in before.items())


def test_a_renamed_photo_is_scored_under_its_new_name(tmp_path, photos, frozen, make_context):
    run_gate(make_context(tmp_path, photos), GateConfig(), [frozen])
    renamed = dataclasses.replace(photos, ids=np.array([f"new {name}" for name in photos.ids], object))
    run_gate(make_context(tmp_path, renamed), GateConfig(), [frozen])
    table = read_table(tmp_path / "gate" / "test.parquet", QUERY_FEATURES)
    assert table["query"].str.startswith("new ").all()


@pytest.mark.faults
def test_without_photos_of_nothing_everything_passes_with_a_notice(
    tmp_path, without_negatives, frozen, make_context, watch
):
    seen = watch()
    run_gate(make_context(tmp_path, without_negatives, seen), GateConfig(), [frozen])
    for part in ("oof", "test"):
        table = read_table(tmp_path / "gate" / f"{part}.parquet", QUERY_FEATURES)
        assert (table["p_landmark"] == 1).all()
        assert len(table)
    assert [line.startswith("gate: no photo without a landmark") for line in seen.said] == [True]


@pytest.mark.faults
def test_without_a_frozen_member_the_remedies_are_named(tmp_path, photos, scratch, make_context):
    with pytest.raises(ConfigError, match=r"frozen backbone — .*lite0-frozen.*gate\.enabled = false"):
        run_gate(make_context(tmp_path, photos), GateConfig(), [scratch])


def test_without_a_test_set_there_is_no_test_score(tmp_path, photos, frozen, make_context):
    kept = np.flatnonzero(photos.folds >= 0)
    training = PhotoSet(
        photos.ids[kept], [photos.paths[row] for row in kept], [photos.hashes[row] for row in kept],
        photos.landmarks[kept], photos.groups[kept], photos.folds[kept],
    )  # fmt: skip
    run_gate(make_context(tmp_path, training), GateConfig(), [frozen])
    assert [path.name for path in (tmp_path / "gate").iterdir()] == ["oof.parquet"]
