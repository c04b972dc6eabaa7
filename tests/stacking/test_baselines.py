"""Baselines: plain rules on plain numbers, and a logistic regression that learns."""

import numpy as np
import pandas as pd
import pytest

from engine.core.errors import ArtifactError
from stacking.answers import pick_answers
from stacking.baselines import (
    choose_rules,
    fit_logistic,
    glr2020_winner_score,
    list_members,
    list_neighbour_members,
    list_winner_members,
    reciprocal_rank_score,
)
from stacking.features import P_LANDMARK, mark_right

ROWS = pd.DataFrame(
    {
        "all.mean": [0.5, 0.25],
        "all.geometric": [0.4, 0.1],
        "large.inverse_rank": [1.0, 0.5],
        "small.inverse_rank": [0.0, 1.0],
        P_LANDMARK: [0.5, 1.0],
    }
)


def test_rules_merge_the_members_scores():
    scores = {name: rule(ROWS).tolist() for name, rule in choose_rules(ROWS).items()}
    assert scores == {
        "mean": [0.5, 0.25],
        "geometric-mean": [0.4, 0.1],
        "rank-mean": [0.5, 0.75],
        "gated-mean": [0.25, 0.25],
        "gated-geometric-mean": [0.2, 0.1],
        "gated-rank-mean": [0.25, 0.75],
    }


def test_without_a_gate_there_are_no_gated_rules():
    assert list(choose_rules(ROWS.drop(columns=P_LANDMARK))) == ["mean", "geometric-mean", "rank-mean"]


def test_the_winners_rule_needs_a_member_that_knows_of_nothing(rows, comparing_rows):
    assert "glr2020-winner" not in choose_rules(rows)
    assert choose_rules(comparing_rows)["glr2020-winner"] is glr2020_winner_score
    assert "glr2020-winner" not in choose_rules(comparing_rows.drop(columns="query.nearest.none_cosine"))


def test_members_are_known_by_their_columns(rows, comparing_rows):
    assert list_members(rows[rows.columns[::-1]]) == ("large", "nearest", "small")
    assert list_neighbour_members(rows) == list_winner_members(rows) == ()
    assert list_neighbour_members(comparing_rows) == list_winner_members(comparing_rows) == ("nearest",)
    assert list_neighbour_members(rows.assign(**{"small.cosine": 0.0})) == ("small",)
    assert list_winner_members(rows.assign(**{"small.cosine": 0.0})) == ()


def test_mean_reciprocal_ranks_are_those_of_the_members_lists(competition, rows):
    inverse = competition.candidates.assign(inverse=1 / competition.candidates["rank"])
    mean = inverse.groupby(["query", "landmark_id"])["inverse"].sum() / 3
    wanted = mean.reindex(pd.MultiIndex.from_frame(rows[["query", "landmark_id"]]))
    assert reciprocal_rank_score(rows) == pytest.approx(wanted.to_numpy(), abs=1e-7)


@pytest.mark.parametrize("told", [(), ("cosine",), ("cosine", "support_none_cosine")])
def test_the_winners_rule_counts_votes_as_a_plain_loop_does(told):
    rng = np.random.default_rng(7)
    rows = pd.DataFrame(index=range(60))
    for member in ("far", "near"):
        rows[f"{member}.score"] = score = rng.random(60) ** 3
        rows[f"{member}.below_best"] = score - np.maximum(score, rng.random(60))
        rows[f"{member}.inverse_rank"] = np.float32([0, 1, 1 / 2, 1 / 3, 1 / 4])[rng.integers(5, size=60)]
        for name in ("trust", "none_cosine", "nearest_none_cosine"):
            rows[f"query.{member}.{name}"] = rng.uniform(-1, 1, 60)
        for name in told:
            rows[f"{member}.{name}"] = rng.uniform(-1, 1, 60)
    for found, row in zip(glr2020_winner_score(rows), rows.to_dict("records"), strict=True):
        votes = []
        for member in ("far", "near"):
            if row[f"{member}.inverse_rank"] < 0.3:
                continue
            if told:
                of_photo = row.get(f"{member}.support_none_cosine", row[f"query.{member}.nearest_none_cosine"])
                votes.append(min(max(row[f"{member}.cosine"], 0), 1) - of_photo)
            else:
                best = row[f"{member}.score"] - row[f"{member}.below_best"]
                behind = np.log(max(row[f"{member}.score"], 1e-6) / max(best, 1e-6)) / 25
                votes.append(row[f"query.{member}.trust"] + row[f"query.{member}.none_cosine"] + behind)
        nothing = (row["query.far.none_cosine"] + row["query.near.none_cosine"]) / 2
        assert found == pytest.approx((sum(votes) if votes else -12) - nothing)


def test_a_landmark_without_a_vote_never_wins(comparing_rows, competition):
    scores = glr2020_winner_score(comparing_rows)
    answers = pick_answers(comparing_rows, scores, competition.queries, decided_by="glr2020-winner")
    listed = competition.candidates.query("member == 'nearest' and rank <= 3").set_index(["query", "landmark_id"])
    assert pd.MultiIndex.from_frame(answers[["id", "landmark_id"]]).isin(listed.index).all()


def test_a_rule_scores_a_row_alike_whatever_other_rows_there_are(comparing_rows):
    for rule in choose_rules(comparing_rows).values():
        together = rule(comparing_rows)
        assert np.isfinite(together).all()
        shuffled = comparing_rows.sample(frac=1, random_state=1)
        assert (rule(shuffled) == together[shuffled.index]).all()
        alone = [rule(comparing_rows.iloc[[row]])[0] for row in range(50)]
        assert (alone == together[:50]).all()


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
