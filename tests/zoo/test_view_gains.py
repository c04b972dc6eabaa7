"""Trained members in other test-time views: the same models, asked again."""

import shutil

import pandas as pd
import pytest

from engine.core.config import ValidationConfig
from engine.core.errors import ArtifactError, ConfigError
from engine.core.gap import score_answers
from engine.core.tables import CANDIDATES, read_table
from zoo.members import answers_of
from zoo.view_gains import check_augmentations, measure_views

CONFIG = ValidationConfig(bootstrap=50)


@pytest.fixture(scope="module")
def truth(photos):
    """What each query's models can answer."""
    inside = photos.folds >= 0
    pairs = zip(photos.landmarks[inside], photos.folds[inside], strict=True)
    known = [name if name in photos.known_landmarks(fold) else None for name, fold in pairs]
    return pd.DataFrame({"id": photos.ids[inside], "landmark_id": known})


@pytest.fixture
def context(finished, make_context, photos, tmp_path):
    """A copy of the finished run."""
    shutil.copytree(finished, tmp_path / "run")
    return make_context(tmp_path / "run", photos)


@pytest.mark.parametrize("kind", ["frozen", "scratch"])
def test_a_members_own_views_score_as_they_did(request, context, truth, kind):
    member = request.getfixturevalue(kind)
    own, plain = measure_views(context, [member], truth, CONFIG, ["flip", "none"])
    stored = read_table(context.run.path(f"scores/{member.name}.oof.parquet"), CANDIDATES)
    assert own.gap == pytest.approx(score_answers(answers_of(stored), truth), abs=1e-12)
    assert (own.passes, plain.passes) == (2, 1)
    assert own.gain is None
    assert plain.gain.estimate == pytest.approx(plain.gap - own.gap)
    assert plain.gain.low <= plain.gain.estimate <= plain.gain.high


def test_other_views_give_other_scores_of_the_same_weights(context, frozen, truth):
    before = {name: context.run.path(name).read_bytes() for name in context.run.names("zoo/")}
    measure_views(context, [frozen], truth, CONFIG, ["none", "ten-crop"])
    plain, crops = (
        read_table(context.run.path(f"views/{frozen.name}/{views}/fold0.parquet"), CANDIDATES)["score"]
        for views in ("none", "ten-crop")
    )
    assert not plain.equals(crops)
    assert before == {name: context.run.path(name).read_bytes() for name in context.run.names("zoo/")}


def test_scores_that_are_there_are_not_made_again(context, frozen, truth, monkeypatch):
    first = measure_views(context, [frozen], truth, CONFIG, ["none", "scales"])
    monkeypatch.setattr("zoo.view_gains.score_in_views", None)  # to call it would fail
    assert measure_views(context, [frozen], truth, CONFIG, ["none", "scales"]) == first


def test_an_untrained_member_is_told(make_context, photos, frozen, truth, tmp_path):
    with pytest.raises(ArtifactError, match="train-zoo"):
        measure_views(make_context(tmp_path, photos), [frozen], truth, CONFIG, ["none"])


def test_a_stop_keeps_what_is_scored(context, scratch, truth):
    context.stop.requested = True
    with pytest.raises(KeyboardInterrupt):
        measure_views(context, [scratch], truth, CONFIG, ["none"])
    assert [name.split("/")[-1] for name in context.run.names("views/")] == ["fold0.parquet"]


@pytest.mark.parametrize(("names", "message"), [(["flop"], "flip"), ([], "no views were named")])
def test_unknown_views_are_told(names, message):
    with pytest.raises(ConfigError, match=message):
        check_augmentations(names)
