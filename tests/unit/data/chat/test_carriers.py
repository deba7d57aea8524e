"""A chat has the same tokens, from whatever file its row was read."""

from __future__ import annotations

import ast
import csv
import json
from pathlib import Path
from typing import Any

import pytest

from dtl.config.schema import Source
from dtl.data.sources.rows import Row, open_rows
from tests import tiny_chat
from tests.task_bench import make_task

TEMPLATES = ("qwen2_5", "deepseek_v3", "gpt_oss", "qwen3_5")
CALLS = ("calls", "calls_twice", "reasoning_twice")
OTHER_TOOL = {
    "type": "function",
    "function": {
        "name": "count_letters",
        "description": "Counts letters.",
        "parameters": {
            "type": "object",
            "properties": {"garden": {"type": "array", "items": {"type": "string"}}},
        },
    },
}
OTHER_CALL = {
    "messages": [
        tiny_chat.QUESTION,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [tiny_chat.call("count_letters", garden=["stone", 'a "light"'])],
        },
        {**tiny_chat.RESULT, "name": "count_letters"},
        {**tiny_chat.ANSWER, "tool_calls": []},
    ],
    "tools": [OTHER_TOOL],
}


def with_text_arguments(fields: dict[str, Any]) -> dict[str, Any]:
    """As OpenAI's format has it: the arguments of a call are JSON text."""
    made = json.loads(json.dumps(fields))
    for message in made["messages"]:
        for call in message.get("tool_calls") or ():
            call["function"]["arguments"] = json.dumps(call["function"]["arguments"])
    return made


def as_json(rows: list[dict[str, Any]], folder: Path) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def as_text_arguments(rows: list[dict[str, Any]], folder: Path) -> Path:
    return as_json([with_text_arguments(row) for row in rows], folder)


def as_json_text(rows: list[dict[str, Any]], folder: Path) -> Path:
    """Messages and tools as JSON text in columns, and each message as well."""
    texts = [
        {
            "messages": json.dumps([json.dumps(message) for message in row["messages"]]),
            "tools": json.dumps(row["tools"]) if "tools" in row else None,
        }
        for row in rows
    ]
    return as_json(texts, folder)


def as_parquet(rows: list[dict[str, Any]], folder: Path) -> Path:
    """Arrow gives each message, call and schema the keys of all others, as nulls."""
    import pyarrow as pa
    from pyarrow import parquet

    path = folder / "rows.parquet"
    parquet.write_table(pa.Table.from_pylist(rows), path)
    return path


def as_arrow(rows: list[dict[str, Any]], folder: Path) -> Path:
    import pyarrow as pa

    path, table = folder / "rows.arrow", pa.Table.from_pylist(rows)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    return path


def as_csv(rows: list[dict[str, Any]], folder: Path, write: Any = json.dumps) -> Path:
    path = folder / "rows.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["messages", "tools"])
        writer.writeheader()
        for row in rows:
            tools = write(row["tools"]) if "tools" in row else ""
            writer.writerow({"messages": write(row["messages"]), "tools": tools})
    return path


def as_pandas_csv(rows: list[dict[str, Any]], folder: Path) -> Path:
    """A list in a cell as pandas writes it: a Python literal."""
    return as_csv(rows, folder, write=repr)


CARRIERS = [as_text_arguments, as_json_text, as_parquet, as_arrow, as_csv, as_pandas_csv]


def encode(rows: list[Row], name: str) -> list[Any]:
    tokenizer = tiny_chat.tokenizer(name)
    task = make_task("causal_lm", max_length=4000)
    encoder = task.encoder(tokenizer, {}, None)
    assert not any(map(task.find_row_fault, rows))
    return [encoder(part) for row in rows for part in task.expand_row(row, processor=tokenizer)]


@pytest.mark.parametrize("carrier", CARRIERS)
def test_tokens_are_equal_from_every_carrier(carrier, tmp_path):
    fields = [OTHER_CALL, *(tiny_chat.FEATURES[feature] for feature in CALLS)]
    path = carrier(fields, tmp_path)
    read = list(open_rows(Source(path=str(path)), {}))
    assert len(read) == len(fields)
    for name in TEMPLATES:
        expected = [Row(n, "", row) for n, row in enumerate(fields)]
        assert encode(read, name) == encode(expected, name), name


@pytest.mark.parametrize("name", TEMPLATES)
def test_arguments_are_learned_as_the_template_writes_an_object(name):
    """Not as a text inside a text."""
    tokenizer = tiny_chat.tokenizer(name)
    row = with_text_arguments(tiny_chat.FEATURES["calls"])
    first = encode([Row(0, "", row)], name)[0]
    text = tokenizer.decode(first.values["input_ids"])
    assert '\\"old\\" one' in text or 'The "old" one' in text
    assert '"{' not in text and '{\\"' not in text
    assert "'river'" not in text, "not as a Python literal"


def test_null_in_arguments_of_json_text_is_learned():
    row = {
        "messages": [
            tiny_chat.QUESTION,
            {
                "role": "assistant",
                "tool_calls": [{"function": {"name": "f", "arguments": '{"river": null}'}}],
            },
        ],
        "tools": tiny_chat.TOOLS,
    }
    (example,) = encode([Row(0, "", row)], "qwen2_5")
    assert '{"river": null}' in tiny_chat.tokenizer("qwen2_5").decode(example.values["input_ids"])


def test_python_literals_are_data_only():
    from dtl.data.chat.messages import parse_text

    text = "[__import__('os').getcwd()]"
    with pytest.raises(ValueError, match="malformed"):
        ast.literal_eval(text)
    assert parse_text(text) == text
