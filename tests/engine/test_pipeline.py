"""The whole job from the command line: what is finished stays, what is damaged is noticed, the same is made again."""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from engine.core.runs import Run

MEMBERS = ("tiny-frozen", "tiny-scratch")
FROZEN, SCRATCH = ('{recipe = "tiny-frozen"}', '{recipe = "tiny-scratch"}')
SLOW = """
threads = 1
[folds]
count = 2
[gate]
enabled = false
[[members]]
recipe = "tiny-scratch"
set = { "train.epochs" = 12, "train.checkpoint_seconds" = 0.01 }
"""
FEW_PHOTOS = """
threads = 1
[folds]
count = 3
unseen_share = 0
[gate]
enabled = false
[stack]
trees = 60
bags = 1
min_rows_in_leaf = 10
[validation]
bootstrap = 50
[[members]]
recipe = "tiny-frozen"
set = { "train.epochs" = 60, "train.lr" = 0.03, "head.norm" = "batch" }
"""


def _times(root):
    """When each artifact of a run was written."""
    return {name: (root / name).stat().st_mtime_ns for name in [*Run(root).names(), "manifest.json"]}


def _rewritten(root, before):
    return {name for name, when in _times(root).items() if before.get(name) != when} - {"manifest.json"}


def _flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def _cut(path):
    path.write_bytes(path.read_bytes()[:100])


def _members(*recipes):
    return ["--set", f"members=[{', '.join(recipes)}]"]


# ---- resuming


def test_a_second_start_of_every_stage_writes_nothing(run, here):
    before = _times(run)
    for words in (["train-zoo"], ["stack", "--oof"], ["submit"]):
        assert here(*words, "--run", run).code == 0
    assert _times(run) == before
    assert len(before) > 30


def test_a_changed_member_is_refused_with_the_difference(run, here):
    before = _times(run)
    said = here("train-zoo", "--run", run, *_members(FROZEN, '{recipe = "tiny-scratch", set = {"train.epochs" = 3}}'))
    assert said.code == 4
    assert "train.epochs: 2 -> 3" in said.err
    assert "--force-new" in said.err
    assert _times(run) == before


def test_force_new_makes_only_the_changed_member_anew(run, here):
    before = _times(run)
    changed = _members('{recipe = "tiny-frozen", set = {"train.epochs" = 5}}', SCRATCH)
    said = here("train-zoo", "--run", run, *changed, "--force-new")
    assert said.code == 0, said.err
    rewritten = _rewritten(run, before)
    assert {name.split("/")[1].split(".")[0] for name in rewritten} == {"tiny-frozen"}
    assert {"zoo/tiny-frozen/fold0/weights.safetensors", "scores/tiny-frozen.test.parquet"} <= rewritten
    after = _times(run)
    assert here("train-zoo", "--run", run).code == 0  # the run remembers the change
    assert _times(run) == after


def test_a_new_member_is_trained_beside_the_finished_ones(run, here):
    before = _times(run)
    third = '{recipe = "tiny-frozen", name = "third", set = {"train.epochs" = 1}}'
    assert here("train-zoo", "--run", run, *_members(FROZEN, SCRATCH, third)).code == 0
    assert {name.split("/")[1].split(".")[0] for name in _rewritten(run, before)} == {"third"}
    said = here("stack", "--oof", "--json", "--run", run)
    assert "third" in {row["name"] for row in json.loads(said.out)}


def test_another_config_of_the_stack_is_not_a_reason_to_train(run, here):
    before = _times(run)
    said = here("cv", "--run", run, "--set", "stack.trees=5")
    assert said.code == 0
    assert {name.partition("/")[0] for name in _rewritten(run, before)} == {"stack"}


def test_a_changed_seed_is_refused(run, here):
    said = here("train-zoo", "--run", run, "--set", "seed=1")
    assert said.code == 4
    assert "seed: 0 -> 1" in said.err


def test_a_changed_training_photo_is_refused(finished_run, run, data, here):
    photo = next((data / "train").iterdir())
    Image.new("RGB", (20, 20), "red").save(photo)
    said = here("train-zoo", "--run", run, "--data", data)
    assert said.code == 4
    assert "training photos" in said.err
    assert here("train-zoo", "--run", run, "--data", finished_run.data).code == 0


def test_a_further_test_photo_is_answered_without_training_anew(run, data, here):
    weights = {path: path.stat().st_mtime_ns for path in run.rglob("weights.safetensors")}
    photo = "ab" * 8
    Image.new("RGB", (20, 20), "red").save(data / "test" / f"{photo}.jpg")
    with (data / "test.csv").open("a", encoding="utf-8") as handle:
        handle.write(f"{photo},\n")
    for words in (["train-zoo", "--data", data], ["stack"], ["submit"]):
        said = here(*words, "--run", run)
        assert said.code == 0, said.err
    assert (run / "submission.csv").read_text().splitlines()[-1].startswith(photo)
    assert {path: path.stat().st_mtime_ns for path in run.rglob("weights.safetensors")} == weights


def test_a_touched_file_is_not_a_changed_one(run, here):
    for path in (run / "zoo").rglob("*.safetensors"):
        os.utime(path)
    before = _times(run)
    assert here("train-zoo", "--run", run).code == 0
    assert _times(run) == before


# ---- damage


@pytest.mark.faults
@pytest.mark.parametrize("harm", [_flip_a_bit, _cut, Path.unlink])
@pytest.mark.parametrize(
    "name",
    [
        "catalog.parquet",
        "folds.parquet",
        "gate/oof.parquet",
        "scores/tiny-scratch.oof.parquet",
        "zoo/tiny-frozen/fold1/weights.safetensors",
        "zoo/tiny-scratch/fold0/oof.parquet",
    ],
)
def test_what_is_damaged_is_made_again_as_it_was_and_nothing_else(run, name, harm, here):
    whole, before = (run / name).read_bytes(), _times(run)
    harm(run / name)
    assert here("train-zoo", "--run", run).code == 0
    assert (run / name).read_bytes() == whole
    rewritten = _rewritten(run, before)
    assert name in rewritten
    assert {Path(other).parent for other in rewritten} == {Path(name).parent}


@pytest.mark.faults
@pytest.mark.parametrize(
    ("name", "command", "remedy"),
    [
        ("scores/tiny-scratch.test.parquet", ["stack"], "engine train-zoo"),
        ("scores/tiny-frozen.oof.queries.parquet", ["stack", "--oof"], "engine train-zoo"),
        ("gate/test.parquet", ["stack"], "engine train-zoo"),
        ("catalog.parquet", ["submit"], "engine train-zoo"),
        ("stack/answers.test.parquet", ["submit"], "engine stack"),
        ("stack/leaderboard.json", ["leaderboard"], "engine stack --oof"),
    ],
)
def test_a_damaged_input_is_refused_and_names_the_command_that_makes_it(run, name, command, remedy, here):
    _flip_a_bit(run / name)
    said = here(*command, "--run", run)
    assert said.code == 4
    assert f"{run / name}: its SHA-256 is not the manifest's" in said.err
    assert remedy in said.err


@pytest.mark.faults
def test_a_damaged_stacker_is_fitted_again_and_never_loaded(run, here):
    whole = (run / "stack" / "stacker.json").read_bytes()
    (run / "stack" / "stacker.json").write_bytes(whole[: len(whole) // 2])
    assert here("stack", "--run", run).code == 0
    assert (run / "stack" / "stacker.json").read_bytes() == whole


@pytest.mark.faults
def test_an_edited_submission_is_written_again(run, here):
    whole = (run / "submission.csv").read_bytes()
    (run / "submission.csv").write_bytes(whole[:-5])
    assert here("submit", "--run", run).code == 0
    assert (run / "submission.csv").read_bytes() == whole


# ---- the order of the stages


def test_a_stage_before_its_predecessor_names_the_command_to_run(run, tmp_path, here):
    for command in ("stack", "submit", "leaderboard"):
        said = here(command, "--run", tmp_path / "nothing")
        assert said.code == 4
        assert f"engine train-zoo --run {tmp_path / 'nothing'}" in said.err
    Run(run).forget("stack/answers.test.parquet")
    Run(run).forget("stack/leaderboard.json")
    for command in ("submit", "leaderboard"):
        said = here(command, "--run", run)
        assert said.code == 4
        assert "has not been made yet\nhint: run 'engine stack --oof' first" in said.err
    Run(run).forget("scores/tiny-scratch.oof.parquet")
    said = here("stack", "--run", run)
    assert said.code == 4
    assert "hint: run 'engine train-zoo' first" in said.err


def test_a_run_without_test_photos_is_cross_validated_and_says_that_it_cannot_be_submitted(data, tmp_path, here):
    (data / "test.csv").unlink()
    shutil.rmtree(data / "test")
    run = tmp_path / "run"
    said = here("cv", "--data", data, "--run", run, "--config", "tiny", "--set", "threads=1", *_members(FROZEN))
    assert said.code == 0, said.err
    said = here("submit", "--run", run)
    assert said.code == 5
    assert "add test.csv to the data" in said.err


# ---- members that fail


def _recipe(path, weights, source=None):
    lines = [f'name = "{path.stem}"', "input.size = 32", "[backbone]", 'name = "test_resnet"', f'weights = "{weights}"']
    lines += [] if source is None else [f'source = "{source}"']
    path.write_text("\n".join(lines), encoding="utf-8")
    return f'{{recipe = "{path}"}}'


def _offline(monkeypatch):
    """The hub of a machine without a network: nobody listens, no proxy, nothing in the cache."""
    monkeypatch.setattr("zoo.weights.ENDPOINT", "http://127.0.0.1:9")
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.faults
def test_members_that_fail_do_not_keep_the_others_from_being_finished(run, tmp_path, monkeypatch, here):
    _offline(monkeypatch)
    lost = _recipe(tmp_path / "lost.toml", "file", tmp_path / "lost.safetensors")
    hub = _recipe(tmp_path / "far.toml", "hub")
    shutil.rmtree(run / "zoo" / "tiny-scratch")
    said = here("train-zoo", "--run", run, *_members(lost, hub, FROZEN, SCRATCH))
    assert said.code == 7
    assert f"lost: failed: {tmp_path}/lost.safetensors: cannot be read" in said.err
    assert "far: failed: backbone 'test_resnet': no weights from timm's hub" in said.err
    assert "2 of 4 members failed: lost, far" in said.err
    assert "next:" not in said.err
    for fold in range(2):
        assert (run / f"zoo/tiny-scratch/fold{fold}/weights.safetensors").exists()
    assert here("train-zoo", "--run", run, *_members(FROZEN, SCRATCH)).code == 0
    assert here("stack", "--run", run).code == 0


@pytest.mark.faults
def test_a_member_from_the_hub_without_a_network_is_told_the_other_ways_soon(run, tmp_path, monkeypatch, here):
    _offline(monkeypatch)
    hub = _recipe(tmp_path / "far.toml", "hub")
    began = time.monotonic()
    said = here("train-zoo", "--run", run, *_members(hub))
    assert time.monotonic() - began < 5
    assert said.code == 6
    for way in ("'file'", "'package'", "'random'"):
        assert way in said.err


# ---- the same again


@pytest.mark.slow
def test_the_whole_job_elsewhere_gives_the_same_bytes(finished_run, tmp_path, apart):
    """Another process, working directory, run folder and order of hashing."""
    data = os.path.relpath(finished_run.data, tmp_path)
    train = ["train-zoo", "--config", "tiny", "--set", "threads=1", "--data", data]
    for words in (train, ["stack", "--oof"], ["submit"]):
        said = apart(*words, "--run", "again", cwd=tmp_path, env={"PYTHONHASHSEED": "1"})
        assert said.code == 0, said.err
        assert "Warning" not in said.err
    same = [name for name in Run(finished_run.root).names() if not name.endswith("leaderboard.json")]  # has seconds
    assert [name for name in same if _bytes(tmp_path / "again", name) != _bytes(finished_run.root, name)] == []
    assert "submission.csv" in same


def test_one_or_two_threads_answer_the_same_when_no_backbone_is_trained(competition, tmp_path, here):
    """The gradients of a convolution are summed in an order that depends on the threads; nothing else is."""
    for threads in (1, 2):
        run = ["--run", tmp_path / f"{threads}"]
        given = ["--config", "tiny", "--data", competition, "--set", f"threads={threads}", *_members(FROZEN)]
        for words in (["train-zoo", *given], ["stack", "--oof"], ["submit"]):
            assert here(*words, *run).code == 0
    assert _bytes(tmp_path / "1", "submission.csv") == _bytes(tmp_path / "2", "submission.csv")
    assert _bytes(tmp_path / "1", "stack/answers.oof.parquet") == _bytes(tmp_path / "2", "stack/answers.oof.parquet")


def test_the_stack_reads_what_neighbours_tell_of_negatives_and_repeats(competition, tmp_path, here):
    near = '{recipe = "tiny-frozen", name = "near", set = { "head.kind" = "neighbours" }}'
    for name in ("one", "two"):
        given = ["--config", "tiny", "--data", competition, "--set", "threads=1", *_members(near)]
        for words in (["train-zoo", *given], ["stack", "--oof"]):
            said = here(*words, "--run", tmp_path / name)
            assert said.code == 0, said.err
    features = json.loads(_bytes(tmp_path / "one", "stack/stacker.json"))["features"]
    assert {"query.near.none_cosine", "query.near.nearest_none_cosine", "query.near.trust"} <= set(features)
    for name in ("stack/stacker.json", "stack/answers.oof.parquet", "scores/near.test.queries.parquet"):
        assert _bytes(tmp_path / "one", name) == _bytes(tmp_path / "two", name)


def test_landmarks_that_a_classifier_dropped_are_still_answered_by_neighbours(competition, tmp_path, here):
    dropping = '{recipe = "tiny-frozen", name = "dropping", set = { "train.min_photos" = 6 }}'
    near = '{recipe = "tiny-frozen", name = "near", set = { "head.kind" = "neighbours" }}'
    run = ["--run", tmp_path]
    given = ["--config", "tiny", "--data", competition, *_members(dropping, near)]
    for words in (["train-zoo", *given], ["stack", "--oof", "--set", "stack.method=linear"]):
        said = here(*words, *run)
        assert said.code == 0, said.err
    listed = pd.read_parquet(tmp_path / "scores/dropping.oof.parquet")["landmark_id"].unique()
    stack, near = (
        pd.read_parquet(tmp_path / name)["landmark_id"].dropna().unique()
        for name in ("stack/answers.oof.parquet", "scores/near.oof.parquet")
    )
    assert 0 < len(listed) < len(near)
    assert set(stack) - set(listed)


def _bytes(root, name):
    return (root / name).read_bytes()


# ---- signals


@dataclass(frozen=True)
class Interrupted:
    """A training that was stopped by a signal, and the same command again."""

    pid: int
    second: object  # what a second command said while the first was at work
    code: int
    err: str
    again: object
    root: Path


@pytest.fixture(scope="module")
def slow_config(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "slow.toml"
    path.write_text(SLOW, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def uninterrupted(slow_config, competition, tmp_path_factory, here):
    root = tmp_path_factory.mktemp("uninterrupted") / "run"
    said = here("train-zoo", "--config", slow_config, "--data", competition, "--run", root)
    assert said.code == 0, said.err
    return root


@pytest.fixture(scope="module", params=[signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def interrupted(request, slow_config, competition, tmp_path_factory, here):
    """Stop a process after its first epoch."""
    root = tmp_path_factory.mktemp("interrupted") / "run"
    words = ["train-zoo", "--config", str(slow_config), "--data", str(competition), "--run", str(root)]
    process = subprocess.Popen([sys.executable, "-m", "engine", *words], stderr=subprocess.PIPE, text=True)
    while not (root / "zoo/tiny-scratch/fold0/metrics.jsonl").exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.005)
    process.send_signal(signal.SIGSTOP)  # so that it is still at work however long the second takes
    second = here(*words)
    process.send_signal(request.param)
    process.send_signal(signal.SIGCONT)
    _, err = process.communicate(timeout=60)
    return Interrupted(process.pid, second, process.returncode, err, here(*words), root), request.param


@pytest.mark.slow
def test_a_second_command_in_a_run_is_refused_and_told_who_is_at_work(interrupted):
    found, _ = interrupted
    assert found.second.code == 6
    assert f"another process (pid {found.pid}) is working on this run" in found.second.err


@pytest.mark.slow
def test_an_interrupted_training_ends_with_its_exit_code_and_the_way_on(interrupted):
    found, number = interrupted
    assert "Traceback" not in found.err
    if number == signal.SIGKILL:
        assert found.code == -signal.SIGKILL
    else:
        assert found.code == 130
        assert "interrupted; what was finished is kept\nhint: run the same command again" in found.err


@pytest.mark.slow
def test_an_interrupted_training_goes_on_to_the_same_bytes(interrupted, uninterrupted):
    found, _ = interrupted
    assert found.again.code == 0, found.again.err
    names = [name for name in Run(uninterrupted).names() if not name.startswith(("catalog", "folds"))]
    assert [name for name in names if _bytes(found.root, name) != _bytes(uninterrupted, name)] == []
    assert "zoo/tiny-scratch/fold1/weights.safetensors" in names
    assert not list(found.root.rglob("*.unfinished"))
    assert not list(found.root.rglob("state/*"))


@pytest.mark.parametrize("stage", ["build_catalog", "make_folds"])
def test_an_interrupt_before_any_training_ends_at_once(stage, competition, tmp_path, monkeypatch, here):
    def wait(*_, **__):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)

    monkeypatch.setattr(f"engine.pipeline.photos.{stage}", wait)
    began = time.monotonic()
    said = here("train-zoo", "--config", "tiny", "--data", competition, "--run", tmp_path / "run")
    assert said.code == 130
    assert time.monotonic() - began < 30


def test_an_interrupt_in_the_gate_does_not_let_cv_go_on(run, monkeypatch, here):
    monkeypatch.setattr("zoo.gate.run_gate", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    before = _times(run)
    assert here("cv", "--run", run, "--set", "stack.trees=3").code == 130
    assert _times(run) == before


# ---- honesty


def _shuffle_labels(data):
    with (data / "train.csv").open(encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    labels = [row["landmark_id"] for row in rows]
    random.Random(0).shuffle(labels)
    lines = [f"{row['id']},,{label}\n" for row, label in zip(rows, labels, strict=True)]
    (data / "train.csv").write_text("id,url,landmark_id\n" + "".join(lines), encoding="utf-8")


def test_shuffled_labels_give_a_gap_at_chance_and_the_true_ones_do_not(data, tmp_path, here):
    """Were anything of a query's own label to reach its score, the shuffled labels could be learned too."""
    config = tmp_path / "few.toml"
    config.write_text(FEW_PHOTOS, encoding="utf-8")
    gaps = {}
    for labels in ("true", "shuffled"):
        if labels == "shuffled":
            _shuffle_labels(data)
        said = here("cv", "--json", "--config", config, "--data", data, "--run", tmp_path / labels)
        assert said.code == 0, said.err
        gaps[labels] = {row["name"]: row["gap"] for row in json.loads(said.out)}
    assert gaps["true"]["tiny-frozen"] > 0.5
    assert gaps["true"]["stack"] > 0.5
    assert max(gaps["shuffled"].values()) < 0.2, gaps
