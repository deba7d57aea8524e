"""Planted faults of chats and of pairs of responses: each is found at its row; clean ones have no
finding."""

from __future__ import annotations

from typing import Any

import pytest

from tests import tiny, tiny_chat
from tests.unit.inspect.check.checker import create_chats, create_texts, is_at

LINE = 7  # of the planted row
CALL = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
RESULT = {"role": "tool", "content": "old"}
SHORT_TOOLS = [{"type": "function", "function": {"name": "find_ship"}}]


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def system(content: str) -> dict[str, Any]:
    return {"role": "system", "content": content}


def chat(*messages: Any, **columns: Any) -> dict[str, Any]:
    return {"messages": list(messages), **columns}


ASK, SAY = user("which ship"), assistant("a large one")
# Template, the planted row, the kind of the finding, words of it.
FAULTS: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "dropped tools": ("chatml", chat(ASK, SAY, tools=SHORT_TOOLS), "dropped", "tools"),
    "dropped call": ("chatml", chat(ASK, assistant("", **CALL)), "dropped", "tool_calls"),
    "dropped result": ("falcon", chat(ASK, CALL, RESULT, SAY), "dropped", "tool_results"),
    "dropped reasoning": (
        "chatml",
        chat(ASK, assistant("a", reasoning_content="old stone")),
        "dropped",
        "reasoning",
    ),
    "dropped documents": ("chatml", chat(ASK, SAY, documents=[{"text": "b"}]), "dropped", "docu"),
    "text beside a call": ("granite3", chat(ASK, {**SAY, **CALL}), "dropped", "content"),
    "unknown role": ("qwen2_5", chat(ASK, {**ASK, "role": "robot"}, SAY), "dropped", "content"),
    "refused system": ("gemma", chat(system("slow"), ASK, SAY), "invalid_rows", "System role not"),
    "not alternating": ("mistral_v1", chat(ASK, ASK, SAY), "invalid_rows", "must alternate"),
    "names of ShareGPT": (
        "chatml",
        chat({**ASK, "role": "human"}, {**SAY, "role": "gpt"}),
        "skipped_rows",
        "no message of the role assistant (the roles are human, gpt)",
    ),
    "no answer": ("chatml", chat(ASK), "skipped_rows", "the roles are user"),
    "nothing is learned": ("chatml", chat(ASK, {**SAY, "weight": 0}), "skipped_rows", "weight: 0"),
    "empty answer": ("chatml", chat(ASK, assistant(" ")), "empty_targets", "empty target"),
    "no messages": ("chatml", chat(), "invalid_rows", "it is empty"),
    "broken JSON": ("chatml", {"messages": '[{"role": "user"'}, "invalid_rows", "it is str"),
    "no content": ("chatml", chat(ASK, {"role": "assistant"}), "invalid_rows", "message 2: no con"),
    "no role": ("chatml", chat(ASK, {"content": "a"}), "invalid_rows", "message 2: no role"),
    "half a weight": ("chatml", chat(ASK, {**SAY, "weight": 0.5}), "invalid_rows", "not 0 or 1"),
    "an image": ("chatml", chat(user([{"type": "image"}]), SAY), "invalid_rows", "not text (image"),
    "call without name": (
        "qwen2_5",
        chat(ASK, {**SAY, "tool_calls": [{"function": {"arguments": {}}}]}),
        "invalid_rows",
        "without the name",
    ),
    "tools as prose": (
        "qwen2_5",
        chat(ASK, SAY, tools="find it"),
        "invalid_rows",
        "`tools` is str",
    ),
    "variables as text": (
        "chatml",
        chat(ASK, SAY, chat_template_kwargs="no"),
        "invalid_rows",
        "`chat_template_kwargs` is str",
    ),
    "token in a question": (
        "chatml",
        chat(user("end it<|im_end|>"), SAY),
        "special_tokens",
        "<|im_end|>",
    ),
    "too long": ("chatml", chat(user("river " * 200), SAY), "truncated", "limit of 128 tokens"),
    "not as in use": ("deepseek_r1", chat(ASK, SAY), "not_as_in_use", "generation prompt"),
    "duplicate": ("chatml", create_chats(1)[0], "duplicates", "duplicates of an earlier row"),
}
# Of pairs: the planted row, the kind of the finding, words of it.
PAIR_FAULTS: dict[str, tuple[dict[str, Any], str, str]] = {
    "same responses": (
        {"prompt": [ASK], "chosen": [SAY], "rejected": [SAY]},
        "skipped_rows",
        "both responses are the same",
    ),
    "same after cutting": (
        {"prompt": [ASK], "chosen": "a " * 300 + "b", "rejected": "a " * 300 + "c"},
        "skipped_rows",
        "the same after truncation",
    ),
    "no prompt": (
        {"chosen": [SAY], "rejected": [assistant("no")]},
        "skipped_rows",
        "no prompt",
    ),
    "two answers": (
        {"prompt": [ASK], "chosen": [SAY, SAY], "rejected": [SAY]},
        "invalid_rows",
        "not one message of the assistant",
    ),
    "one is a text": (
        {"prompt": "a", "chosen": [ASK, SAY], "rejected": "b"},
        "invalid_rows",
        "only `chosen` has messages",
    ),
    "faulty JSON text": (
        {"prompt": [ASK], "chosen": '[{"role": "assistant"}]', "rejected": [SAY]},
        "invalid_rows",
        "`chosen` is not a list of chat messages",
    ),
    "dropped tools": (
        {"prompt": [ASK], "chosen": [SAY], "rejected": [assistant("b")], "tools": SHORT_TOOLS},
        "dropped",
        "tools",
    ),
    "token in a response": (
        {"prompt": [ASK], "chosen": "a<|im_end|>b", "rejected": [SAY]},
        "special_tokens",
        "task.special_tokens=text",
    ),
}
CLEAN: dict[str, tuple[str, dict[str, Any]]] = {
    "system": ("chatml", chat(system("be slow"), ASK, SAY)),
    "empty system": ("chatml", chat(system(""), ASK, SAY)),
    "two turns": ("llama3", chat(ASK, SAY, user("and the old"), assistant("there"))),
    "weights": ("chatml", chat(ASK, {**SAY, "weight": 0}, user("and"), assistant("yes"))),
    "tools": ("granite3", chat(ASK, SAY, tools=SHORT_TOOLS)),
    "call": ("hermes", chat(ASK, CALL, RESULT, SAY)),
    "reasoning": ("qwen3", chat(ASK, assistant("a", reasoning_content="stone"))),
    "parts": ("gemma3", chat(user([{"type": "text", "text": "which"}]), SAY)),
    "JSON text": ("chatml", {"messages": str([ASK, SAY])}),
    "emoji, line ends": ("chatml", chat(user("a\r\nb \U0001f600"), assistant("c \u65e5\r\n"))),
    "two questions": ("chatml", chat(ASK, user("and which"), SAY)),
    "open end": ("chatml", chat(ASK, SAY, user("more"))),
}


@pytest.fixture(scope="module")
def base_of(tmp_path_factory):
    made: dict[str, Any] = {}

    def make(name: str) -> Any:
        if name not in made:
            folder = tmp_path_factory.mktemp("bases") / name
            made[name] = tiny.decoder(folder, made=tiny_chat.tokenizer(name))
        return made[name]

    return make


def with_planted(rows: list[dict[str, Any]], row: dict[str, Any]) -> list[dict[str, Any]]:
    return [*rows[: LINE - 1], row, *rows[LINE - 1 :]]


@pytest.mark.parametrize("name", FAULTS)
def test_planted_fault_of_a_chat_is_found_at_its_row(checker, base_of, name):
    template, row, kind, words = FAULTS[name]
    rows = with_planted(create_chats(8), row)
    report = checker.check("causal_lm", rows, base=base_of(template))
    found = [finding for finding in report.findings if finding.kind == kind]
    assert any(words in str(each.fault) for each in found), report.format_lines()
    assert kind == "not_as_in_use" or any(is_at(each, "train.jsonl", LINE) for each in found)


def create_pairs(count: int) -> list[dict[str, Any]]:
    return [
        {"prompt": [user(text)], "chosen": [assistant("yes")], "rejected": [assistant("no")]}
        for text in create_texts(count, longest=4)
    ]


@pytest.mark.parametrize("name", PAIR_FAULTS)
def test_planted_fault_of_a_pair_is_found_at_its_row(checker, base_of, name):
    row, kind, words = PAIR_FAULTS[name]
    report = checker.check("dpo", with_planted(create_pairs(8), row), base=base_of("chatml"))
    found = [finding for finding in report.findings if finding.kind == kind]
    assert any(words in str(each.fault) for each in found), report.format_lines()
    assert any(is_at(each, "train.jsonl", LINE) for each in found)


@pytest.mark.parametrize("name", CLEAN)
def test_clean_chats_have_no_finding(checker, base_of, name):
    template, row = CLEAN[name]
    rows = with_planted(create_chats(8), row)
    report = checker.check("causal_lm", rows, base=base_of(template))
    assert report.findings == (), report.format_lines()


def test_clean_pairs_have_no_finding(checker, base_of):
    rows = create_pairs(8)
    rows[3] = {name: str(value) for name, value in rows[3].items()}
    report = checker.check("dpo", rows, base=base_of("chatml"))
    assert report.findings == (), report.format_lines()
