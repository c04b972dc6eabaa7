"""Blends: what is tuned on GAP reaches what it promises on the rows it was tuned on, and is as good as brute force."""

from itertools import product

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core.gap import score_answers
from stacking.answers import pick_answers
from stacking.blends import (
    ROUNDS,
    THIRD_SHARES,
    GreedyBlend,
    PowerBlend,
    _Contest,
    fit_caruana,
    fit_glr2020_third,
    fit_nelder_mead,
    fitted_baselines,
)
from stacking.evaluate import cross_predict
from stacking.features import P_LANDMARK, SCORE_FLOOR, mark_right
from stacking.scales import LOGIT_FLOOR

MEMBERS = ("large", "nearest", "small")
FITS = ("logistic", "caruana", "nelder-mead", "glr2020-third")


@pytest.fixture(scope="module")
def right(rows, competition):
    return mark_right(rows, competition.queries)


@pytest.fixture
def judge(comparing_rows, competition):
    """The GAP of scores of the rows, by way of answers."""

    def judge(scores):
        answers = pick_answers(comparing_rows, np.asarray(scores), competition.queries, decided_by="test")
        return score_answers(answers, competition.queries)

    return judge


def column(rows, name):
    return np.maximum(rows[name].to_numpy(dtype=np.float64), SCORE_FLOOR)


@settings(deadline=None, max_examples=100)
@given(seed=st.integers(0, 2**32 - 1), levels=st.integers(2, 30))
def test_the_fast_gap_is_that_of_the_answers_up_to_what_no_member_lists(seed, levels):
    """With few levels nearly all is tied: within queries, and between them."""
    rng = np.random.default_rng(seed)
    pairs = rng.permutation([(query, landmark) for query in range(12) for landmark in range(6) if rng.random() < 0.6])
    rows = pd.DataFrame({"query": [f"q{q:02d}" for q, _ in pairs], "landmark_id": [f"{m}" for _, m in pairs]})
    rows["all.mean"] = rng.integers(3, size=len(rows)) / 2
    queries = pd.DataFrame({"id": [f"q{q:02d}" for q in range(12)], "landmark_id": rng.choice(["0", "1", None], 12)})
    right = mark_right(rows, queries)
    scores = rng.integers(levels, size=len(rows)) / levels
    contest = _Contest.of(rows, right)
    answers = pick_answers(rows, scores, queries, decided_by="test")
    shown = queries["landmark_id"].notna().sum()
    if right.any():
        whole = score_answers(answers, queries) * shown / right.sum()
        assert contest.gap(scores[contest.order]) == pytest.approx(whole, abs=1e-12)
    else:
        assert contest.gap(scores[contest.order]) == 0


def test_what_can_be_fitted_depends_on_the_members(rows, comparing_rows):
    assert tuple(fitted_baselines(rows)) == FITS[:3]
    assert tuple(fitted_baselines(comparing_rows)) == FITS
    all_compare = comparing_rows.assign(**{"large.cosine": 0.5, "small.cosine": 0.5})
    assert tuple(fitted_baselines(all_compare)) == FITS[:3]  # there is no head to go with the neighbours


@pytest.mark.parametrize("gated", [True, False])
def test_greedy_selection_is_that_of_a_plain_loop(comparing_rows, right, judge, gated):
    rows = comparing_rows if gated else comparing_rows.drop(columns=P_LANDMARK)
    factors = {"neighbours": column(rows, "nearest.score")} | ({P_LANDMARK: column(rows, P_LANDMARK)} if gated else {})
    groups = [(), (P_LANDMARK,), ("neighbours",), (P_LANDMARK, "neighbours")] if gated else [(), ("neighbours",)]
    library = {
        (f"{member}.score", *group): np.prod([column(rows, f"{member}.score"), *(factors[f] for f in group)], axis=0)
        for group, member in product(groups, MEMBERS)
    }
    chosen, total, reached = [], np.zeros(len(rows)), -1.0
    while len(chosen) < ROUNDS:
        gaps = {name: judge(total + values) for name, values in library.items()}
        best = max(gaps, key=gaps.get)
        if gaps[best] <= reached:
            break
        chosen, total, reached = [*chosen, best], total + library[best], gaps[best]
    found = fit_caruana(rows, right)
    assert found == GreedyBlend(tuple(chosen))
    assert found.predict(rows) == pytest.approx(total / len(chosen))
    assert judge(found.predict(rows)) == pytest.approx(reached)
    assert reached > max(judge(values) for values in library.values())  # here, a sum is better than any one


def test_greedy_selection_of_one_member_is_that_member(competition):
    rows = competition.rows(members=("small",)).drop(columns=P_LANDMARK)
    assert fit_caruana(rows, mark_right(rows, competition.queries)).chosen == (("small.score",),)


def test_the_simplex_improves_on_where_it_starts(comparing_rows, right, judge):
    names = [*(f"{member}.score" for member in MEMBERS), P_LANDMARK]
    odds = [column(comparing_rows, name) for name in names]
    odds = [values / (1 - np.minimum(values, 1 - LOGIT_FLOOR)) for values in odds]
    start = np.prod(odds[:3], axis=0) ** (1 / 3) * odds[3]
    found = fit_nelder_mead(comparing_rows, right)
    assert list(found.weights) == names
    assert min(found.weights.values()) >= 0
    reached = judge(found.predict(comparing_rows))
    assert reached > judge(start) + 0.03
    rng = np.random.default_rng(0)
    drawn = [judge(np.prod([v**w for v, w in zip(odds, rng.random(4), strict=True)], axis=0)) for _ in range(100)]
    assert reached > max(drawn) - 0.005  # it may stop at the second best hill


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 2**32 - 1))
def test_whatever_is_right_no_blend_ends_below_where_it_starts(comparing_rows, competition, seed):
    rng = np.random.default_rng(seed)
    some = comparing_rows[comparing_rows["query"].isin(rng.choice(competition.queries["id"], 60, replace=False))]
    right = (rng.random(len(some)) < 0.3) & ~some["query"].duplicated().to_numpy()
    contest = _Contest.of(some, right)

    def judge(blend):
        return contest.gap(blend.predict(some)[contest.order])

    scores = [f"{member}.score" for member in MEMBERS]
    singles = [judge(GreedyBlend(((name, *gate),))) for name in scores for gate in ((), (P_LANDMARK,))]
    assert judge(fit_caruana(some, right)) >= max(singles)
    start = PowerBlend(dict.fromkeys(scores, 1 / 3) | {P_LANDMARK: 1.0}, odds=True)
    assert judge(fit_nelder_mead(some, right)) >= judge(start) - 1e-12
    published = PowerBlend({"heads": 10 / 19, "neighbours": 9 / 19}, odds=False)
    assert judge(fit_glr2020_third(some, right)) >= judge(published) - 1e-12


@pytest.mark.parametrize("told", ["score", "cosine"])
def test_the_third_place_is_a_product_of_powers(comparing_rows, right, judge, told):
    rng = np.random.default_rng(3)
    cosine = (0.8 + np.log(column(comparing_rows, "nearest.score")) / 25) * rng.uniform(0.9, 1, len(comparing_rows))
    rows = comparing_rows if told == "score" else comparing_rows.assign(**{"nearest.cosine": cosine})
    heads = (column(rows, "large.score") + column(rows, "small.score")) / 2
    near = column(rows, f"nearest.{told}")
    gaps = [judge(heads ** (1 - share) * near**share) for share in THIRD_SHARES]
    best = THIRD_SHARES[int(np.argmax(gaps))]
    found = fit_glr2020_third(rows, right)
    assert found.weights == {"heads": 1 - best, "neighbours": best}
    assert found.predict(rows) == pytest.approx(heads ** (1 - best) * near**best)
    assert max(gaps) > max(judge(heads), judge(near))


@pytest.mark.parametrize("name", FITS)
def test_the_order_of_rows_never_matters(name, comparing_rows, right):
    fit = fitted_baselines(comparing_rows)[name]
    order = np.random.default_rng(4).permutation(len(right))
    first = fit(comparing_rows, right)(comparing_rows)
    again = fit(comparing_rows.iloc[order], right[order])(comparing_rows.iloc[order])
    assert np.isfinite(first).all()
    within = 1e-12 if name == "logistic" else 0  # its matrix product may round by a row's place
    assert again == pytest.approx(first[order], rel=within, abs=0)


@pytest.mark.parametrize("name", FITS[1:])
def test_a_row_is_scored_alike_whatever_other_rows_there_are(name, comparing_rows, right):
    predict = fitted_baselines(comparing_rows)[name](comparing_rows, right)
    alone = [predict(comparing_rows.iloc[[row]])[0] for row in range(50)]
    assert (alone == predict(comparing_rows)[:50]).all()


@pytest.mark.parametrize("name", FITS[1:])
def test_where_nothing_is_right_something_finite_is_said(name, comparing_rows):
    part = comparing_rows.iloc[:40]
    scores = fitted_baselines(comparing_rows)[name](part, np.zeros(40, dtype=np.bool_))(part)
    assert np.isfinite(scores).all()


def test_out_of_fold_the_tuned_beat_the_best_single_member(comparing_rows, competition, judge):
    best_member = max(judge(comparing_rows[f"{member}.score"]) for member in MEMBERS)
    for name, fit in fitted_baselines(comparing_rows).items():
        assert judge(cross_predict(comparing_rows, competition.queries, fit)) > best_member + 0.03, name
