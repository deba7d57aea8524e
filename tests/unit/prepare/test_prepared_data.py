"""Prepared data: cache keys, mixtures, splits."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from dtl.assembly.parts import assemble
from dtl.config.load import load_config
from dtl.config.schema import RunConfig
from dtl.core.errors import DtlError
from dtl.data.cache.encoder import wait_for_encoded_data
from dtl.prepare import encoding
from dtl.prepare.prepared_data import prepare_data
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
def test_a_process_that_waits_reads_what_another_has_encoded(
    task: str,
    base: str,
    rows: Any,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It would wait for an hour for data of another name."""
    monkeypatch.setattr(
        encoding, "wait_for_encoded_data", partial(wait_for_encoded_data, timeout_seconds=0.5)
    )
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
    written = prepare_data(config, assemble(config), writes=True)
    read = prepare_data(config, assemble(config), writes=False)
    assert (written.train.key, len(written.held_out)) == (read.train.key, 1)  # type: ignore[arg-type]
    assert written.held_out.key == read.held_out.key  # type: ignore[union-attr]


# Mixtures ---------------------------------------------------------------------------------------


def mixture(tmp_path, decoder, *overrides):
    """Examples of a config with three rows of `a` and four of `b`."""
    for name, count in (("a", 3), ("b", 4)):
        rows = [{"text": f"{name}{number} the river"} for number in range(count)]
        tiny.write_rows(tmp_path / f"{name}.jsonl", rows)
    (tmp_path / "mixed.yaml").write_text(
        f"model: {{path: {decoder}}}\ntask: causal_lm\nstrategy: full\ntrain: {{steps: 1}}\n"
        f"data:\n  train: {tmp_path / 'a.jsonl'}\n  mix: [{{path: {tmp_path / 'b.jsonl'}}}]\n"
    )
    config = load_config(tmp_path / "mixed.yaml", list(overrides))
    return prepare_data(config, assemble(config))


def half(tmp_path):
    return f"data.mix=[{{path: {tmp_path / 'b.jsonl'}, weight: 0.5}}]"


def read(examples, data):
    return [examples.processor.decode(data[number]["input_ids"])[:2] for number in range(len(data))]


def test_sources_are_mixed_by_weight(tmp_path, decoder, cache):
    plain = mixture(tmp_path, decoder)
    assert read(plain, plain.train) == ["a0", "a1", "a2", "b0", "b1", "b2", "b3"]
    twice = mixture(tmp_path, decoder, "data.train.weight=2", half(tmp_path))
    found = read(twice, twice.train)
    assert found[:6] == ["a0", "a1", "a2"] * 2
    assert (
        len(found) == 8 and len(set(found[6:])) == 2 and set(found[6:]) < {"b0", "b1", "b2", "b3"}
    )
    again = mixture(tmp_path, decoder, "data.train.weight=2", half(tmp_path))
    assert again.train.key == twice.train.key != plain.train.key
    half_more = mixture(tmp_path, decoder, "data.train.weight=1.5")
    assert len(half_more.train) == 3 + 2 + 4


def test_held_out_rows_are_not_mixed_in(tmp_path, decoder, cache):
    examples = mixture(tmp_path, decoder, "data.eval_fraction=0.34", "data.train.weight=3")
    (held_out,) = read(examples, examples.held_out)
    assert held_out.startswith("a") and held_out not in read(examples, examples.train)
    assert len(examples.train) == 2 * 3 + 4


def test_an_invalid_mixed_row_names_its_source(tmp_path, decoder, cache):
    mixture(tmp_path, decoder)
    (tmp_path / "b.jsonl").write_text('{"text": "b0 fine"}\n{"text": 7}\n{"text": ""}\n')
    with pytest.raises(DtlError, match=r"b.jsonl:2: `text` is int"):
        config = load_config(tmp_path / "mixed.yaml")
        prepare_data(config, assemble(config))
    skips = ["data.on_bad_row=skip", "data.max_bad_fraction=0.5"]
    config = load_config(tmp_path / "mixed.yaml", skips)
    examples = prepare_data(config, assemble(config))
    assert read(examples, examples.train) == ["a0", "a1", "a2", "b0"]
    reported = [
        (row["source"], row["location"].rpartition("/")[2]) for row in examples.iter_skipped_rows()
    ]
    assert reported == [("data.mix[0]", "b.jsonl:2"), ("data.train", "b.jsonl:3")]


def test_a_held_out_source_has_no_weight(tmp_path, decoder):
    mixture(tmp_path, decoder)
    with pytest.raises(DtlError, match="every held-out row is evaluated once"):
        load_config(
            tmp_path / "mixed.yaml",
            ["data.eval={path: x.jsonl, weight: 2}"],
        )
