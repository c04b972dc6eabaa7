"""Two processes on the CPU train as two devices would: together, and to one result."""

import os
import signal
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from engine.core.errors import ConfigError, EngineError, ResourceError
from zoo.checkpoints import load_checkpoint
from zoo.device import make_accelerator
from zoo.members import run_member
from zoo.processes import process_count, run_in_processes
from zoo.recipe import load_recipe

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(scope="module")
def recipe():
    """Without batch norms, whose statistics are each process's own, so that the gradients of any split are the same."""
    return load_recipe(
        "tiny-scratch",
        {"train.epochs": 2, "train.batch_size": 8, "train.fold_norm": True, "train.ema_decay": 0.9, "head.dropout": 0},
    )


def _together(context, count):
    return replace(context, processes=count)


@pytest.mark.slow
def test_two_processes_end_in_the_weights_of_one(make_context, photos, recipe, watch, tmp_path):
    run_member(make_context(tmp_path / "one", photos), recipe)
    seen = watch()
    together = replace(_together(make_context(tmp_path / "two", photos, seen), 2), logs=("tensorboard",))
    run_member(together, recipe)
    assert len(list((tmp_path / "two/logs/tiny-scratch/fold0").iterdir())) == 1  # of the first process
    one, two = (load_file(tmp_path / run / "zoo/tiny-scratch/fold0/weights.safetensors") for run in ("one", "two"))
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-3, atol=1e-4)
    assert (tmp_path / "two/scores/tiny-scratch.test.parquet").exists()
    assert len((tmp_path / "two/zoo/tiny-scratch/fold0/metrics.jsonl").read_text().splitlines()) == 2


@pytest.mark.slow
def test_a_stop_reaches_every_process_and_is_gone_on_from(make_context, photos, recipe, watch, tmp_path):
    train = recipe.train.model_copy(update={"epochs": 12})  # long enough that the stop finds it at work
    recipe = recipe.model_copy(update={"train": train})
    with pytest.raises(KeyboardInterrupt):
        run_member(_together(make_context(tmp_path, photos, watch(stop_at=2)), 2), recipe)
    checkpoint, _ = load_checkpoint(tmp_path / "zoo/tiny-scratch/fold0/state")
    assert checkpoint is not None
    assert checkpoint.step >= 2
    run_member(make_context(tmp_path, photos), recipe)  # one process may go on where two stopped
    assert (tmp_path / "scores/tiny-scratch.oof.parquet").exists()


@pytest.mark.slow
def test_more_processes_than_photos_in_a_batch_are_refused(make_context, photos, tmp_path):
    recipe = load_recipe("tiny-scratch", {"train.batch_size": 2})
    with pytest.raises(ConfigError, match="3 processes cannot share a batch of 2"):
        run_member(_together(make_context(tmp_path, photos), 3), recipe)


def _reduce(worker, number):
    mine = torch.tensor(float(number + worker.accelerator.process_index))
    total = float(worker.accelerator.reduce(mine, "sum"))
    with worker.progress.task("adding", 2, "number") as advance:
        advance(2, f"{total}")
    worker.progress.say(f"sum {total}")


def _refuse(worker):
    if worker.accelerator.process_index == 1:
        raise ResourceError("no room", hint="make some")
    worker.accelerator.wait_for_everyone()


def _die(worker):
    if worker.accelerator.process_index == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    worker.accelerator.wait_for_everyone()


def _run(work, arguments, watching):
    run_in_processes(
        work, arguments, count=2, accelerator=make_accelerator("cpu", "fp32", 1), progress=watching, stop=watching.stop
    )


def test_processes_reach_each_other_and_the_first_one_speaks(watch):
    watching = watch()
    _run(_reduce, (3,), watching)
    assert watching.said == ["sum 7.0"]


def test_an_error_in_one_process_is_raised_here(watch):
    with pytest.raises(ResourceError, match="no room — make some"):
        _run(_refuse, (), watch())


def test_a_process_that_is_killed_ends_the_others(watch):
    with pytest.raises(EngineError, match=r"a process of the training died.*run the same command again"):
        _run(_die, (), watch())


def test_count_is_one_on_a_cpu_unless_asked_for():
    assert process_count(0, "auto", CPU) == 1
    assert process_count(2, "cpu", CPU) == 2


def test_count_follows_the_cuda_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert process_count(0, "auto", CUDA) == 4
    assert process_count(3, "cuda", CUDA) == 3
    assert process_count(0, "cuda:1", CUDA) == 1
    with pytest.raises(ResourceError, match="5 processes were asked for, and device 'cuda' is 4"):
        process_count(5, "cuda", CUDA)
    with pytest.raises(ResourceError, match="--set processes=1"):
        process_count(2, "cuda:1", CUDA)
