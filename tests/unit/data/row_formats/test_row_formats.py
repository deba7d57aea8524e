"""Rows of each format give the same examples as the same content in the task's columns."""

import csv
import json
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from dtl.config.schema import Source
from dtl.config.schema.data_files import ROW_FORMAT_NAMES
from dtl.core.errors import DtlError
from dtl.data.row_formats.base import RowInput
from dtl.data.row_formats.detect import ROW_FORMATS
from dtl.data.sources.rows import open_rows
from tests import tiny
from tests.task_bench import make_task
from tests.unit.data.row_formats.same_content import (
    ALPACA,
    ASK,
    GOOD,
    LABELED,
    PAIR,
    SAME_CONTENT,
    SYSTEM,
    TALK,
    said,
)

TASKS = {"chat": "causal_lm", "pair": "dpo", "labeled": "kto"}
TEMPLATE = (
    "{% for tool in tools or [] %}{{ tool | tojson }}\n{% endfor %}"
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}"
    "{% for call in message['tool_calls'] or [] %}{{ call | tojson }}{% endfor %}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def as_json_lines(row, path="rows.jsonl"):
    Path(path).write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def as_parquet(row):
    parquet.write_table(pa.Table.from_pylist([row]), "rows.parquet")
    return "rows.parquet"


def as_csv(dump):
    def write(row):
        flat = {
            name: dump(value) if isinstance(value, (list, dict)) else value
            for name, value in row.items()
        }
        with Path("rows.csv").open("w", encoding="utf-8", newline="") as file:
            table = csv.DictWriter(file, list(flat))
            table.writeheader()
            table.writerow(flat)
        return "rows.csv"

    return write


CARRIERS = {
    "jsonl": as_json_lines,
    "parquet": as_parquet,
    "csv_json": as_csv(json.dumps),
    "csv_python": as_csv(repr),
}


def open_kind(path, kind, check=None, **keys):
    return open_rows(
        Source(path=path, **keys),
        {},
        check=check or (lambda row: None),
        reads=RowInput(kind=kind),
    )


def encode(rows, kind):
    """The values of the only row's example."""
    (row,) = rows
    tokenizer = tiny.tokenizer(chat=True)
    tokenizer.chat_template = TEMPLATE
    task = make_task(TASKS[kind], max_length=2000)
    assert task.find_row_fault(row) is None
    return task.encoder(tokenizer, {}, None)(row).values


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize("case", SAME_CONTENT)
def test_examples_equal_those_of_the_tasks_own_columns(case, carrier):
    name, kind, row, own = SAME_CONTENT[case]
    if name is None and carrier.startswith("csv"):
        name = "trl"  # the task's own columns, with their messages as texts
    rows = open_kind(CARRIERS[carrier](row), kind)
    detected = None if rows._converter is None else rows._converter.format.name
    assert detected == name
    assert (detected is None) == ("format" not in str(rows.description))
    own_rows = open_kind(as_json_lines(own, "own.jsonl"), kind, format="columns")
    assert encode(rows, kind) == encode(own_rows, kind)


@pytest.mark.parametrize("case", SAME_CONTENT)
def test_format_can_be_named(case):
    name, kind, row, _ = SAME_CONTENT[case]
    path = as_json_lines(row)
    fields = [each.fields for each in open_kind(path, kind)]
    assert [each.fields for each in open_kind(path, kind, format=name)] == fields


@pytest.mark.parametrize("case", SAME_CONTENT)
def test_streamed_rows_are_the_same(case):
    _, kind, row, _ = SAME_CONTENT[case]
    rows = open_kind(as_json_lines(row), kind)
    (reader,) = rows.open_readers("data.train")
    ((position, _),) = reader.iter_rows()
    assert rows.validate_row(0, reader.read_row(position)) == next(iter(rows))


@pytest.mark.parametrize("case", ["sharegpt_tools", "openai_functions", "openai_preference_tools"])
def test_tools_calls_and_results_are_in_the_tokens(case):
    _, kind, row, _ = SAME_CONTENT[case]
    values = encode(open_kind(as_json_lines(row), kind), kind)
    text = tiny.tokenizer().decode(values["input_ids" if kind == "chat" else "chosen"])
    for sentinel in ("The weather of a city.", "K\u00f6ln", '"sky": "grey"', "be old", "a light"):
        assert sentinel in text or sentinel.encode().decode("unicode_escape") in text


def test_every_format_has_content_that_is_compared():
    assert {name for name, *_ in SAME_CONTENT.values()} - {None} == set(ROW_FORMAT_NAMES) - {
        "columns"
    }
    assert {each.name for each in ROW_FORMATS} == set(ROW_FORMAT_NAMES) - {"columns"}


@pytest.mark.parametrize(
    ("kind", "row"),
    [
        ("chat", TALK),
        ("chat", {"prompt": "the river", "completion": " light", "instruction": "x"}),
        ("chat", {"text": "the river"}),
        ("chat", {"text": "the river", "question": "x", "answer": "y"}),
        ("pair", {"prompt": "a", "chosen": "b", "rejected": "c", "question": "x"}),
        ("pair", PAIR),
        ("pair", {"prompt": "a", "chosen": "b", "rejected": "c"}),
        ("labeled", LABELED),
        (None, {"instruction": "x", "output": "y", "conversations": said(ASK, GOOD)}),
    ],
)
def test_columns_of_the_task_are_not_converted(kind, row):
    rows = open_kind(as_json_lines(row), kind)
    assert [each.fields for each in rows] == [row]


def test_columns_that_are_mapped_in_the_config_decide():
    path = as_json_lines({**ALPACA, "output": "a light"})
    source, columns = Source(path=path), {"prompt": "instruction", "completion": "output"}
    (row,) = open_rows(source, columns, reads=RowInput(kind="chat"))
    assert row.fields == {
        "input": "and stone",
        "system": "be old",
        "prompt": "the river",
        "completion": "a light",
    }
    path = as_json_lines({"chat": said(ASK, GOOD)})
    (row,) = open_rows(Source(path=path), {"conversations": "chat"}, reads=RowInput(kind="chat"))
    assert row.fields == {"messages": [ASK, GOOD]}


def test_other_columns_stay():
    (row,) = open_kind(as_json_lines({**ALPACA, "output": "a light", "team": "red"}), "chat")
    assert row.fields == {"messages": [SYSTEM, ASK, GOOD], "team": "red"}


def test_of_a_prompt_and_completion_only_the_completion_is_learned():
    _, kind, row, _ = SAME_CONTENT["trl_prompt_completion"]
    values = encode(open_kind(as_json_lines(row), kind), kind)
    learned = [label for label in values["labels"] if label != -100]
    assert tiny.tokenizer().decode(learned) == f"{GOOD['content']}</s>"


def test_row_without_output_ends_with_the_users_message():
    (row,) = open_kind(as_json_lines(ALPACA), "chat")
    assert row.fields == {"messages": [SYSTEM, ASK]}


@pytest.mark.parametrize(
    ("kind", "row", "problem"),
    [
        ("chat", {"conversations": [{"from": "robot", "value": "x"}]}, "a message is from 'robot'"),
        ("chat", {"conversations": [{"from": "function_call", "value": "x"}]}, "a function call"),
        ("chat", {"conversations": said(ASK), "tools": "find"}, "`tools` is str, not a list"),
        ("chat", {"instruction": "x", "output": None}, "`output` is missing"),
        ("chat", {"instruction": "x", "output": 3}, "`output` is int, not text"),
        ("chat", {"instruction": "x", "output": "y", "history": [["z"]]}, "`history` has"),
        ("pair", {"instruction": "x", "chosen": "y"}, "`rejected` is missing"),
        (
            "pair",
            {"input": "x", "preferred_output": [], "non_preferred_output": []},
            "`input` is no object",
        ),
        (
            "pair",
            {"instruction": "x", "completions": [{"response": "y", "overall_score": 1}] * 2},
            "all completions have the same score",
        ),
        (
            "pair",
            {"instruction": "x", "completions": [{"response": "y", "overall_score": "N/A"}]},
            "a completion has the score 'N/A'",
        ),
        ("pair", {"system": "be", "chosen": "I go", "rejected": "I do"}, "`system` stands beside"),
        (
            "chat",
            {"system": "be", "messages": [SYSTEM, ASK, GOOD]},
            "`system` stands beside a system message",
        ),
        ("chat", {"instruction": "x", "input": "nan", "output": "y"}, "`input` is 'nan', which"),
        ("labeled", {**LABELED, "label": "maybe"}, "`label` is 'maybe' (expected true or false)"),
    ],
)
def test_faulty_row_has_its_location_and_the_format(kind, row, problem):
    with pytest.raises(DtlError) as caught:
        list(open_kind(as_json_lines(row), kind))
    (fault,) = caught.value.faults
    assert fault.location == "rows.jsonl:1"
    assert fault.problem.startswith(problem)
    assert "the rows are read as" in fault.problem


def test_format_that_the_task_does_not_read_is_refused():
    path = as_json_lines({"chosen": "a b", "rejected": "a c"})
    with pytest.raises(DtlError, match=r"data\.train\.format: .*does not read rows in hh-rlhf"):
        open_kind(path, "chat", format="hh_rlhf")


@pytest.mark.parametrize("key", ["weight", "train", "training", "loss"])
@pytest.mark.parametrize("value", [0, False])
def test_a_message_that_is_not_trained_on_is_marked_by_each_key(key, value):
    answer = {"role": "assistant", "content": "no"}
    rows = [{"messages": [ASK, {**answer, name: value}, ASK, GOOD]} for name in (key, "weight")]
    marked, expected = (encode(open_kind(as_json_lines(row), "chat"), "chat") for row in rows)
    assert marked == expected
    learned = [label for label in marked["labels"] if label != -100]
    assert tiny.tokenizer().decode(learned).startswith(GOOD["content"])
