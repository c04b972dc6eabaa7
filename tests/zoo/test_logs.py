"""The logs hold what `metrics.jsonl` holds, read back with TensorBoard's own reader, and each step once."""

import json
import os
import sys
from dataclasses import replace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from engine.core.errors import ConfigError
from zoo.logs import CURVES, check_logs
from zoo.members import run_fold

FOLDER = "logs/tiny-frozen/fold0"


@pytest.fixture
def train(make_context, photos, frozen, watch, tmp_path):
    """Train the first fold of three steps an epoch: train(stop_at=None, kind=, lr=)."""

    def run(stop_at=None, *, kind="tensorboard", lr=0.01):
        context = replace(make_context(tmp_path, photos, watch(stop_at), force_new=True), logs=(kind,))
        recipe = frozen.model_copy(update={"train": frozen.train.model_copy(update={"lr": lr})})
        if stop_at is None:
            run_fold(context, recipe, 0)
        else:
            with pytest.raises(KeyboardInterrupt):
                run_fold(context, recipe, 0)

    return run


def _rows(root):
    lines = (root / "zoo/tiny-frozen/fold0/metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def _curves(folder):
    events = EventAccumulator(str(folder))
    events.Reload()
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in events.Tags()["scalars"]}


def _assert_as_recorded(root):
    rows, curves = _rows(root), _curves(root / FOLDER)
    assert curves.keys() == set(CURVES)
    for name, drawn in curves.items():
        assert [step for step, _ in drawn] == [row["step"] for row in rows]
        assert [value for _, value in drawn] == pytest.approx([row[name] for row in rows])


def test_tensorboard_shows_what_the_metrics_say(train, tmp_path):
    train()
    rows = _rows(tmp_path)
    assert len(rows) == 2
    assert all(row["images_per_second"] > 0 and row["loss"] > 0 for row in rows)
    assert 0 < rows[1]["learning_rate"] < rows[0]["learning_rate"] <= 0.01
    _assert_as_recorded(tmp_path)


def test_a_training_that_goes_on_behind_its_log_draws_no_step_twice(train, tmp_path):
    train(stop_at=2)
    train(stop_at=4)
    assert [step for step, _ in _curves(tmp_path / FOLDER)["loss"]] == [3]
    max((tmp_path / "zoo/tiny-frozen/fold0/state").iterdir()).unlink()  # step 4 is lost, and with it the first epoch
    train()
    _assert_as_recorded(tmp_path)


def test_a_training_that_begins_anew_begins_its_log_anew(train, tmp_path):
    train()
    train(stop_at=4, lr=0.02)
    assert [step for step, _ in _curves(tmp_path / FOLDER)["loss"]] == [3]


def test_without_being_asked_nothing_is_logged_but_the_metrics(finished):
    assert _rows(finished)
    assert not (finished / "logs").exists()


def test_weights_and_biases_goes_on_with_the_same_run_offline(train, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    train(stop_at=4, kind="wandb")
    train(kind="wandb")
    runs = list((tmp_path / FOLDER / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(runs) == 2
    assert len({path.name for path in runs}) == 1  # its id
    assert all(name.encode() in path.read_bytes() for path in runs for name in CURVES)


@pytest.mark.faults
def test_a_log_whose_package_is_missing_is_refused_with_the_line_that_installs_it():
    check_logs(["tensorboard"])
    with pytest.raises(ConfigError, match="'no_such_log' is not installed") as caught:
        check_logs(["tensorboard", "no_such_log"])
    assert caught.value.hint == "pip install 'landmark-engine[no_such_log]'"


@pytest.mark.faults
def test_a_missing_package_is_told_before_any_photo_is_read(here, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)  # python's own word for: cannot be imported
    logs = ["--set", 'logs=["tensorboard"]']
    said = here("train-zoo", "--config", "tiny", "--data", os.devnull, "--run", tmp_path / "run", *logs)
    assert said.code == 2
    assert "pip install 'landmark-engine[tensorboard]'" in said.err
