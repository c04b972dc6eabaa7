"""Calibration: a known distortion is undone, the order stays, and what is measured is what was said."""

import json
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from engine.core.gap import align, score_queries
from stacking.calibration import (
    METHODS,
    Calibration,
    choose_method,
    cross_calibrate,
    fit_calibration,
    measure_reliability,
)

LEARNED = METHODS[1:]


@pytest.fixture(scope="module")
def overconfident():
    """4,000 answers whose confidence claims thrice the log-odds that they have, and their folds."""
    chance = np.random.default_rng(0)
    truth = chance.beta(0.8, 0.6, 4000).clip(0.001, 0.999)
    return expit(3 * logit(truth)), chance.random(4000) < truth, np.arange(4000) % 5


@pytest.mark.parametrize("method", LEARNED)
def test_overconfidence_is_undone(method, overconfident):
    confidence, right, fold = overconfident
    before = measure_reliability(confidence, right)
    after = measure_reliability(cross_calibrate(method, confidence, right, fold), right)
    assert before.ece > 0.1
    assert after.ece < 0.03  # 15 bins of 267 answers: chance alone makes about 0.02
    assert after.brier < before.brier
    assert after.log_loss < before.log_loss


@pytest.mark.parametrize("method", METHODS)
def test_the_order_stays_and_so_does_the_gap(method, overconfident):
    confidence, right, _ = overconfident
    probability = fit_calibration(method, confidence, right).apply(confidence)
    assert ((probability >= 0) & (probability <= 1)).all()
    queries = pd.DataFrame({"id": [f"q{number:04d}" for number in range(len(right))], "landmark_id": "a"})
    answers = queries.assign(landmark_id=np.where(right, "a", "b"))
    gaps = [score_queries(align(answers.assign(confidence=values), queries)) for values in (confidence, probability)]
    assert gaps[0] == gaps[1]


@pytest.mark.parametrize("method", METHODS)
def test_an_answer_is_worth_the_same_whatever_it_is_asked_together_with(method, overconfident):
    p, right, _ = overconfident
    calibration = fit_calibration(method, p, right)
    alone = np.concatenate([calibration.apply(p[number : number + 1]) for number in range(500)])
    assert calibration.apply(p)[:500].tobytes() == alone.tobytes()


@pytest.mark.parametrize("method", METHODS)
def test_it_is_defined_at_the_ends(method, overconfident):
    ends = fit_calibration(method, *overconfident[:2]).apply(np.array([0.0, 1e-300, 0.5, 1.0]))
    assert np.isfinite(ends).all()
    assert (np.diff(ends) >= 0).all()


def test_platt_is_a_logistic_regression_on_log_odds(overconfident):
    confidence, right, _ = overconfident
    terms = logit(confidence.clip(1e-300, 1 - 1e-16))[:, None]
    model = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(terms, right)
    found = fit_calibration("platt", confidence, right)
    assert [*found.slopes, found.bias] == pytest.approx([model.coef_[0, 0], model.intercept_[0]], abs=1e-3)


def test_beta_with_equal_slopes_is_platt(overconfident):
    values = overconfident[0]
    beta, platt = Calibration("beta", (0.7, 0.7), 0.3), Calibration("platt", (0.7,), 0.3)
    assert beta.apply(values) == pytest.approx(platt.apply(values))


answers = st.lists(st.tuples(st.integers(0, 12), st.booleans()), min_size=2, max_size=40)


@settings(deadline=None, max_examples=100)
@given(answers.filter(lambda drawn: len({right for _, right in drawn}) == 2))
def test_venn_abers_is_isotonic_fitted_twice_for_each_confidence(drawn):
    """On, between and beyond the confidences that it was fitted to, many of them tied."""
    confidence, right = np.array([level for level, _ in drawn]) / 12, np.array([right for _, right in drawn])
    made = fit_calibration("venn-abers", confidence, right)
    asked = np.arange(25) / 24
    wanted = []
    for one in asked:
        p0, p1 = (
            IsotonicRegression(out_of_bounds="clip")
            .fit(np.append(confidence, one), np.append(right, added).astype(float))
            .predict([one])[0]
            for added in (False, True)
        )
        wanted.append(p1 / (1 - p0 + p1))
    ties_broken = expit(
        logit(np.clip(asked, np.finfo(float).tiny, 1 - np.finfo(float).epsneg)) * made.slopes + made.bias
    )
    assert made.apply(asked) == pytest.approx(0.999 * np.array(wanted) + 0.001 * ties_broken, abs=1e-12)


def test_venn_abers_keeps_few_knots_and_is_never_certain(overconfident):
    confidence, right, _ = overconfident
    made = fit_calibration("venn-abers", confidence, right)
    assert len(made.knots) < len(confidence) / 4
    _, p0, p1 = np.array(made.knots).T
    assert (p0 < p1).all()
    assert (np.diff([p0, p1]) >= 0).all()
    stepped = 1000 / 999 * (made.apply(np.array([0.0, 1.0])) - 0.001 * np.array([0.0, 1.0]))
    assert 0 < stepped[0] < stepped[1] < 1


@pytest.mark.parametrize("method", ["isotonic", "venn-abers"])
def test_steps_leave_no_ties(method, overconfident):
    confidence, right, _ = overconfident
    made = fit_calibration(method, confidence, right)
    inside = np.linspace(0.001, 0.999, 5000)
    assert (np.diff(made.apply(inside)) > 0).all()


def test_a_fold_does_not_see_its_own_truth(overconfident):
    confidence, right, fold = overconfident
    first = cross_calibrate("isotonic", confidence, right, fold)
    other = cross_calibrate("isotonic", confidence, np.where(fold == 2, ~right, right), fold)
    assert (first[fold == 2] == other[fold == 2]).all()
    assert (first[fold != 2] != other[fold != 2]).any()


def test_what_is_calibrated_already_is_left_alone():
    chance = np.random.default_rng(1)
    confidence = chance.random(2000)
    assert choose_method(confidence, chance.random(2000) < confidence, np.arange(2000) % 5) == "none"


def test_overconfidence_is_noticed(overconfident):
    assert choose_method(*overconfident) == "temperature"  # the simplest one that undoes it


def test_nothing_is_learned_of_answers_that_are_all_right():
    confidence = np.array([0.2, 0.4, 0.9])
    assert fit_calibration("platt", confidence, np.ones(3, bool)) == Calibration("none")


@pytest.mark.parametrize("method", METHODS)
def test_it_comes_back_from_json_bit_for_bit(method, overconfident):
    confidence, right, _ = overconfident
    made = fit_calibration(method, confidence, right)
    back = Calibration(**json.loads(json.dumps(asdict(made))))
    assert (back.apply(confidence) == made.apply(confidence)).all()


def test_reliability_by_hand():
    confidence, right = np.array([0.1, 0.9]), np.array([False, True])
    found = measure_reliability(confidence, right)
    assert found.bins == ((0.1, 0.0, 1), (0.9, 1.0, 1))
    assert [found.ece, found.brier, found.log_loss] == pytest.approx([0.1, 0.01, -np.log(0.9)])


def test_reliability_bins_hold_equally_many_answers():
    chance = np.random.default_rng(2)
    found = measure_reliability(chance.random(150) ** 4, chance.random(150) < 0.5)
    assert [count for _, _, count in found.bins] == [10] * 15
    assert [said for said, _, _ in found.bins] == sorted(said for said, _, _ in found.bins)
