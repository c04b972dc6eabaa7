"""Blanking: what is below the threshold goes, and GAP never thanks for it."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.core.gap import score_answers
from engine.core.tables import ANSWERS, read_table, write_table
from stacking.answers import pick_answers
from stacking.baselines import gated_geometric_score
from stacking.blanking import QUANTILES, THRESHOLDS, blank_below, blanking_costs

QUERY = st.tuples(st.sampled_from(["a", "b", None]), st.sampled_from(["a", "b", None]), st.integers(0, 8))


@pytest.fixture(scope="module")
def answers(competition, rows):
    return pick_answers(rows, gated_geometric_score(rows), competition.queries, decided_by="stack")


@given(st.lists(QUERY, min_size=1, max_size=40), st.integers(0, 9))
def test_blanking_never_raises_gap(drawn, threshold):
    """Ties included: confidences of nine levels."""
    shown, given_, level = zip(*[("a", "a", 8), *drawn], strict=True)  # at least one query shows a landmark
    ids = [f"q{number:02d}" for number in range(len(shown))]
    truth = pd.DataFrame({"id": ids, "landmark_id": pd.Series(shown, dtype=object)})
    answers = pd.DataFrame(
        {"id": ids, "landmark_id": pd.Series(given_, dtype=object), "confidence": np.array(level) / 8}
    )
    blanked = blank_below(answers, threshold / 8)
    assert score_answers(blanked, truth) <= score_answers(answers, truth) + 1e-12


def test_what_is_below_goes_and_what_is_not_stays(answers, tmp_path):
    threshold = answers["confidence"].median()
    blanked = blank_below(answers, threshold)
    low = answers["confidence"] < threshold
    assert blanked.loc[low, "landmark_id"].isna().all()
    assert (blanked.loc[low, "confidence"] == 0).all()
    pd.testing.assert_frame_equal(blanked[~low], answers[~low])
    write_table(tmp_path / "answers.parquet", blanked, ANSWERS)
    pd.testing.assert_frame_equal(read_table(tmp_path / "answers.parquet", ANSWERS), blanked)


def test_threshold_0_blanks_nothing(answers):
    pd.testing.assert_frame_equal(blank_below(answers, 0), answers)


def test_costs_rise_with_the_threshold(competition, answers, validation_config):
    costs = blanking_costs(answers, competition.queries, validation_config, seed=0)
    quantiles = np.quantile(answers["confidence"], QUANTILES).tolist()
    assert [cost.threshold for cost in costs] == sorted([*THRESHOLDS, *quantiles])
    whole = score_answers(answers, competition.queries)
    for cost in costs:
        assert cost.blanked == pytest.approx((answers["confidence"] < cost.threshold).mean())
        assert cost.difference.estimate == cost.gap - whole
        assert cost.difference.low <= cost.difference.high <= 1e-12
    gaps = [cost.gap for cost in costs]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < whole - 0.01


def test_costs_stand_for_the_wanted_prevalence(competition, answers, validation_config):
    rare = validation_config.model_copy(update={"prevalence": 0.03})
    assert blanking_costs(answers, competition.queries, rare, seed=0)[0].gap < 0.8 * score_answers(
        answers, competition.queries
    )


def test_costs_are_alike_for_shuffled_answers(competition, answers, validation_config):
    costs = blanking_costs(answers, competition.queries, validation_config, seed=0)
    shuffled = answers.sample(frac=1, random_state=1)
    assert blanking_costs(shuffled, competition.queries, validation_config, seed=0) == costs


def test_nothing_answered_costs_nothing(competition, answers, validation_config):
    none = blank_below(answers, 2)
    costs = blanking_costs(none, competition.queries, validation_config, seed=0)
    assert [(cost.threshold, cost.blanked, cost.gap) for cost in costs] == [(level, 0, 0) for level in THRESHOLDS]
