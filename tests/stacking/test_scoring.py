"""A way to fit is scored as the leaderboard scores its entries."""

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.core.config import ValidationConfig
from engine.core.errors import DataError
from engine.core.gap import score_queries
from stacking.ablation import fit_cheaply
from stacking.evaluate import enter_baselines
from stacking.leaderboard import rank_entries
from stacking.scoring import score_fit, weigh_queries


@pytest.mark.parametrize("prevalence", [None, 0.1])
def test_a_fit_scores_what_the_leaderboard_says_of_it(competition, rows, quick_config, prevalence):
    config = ValidationConfig(bootstrap=10, prevalence=prevalence)
    entries = enter_baselines(rows, competition.queries, quick_config, seed=0, threads=1)
    [logistic] = [entry for entry in entries if entry.name == "logistic"]
    [row] = rank_entries([logistic], competition.queries, config, seed=0)
    assert score_queries(score_fit(rows, competition.queries, fit_cheaply, config)) == row["gap"]


QUERIES = pd.DataFrame(
    {"landmark_id": ["7", "7", None, None, None, None, None], "unseen": [False, False, True, True, False, False, False]}
)


@given(st.none() | st.floats(0.01, 0.99), st.floats(0.01, 0.99))
def test_queries_stand_for_the_shares_asked_for(prevalence, share):
    weights = weigh_queries(QUERIES, ValidationConfig(prevalence=prevalence, unseen=share))
    known, unseen, nothing = weights[:2].sum(), weights[2:4].sum(), weights[4:].sum()
    assert (weights[:2] == 1).all()
    assert unseen / (unseen + nothing) == pytest.approx(share)
    assert known / weights.sum() == pytest.approx(2 / 7 if prevalence is None else prevalence)


def test_without_an_unseen_landmark_their_share_cannot_be_another():
    with pytest.raises(DataError, match="5 queries without a known landmark 0 show an unseen one"):
        weigh_queries(QUERIES.assign(unseen=False), ValidationConfig(unseen=0.5))
