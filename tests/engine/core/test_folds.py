"""Folds: copies together, classes and sizes even, unseen landmarks as the test set has them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core.config import FoldsConfig
from engine.core.errors import ArtifactError, DataError
from engine.core.folds import TEST_FOLD, class_sizes, fold_notes, make_folds, oof_truth
from engine.core.tables import FOLDS, write_table

SPREAD = FoldsConfig(count=5, unseen_share=0)


def per_fold(catalog, folds):
    """Photos per landmark (rows) and fold (columns)."""
    joined = folds.merge(catalog, on="id")
    return pd.crosstab(joined["landmark_id"], joined["fold"])


def test_make_folds_spreads_each_landmark_each_fold_and_the_nonlandmarks_evenly(table):
    catalog = table(["a"] * 23 + ["b"] * 11 + ["c"] * 7 + ["d"] * 3 + [None] * 16)
    folds = make_folds(catalog, SPREAD, seed=0)
    counts = per_fold(catalog, folds)
    assert (counts.max(axis=1) - counts.min(axis=1)).max() <= 1
    assert folds["fold"].value_counts().tolist() == [12] * 5
    nonlandmarks = catalog.loc[catalog["landmark_id"].isna(), "id"]
    assert sorted(folds[folds["id"].isin(nonlandmarks)]["fold"].value_counts()) == [3, 3, 3, 3, 4]


def test_make_folds_fits_its_table(tmp_path, table):
    folds = make_folds(table(["a", "b"] * 5), SPREAD, seed=0)
    write_table(tmp_path / "folds.parquet", folds, FOLDS)
    assert folds["id"].is_monotonic_increasing


def test_make_folds_takes_usable_training_photos_only(table):
    catalog = table(["a", "b"] * 6)
    catalog.loc[0, "problem"] = "truncated"
    catalog.loc[1, ["split", "landmark_id"]] = ["test", None]
    assert make_folds(catalog, SPREAD, seed=0)["id"].tolist() == catalog["id"].tolist()[2:]


@pytest.mark.faults
@settings(deadline=None, max_examples=25)
@given(
    landmarks=st.lists(st.sampled_from(["a", "b", "c", "d", None]), min_size=30, max_size=60),
    groups=st.dictionaries(st.integers(0, 29), st.integers(0, 29), max_size=20),
    seed=st.integers(0, 9),
)
def test_copies_never_span_folds_and_the_order_of_rows_never_matters(table_of, landmarks, groups, seed):
    catalog = table_of(["a", "b", *landmarks], groups)
    config = FoldsConfig(count=3, unseen_share=0.3)
    folds = make_folds(catalog, config, seed=seed)
    joined = folds.merge(catalog, on="id")
    assert joined.groupby("duplicate_group")["fold"].nunique().max() == 1
    # other numbers for the groups, as another order of rows gives them
    shuffled = catalog.assign(duplicate_group=1000 - catalog["duplicate_group"]).sample(frac=1, random_state=seed)
    pd.testing.assert_frame_equal(make_folds(shuffled, config, seed=seed), folds)


@pytest.fixture(scope="module")
def table_of():
    """The `table` fixture, for hypothesis, which calls one test many times."""

    def make(landmarks, groups):
        rows = range(len(landmarks))
        return pd.DataFrame(
            {
                "id": [f"{row:016x}" for row in rows],
                "split": ["nonlandmark" if name is None else "train" for name in landmarks],
                "landmark_id": landmarks,
                "duplicate_group": [groups.get(row, row) for row in rows],
                "problem": None,
            }
        )

    return make


def test_another_seed_gives_other_folds(table):
    catalog = table([name for name in "abcdefgh" for _ in range(6)])
    first, second = (make_folds(catalog, SPREAD, seed=seed) for seed in (0, 1))
    assert not first.equals(second)


def test_the_unseen_share_of_landmarks_is_kept_whole_and_spread_over_folds(table):
    catalog = table([f"l{number}" for number in range(50) for _ in range(5 + number % 4)])
    folds = make_folds(catalog, FoldsConfig(count=5, unseen_share=0.2), seed=3)
    counts = per_fold(catalog, folds)
    whole = counts[(counts > 0).sum(axis=1) == 1]
    assert len(whole) == 10
    assert (whole > 0).sum().tolist() == [2] * 5
    assert counts.sum().max() - counts.sum().min() <= 1


def test_giant_landmarks_are_never_kept_whole(table):
    catalog = table(["giant"] * 100 + [f"l{number}" for number in range(9) for _ in range(4)])
    for seed in range(5):
        folds = make_folds(catalog, FoldsConfig(count=4, unseen_share=0.5), seed=seed)
        assert (per_fold(catalog, folds).loc["giant"] == 25).all()


def test_where_all_landmarks_are_giants_the_smaller_ones_are_kept_whole(table):
    catalog = table([f"l{number}" for number in range(10) for _ in range(50 + number)])
    counts = per_fold(catalog, make_folds(catalog, FoldsConfig(count=5, unseen_share=0.2), seed=0))
    whole = counts.index[(counts > 0).sum(axis=1) == 1]
    assert len(whole) == 2
    assert not {"l8", "l9"} & set(whole)


@pytest.mark.faults
def test_a_landmark_with_one_photo_or_one_picture_is_unseen_in_its_fold(table):
    catalog = table(["single", "copied", "copied", "copied"] + ["a"] * 10 + ["b"] * 10, groups={2: 1, 3: 1})
    truth = oof_truth(catalog, make_folds(catalog, SPREAD, seed=0)).merge(catalog[["id"]].reset_index(), on="id")
    unseen = truth[truth["unseen"]]
    assert sorted(unseen["index"]) == [0, 1, 2, 3]
    assert unseen["landmark_id"].isna().all()
    assert set(truth.loc[~truth["unseen"], "landmark_id"]) == {"a", "b"}


def test_oof_truth_has_no_answer_for_photos_without_a_landmark_and_keeps_the_folds_order(table):
    catalog = table(["a"] * 6 + ["b"] * 6 + [None] * 6)
    folds = make_folds(catalog, FoldsConfig(count=3, unseen_share=0), seed=0).sample(frac=1, random_state=0)
    truth = oof_truth(catalog, folds)
    assert truth.columns.tolist() == ["id", "fold", "landmark_id", "unseen"]
    assert truth["id"].tolist() == folds["id"].tolist()
    assert not truth["unseen"].any()
    assert truth["landmark_id"].isna().sum() == 6


def test_class_sizes_count_what_the_models_of_a_fold_were_trained_on(table):
    catalog = table(["a", "a", "a", "b", "b", "c", None])
    folds = pd.DataFrame({"id": catalog["id"], "fold": np.array([0, 0, 1, 1, 2, 2, 3], dtype=np.int16)})
    sizes = class_sizes(catalog, folds).set_index(["fold", "landmark_id"])["size"]
    assert sizes.dtype == np.float32
    assert sizes.to_dict() == {
        (TEST_FOLD, "a"): 2.25,
        (TEST_FOLD, "b"): 1.5,
        (TEST_FOLD, "c"): 0.75,
        (0, "a"): 1,
        (0, "b"): 2,
        (0, "c"): 1,
        (1, "a"): 2,
        (1, "b"): 1,
        (1, "c"): 1,
        (2, "a"): 3,
        (2, "b"): 1,
        (3, "a"): 3,
        (3, "b"): 2,
        (3, "c"): 1,
    }


@pytest.mark.faults
def test_too_few_pictures_for_the_folds_are_refused(table):
    with pytest.raises(DataError, match=r"4 usable training photos, 4 without their copies, cannot fill 5 folds"):
        make_folds(table(["a", "a", "b", None]), SPREAD, seed=0)
    with pytest.raises(DataError, match=r"8 usable training photos, 1 without their copies.*folds\.count"):
        make_folds(table(["a", "b"] * 4, groups=dict.fromkeys(range(8), 0)), SPREAD, seed=0)


@pytest.mark.faults
@pytest.mark.parametrize("landmarks", [["a"] * 9, [None] * 9])
def test_one_landmark_or_none_is_refused(table, landmarks):
    with pytest.raises(DataError, match=r"show . landmark\(s\)"):
        make_folds(table(landmarks), SPREAD, seed=0)


def test_as_many_pictures_as_folds_fill_every_fold(table):
    folds = make_folds(table(["a", "a", "b", None, "c"]), SPREAD, seed=0)
    assert sorted(folds["fold"]) == [0, 1, 2, 3, 4]


@pytest.mark.faults
def test_folds_of_another_catalog_are_refused(table):
    folds = make_folds(table(["a", "b"] * 5), SPREAD, seed=0)
    with pytest.raises(ArtifactError, match="2 photos are not in the catalog, the first is 0000000000000008"):
        oof_truth(table(["a", "b"] * 4), folds)


def test_fold_notes_tell_sizes_and_unseen_landmarks(table):
    catalog = table(["single"] + ["a"] * 10 + ["b"] * 9)
    notes = fold_notes(catalog, make_folds(catalog, SPREAD, seed=0))
    assert notes[0] == "20 photos in 5 folds of 4 to 4"
    assert notes[1].startswith("1 landmarks have one photo, 0 more")
    assert notes[2].startswith("95%")


@pytest.mark.real
def test_folds_of_the_real_photos_are_even_and_as_hard_as_the_test_set(mini_catalog):
    catalog = mini_catalog
    folds = make_folds(catalog, FoldsConfig(), seed=0)
    assert len(folds) == 4071 + 740
    sizes = folds["fold"].value_counts()
    assert sizes.max() - sizes.min() <= 2
    counts = per_fold(catalog, folds)
    whole = (counts > 0).sum(axis=1) == 1
    assert whole.sum() == 22 + 11  # landmarks of one photo, and a tenth of the 110 others
    seen = counts[~whole]
    assert (seen.max(axis=1) - seen.min(axis=1)).max() <= 3  # copies that share a fold cost a little evenness
    assert 0.01 < oof_truth(catalog, folds)["unseen"].mean() < 0.1
