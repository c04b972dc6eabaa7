"""Honest validation: no query scores itself, shuffled labels teach nothing, and equal input gives equal bytes."""

import numpy as np
import pandas as pd
import pytest

from engine.core.errors import DataError
from engine.core.gap import score_answers
from stacking.answers import pick_answers
from stacking.calibration import Calibration
from stacking.evaluate import answer_queries, cross_predict, enter_baselines, enter_members, enter_stack
from stacking.features import mark_right
from stacking.stacker import fit_stacker


@pytest.fixture(scope="module")
def stacked(competition, rows, stack_config):
    return enter_stack(rows, competition.queries, stack_config, seed=0, threads=1)


@pytest.fixture(scope="module")
def plain(competition, rows):
    seconds = dict.fromkeys(("large", "small", "nearest"), 1.5)
    return [*enter_members(competition.candidates, competition.queries, seconds),
            *enter_baselines(rows, competition.queries)]  # fmt: skip


def test_the_stack_beats_every_member_every_fixed_rule_and_every_blend(competition, stacked, plain):
    gaps = {entry.name: score_answers(entry.answers, competition.queries) for entry in plain}
    gaps.pop("logistic")  # a stack itself, and this competition is nearly linear
    tuned = {name: gaps.pop(name) for name in ("caruana", "nelder-mead")}
    reached = score_answers(stacked.answers, competition.queries)
    assert reached > max(gaps.values()) + 0.03
    assert reached > max(tuned.values()) + 0.03
    assert max(gaps["large"], gaps["small"], gaps["nearest"]) < gaps["mean"]


def test_every_entry_answers_every_query_and_says_what_it_is(competition, stacked, plain):
    ids = sorted(competition.queries["id"])
    for entry in [*plain, stacked]:
        assert entry.answers["id"].tolist() == ids
        assert set(entry.answers["decided_by"]) == {entry.name}
    assert [(entry.name, entry.kind) for entry in [*plain, stacked]] == [
        ("large", "member"), ("small", "member"), ("nearest", "member"), ("mean", "baseline"),
        ("geometric-mean", "baseline"), ("rank-mean", "baseline"), ("gated-mean", "baseline"),
        ("gated-geometric-mean", "baseline"), ("gated-rank-mean", "baseline"), ("logistic", "baseline"),
        ("caruana", "baseline"), ("nelder-mead", "baseline"), ("stack", "stack"),
    ]  # fmt: skip
    assert plain[0].fit_seconds == 1.5
    assert stacked.fit_seconds > 0


def test_blends_are_tuned_without_the_querys_own_fold(competition, rows, plain):
    held = competition.queries["fold"] == 0
    turned = competition.queries.assign(landmark_id=competition.queries["landmark_id"].mask(held, "0003"))
    first, second = ({e.name: e.answers for e in entries} for entries in (plain, enter_baselines(rows, turned)))
    for name in ("logistic", "caruana", "nelder-mead"):
        mine = first[name]["id"].isin(competition.queries.loc[held, "id"])
        pd.testing.assert_frame_equal(first[name][mine], second[name][mine], check_exact=True)
        assert not first[name][~mine].equals(second[name][~mine])


def test_a_query_is_scored_without_its_own_fold(competition, rows):
    seen = []

    def fit(part, right):
        seen.append((set(part["query"]), len(right)))
        return lambda unseen: np.full(len(unseen), len(seen), dtype=float)

    scores = cross_predict(rows, competition.queries, fit)
    fold = competition.queries.set_index("id")["fold"]
    for number, (learned, count) in enumerate(seen, start=1):
        asked = set(rows.loc[scores == number, "query"])
        assert not {fold[query] for query in learned} & {fold[query] for query in asked}
        assert count == rows["query"].isin(learned).sum()
    assert len(seen) == fold.nunique()


def test_the_truth_of_a_fold_never_reaches_its_own_answers(competition, rows, stacked, stack_config):
    held = competition.queries["fold"] == 0
    turned = competition.queries.assign(landmark_id=competition.queries["landmark_id"].mask(held, "0003"))
    answers = enter_stack(rows, turned, stack_config, seed=0, threads=1).answers
    mine = stacked.answers["id"].isin(competition.queries.loc[held, "id"])
    pd.testing.assert_frame_equal(answers[mine], stacked.answers[mine], check_exact=True)
    assert not answers[~mine].equals(stacked.answers[~mine])


@pytest.mark.faults
def test_training_on_shuffled_labels_gives_chance(competition, rows, stack_config):
    """Chance: the candidates ranked and picked at random."""
    rng = np.random.default_rng(5)
    truth = competition.queries
    shuffled = truth.assign(landmark_id=rng.permutation(truth["landmark_id"].to_numpy(dtype=object)))
    learned = score_answers(enter_stack(rows, shuffled, stack_config, seed=0, threads=1).answers, shuffled)
    drawn = [pick_answers(rows, rng.random(len(rows)), truth, decided_by="chance") for _ in range(20)]
    chance = [score_answers(answers, shuffled) for answers in drawn]
    assert learned < max(chance) + 0.02  # frequent landmarks may still be guessed for being frequent
    assert learned < 0.1


def test_shuffled_input_two_threads_and_a_repeat_give_the_same_bytes(competition, stacked, stack_config, monkeypatch):
    monkeypatch.setattr("stacking.stacker.ROWS_PER_THREAD", 1)
    other = competition.shuffled(3)
    again = enter_stack(other.rows(), other.queries, stack_config, seed=0, threads=2)
    assert again.answers.to_csv() == stacked.answers.to_csv()


def test_a_stacker_of_all_rows_answers_new_queries_on_their_own(competition, rows, stack_config):
    held = set(competition.queries.loc[competition.queries["fold"] == 0, "id"])
    learned = rows[~rows["query"].isin(held)]
    right = mark_right(learned, competition.queries)
    stacker = fit_stacker(learned, right, stack_config, seed=0, threads=1)
    asked = competition.queries[competition.queries["id"].isin(held)].drop(columns="landmark_id")
    answers = answer_queries(stacker, Calibration("none"), rows[rows["query"].isin(held)], asked, threads=1)
    assert answers["id"].tolist() == sorted(held)
    one = asked.iloc[[0]]
    alone = answer_queries(stacker, Calibration("none"), rows[rows["query"].isin(one["id"])], one, threads=1)
    pd.testing.assert_frame_equal(
        alone, answers[answers["id"].isin(one["id"])].reset_index(drop=True), check_exact=True
    )


@pytest.mark.faults
def test_one_fold_cannot_be_cross_validated(competition, rows, stack_config):
    with pytest.raises(DataError, match="1 fold cannot be cross-validated"):
        enter_stack(rows, competition.queries.assign(fold=0), stack_config, seed=0, threads=1)
