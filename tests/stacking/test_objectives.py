"""Objectives: gradients against finite differences of what they are gradients of, and plain loops beside them."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit

from engine.core.gap import gap
from stacking.features import feature_names, mark_right
from stacking.objectives import (
    ANSWER_WIDTH,
    LEAST_HESSIAN,
    RANK_WIDTH,
    fit_linear,
    hybrid_gradient,
    query_probability,
    query_starts,
    smoothed_gap,
    smoothed_gap_gradient,
    softmax_gradient,
    softmax_loss,
)

STEP = 1e-4  # of finite differences
GRADIENTS = [softmax_gradient, hybrid_gradient]


def draw_margins(seed, *, queries=60, most=4):
    """Margins of queries with 1 to `most` candidates, three in five with a right one among them, higher on average."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, most + 1, queries)
    starts = np.cumsum(sizes) - sizes
    right = np.zeros(sizes.sum(), dtype=np.bool_)
    right[(starts + rng.integers(sizes))[rng.random(queries) < 0.6]] = True
    return rng.normal(-1.5, 1.5, len(right)) + 2 * right, right, starts


@st.composite
def margins(draw):
    margin, right, starts = draw_margins(draw(st.integers(0, 10**6)), queries=draw(st.integers(2, 12)))
    return margin * draw(st.sampled_from([0.0, 0.1, 1.0, 30.0, 1e4])), right, starts


def split(values, starts):
    return np.split(values, starts[1:])


def differences(value, margin):
    """[N] central finite differences."""
    steps = STEP * np.eye(len(margin))
    return np.array([(value(margin + step) - value(margin - step)) / (2 * STEP) for step in steps])


def plain_loss(margin, right, starts):
    """Minus the logarithm of the probability of what each query shows, one by one."""
    total = 0.0
    for scores, marks in zip(split(margin, starts), split(right, starts), strict=True):
        odds = [math.exp(score) for score in scores]
        shown = sum(odd for odd, mark in zip(odds, marks, strict=True) if mark) or 1.0
        total -= math.log(shown / (1 + sum(odds)))
    return total


def plain_gap(margin, right, starts):
    """Smoothed GAP over all pairs of rows, without nodes."""
    share = np.concatenate([np.exp(s / ANSWER_WIDTH) / np.sum(np.exp(s / ANSWER_WIDTH)) for s in split(margin, starts)])
    total = 0.0
    for i in np.flatnonzero(right):
        before = share * expit((margin - margin[i]) / RANK_WIDTH)
        hits = before[right].sum() + 0.5
        total += share[i] * hits / (hits + before[~right].sum())
    return total


def test_a_query_starts_wherever_its_name_changes():
    rows = pd.DataFrame({"query": ["a", "a", "b", "c", "c", "c"]})
    assert query_starts(rows).tolist() == [0, 2, 3]
    assert query_starts(rows[:0]).tolist() == []


def test_probabilities_are_odds_over_one_plus_the_querys_odds():
    margin, _, starts = draw_margins(0)
    expected = [np.exp(scores) / (1 + np.exp(scores).sum()) for scores in split(margin, starts)]
    np.testing.assert_allclose(query_probability(margin, starts), np.concatenate(expected))


def test_a_single_candidate_is_a_logistic_regression():
    margin, right, starts = draw_margins(0, most=1)
    np.testing.assert_allclose(query_probability(margin, starts), expit(margin))
    assert softmax_loss(margin, right, starts) == pytest.approx(np.logaddexp(0, np.where(right, -margin, margin)).sum())


def test_the_loss_is_the_plain_ones_and_its_gradient_agrees_with_differences():
    margin, right, starts = draw_margins(1)
    assert softmax_loss(margin, right, starts) == pytest.approx(plain_loss(margin, right, starts))
    gradient, hessian = softmax_gradient(margin, right, starts)
    np.testing.assert_allclose(gradient, differences(lambda m: plain_loss(m, right, starts), margin), atol=1e-7)
    moved = [softmax_gradient(margin + s, right, starts)[0] for s in STEP * np.eye(len(margin))]
    curvature = (np.diagonal(moved) - gradient) / STEP
    np.testing.assert_allclose(hessian, np.maximum(curvature, LEAST_HESSIAN), atol=1e-4)


@pytest.mark.parametrize("most", [1, 4])
@pytest.mark.parametrize("seed", range(3))
def test_smoothed_gap_is_the_plain_ones_and_its_gradient_agrees_with_differences(seed, most):
    margin, right, starts = draw_margins(seed, most=most)
    assert smoothed_gap(margin, right, starts) == pytest.approx(plain_gap(margin, right, starts), rel=5e-4)
    gradient = smoothed_gap_gradient(margin, right, starts)
    expected = differences(lambda m: plain_gap(m, right, starts), margin)
    stray = margin < np.quantile(margin, 0.01)  # lies on the first node, a little above its own place
    np.testing.assert_allclose(gradient[~stray], expected[~stray], atol=5e-4 * np.abs(expected).max())


def test_far_apart_smoothed_gap_is_gap():
    """One candidate a query and 20 widths between neighbours: there is nothing left to smooth."""
    rng = np.random.default_rng(0)
    right, order = rng.random(18) < 0.5, rng.permutation(18)
    exact = gap(order.astype(float), right, np.arange(18), positives=1)
    assert smoothed_gap(20 * RANK_WIDTH * order, right, np.arange(18)) == pytest.approx(exact, rel=5e-3)


def test_a_step_uphill_raises_gap():
    margin, right, starts = draw_margins(3)
    uphill = margin + 0.5 * smoothed_gap_gradient(margin, right, starts)
    assert smoothed_gap(uphill, right, starts) > smoothed_gap(margin, right, starts) + 0.1


def test_the_hybrid_is_a_quarter_gap_and_three_quarters_softmax():
    margin, right, starts = draw_margins(4)
    gradient, hessian = hybrid_gradient(margin, right, starts)
    expected = differences(lambda m: 0.75 * plain_loss(m, right, starts) - 0.25 * plain_gap(m, right, starts), margin)
    np.testing.assert_allclose(gradient, expected, atol=5e-4 * np.abs(expected).max())
    np.testing.assert_array_equal(hessian, softmax_gradient(margin, right, starts)[1])


@given(margins(), st.randoms(use_true_random=False))
def test_the_order_of_queries_does_not_matter(drawn, random):
    margin, right, starts = drawn
    parts = np.split(np.arange(len(margin)), starts[1:])
    random.shuffle(parts)
    order = np.concatenate(parts)
    sizes = np.array([len(part) for part in parts])
    shuffled = margin[order], right[order], np.cumsum(sizes) - sizes
    for objective in GRADIENTS:
        for values, moved in zip(objective(*drawn), objective(*shuffled), strict=True):
            np.testing.assert_allclose(moved, values[order], rtol=1e-9, atol=1e-9)
    for value in (softmax_loss, smoothed_gap):
        assert value(*shuffled) == pytest.approx(value(*drawn), rel=1e-9, abs=1e-9)


@given(margins())
def test_what_holds_of_any_margins(drawn):
    margin, right, starts = drawn
    probability = query_probability(margin, starts)
    assert ((probability >= 0) & (probability <= 1)).all()
    assert (np.add.reduceat(probability, starts) <= 1 + 1e-12).all()
    assert -1e-9 <= smoothed_gap(margin, right, starts) <= np.count_nonzero(right) + 1e-9
    assert softmax_loss(margin, right, starts) >= 0
    for objective in GRADIENTS:
        gradient, hessian = objective(margin, right, starts)
        assert np.isfinite(gradient).all()
        assert ((hessian >= LEAST_HESSIAN) & (hessian <= 0.25)).all()


@given(margins(), st.floats(-50, 50))
def test_smoothed_gap_sees_differences_of_margins_only(drawn, shift):
    margin, right, starts = drawn
    assert smoothed_gap(margin + shift, right, starts) == pytest.approx(smoothed_gap(*drawn), rel=1e-6, abs=1e-6)
    if np.ptp(margin) <= 100:  # so that nodes are close together
        total = smoothed_gap_gradient(*drawn).sum()
        assert abs(total) < 0.01 * (1 + np.count_nonzero(right))


@pytest.mark.parametrize("level", [-1e9, -800.0, 0.0, 800.0, 1e9])
def test_equal_and_extreme_margins_are_finite(level):
    """Before the first tree all margins are equal."""
    _, right, starts = draw_margins(5)
    stray = np.where(np.arange(len(right)) == 3, -level, level)
    for margin in (np.full(len(right), level), stray):
        assert math.isfinite(softmax_loss(margin, right, starts))
        assert math.isfinite(smoothed_gap(margin, right, starts))
        for objective in GRADIENTS:
            assert all(np.isfinite(values).all() for values in objective(margin, right, starts))


def test_the_linear_model_is_at_its_minimum():
    rng = np.random.default_rng(6)
    margin, right, starts = draw_margins(6, queries=300)
    values = np.column_stack([margin + rng.normal(size=len(margin)), 1000 + 100 * rng.normal(size=len(margin))])

    def loss(weights, bias):
        score = (values - values.mean(axis=0)) / values.std(axis=0) @ weights + bias
        return plain_loss(score, right, starts) + 3 / 2 * np.sum(weights**2)

    model = fit_linear(values, right, starts, l2=3.0)
    least = loss(model.weights, model.bias)
    assert least == pytest.approx(softmax_loss(model.margin(values), right, starts) + 1.5 * np.sum(model.weights**2))
    for step in 0.02 * np.vstack([np.eye(2), -np.eye(2)]):
        assert loss(model.weights + step, model.bias) > least
        assert loss(model.weights, model.bias + step.sum()) > least


def test_the_linear_model_finds_the_weights_that_outcomes_were_drawn_from():
    rng = np.random.default_rng(7)
    values = rng.normal(size=(4000, 3, 2))  # 4,000 queries of 3 candidates
    odds = np.exp(values @ [1.5, -0.5] - 1.0)
    chance = np.column_stack([odds, np.ones(4000)])
    shown = (rng.random((4000, 1)) > np.cumsum(chance / chance.sum(axis=1, keepdims=True), axis=1)).sum(axis=1)
    right = (shown[:, None] == np.arange(3)).ravel()
    model = fit_linear(values.reshape(-1, 2), right, 3 * np.arange(4000), l2=1e-3)
    np.testing.assert_allclose(model.weights / model.scale, [1.5, -0.5], atol=0.1)
    assert model.bias == pytest.approx(-1.0, abs=0.1)


def test_the_linear_model_ignores_constants_and_units():
    margin, right, starts = draw_margins(8, queries=200)
    plain = fit_linear(margin[:, None], right, starts, l2=1.0)
    dressed = np.column_stack([np.full(len(margin), np.float32(0.1)), 1e4 * margin + 7])
    model = fit_linear(dressed, right, starts, l2=1.0)
    assert model.weights[0] == 0
    np.testing.assert_allclose(model.margin(dressed + np.array([5, 0])), plain.margin(margin[:, None]), atol=1e-6)


def test_of_constants_alone_the_base_rate_is_learned():
    margin, right, starts = draw_margins(9, queries=200)
    model = fit_linear(np.ones((len(margin), 1)), right, starts, l2=1.0)
    probability = query_probability(model.margin(np.ones((len(margin), 1))), starts)
    assert probability.sum() == pytest.approx(right.sum(), rel=1e-4)


def test_the_linear_model_learns_a_competition(competition, rows):
    right, starts = mark_right(rows, competition.queries), query_starts(rows)
    values = rows[list(feature_names(rows))].to_numpy()
    probability = query_probability(fit_linear(values, right, starts, l2=1.0).margin(values), starts)
    assert len(starts) == rows["query"].nunique()
    assert probability.sum() == pytest.approx(right.sum(), rel=1e-3)  # the free bias sees to that
    assert probability[right].mean() > 0.5
    assert probability[~right].mean() < 0.1
