"""The stacker: the same numbers whatever the threads, after a reload, and from reordered columns."""

import numpy as np
import pandas as pd
import pytest

from engine.core.errors import ArtifactError, DataError
from engine.core.runs import Run
from stacking.features import mark_right
from stacking.stacker import fit_stacker, load_stacker, save_stacker


@pytest.fixture(scope="module")
def right(competition, rows):
    return mark_right(rows, competition.queries)


@pytest.fixture(scope="module")
def stacker(rows, right, stack_config):
    return fit_stacker(rows, right, stack_config, seed=0, threads=1)


def test_predictions_are_probabilities_that_tell_right_from_wrong(stacker, rows, right):
    predicted = stacker.predict(rows, threads=1)
    assert predicted.dtype == np.float64
    assert 0 < predicted.min() < predicted.max() < 1
    assert abs(predicted.mean() - right.mean()) < 0.01
    assert predicted[right].mean() > 0.5
    assert predicted[~right].mean() < 0.1


def test_one_and_two_threads_give_the_same_stacker(rows, right, stack_config, stacker, monkeypatch):
    monkeypatch.setattr("stacking.stacker.ROWS_PER_THREAD", 1)  # so that both threads are used on few rows
    both = fit_stacker(rows, right, stack_config, seed=0, threads=2)
    assert both == stacker
    assert both.predict(rows, threads=2).tobytes() == stacker.predict(rows, threads=1).tobytes()


def test_another_seed_gives_another_stacker_and_bags_differ(rows, right, stack_config, stacker):
    assert fit_stacker(rows, right, stack_config, seed=1, threads=1) != stacker
    assert len(set(stacker.models)) == stack_config.bags


def test_a_reloaded_stacker_predicts_bit_for_bit(stacker, rows, tmp_path):
    save_stacker(tmp_path / "stacker.json", stacker)
    loaded = load_stacker(tmp_path / "stacker.json")
    assert loaded == stacker
    assert loaded.predict(rows, threads=1).tobytes() == stacker.predict(rows, threads=1).tobytes()


def test_columns_are_read_by_name_and_extra_ones_ignored(stacker, rows):
    other = rows[rows.columns[::-1]].assign(news=np.nan)
    assert stacker.predict(other, threads=1).tobytes() == stacker.predict(rows, threads=1).tobytes()


def test_no_rows_are_no_predictions(stacker, rows):
    assert stacker.predict(rows[:0], threads=1).shape == (0,)


@pytest.mark.faults
def test_missing_features_are_named(stacker, rows):
    with pytest.raises(ArtifactError, match=r"2 features that these rows lack: large\.score, all\.mean"):
        stacker.predict(rows.drop(columns=["all.mean", "large.score"]), threads=1)


@pytest.mark.faults
@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_features_that_are_not_finite_are_named(stacker, rows, right, stack_config, broken):
    damaged = rows.assign(**{"all.mean": rows["all.mean"].mask(rows.index == 3, broken)})
    with pytest.raises(DataError, match=r"not finite numbers: all\.mean"):
        stacker.predict(damaged, threads=1)
    with pytest.raises(DataError, match=r"not finite numbers: all\.mean"):
        fit_stacker(damaged, right, stack_config, seed=0, threads=1)


@pytest.mark.faults
@pytest.mark.parametrize("value", [True, False])
def test_nothing_to_tell_apart_is_refused(rows, right, stack_config, value):
    with pytest.raises(DataError, match="nothing to tell apart"):
        fit_stacker(rows, np.full_like(right, value), stack_config, seed=0, threads=1)


def test_constant_features_and_very_few_rows_still_fit(rows, right, stack_config):
    names = [name for name in rows.columns if name not in ("query", "landmark_id")]
    few = pd.concat([rows[right][:3], rows[~right][:3]])
    constant = few.assign(**dict.fromkeys(names, np.float32(1)))
    predicted = fit_stacker(constant, np.arange(6) < 3, stack_config, seed=0, threads=1).predict(few, threads=1)
    np.testing.assert_allclose(predicted, 0.5)


@pytest.mark.faults
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"schema_version": 0, "features": [], "models": []}', "version 0, this engine reads 1"),
        ('{"schema_version": 1, "features": ["a', "not readable JSON"),
    ],
)
def test_a_file_that_is_no_stacker_is_refused(tmp_path, text, message):
    path = tmp_path / "stacker.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ArtifactError, match=message):
        load_stacker(path)


@pytest.mark.faults
def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ArtifactError, match=r"stacker\.json: is missing"):
        load_stacker(tmp_path / "stacker.json")


@pytest.mark.faults
def test_a_damaged_stacker_is_refused_before_lightgbm_reads_it(stacker, tmp_path):
    """LightGBM takes the process down with it: no error could be caught after that."""
    run = Run(tmp_path / "run", create=True)
    path = run.path("stack/stacker.json")
    save_stacker(path, stacker)
    run.record("stack/stacker.json", kind="stacker", version=1, inputs={})
    assert load_stacker(run.verified("stack/stacker.json", made_by="engine stack")) == stacker
    path.write_bytes(path.read_bytes().replace(b"leaf_value", b"leaf_valve", 1))
    with pytest.raises(ArtifactError, match="was damaged or edited"):
        run.verified("stack/stacker.json", made_by="engine stack")
