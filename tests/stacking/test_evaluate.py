"""Honest validation: no query scores itself, shuffled labels teach nothing, and equal input gives equal bytes."""

import numpy as np
import pandas as pd
import pytest

from engine.core.errors import DataError
from engine.core.gap import score_answers
from stacking.answers import pick_answers
from stacking.calibration import Calibration, cross_calibrate
from stacking.evaluate import (
    answer_queries,
    cross_calibrated,
    cross_predict,
    cross_stack,
    enter_baselines,
    enter_members,
    fit_stack,
    groups_of,
)
from stacking.features import mark_right
from stacking.fitting import METHODS, fit_stacker
from stacking.objectives import query_starts
from stacking.trees import answer_gap

FITTED = ("logistic", "caruana", "nelder-mead", "lambdarank")


@pytest.fixture(scope="module")
def quick(competition, rows, quick_config):
    """The stack of few trees, and what it told of its progress."""
    told = []
    found = cross_stack(
        rows, competition.queries, quick_config, seed=0, threads=1, advance=lambda *step: told.append(step)
    )
    return found, told


@pytest.fixture(scope="module")
def baselines(competition, rows, quick_config):
    return enter_baselines(rows, competition.queries, quick_config, seed=0, threads=1)


@pytest.fixture(scope="module")
def plain(competition, baselines):
    seconds = dict.fromkeys(("large", "small", "nearest"), 1.5)
    return [*enter_members(competition.candidates, competition.queries, seconds), *baselines]


def _same(ours, theirs):
    """Whether two stacks hold the same bytes."""
    answers = ([entry.answers.to_csv() for entry in each.entries] for each in (ours, theirs))
    return (
        ours.scores.tobytes() == theirs.scores.tobytes()
        and ours.methods == theirs.methods
        and len({*map(tuple, answers)}) == 1
    )


def test_the_stack_beats_every_member_every_fixed_rule_and_every_blend(competition, stacked, plain):
    gaps = {entry.name: score_answers(entry.answers, competition.queries) for entry in plain}
    gaps.pop("logistic")  # a stack itself, and this competition is nearly linear
    tuned = {name: gaps.pop(name) for name in FITTED[1:]}
    reached = score_answers(stacked.entries[0].answers, competition.queries)
    assert reached > max(gaps.values()) + 0.03
    assert reached > max(tuned.values()) + 0.03
    assert max(gaps["large"], gaps["small"], gaps["nearest"]) < gaps["mean"]


def test_every_entry_answers_every_query_and_says_what_it_is(competition, stacked, plain):
    ids = sorted(competition.queries["id"])
    for entry in [*plain, *stacked.entries]:
        assert entry.answers["id"].tolist() == ids
        assert set(entry.answers["decided_by"]) == {entry.name}
    assert [(entry.name, entry.kind) for entry in [*plain, *stacked.entries]] == [
        ("large", "member"), ("small", "member"), ("nearest", "member"), ("mean", "baseline"),
        ("geometric-mean", "baseline"), ("rank-mean", "baseline"), ("gated-mean", "baseline"),
        ("gated-geometric-mean", "baseline"), ("gated-rank-mean", "baseline"), ("logistic", "baseline"),
        ("caruana", "baseline"), ("nelder-mead", "baseline"), ("lambdarank", "baseline"), ("stack", "stack"),
        ("linear", "method"), ("softmax", "method"), ("log-loss", "method"), ("hybrid", "method"),
        ("two-stage", "method"),
    ]  # fmt: skip
    assert plain[0].fit_seconds == 1.5
    assert stacked.entries[0].fit_seconds > 0


def test_baselines_are_fitted_without_the_querys_own_fold(competition, rows, baselines, quick_config):
    held = competition.queries["fold"] == 0
    turned = competition.queries.assign(landmark_id=competition.queries["landmark_id"].mask(held, "0003"))
    others = enter_baselines(rows, turned, quick_config, seed=0, threads=1)
    first, second = ({e.name: e.answers for e in entries} for entries in (baselines, others))
    for name in FITTED:
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


def test_the_stack_answers_each_fold_with_the_method_chosen_on_the_others(competition, rows, stacked):
    fold = rows["query"].map(competition.queries.set_index("id")["fold"]).to_numpy()
    by_method = {entry.name: entry.answers for entry in stacked.entries}
    right = mark_right(rows, competition.queries)
    outer = []
    for number, method in enumerate(stacked.methods):
        inside = fold == number
        outer.append(answer_gap(stacked.scores[inside], right[inside], query_starts(rows[inside])))
        mine = by_method["stack"]["id"].isin(rows.loc[inside, "query"])
        columns = ["id", "landmark_id", "confidence"]
        pd.testing.assert_frame_equal(by_method["stack"][mine][columns], by_method[method][mine][columns])
    assert stacked.outer == pytest.approx(np.mean(outer))
    assert len(stacked.methods) == 4
    assert abs(stacked.inner - stacked.outer) < 0.05


def test_each_fold_tells_what_it_chose(quick):
    found, told = quick
    assert told == [(1, method) for method in found.methods]


def test_a_single_method_is_entered_as_the_stack_and_as_itself(competition, rows, quick, quick_config):
    config = quick_config.model_copy(update={"method": "linear"})
    found = cross_stack(rows, competition.queries, config, seed=0, threads=1, advance=lambda *_: None)
    assert [entry.name for entry in found.entries] == ["stack", "linear"]
    assert found.methods == ("linear",) * 4
    wanted = {entry.name: entry.answers for entry in quick[0].entries}["linear"]
    pd.testing.assert_frame_equal(found.entries[1].answers, wanted, check_exact=True)
    fit = fit_stack(competition.queries, config, seed=0, threads=1)
    assert cross_predict(rows, competition.queries, fit).tobytes() == found.scores.tobytes()


def test_the_truth_of_a_fold_never_reaches_its_own_answers(competition, rows, quick, quick_config):
    held = competition.queries["fold"] == 0
    turned = competition.queries.assign(landmark_id=competition.queries["landmark_id"].mask(held, "0003"))
    other = cross_stack(rows, turned, quick_config, seed=0, threads=1, advance=lambda *_: None)
    assert [entry.name for entry in other.entries] == ["stack", *METHODS]
    for turned_entry, entry in zip(other.entries, quick[0].entries, strict=True):
        answers, before = turned_entry.answers, entry.answers
        mine = before["id"].isin(competition.queries.loc[held, "id"])
        pd.testing.assert_frame_equal(answers[mine], before[mine], check_exact=True)
        assert not answers[~mine].equals(before[~mine])


@pytest.mark.faults
def test_training_on_shuffled_labels_gives_chance(competition, rows, quick_config):
    """Chance: the candidates ranked and picked at random."""
    rng = np.random.default_rng(5)
    truth = competition.queries
    shuffled = truth.assign(landmark_id=rng.permutation(truth["landmark_id"].to_numpy(dtype=object)))
    found = cross_stack(rows, shuffled, quick_config, seed=0, threads=1, advance=lambda *_: None)
    learned = [score_answers(entry.answers, shuffled) for entry in found.entries]
    drawn = [pick_answers(rows, rng.random(len(rows)), truth, decided_by="chance") for _ in range(20)]
    chance = [score_answers(answers, shuffled) for answers in drawn]
    assert max(learned) < max(chance) + 0.03  # frequent landmarks may still be guessed for being frequent
    assert max(learned) < 0.1


def test_shuffled_input_two_threads_and_a_repeat_give_the_same_bytes(competition, quick, quick_config, monkeypatch):
    monkeypatch.setattr("stacking.trees.ROWS_PER_THREAD", 1)  # so that both threads are used on few rows
    other = competition.shuffled(3)
    again = cross_stack(other.rows(), other.queries, quick_config, seed=0, threads=2, advance=lambda *_: None)
    assert _same(again, quick[0])


def test_a_stacker_of_all_rows_answers_new_queries_on_their_own(competition, rows, quick_config):
    held = set(competition.queries.loc[competition.queries["fold"] == 0, "id"])
    learned = rows[~rows["query"].isin(held)]
    right = mark_right(learned, competition.queries)
    groups = groups_of(learned, competition.queries)
    stacker = fit_stacker(learned, right, groups, quick_config, seed=0, threads=1).stacker

    def answer(queries):
        own = rows[rows["query"].isin(queries["id"])]
        return answer_queries(stacker.predict(own, threads=1), Calibration("none"), own, queries)

    asked = competition.queries[competition.queries["id"].isin(held)].drop(columns="landmark_id")
    answers = answer(asked)
    assert answers["id"].tolist() == sorted(held)
    one = asked.iloc[[0]]
    alone = answer(one)
    pd.testing.assert_frame_equal(
        alone, answers[answers["id"].isin(one["id"])].reset_index(drop=True), check_exact=True
    )


@pytest.mark.faults
def test_one_fold_cannot_be_cross_validated(competition, rows, quick_config):
    one = competition.queries.assign(fold=0)
    with pytest.raises(DataError, match="1 fold cannot be cross-validated"):
        cross_stack(rows, one, quick_config, seed=0, threads=1, advance=lambda *_: None)


def test_answers_are_calibrated_by_the_other_folds_and_a_silent_query_stays_at_0(competition, stacked):
    answers = stacked.entries[0].answers
    silent = answers["id"].isin(answers["id"][:5])
    answers = answers.assign(
        landmark_id=answers["landmark_id"].mask(silent), confidence=answers["confidence"].mask(silent, 0.0)
    )
    found = cross_calibrated(answers, competition.queries, "platt")
    assert (found["confidence"][silent] == 0).all()
    rest = answers[~silent]
    asked = competition.queries.set_index("id").loc[rest["id"]]
    is_right = rest["landmark_id"].to_numpy() == asked["landmark_id"].to_numpy()
    wanted = cross_calibrate("platt", rest["confidence"].to_numpy(), is_right, asked["fold"].to_numpy())
    assert found["confidence"][~silent].tolist() == wanted.tolist()
    pd.testing.assert_frame_equal(found.drop(columns="confidence"), answers.drop(columns="confidence"))
    turned = competition.queries.assign(
        landmark_id=competition.queries["landmark_id"].mask(competition.queries["fold"] == 1, "0003")
    )
    other = cross_calibrated(answers, turned, "platt")["confidence"]
    mine = answers["id"].isin(turned.loc[turned["fold"] == 1, "id"])
    assert other[mine].tolist() == found["confidence"][mine].tolist()
    assert other[~mine].tolist() != found["confidence"][~mine].tolist()


def test_a_confidence_is_calibrated_where_there_is_an_answer(rows, competition):
    asked = pd.concat([competition.queries[["id"]][:3], pd.DataFrame({"id": ["nobody"]})], ignore_index=True)
    own = rows[rows["query"].isin(asked["id"])].reset_index(drop=True)
    scores, calibration = np.linspace(0.1, 0.9, len(own)), Calibration("platt", slopes=(0.5,), bias=1.0)
    answers = answer_queries(scores, calibration, own, asked).set_index("id")
    assert answers.loc["nobody", "confidence"] == 0
    for query in competition.queries["id"][:3]:
        best = scores[(own["query"] == query).to_numpy()].max()
        assert answers.loc[query, "confidence"] == calibration.apply(np.array([best]))[0] != best
