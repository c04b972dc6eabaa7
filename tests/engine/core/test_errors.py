"""Errors say what, where and what to do, and end in the exit code that the documentation promises."""

import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core.errors import (
    SHOWN,
    ArtifactError,
    ConfigError,
    DataError,
    EngineError,
    PartialFailureError,
    ResourceError,
    SubmissionError,
    did_you_mean,
    raise_problems,
)

KINDS = [EngineError, ConfigError, DataError, ArtifactError, SubmissionError, ResourceError, PartialFailureError]


def test_each_kind_of_error_has_its_own_exit_code():
    assert [kind.exit_code for kind in KINDS] == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_is_an_engine_error_that_ends_with_its_hint(kind):
    error = kind("train.csv:7: empty id", hint="remove the row")
    assert isinstance(error, EngineError)
    assert str(error) == "train.csv:7: empty id — remove the row"
    assert str(kind("train.csv:7: empty id")) == "train.csv:7: empty id"


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_keeps_its_hint_on_the_way_out_of_a_worker_process(kind):
    error = pickle.loads(pickle.dumps(kind("no memory", hint="a smaller batch")))
    assert (type(error), error.message, error.hint) == (kind, "no memory", "a smaller batch")


def test_no_problems_raise_nothing():
    raise_problems(DataError, [])


@given(count=st.integers(1, 3 * SHOWN))
@settings(deadline=None, max_examples=20)
def test_problems_are_shown_together_up_to_a_page_and_the_rest_is_counted(count):
    problems = [f"test.csv:{line}: ragged row" for line in range(count)]
    with pytest.raises(DataError) as caught:
        raise_problems(DataError, problems, hint="repair the file")
    lines = caught.value.message.splitlines()
    assert lines[:SHOWN] == problems[:SHOWN]
    assert lines[SHOWN:] == ([f"… and {count - SHOWN} more"] if count > SHOWN else [])
    assert caught.value.hint == "repair the file"


def test_a_slip_of_the_keyboard_gets_its_nearest_names():
    assert did_you_mean("epoch", ["lr", "epochs"]) == "did you mean 'epochs'?"


def test_a_name_like_no_other_gets_the_known_ones_in_order():
    assert did_you_mean("zzz", ["tiny", "cpu", "gpu"]) == "known: cpu, gpu, tiny"


@given(names=st.sets(st.text(st.characters(codec="ascii", categories=["Ll"]), min_size=1), min_size=1))
@settings(deadline=None, max_examples=50)
def test_the_suggestion_never_depends_on_the_order_of_the_names(names):
    assert did_you_mean("epoch", sorted(names)) == did_you_mean("epoch", sorted(names, reverse=True))
