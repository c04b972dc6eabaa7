"""A way to fit is scored as the leaderboard scores its entries."""

import pytest

from engine.core.config import ValidationConfig
from engine.core.gap import score_queries
from stacking.ablation import fit_cheaply
from stacking.evaluate import enter_baselines
from stacking.leaderboard import rank_entries
from stacking.scoring import score_fit


@pytest.mark.parametrize("prevalence", [None, 0.1])
def test_a_fit_scores_what_the_leaderboard_says_of_it(competition, rows, quick_config, prevalence):
    config = ValidationConfig(bootstrap=10, prevalence=prevalence)
    entries = enter_baselines(rows, competition.queries, quick_config, seed=0, threads=1)
    [logistic] = [entry for entry in entries if entry.name == "logistic"]
    [row] = rank_entries([logistic], competition.queries, config, seed=0)
    assert score_queries(score_fit(rows, competition.queries, fit_cheaply, config)) == row["gap"]
