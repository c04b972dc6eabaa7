"""Costs: each is what changing that one answer and scoring everything again gives."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core.gap import align, prevalence_weights, score_answers
from stacking.costs import LOW, NOTHING, UNLISTED, WRONG, find_costs, measure_costs

LANDMARKS = st.sampled_from(["a", "b", None])


def mend(answers, query, truth, *, right):
    """The answers with one of them perfect."""
    at = answers["id"] == query
    confidence = answers["confidence"]
    if right:
        return answers.assign(confidence=confidence.mask(at, confidence.max() + 1))
    if truth is None:
        return answers.assign(confidence=confidence.mask(at, confidence.min() - 1))
    return answers.assign(landmark_id=answers["landmark_id"].mask(at, truth))


def slow_costs(answers, queries, weights):
    whole = score_answers(answers, queries, weights=weights)
    given = answers.set_index("id")["landmark_id"]
    costs = []
    for query, truth in zip(queries["id"], queries["landmark_id"], strict=True):
        shown = None if pd.isna(truth) else truth
        mended = mend(answers, query, shown, right=shown is not None and given[query] == shown)
        costs.append(score_answers(mended, queries, weights=weights) - whole)
    return costs


@settings(deadline=None, max_examples=60)
@given(
    drawn=st.lists(
        st.tuples(LANDMARKS, LANDMARKS, st.integers(0, 4), st.sampled_from([0.0, 0.5, 1.0, 3.0])), max_size=12
    )
)
def test_each_cost_is_what_scoring_the_changed_answers_gives(drawn):
    """Ties, unanswered queries and weights, some of them 0, included; the first query has a landmark that counts."""
    drawn = [("a", "b", 2, 1.0), *drawn]
    ids = [f"q{number:02d}" for number in range(len(drawn))]
    truth, given_landmark, confidence, weights = zip(*drawn, strict=True)
    queries = pd.DataFrame({"id": ids, "landmark_id": pd.Series(truth, dtype=object)})
    answers = pd.DataFrame(
        {"id": ids, "landmark_id": pd.Series(given_landmark, dtype=object), "confidence": confidence}
    )
    answers["confidence"] = answers["confidence"].where(answers["landmark_id"].notna(), 0.0).astype(float)
    found = measure_costs(align(answers, queries, weights=np.array(weights)))
    assert (found >= -1e-12).all()
    np.testing.assert_allclose(found, slow_costs(answers, queries, np.array(weights)), atol=1e-12)


@pytest.fixture(scope="module")
def answers(competition):
    best = competition.candidates.query("member == 'large' and rank == 1")
    return best.rename(columns={"query": "id", "score": "confidence"})[["id", "landmark_id", "confidence"]].astype(
        {"confidence": float}
    )


@pytest.mark.parametrize("prevalence", [None, 0.2])
def test_costs_of_a_whole_competition_are_those_of_the_slow_way(competition, answers, prevalence):
    queries = competition.queries.iloc[:150]
    asked = answers[answers["id"].isin(queries["id"])]
    weights = prevalence_weights(queries["landmark_id"].notna().to_numpy(), prevalence)
    table = find_costs(asked, queries, competition.candidates, weights=weights)
    slow = pd.Series(slow_costs(asked, queries, weights), index=queries["id"])
    np.testing.assert_allclose(table["cost"], slow[table["id"]], atol=1e-12)
    assert slow.drop(table["id"]).max() < 1e-12
    assert table["cost"].is_monotonic_decreasing


def test_every_kind_is_told_from_the_others(competition, answers):
    candidates = competition.candidates.query("rank <= 2")
    table = find_costs(answers, competition.queries, candidates).set_index("id")
    listed = candidates.groupby("query")["landmark_id"].agg(set)
    assert set(table["kind"]) == {NOTHING, WRONG, UNLISTED, LOW}
    for query, row in table.iterrows():
        if row["kind"] == NOTHING:
            assert pd.isna(row["truth"])
        elif row["kind"] == LOW:
            assert row["answer"] == row["truth"]
        else:
            assert row["answer"] != row["truth"]
            assert (row["truth"] in listed[query]) == (row["kind"] == WRONG)


def test_perfect_answers_cost_nothing():
    queries = pd.DataFrame({"id": ["x", "y", "z"], "landmark_id": ["a", "b", None]})
    perfect = pd.DataFrame({"id": ["x", "y", "z"], "landmark_id": ["a", "b", "a"], "confidence": [0.9, 0.8, 0.1]})
    candidates = pd.DataFrame({"query": ["x", "y", "z"], "landmark_id": ["a", "b", "a"]})
    assert find_costs(perfect, queries, candidates).empty
    confident = perfect.assign(confidence=[0.5, 0.4, 0.9])
    costs = find_costs(confident, queries, candidates).set_index("id")
    assert costs["kind"].to_dict() == {"z": NOTHING, "x": LOW, "y": LOW}
    assert costs.loc["z", "cost"] == pytest.approx(1 - (1 / 2 + 2 / 3) / 2)


@pytest.mark.parametrize("dtype", ["str", "object"])
def test_a_missing_truth_or_answer_is_none_as_json_wants_it(dtype):
    names = pd.Series([None, "a", "a", "b"], dtype=dtype)
    queries = pd.DataFrame({"id": ["q0", "q1", "q2", "q3"], "landmark_id": names})
    given = pd.Series(["a", None, "a", "a"], dtype=dtype)
    answers = pd.DataFrame({"id": queries["id"], "landmark_id": given, "confidence": [0.9, 0.0, 0.5, 0.4]})
    found = find_costs(answers, queries, queries.rename(columns={"id": "query"}).dropna()).to_dict("records")
    assert {row["id"]: (row["answer"], row["truth"]) for row in found} == {
        "q0": ("a", None), "q1": (None, "a"), "q2": ("a", "a"), "q3": ("a", "b"),
    }  # fmt: skip
    assert json.loads(json.dumps(found, allow_nan=False)) == found
