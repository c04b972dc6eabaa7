"""The stacker: what its parts say put together, the same bits alone, after a reload, and from reordered columns."""

from dataclasses import replace

import lightgbm as lgb
import numpy as np
import pytest
from scipy.special import expit

from engine.core.errors import ArtifactError, DataError
from engine.core.runs import Run
from stacking.fitting import METHODS
from stacking.objectives import query_starts
from stacking.scales import logit, straighten_all
from stacking.stacker import Linear, load_stacker, rescale, save_stacker, tabulate_queries
from stacking.trees import Sample, as_matrix, as_text, best_rows, bin_rows, grow


@pytest.fixture(scope="module", params=METHODS)
def stacker(request, trials):
    [found] = [trial.stacker for trial in trials if trial.stacker.method == request.param]
    return found


@pytest.fixture(scope="module")
def two_stage(trials, tangled, right, quick_config):
    """With trees in its second stage, whether or not they are worth it here."""
    first = replace(trials[-1].stacker, second=())
    starts = query_starts(tangled)
    asked = tabulate_queries(as_matrix(tangled, first.features), first.predict(tangled, threads=1), starts)
    sure = right[asked.best]
    data = bin_rows(asked.table, sure, quick_config, threads=1)
    sample = Sample(data, sure, np.arange(len(sure)), logit(asked.confidence))
    held = [np.arange(len(sure)) % 2 == number for number in (0, 1)]
    grown = [grow("log-loss", sample, part, quick_config, seed=0, threads=1)[0] for part in held]
    return replace(first, second=tuple(as_text(model) for model in grown))


def _plain_softmax(margin, starts):
    """Query by query, as it is written in a book."""
    parts = [np.exp(part) / (1 + np.exp(part).sum()) for part in np.split(margin, starts[1:])]
    return np.concatenate(parts)


def _plain_first_stage(stacker, rows):
    values = rows[list(stacker.features)].to_numpy(dtype=np.float32)
    straight, starts = straighten_all(values, np.array(stacker.bounded)), query_starts(rows)
    said = []
    for model in stacker.models:
        margin = straight @ np.array(model.linear.weights) + model.linear.bias
        if model.trees:
            margin = margin + lgb.Booster(model_str=model.trees).predict(values, raw_score=True)
        said.append(_plain_softmax(margin, starts))
    return np.mean(said, axis=0)


def test_predictions_are_probabilities_that_tell_right_from_wrong(stacker, tangled, right):
    predicted = stacker.predict(tangled, threads=1)
    assert predicted.dtype == np.float64
    assert 0 < predicted.min() < predicted.max() < 1
    assert abs(predicted.mean() - right.mean()) < 0.03
    assert predicted[right].mean() > 0.5
    assert predicted[~right].mean() < 0.1


def test_the_first_stage_is_the_mean_of_what_each_model_says(stacker, tangled):
    first = replace(stacker, second=())
    np.testing.assert_allclose(first.predict(tangled, threads=1), _plain_first_stage(first, tangled), rtol=1e-9)


def test_the_second_stage_rescales_the_first_by_what_its_trees_say(two_stage, tangled):
    assert len(two_stage.second) == 2
    starts, first = query_starts(tangled), _plain_first_stage(two_stage, tangled)
    predicted = two_stage.predict(tangled, threads=1)
    best = best_rows(predicted, starts)
    assert best.tolist() == best_rows(first, starts).tolist()
    values = tangled[list(two_stage.features)].to_numpy(dtype=np.float32)
    table = tabulate_queries(values, first, starts).table
    margins = [lgb.Booster(model_str=text).predict(table, raw_score=True) for text in two_stage.second]
    sure = np.mean([expit(logit(first[best]) + added) for added in margins], axis=0)
    np.testing.assert_allclose(predicted[best], sure, rtol=1e-4)  # a table of float32 made from other last digits


def test_the_second_stage_is_told_of_the_best_and_how_the_others_stand():
    values = np.arange(10, dtype=np.float32).reshape(5, 2)
    asked = tabulate_queries(values, np.array([0.2, 0.5, 0.1, 0.4, 0.4]), np.array([0, 3]))
    assert asked.best.tolist() == [1, 3]
    assert asked.confidence.tolist() == [0.5, 0.4]
    even, far, near = logit(np.array([0.5, 0.2, 0.4]))
    wanted = [[even, far, even - far, 0.3, 2, 3], [near, near, 0, 0.4, 6, 7]]
    np.testing.assert_allclose(asked.table, np.array(wanted), rtol=1e-6, atol=1e-7)


def test_a_query_of_one_candidate_has_no_runner_up():
    asked = tabulate_queries(np.ones((1, 1), dtype=np.float32), np.array([0.5]), np.array([0]))
    np.testing.assert_allclose(asked.table, [[0, logit(np.array(0.0)), -logit(np.array(0.0)), 0, 1]], rtol=1e-6)


def test_rescaling_keeps_the_ratio_within_a_query_and_takes_zeros():
    scores = np.array([0.2, 0.4, 0.0])
    found = rescale(scores, np.array([0.4, 0.0]), np.array([0.8, 0.5]), np.array([0, 2]))
    assert found.tolist() == [0.4, 0.8, 0.0]


def test_a_linear_margin_is_the_weighted_sum_of_straightened_features():
    values = np.array([[0.5, 3.0, 7.0], [0.9, -3.0, 7.0]], dtype=np.float32)
    margin = Linear((2.0, 1.0, 0.0), -1.0, (0.0, 0.0, 0.0)).margin(values, (True, False, False))
    np.testing.assert_allclose(margin, [np.log(4) - 1, 2 * np.log(9) - np.log(4) - 1], rtol=1e-6)


def test_a_query_is_predicted_alike_whatever_other_queries_there_are(stacker, tangled):
    together = stacker.predict(tangled, threads=1)
    for query in tangled["query"].unique()[:20]:
        own = (tangled["query"] == query).to_numpy()
        assert stacker.predict(tangled[own], threads=1).tobytes() == together[own].tobytes()


def test_two_threads_predict_the_same(stacker, tangled):
    assert stacker.predict(tangled, threads=2).tobytes() == stacker.predict(tangled, threads=1).tobytes()


def test_a_reloaded_second_stage_predicts_bit_for_bit(two_stage, tangled, tmp_path):
    save_stacker(tmp_path / "stacker.json", two_stage)
    loaded = load_stacker(tmp_path / "stacker.json")
    assert loaded == two_stage
    assert loaded.predict(tangled, threads=1).tobytes() == two_stage.predict(tangled, threads=1).tobytes()


def test_a_reloaded_stacker_predicts_bit_for_bit(stacker, tangled, tmp_path):
    save_stacker(tmp_path / "stacker.json", stacker)
    loaded = load_stacker(tmp_path / "stacker.json")
    assert loaded == stacker
    assert loaded.predict(tangled, threads=1).tobytes() == stacker.predict(tangled, threads=1).tobytes()
    save_stacker(tmp_path / "again.json", loaded)
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "stacker.json").read_bytes()


def test_columns_are_read_by_name_and_extra_ones_ignored(stacker, tangled):
    other = tangled[tangled.columns[::-1]].assign(news=np.nan)
    assert stacker.predict(other, threads=1).tobytes() == stacker.predict(tangled, threads=1).tobytes()


def test_no_rows_are_no_predictions(stacker, tangled):
    assert stacker.predict(tangled[:0], threads=1).shape == (0,)


@pytest.mark.faults
def test_missing_features_are_named(stacker, tangled):
    with pytest.raises(ArtifactError, match=r"2 features that these rows lack: large\.score, all\.mean"):
        stacker.predict(tangled.drop(columns=["all.mean", "large.score"]), threads=1)


@pytest.mark.faults
@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_features_that_are_not_finite_are_named(stacker, tangled, broken):
    damaged = tangled.assign(**{"all.mean": tangled["all.mean"].mask(tangled.index == 3, broken)})
    with pytest.raises(DataError, match=r"not finite numbers: all\.mean"):
        stacker.predict(damaged, threads=1)


OF_VERSION_1 = '{"schema_version": 1, "features": ["all.mean"], "models": ["tree\\nversion=v4\\n"]}'


@pytest.mark.faults
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (OF_VERSION_1, r"stacker\.json: is a stacker of version 1, this engine reads 3"),
        ('{"features": [], "models": []}', "version None, this engine reads 3"),
        ('{"schema_version": 2, "features": ["a', "not readable JSON"),
    ],
)
def test_a_file_that_is_no_stacker_is_refused(tmp_path, text, message):
    path = tmp_path / "stacker.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ArtifactError, match=message):
        load_stacker(path)


@pytest.mark.faults
def test_a_stacker_of_version_1_is_refused_with_the_way_on(tmp_path):
    (tmp_path / "stacker.json").write_text(OF_VERSION_1, encoding="utf-8")
    with pytest.raises(ArtifactError) as refused:
        load_stacker(tmp_path / "stacker.json")
    assert refused.value.hint == "run 'engine stack' again"


@pytest.mark.faults
def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ArtifactError, match=r"stacker\.json: is missing"):
        load_stacker(tmp_path / "stacker.json")


@pytest.mark.faults
def test_a_damaged_stacker_is_refused_before_lightgbm_reads_it(two_stage, tmp_path):
    """LightGBM takes the process down with it: no error could be caught after that."""
    run = Run(tmp_path / "run", create=True)
    path = run.path("stack/stacker.json")
    save_stacker(path, two_stage)
    run.record("stack/stacker.json", kind="stacker", version=1, inputs={})
    assert load_stacker(run.verified("stack/stacker.json", made_by="engine stack")) == two_stage
    path.write_bytes(path.read_bytes().replace(b"leaf_value", b"leaf_valve", 1))
    with pytest.raises(ArtifactError, match="was damaged or edited"):
        run.verified("stack/stacker.json", made_by="engine stack")
