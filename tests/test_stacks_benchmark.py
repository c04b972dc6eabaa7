"""The benchmark of ways to stack: its drawn competition is what it says, and the script runs from a checkout."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from stacking.features import mark_right
from stacking.fitting import METHODS

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def simulator():
    """The module, without its folder on the path."""
    spec = importlib.util.spec_from_file_location("simulator", FOLDER / "simulator.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look their annotations up
    yield (spec.loader.exec_module(module), module)[1]
    del sys.modules[spec.name]


@pytest.fixture(scope="module")
def pair(simulator):
    return simulator.draw_pair(0, queries=1500)


def test_two_in_five_queries_show_a_landmark_and_most_of_those_list_it(pair):
    for competition in pair:
        known = competition.queries["landmark_id"].notna()
        assert known.mean() == pytest.approx(0.4, abs=0.05)
        assert competition.queries["unseen"].mean() == pytest.approx(0.1, abs=0.03)
        assert not (known & competition.queries["unseen"]).any()
        listed = mark_right(competition.rows(), competition.queries).sum() / known.sum()
        assert 0.88 < listed < 0.98


def test_members_list_their_best_first(simulator, pair):
    candidates = pair[0].candidates
    assert set(candidates["member"]) == set(simulator.MEMBERS)
    score = candidates["score"].to_numpy().reshape(-1, simulator.LISTED)
    assert (np.diff(score, axis=1) <= 0).all()
    assert ((score > 0) & (score <= 1)).all()
    assert (candidates["rank"].to_numpy().reshape(score.shape) == np.arange(1, simulator.LISTED + 1)).all()


def test_a_seed_draws_the_same_again_and_held_out_queries_are_others(simulator, pair):
    again = simulator.draw_pair(0, queries=1500)
    for drawn, repeated in zip(pair, again, strict=True):
        assert drawn.rows().equals(repeated.rows())
    assert not set(pair[0].queries["id"]) & set(pair[1].queries["id"])
    assert set(pair[0].queries["fold"]) == {0, 1, 2, 3}
    assert set(pair[1].queries["fold"]) == {-1}


def run_script(name, *words):
    """What a benchmark prints, run from a checkout; [the cells of each row of its tables]."""
    environment = os.environ | {"PYTHONPATH": str(FOLDER.parent)}
    command = [sys.executable, FOLDER / name, *words]
    ended = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr
    return [line.strip("| ").split(" | ") for line in ended.stdout.splitlines() if line.startswith("| ")]


@pytest.mark.slow
def test_the_script_prints_a_gap_for_every_way_and_what_is_promised():
    cells = run_script("stacks.py", "--seeds", "1", "--queries", "400")
    first = [name for name, *_ in cells].index("of the stack")
    gaps = {name: float(value) for name, value, *_ in cells[1:first]}
    assert gaps["frozen"] < gaps["mean"] < gaps["gated-mean"] < gaps["oracle label and ranking"]
    assert {"caruana", "nelder-mead", "logistic", "lambdarank", *METHODS} < gaps.keys()
    assert gaps["stack"] in {gaps[method] for method in METHODS}
    assert gaps["stack"] < gaps["oracle ranking"]
    promises = {name: float(value) for name, value, *_ in cells[first + 1 :]}
    assert promises["stack less gated-mean"] == pytest.approx(gaps["stack"] - gaps["gated-mean"], abs=1e-4)


@pytest.mark.slow
def test_the_stack_of_the_challenges_landmarks_is_measured_step_by_step():
    cells = run_script("stack_scale.py", "--queries", "400", "--trees", "5")
    highest = [float(row[-1]) for row in cells[1:] if len(row) == 5 and row[-1]]
    assert len(highest) == 10
    assert highest == sorted(highest)
