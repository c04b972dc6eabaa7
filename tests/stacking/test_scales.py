"""Scales: logits of what is bounded, signed logarithms of the rest, and nothing that is not finite."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import logit as exact_logit

from stacking.scales import LOGIT_FLOOR, find_bounded, logit, straighten, straighten_all

NUMBERS = st.lists(st.floats(-1e30, 1e30), min_size=1, max_size=20)


def test_a_column_is_bounded_when_all_of_it_lies_within_0_and_1():
    columns = np.array([[0, 0.2, -0.1, 0.5, 1], [1, 0.9, 0.5, 1.5, 1]], dtype=np.float32)
    assert find_bounded(columns).tolist() == [True, True, False, False, True]


def test_the_logit_is_the_exact_one_between_the_floors():
    values = np.array([LOGIT_FLOOR, 0.1, 0.5, 0.9])
    np.testing.assert_allclose(logit(values), exact_logit(values))
    np.testing.assert_allclose(logit(np.array([0.0, 1.0])), [exact_logit(LOGIT_FLOOR), -exact_logit(LOGIT_FLOOR)])


def test_the_logit_of_float32_does_not_lose_the_floor_below_1():
    """1 - 1e-6 is not a float32, and 1 - 1e-8 would be 1."""
    assert logit(np.ones((2, 2), dtype=np.float32)).tolist() == [[pytest.approx(13.8155, abs=1e-3)] * 2] * 2


@given(NUMBERS)
def test_an_unbounded_column_keeps_its_signs_and_its_order(values):
    column = np.array(values)
    straight = straighten(column, bounded=False)
    assert np.isfinite(straight).all()
    assert (np.sign(straight) == np.sign(column)).all()
    assert (np.diff(straight[np.argsort(column)]) >= 0).all()
    np.testing.assert_array_equal(straighten(-column, bounded=False), -straight)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_a_bounded_column_keeps_its_order_and_stays_finite(values):
    straight = straighten(np.array(values), bounded=True)
    assert np.abs(straight).max() <= 14
    assert (np.diff(straight[np.argsort(values)]) >= 0).all()


def test_the_whole_table_is_its_columns_one_by_one():
    values = np.random.default_rng(0).uniform([-5, 0, 0], [5, 1, 300], (30, 3)).astype(np.float32)
    bounded = find_bounded(values)
    assert bounded.tolist() == [False, True, False]
    straight = straighten_all(values, bounded)
    for column, within, found in zip(values.T, bounded, straight.T, strict=True):
        np.testing.assert_array_equal(found, straighten(column, bounded=bool(within)))
