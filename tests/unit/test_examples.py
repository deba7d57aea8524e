"""Encoded rows have one name, whoever encodes them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from dtl import examples
from dtl.assemble import assemble
from dtl.config.schema import RunConfig
from dtl.data.encoded import wait_for
from dtl.examples import prepare
from tests import tiny


@pytest.mark.parametrize(
    ("task", "base", "rows"),
    [
        (
            "text_classification",
            "encoder",
            [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}],
        ),
        ("token_classification", "encoder", [tiny.tag("the river"), tiny.tag("an old ship")]),
        ("seq2seq", "t5", [tiny.shorten("the river turns"), tiny.shorten("a stone")]),
    ],
)
def test_a_process_that_only_reads_finds_what_another_has_written(
    task: str,
    base: str,
    rows: Any,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It would wait for an hour for data of another name."""
    monkeypatch.setattr(examples, "wait_for", partial(wait_for, timeout_seconds=0.5))
    file = tiny.write_rows(tmp_path / "rows.jsonl", rows)
    config = RunConfig.model_validate(
        {
            "run": {"name": "x"},
            "model": {"path": str(request.getfixturevalue(base))},
            "task": task,
            "strategy": "full",
            "data": {"train": str(file), "eval": {"path": str(file), "limit": 1}},
            "train": {"steps": 1, "global_batch": 2},
        }
    )
    written = prepare(config, assemble(config), writes=True)
    read = prepare(config, assemble(config), writes=False)
    assert (written.train.key, len(written.held_out)) == (read.train.key, 1)  # type: ignore[arg-type]
    assert written.held_out.key == read.held_out.key  # type: ignore[union-attr]
