"""A config that stands for more than a config can hold is refused before it is built."""

import time
import tracemalloc

import pytest
import yaml

from dtl.config.load import load_config
from dtl.core.errors import DtlError

BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{new}: &{new} [{','.join([f'*{old}'] * 9)}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (BOMB, "more than 20000 values, aliases included"),
        ("task: " + "[" * 3000, "nested more than 50 deep"),
        ("task: " + "{a: " * 3000, "nested more than 50 deep"),
        ("".join(" " * depth + "a:\n" for depth in range(300)), "nested more than 50 deep"),
        ("a: b\n" * 20_001, "more than 20000 values"),
        ("#" * (1 << 20) + "\n", "a config of 1048577 bytes (at most 1048576)"),
    ],
    ids=["aliases", "lists", "mappings", "indentation", "keys", "bytes"],
)
def test_large_config_is_refused_at_once(tmp_path, text, problem):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    tracemalloc.start()
    start = time.process_time()
    with pytest.raises(DtlError) as refused:
        load_config(path)
    assert time.process_time() - start < 10
    assert tracemalloc.get_traced_memory()[1] < 100_000_000
    tracemalloc.stop()
    assert problem in str(refused.value) and str(path) in str(refused.value)
    assert len(refused.value.faults) == 1


def test_override_is_limited_too(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("model: {path: mini:text}\ntask: causal_lm\ndata: {train: rows.jsonl}\n")
    with pytest.raises(DtlError, match="nested more than 50 deep"):
        load_config(path, ["data.train=" + "[" * 3000])


def test_aliases_of_a_plain_config_are_read(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(
        "x: &rows {path: rows.jsonl}\nmodel: {path: mini:text}\ntask: causal_lm\n"
        "data: {train: *rows, eval: *rows}\n"
    )
    with pytest.raises(DtlError, match="x: no such key"):
        load_config(path)
    values = yaml.safe_load(path.read_text())["data"]
    assert values["train"] == values["eval"]
