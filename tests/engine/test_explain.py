"""One query of a finished run: what is explained is what the run holds."""

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from engine.core.errors import ArtifactError, ConfigError, DataError
from engine.core.folds import oof_truth
from engine.core.runs import Run
from engine.core.tables import ANSWERS, CANDIDATES, CATALOG, FOLDS, read_table
from engine.pipeline.explaining import NEIGHBOURS, explain_query


@pytest.fixture(scope="module")
def root(finished_run):
    return finished_run.root


@pytest.fixture(scope="module")
def truth(root):
    catalog = read_table(root / "catalog.parquet", CATALOG)
    return oof_truth(catalog, read_table(root / "folds.parquet", FOLDS)).merge(
        catalog[["id", "landmark_id"]], on="id", suffixes=("", "_shown")
    )


@pytest.fixture(scope="module")
def answers(root):
    return {part: read_table(root / f"stack/answers.{part}.parquet", ANSWERS) for part in ("oof", "test")}


def _files(root):
    return {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("part", ["oof", "test"])
def test_the_answer_and_the_members_are_those_of_the_run(root, answers, part):
    for row in answers[part].iloc[::9].itertuples():
        found = explain_query(root, row.id)
        assert (found["query"], found["answer"], found["confidence"]) == (row.id, row.landmark_id, row.confidence)
        assert found["answers"] == len(answers[part])
        assert found["rank"] >= 1 + (answers[part]["confidence"] > row.confidence).sum()
        assert set(found["members"]) == {"tiny-frozen", "tiny-scratch"}
        for member, listed in found["members"].items():
            scores = read_table(root / f"scores/{member}.{part}.parquet", CANDIDATES)
            theirs = scores[scores["query"] == row.id].sort_values("rank")
            assert [each["landmark_id"] for each in listed] == theirs["landmark_id"].tolist()[: len(listed)]
        assert found["judged"][0]["landmark_id"] == row.landmark_id


def test_the_truth_of_a_training_photo_is_told_and_whether_its_models_could_know_it(root, truth, answers):
    given = answers["oof"].set_index("id")["landmark_id"]
    shown = truth["landmark_id_shown"].notna()
    kinds = [truth[truth["unseen"]], truth[~shown], truth[shown & ~truth["unseen"]]]
    assert all(len(kind) for kind in kinds)
    for row in pd.concat([kind[:3] for kind in kinds]).itertuples():
        found = explain_query(root, row.id)
        assert found["truth"] == (None if pd.isna(row.landmark_id_shown) else row.landmark_id_shown)
        assert found["unseen"] == row.unseen
        assert found["right"] == (not pd.isna(row.landmark_id) and given[row.id] == row.landmark_id)


def test_the_truth_of_a_test_photo_is_not_known(root, answers):
    found = explain_query(root, answers["test"]["id"][0])
    assert (found["truth"], found["unseen"], found["right"], found["split"]) == (None, None, None, "test")


def test_neighbours_are_training_photos_of_other_folds(root, truth, answers):
    fold = truth.set_index("id")["fold"]
    photo = truth["id"][0]
    found = explain_query(root, photo)
    assert found["near_by"] == "tiny-frozen"
    assert len(found["near"]) == NEIGHBOURS
    assert all(fold[each["id"]] != fold[photo] for each in found["near"])
    of_test = explain_query(root, answers["test"]["id"][0])
    assert all(each["id"] in fold.index for each in of_test["near"])


def test_nothing_in_the_run_is_changed_and_the_answer_is_json(root, truth):
    before = _files(root)
    found = explain_query(root, truth["id"][5])
    assert json.loads(json.dumps(found))["near"] == found["near"]
    assert _files(root) == before


def test_a_picture_is_drawn_where_it_was_asked_for(root, truth, tmp_path):
    out = tmp_path / "near.png"
    assert explain_query(root, truth["id"][0], picture=out)["picture"] == str(out)
    with Image.open(out) as picture:
        assert picture.width > 3 * picture.height
        assert len(np.unique(np.asarray(picture).reshape(-1, 3), axis=0)) > 100


def test_without_stored_embeddings_the_rest_is_explained(run, truth, tmp_path):
    for name in Run(run).names("embeddings/"):
        Run(run).forget(name)
    found = explain_query(run, truth["id"][0])
    assert (found["near"], found["near_by"]) == ([], None)
    with pytest.raises(DataError, match="no neighbours to draw"):
        explain_query(run, truth["id"][0], picture=tmp_path / "near.png")


@pytest.mark.faults
def test_an_unknown_photo_or_member_is_told_the_nearest(root, truth):
    known = truth["id"][0]
    with pytest.raises(DataError, match=f"no photo is called '{known[:-1]}x' — did you mean '{known[:-2]}"):
        explain_query(root, known[:-1] + "x")
    with pytest.raises(ConfigError, match=r"no frozen member is called 'tiny-frosen' — did you mean 'tiny-frozen'\?"):
        explain_query(root, known, member="tiny-frosen")


@pytest.mark.faults
def test_a_photo_that_was_set_aside_and_a_run_without_a_stack_are_refused(run, truth):
    Run(run).forget("stack/stacker.json")
    with pytest.raises(ArtifactError, match="has not been made yet"):
        explain_query(run, truth["id"][1])
    catalog = read_table(run / "catalog.parquet", CATALOG)
    catalog.loc[catalog["id"] == truth["id"][0], "problem"] = "truncated"
    Run(run).save_table("catalog.parquet", catalog, CATALOG, Run(run).entry("catalog.parquet").inputs)
    with pytest.raises(DataError, match="was set aside: truncated"):
        explain_query(run, truth["id"][0])
