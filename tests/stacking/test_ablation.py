"""What each part is worth: who knows something is missed, a copy is not, and the gate is a part like the members."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from engine.core.gap import score_queries
from stacking.ablation import add_members, drop_gate, fit_cheaply, leave_out, measure_gate
from stacking.calibration import measure_reliability
from stacking.scoring import score_fit

MEMBERS = ("large", "nearest", "small")


@pytest.fixture(scope="module")
def ablations(competition, validation_config):
    found = leave_out(MEMBERS, competition.rows, competition.queries, fit_cheaply, validation_config, seed=0)
    return {each.without: each for each in found}


@pytest.fixture(scope="module")
def additions(competition, validation_config):
    return add_members(MEMBERS, competition.rows, competition.queries, validation_config)


def test_every_member_and_the_gate_are_left_out_once(ablations):
    assert list(ablations) == [*MEMBERS, "gate"]


def test_what_a_part_is_worth_is_the_whole_minus_the_rest(competition, rows, ablations, validation_config):
    whole = score_queries(score_fit(rows, competition.queries, fit_cheaply, validation_config))
    for each in ablations.values():
        assert each.worth.estimate == pytest.approx(whole - each.gap)
        assert each.worth.low <= each.worth.estimate <= each.worth.high
        assert each.worth.estimate > 0  # each member sees with an error of its own, and the gate with another


def test_without_the_gate_only_its_columns_are_gone(rows, competition, ablations, validation_config):
    without = drop_gate(rows)
    assert set(rows.columns) - set(without.columns) == {"query.gate.p_landmark"}
    rest = score_fit(without, competition.queries, fit_cheaply, validation_config)
    assert score_queries(rest) == ablations["gate"].gap


def test_rows_without_a_member_count_it_nowhere(competition, ablations, validation_config):
    rest = score_fit(competition.rows(("large", "small")), competition.queries, fit_cheaply, validation_config)
    assert score_queries(rest) == ablations["nearest"].gap


def test_a_single_member_cannot_be_left_out_but_its_gate_can(competition, validation_config):
    found = leave_out(["large"], competition.rows, competition.queries, fit_cheaply, validation_config, seed=0)
    assert [each.without for each in found] == ["gate"]


def test_members_are_added_best_first_and_end_at_the_whole_stack(competition, rows, additions, validation_config):
    assert sorted(each.member for each in additions) == sorted(MEMBERS)
    gaps = [each.gap for each in additions]
    alone = {
        name: score_queries(score_fit(competition.rows((name,)), competition.queries, fit_cheaply, validation_config))
        for name in MEMBERS
    }
    assert alone[additions[0].member] == gaps[0] == max(alone.values())
    whole = score_queries(score_fit(rows, competition.queries, fit_cheaply, validation_config))
    assert gaps[-1] == pytest.approx(whole)
    np.testing.assert_allclose([each.gain for each in additions], np.diff([0, *gaps]))


def test_a_copy_of_a_member_is_added_last_and_adds_nothing(competition, validation_config):
    twin = pd.concat(
        [competition.candidates, competition.candidates.query("member == 'large'").assign(member="twin")],
        ignore_index=True,
    )
    features = pd.concat(
        [competition.query_features, competition.query_features.query("member == 'large'").assign(member="twin")],
        ignore_index=True,
    )
    doubled = replace(competition, candidates=twin, query_features=features)
    steps = add_members(["large", "small", "twin"], doubled.rows, competition.queries, validation_config)
    assert {"large", "twin"} >= {steps[-1].member}
    assert abs(steps[-1].gain) < 0.01 < steps[1].gain


def test_the_gates_area_is_the_share_of_pairs_in_order(competition):
    said = competition.query_features.query("member == 'gate'").set_index("query")["p_landmark"]
    probability = competition.queries["id"].map(said).to_numpy()
    known = competition.queries["landmark_id"].notna().to_numpy()
    shown = known | competition.queries["unseen"].to_numpy()
    found = measure_gate(competition.query_features, competition.queries)
    for positive, area in ((shown, found.landmark), (known, found.known)):
        pairs = probability[positive][:, None] - probability[~positive]
        assert area == pytest.approx(np.mean(pairs > 0) + np.mean(pairs == 0) / 2)
    assert found.landmark > found.known > 0.5  # a landmark that nobody knows looks like a landmark
    assert found.brier == pytest.approx(np.mean((probability - shown) ** 2))
    assert found.ece == measure_reliability(probability, shown).ece


def test_without_a_gate_or_with_photos_of_one_kind_nothing_is_said_of_it(competition):
    without = competition.query_features.query("member != 'gate'")
    assert measure_gate(without, competition.queries) is None
    found = measure_gate(competition.query_features, competition.queries.assign(unseen=True))
    assert found.landmark is None
    assert found.known is not None
