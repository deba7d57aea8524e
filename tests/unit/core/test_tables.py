"""Tables at the width of the terminal: nothing is cut, and no line is longer."""

from pathlib import Path

import pytest

from dtl.core.tables import format_table
from dtl.plan.records import Decision
from tests.tiny_run import PLAN

REASON = "the least sharding that fits: 3.20 GiB per rank, of 80.0 GiB that each device has"
ROWS = [
    ("processes", "8", "one for each GPU"),
    ("ZeRO stage", "2", REASON),
    ("activation checkpointing", "on", "the activations of one example do not fit without it"),
]
SCREENS = Path(__file__).parent / "screens"


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_no_line_is_wider_than_the_terminal_and_no_word_is_lost(width):
    lines = format_table(ROWS, width=width)
    assert max(map(len, lines)) <= width
    assert " ".join(lines).split() == " ".join(" ".join(row) for row in ROWS).split()


def test_in_a_pipe_each_row_is_one_line():
    assert len(format_table(ROWS)) == len(ROWS)
    assert format_table(ROWS)[0].startswith("processes                 8   one")
    assert format_table([]) == []


def test_a_word_that_is_wider_than_the_terminal_is_not_cut():
    path = "/" + "x" * 100
    assert path in format_table([("export", path)], width=80)[-1]


@pytest.mark.parametrize("width", [80, 120])
def test_the_plan_is_the_stored_screen(width):
    """After a change, write `screen` to the file."""
    decisions = (*PLAN.decisions, *(Decision(*row) for row in ROWS))
    plan = type(PLAN)(**{**vars(PLAN), "decisions": decisions})
    screen = "\n".join(plan.format_lines(width=width)) + "\n"
    assert screen == (SCREENS / f"plan-{width}.txt").read_text()
