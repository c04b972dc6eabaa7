"""Landmarks are cut down honestly: few photos to learn from, no duplicates among them, all that is held out asked."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest

from engine.core.config import ValidationConfig
from engine.core.errors import DataError
from zoo.few_shot import cut_landmarks, evaluate_few_shot, with_few_photos
from zoo.photo_set import PhotoSet
from zoo.recipe import load_recipe

SEED = 1
SIZES = {"a": 25, "b": 20, "c": 30, "d": 24, "small": 6, "": 15}


@pytest.fixture(scope="module")
def many(photos):
    """Landmarks with many photos, made of the drawn ones over and over; pairs of them are duplicates."""
    names = [name for name, size in SIZES.items() for _ in range(size)]
    files = {name: photos.paths[list(photos.landmarks).index(name if name in "abc" else "")] for name in set(names)}
    return PhotoSet(
        ids=np.array([f"{number:04d}" for number in range(len(names))], object),
        paths=[files[name] for name in names],
        hashes=[hashlib.sha256(str(number).encode()).hexdigest() for number in range(len(names))],
        landmarks=np.array(names, object),
        groups=np.arange(len(names)) // 2,
        folds=np.arange(len(names)) // 2 % 3,
    )


def test_a_third_of_the_large_landmarks_is_cut(many):
    cut = cut_landmarks(many, seed=0)
    assert len(cut) == 1
    assert set(cut) < {"a", "b", "c", "d"}
    assert {cut_landmarks(many, seed=seed)[0] for seed in range(20)} == {"a", "b", "c", "d"}


def test_a_landmark_that_is_held_whole_in_one_fold_is_never_cut(many):
    whole = replace(many, folds=np.where(many.landmarks == "a", 1, many.folds))
    assert {cut_landmarks(whole, seed=seed)[0] for seed in range(20)} == {"b", "c", "d"}


def test_too_few_large_landmarks_are_told(photos):
    with pytest.raises(DataError, match="0 landmarks have 20 training photos"):
        cut_landmarks(photos, seed=0)


@pytest.mark.parametrize("shots", [1, 2, 5])
@pytest.mark.parametrize("fold", [0, 2])
def test_a_model_learns_from_so_many_photos_of_a_cut_landmark_and_is_asked_for_all(many, shots, fold):
    few = with_few_photos(many, ["c"], shots=shots, fold=fold, seed=0)
    learned = few.training_rows(fold, negatives=True)
    kept = learned[few.landmarks[learned] == "c"]
    assert len(kept) == shots == len(set(few.groups[kept]))
    others = many.training_rows(fold, negatives=True)
    assert np.array_equal(np.setdiff1d(learned, kept), others[many.landmarks[others] != "c"])
    assert np.array_equal(few.rows_of("oof", fold), many.rows_of("oof", fold))


def test_fewer_shots_are_the_first_of_more(many):
    one, five = (with_few_photos(many, ["c"], shots=shots, fold=1, seed=3) for shots in (1, 5))
    assert set(one.training_rows(1, negatives=True)) < set(five.training_rows(1, negatives=True))


@pytest.mark.slow
def test_right_answers_are_counted_for_every_member_and_their_mean(many, make_context, tmp_path):
    members = [
        load_recipe("tiny-frozen", {"name": "near", "head.kind": "neighbours"}),
        load_recipe("tiny-frozen", {"name": "linear", "head.norm": "batch"}),
    ]
    context = make_context(tmp_path, many, seed=SEED)
    rows = evaluate_few_shot(context, members, ValidationConfig(), shots=[1, 4], folds=[0, 1])
    assert [(row.member, row.shots) for row in rows] == [
        (member, shots) for shots in (1, 4) for member in ("near", "linear", "mean")
    ]
    cut = cut_landmarks(many, context.seed)
    assert cut[0] in "abc"  # whose photos look like no other's
    asked = np.isin(many.landmarks, cut) & np.isin(many.folds, [0, 1])
    assert {row.photos for row in rows} == {int(asked.sum())}
    assert {row.landmarks for row in rows} == {1}
    assert all(0 <= row.low <= row.accuracy <= row.high <= 1 for row in rows)
    assert rows[0].accuracy == 1  # its photos are drawn alike; one is enough for its very copies
    weights = tmp_path / "zoo/linear.1-shot/fold0/weights.safetensors"
    before = weights.stat().st_mtime_ns
    assert evaluate_few_shot(context, members, ValidationConfig(), shots=[1], folds=[0, 1]) == rows[:3]
    assert weights.stat().st_mtime_ns == before
