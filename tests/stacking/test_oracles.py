"""Oracles: a perfect gate, perfect labels, a perfect ranking, against values worked out by hand."""

import pandas as pd
import pytest

from engine.core.gap import align, score_queries
from stacking.oracles import enter_oracles

# q0 is right, q1 wrong with the right landmark listed, q2 wrong without, q3 shows nothing, q4 has no candidate
QUERIES = pd.DataFrame({"id": ["q0", "q1", "q2", "q3", "q4"], "landmark_id": ["a", "b", "c", None, "a"]})
ROWS = pd.DataFrame(
    {"query": ["q0", "q0", "q1", "q1", "q2", "q3"], "landmark_id": ["a", "b", "a", "b", "a", "b"]}
)  # fmt: skip
ANSWERS = pd.DataFrame(
    {
        "id": ["q0", "q1", "q2", "q3", "q4"],
        "landmark_id": ["a", "a", "a", "b", None],
        "confidence": [0.2, 0.4, 0.6, 0.8, 0.0],
        "decided_by": "stack",
    }
)


def _gap(answers):
    return score_queries(align(answers, QUERIES))


@pytest.fixture(scope="module")
def gaps():
    return {entry.name: _gap(entry.answers) for entry in enter_oracles(ROWS, ANSWERS, QUERIES)}


def test_the_answers_themselves(gaps):
    assert _gap(ANSWERS) == pytest.approx(1 / 4 / 4)  # one hit at rank four, four queries with a landmark
    assert all(gap > _gap(ANSWERS) for gap in gaps.values())


def test_each_oracle_is_worth_what_it_makes_perfect(gaps):
    assert gaps == pytest.approx(
        {
            "oracle gate": 1 / 3 / 4,  # q3 goes last: the hit is at rank three
            "oracle label": (1 / 3 + 2 / 4) / 4,  # q1 hits at rank three, q0 at rank four
            "oracle ranking": 1 / 4,  # the one hit is first
            "oracle label and ranking": 2 / 4,  # two of four list their landmark
        }
    )


def test_the_order_within_each_part_stays():
    [ranking] = [e for e in enter_oracles(ROWS, ANSWERS, QUERIES) if e.name == "oracle ranking"]
    assert ranking.answers.sort_values("confidence", ascending=False)["id"].tolist() == ["q0", "q3", "q2", "q1", "q4"]


def test_shuffled_input_gives_the_same_gaps(gaps):
    shuffled = enter_oracles(
        ROWS.sample(frac=1, random_state=1), ANSWERS.sample(frac=1, random_state=2), QUERIES.iloc[::-1]
    )
    assert {entry.name: _gap(entry.answers) for entry in shuffled} == gaps


def test_perfect_answers_have_nothing_to_win():
    perfect = ANSWERS.assign(landmark_id=["a", "b", None, None, None], confidence=[0.9, 0.8, 0.0, 0.0, 0.0])
    assert {_gap(entry.answers) for entry in enter_oracles(ROWS, perfect, QUERIES)} == {_gap(perfect)}
