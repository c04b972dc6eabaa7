"""The benchmark of ways to stack: its drawn competition is what it says, and the script runs from a checkout."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from stacking.features import mark_right

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


@pytest.mark.slow
def test_the_script_prints_a_gap_for_every_way():
    command = [sys.executable, FOLDER / "stacks.py", "1", "300"]
    environment = os.environ | {"PYTHONPATH": str(FOLDER.parent)}
    ended = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr
    cells = [line.strip("| ").split(" | ") for line in ended.stdout.splitlines() if line.startswith("| ")]
    gaps = {name: float(value) for name, value, *_ in cells if not name.startswith(("way", "---"))}
    assert gaps["frozen"] < gaps["mean"] < gaps["gated-mean"] < gaps["oracle label and ranking"]
    assert gaps["trees, lambdarank in queries"] < gaps["trees, row log-loss"] < gaps["oracle ranking"]
