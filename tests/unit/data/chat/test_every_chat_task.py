"""Every task that reads chats: messages as JSON text, dropped texts, special tokens as text."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dtl.data.example import EncodedExample
from dtl.data.sources.rows import Row
from tests import tiny_chat
from tests.task_bench import make_task

PROMPT = [tiny_chat.SYSTEM, tiny_chat.QUESTION, tiny_chat.ANSWER, tiny_chat.AGAIN]
OTHER = {"role": "assistant", "content": "It is the large one."}
PAIR = {"prompt": PROMPT, "chosen": [tiny_chat.SECOND], "rejected": [OTHER]}
CONVERSATIONS = {"chosen": [*PROMPT, tiny_chat.SECOND], "rejected": [*PROMPT, OTHER]}
SINGLE = {"prompt": PROMPT, "completion": [tiny_chat.SECOND]}
PAIR_TASKS = ("dpo", "ipo", "cpo", "orpo", "simpo", "reward")
CASES = [
    ("causal_lm", {}, {"messages": [*PROMPT, tiny_chat.SECOND]}),
    *((name, {}, PAIR) for name in PAIR_TASKS),
    *((name, {}, CONVERSATIONS) for name in PAIR_TASKS),
    ("kto", {}, {**SINGLE, "label": True}),
    ("reward", {"objective": "scalar"}, {**SINGLE, "score": 0.5}),
]
IDS = [f"{name}-{'-'.join(fields)}" for name, _, fields in CASES]


def encode(
    name: str, options: dict[str, Any], fields: dict[str, Any], template: str = "qwen2_5"
) -> EncodedExample:
    task, row = make_task(name, max_length=4000, **options), Row(0, "rows.jsonl:1", fields)
    assert task.find_row_fault(row) is None
    assert task.preview(row).input
    assert set(fields) <= task.read_columns(fields)
    example = task.encoder(tiny_chat.tokenizer(template), {}, None)(row)
    assert isinstance(example, EncodedExample), example
    return example


def as_json_text(fields: dict[str, Any]) -> dict[str, Any]:
    return {
        name: json.dumps(value) if isinstance(value, list) else value
        for name, value in fields.items()
    }


@pytest.mark.parametrize(("name", "options", "fields"), CASES, ids=IDS)
def test_messages_as_json_text_give_the_same_example(name, options, fields):
    expected = encode(name, options, fields)
    assert encode(name, options, as_json_text(fields)) == expected
    as_literals = {k: repr(v) if isinstance(v, list) else v for k, v in fields.items()}
    assert encode(name, options, as_literals) == expected


@pytest.mark.parametrize(("name", "options", "fields"), CASES, ids=IDS)
def test_what_the_template_drops_is_in_the_example(name, options, fields):
    with_tools = {**fields, "tools": tiny_chat.TOOLS}
    assert encode(name, options, with_tools).dropped == ()
    assert encode(name, options, with_tools, template="chatml").dropped == ("tools",)
    reasoned = with_reasoning(fields)
    assert encode(name, options, reasoned, template="chatml").dropped == ("reasoning",)


def with_reasoning(value: Any) -> Any:
    if isinstance(value, dict):
        made = {key: with_reasoning(item) for key, item in value.items()}
        is_last = value.get("content") == tiny_chat.SECOND["content"]
        return {**made, "reasoning_content": "Under it."} if is_last else made
    return [with_reasoning(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize(("name", "options", "fields"), CASES, ids=IDS)
def test_special_tokens_of_a_user_are_read_as_text(name, options, fields):
    tokenizer = tiny_chat.tokenizer("qwen2_5")
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    spelled = json.loads(json.dumps(fields).replace("Which ship", "<|im_end|> ship"))

    def count(**more: Any) -> int:
        values = encode(name, {**options, **more}, spelled).values
        return list(values.get("input_ids", values.get("chosen"))).count(end)

    assert count(special_tokens="text") == len(PROMPT) + 1
    assert count() == len(PROMPT) + 2


@pytest.mark.parametrize("name", ["dpo", "reward"])
def test_json_text_that_is_no_conversation_stays_a_text(name):
    fields = {"prompt": '["a", 1]', "chosen": '{"b": 2}', "rejected": "[]"}
    task, row = make_task(name), Row(0, "", fields)
    assert task.find_row_fault(row) is None
    example = task.encoder(tiny_chat.tokenizer("qwen2_5"), {}, None)(row)
    text = tiny_chat.tokenizer("qwen2_5").decode(example.values["chosen"])
    assert '["a", 1]{"b": 2}' in text


def test_faulty_messages_in_json_text_are_a_fault():
    row = Row(0, "rows.jsonl:3", {**PAIR, "chosen": '[{"role": "assistant"}]'})
    fault = make_task("dpo").find_row_fault(row)
    assert fault is not None and "`chosen` is not a list of chat messages" in fault.problem
