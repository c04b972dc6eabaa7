"""Baselines: plain rules on plain numbers, and a logistic regression that learns."""

import numpy as np
import pandas as pd
import pytest

from engine.core.errors import ArtifactError
from stacking.baselines import choose_rules, fit_logistic
from stacking.features import P_LANDMARK, mark_right

ROWS = pd.DataFrame({"all.mean": [0.5, 0.25], "all.geometric": [0.4, 0.1], P_LANDMARK: [0.5, 1.0]})


def test_rules_merge_the_members_scores():
    scores = {name: rule(ROWS).tolist() for name, rule in choose_rules(ROWS).items()}
    assert scores == {
        "mean": [0.5, 0.25],
        "geometric-mean": [0.4, 0.1],
        "gated-mean": [0.25, 0.25],
        "gated-geometric-mean": [0.2, 0.1],
    }


def test_without_a_gate_there_are_no_gated_rules():
    assert list(choose_rules(ROWS.drop(columns=P_LANDMARK))) == ["mean", "geometric-mean"]


def test_the_logistic_stack_learns_and_repeats_itself(competition, rows):
    right = mark_right(rows, competition.queries)
    predicted = fit_logistic(rows, right).predict(rows)
    assert predicted[right].mean() > 0.5
    assert predicted[~right].mean() < 0.1
    assert abs(predicted.mean() - right.mean()) < 0.01
    again = fit_logistic(rows, right).predict(rows[rows.columns[::-1]])
    assert predicted.tobytes() == again.tobytes()


def test_the_logistic_stack_takes_scores_of_any_sign():
    rng = np.random.default_rng(0)
    rows = pd.DataFrame({"query": "q", "landmark_id": "7", "m.score": rng.normal(0, 50, 200)})
    predicted = fit_logistic(rows, rows["m.score"].to_numpy() > 0).predict(rows)
    assert predicted[rows["m.score"] > 5].min() > 0.5 > predicted[rows["m.score"] < -5].max()


@pytest.mark.faults
def test_the_logistic_stack_names_missing_features(competition, rows):
    model = fit_logistic(rows, mark_right(rows, competition.queries))
    with pytest.raises(ArtifactError, match=r"lack: all\.mean"):
        model.predict(rows.drop(columns="all.mean"))
