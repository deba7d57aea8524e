"""The messages of faults."""

import pickle

import pytest

from dtl.core.errors import DtlError, Fault, RunFailed, StoppedEarly, near, shorten_message


def test_a_fault_is_one_line_of_location_problem_and_fix():
    fault = Fault("configs/x.yaml:14: train.stpes", "no such key", "did you mean 'steps'?")
    assert str(fault) == "configs/x.yaml:14: train.stpes: no such key. Fix: did you mean 'steps'?"


def test_an_error_has_one_line_per_fault():
    error = DtlError(Fault("a", "b", "c"), Fault("d", "e", ""))
    assert str(error) == "a: b. Fix: c\nd: e"


@pytest.mark.parametrize(("kind", "code"), [(DtlError, 2), (RunFailed, 1), (StoppedEarly, 75)])
def test_exit_codes(kind, code):
    error = kind.of("location", "problem", "fix")
    assert isinstance(error, kind)
    assert error.exit_code == code


def test_an_error_can_be_pickled():
    error = pickle.loads(pickle.dumps(DtlError.of("location", "problem", "fix")))
    assert error.faults == (Fault("location", "problem", "fix"),)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("stpes", "did you mean 'steps'?"),
        ("STEPS", "did you mean 'steps'?"),
        ("learning-rate", "did you mean 'learning_rate'?"),
        ("color", ""),
        ("", ""),
    ],
)
def test_hints_for_similar_names(name, hint):
    assert near(name, ["steps", "epochs", "learning_rate"]) == hint


def test_a_long_message_is_one_line_that_ends_with_a_complete_word():
    message = "\n".join(f"word{number}" for number in range(200))
    short = shorten_message(message, characters=60)
    *words, dots = short.split(" ")
    assert len(short) <= 60 and dots == "..."
    assert words == [f"word{number}" for number in range(len(words))]
    assert shorten_message("a\n b") == "a b"
