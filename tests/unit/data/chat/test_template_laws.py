"""Laws over every chat template and feature: tokens, masks, borders, ends, and nothing lost.

The reference is transformers alone: `apply_chat_template` of the same template with generation
blocks, whose mask it computes itself.
"""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any

import pytest

from dtl.core.errors import DtlError
from dtl.data.chat.messages import supervised_indices
from dtl.data.chat.stop_tokens import find_stop_tokens
from dtl.data.example import EncodedExample
from dtl.data.sources.rows import Row
from tests import tiny_chat
from tests.task_bench import make_task

# What these templates do not accept, by their own exceptions.
REFUSED = {
    "alpaca": {"calls", "calls_twice"},
    "gemma": {"system", "tools", "calls", "calls_twice"},
    "gemma3": {"calls", "calls_twice"},
    "llama2": {"calls", "calls_twice"},
    "mistral_v1": {"system", "tools", "calls", "calls_twice"},
    "mistral_v7": {"calls", "calls_twice"},
}
REASONING_KEYS = {"gpt_oss": "thinking", "command_a": "thinking"}
PROMPT_ENDS_IN_BLANK = {"blank_prompt", "jamba"}
# Their generation prompt begins reasoning that they do not write before an answer without it.
OPENS_REASONING = {"deepseek_r1", "minimax_m2", "nemotron3"}
WITHOUT_END = {"glm4", "glm4_5"}  # the next message ends an answer
SENTINEL = "zq{}x"
# Templates that render an answer differently in a longer chat, and some that do not.
IRREGULAR = ("alpaca", "chatml", "deepseek_r1", "glm4_5", "gpt_oss", "minimax_m2", "mistral_v3")
IRREGULAR += ("nemotron3", "phi3", "phi4_mini", "qwen3", "qwen3_5")
# Each kind of generation prompt: none, a blank, a word, an added token, a newline, reasoning.
BORDERS = ("llama2", "jamba", "blank_prompt", "vicuna", "falcon", "phi4", "chatml", "qwen3_5")


def row_of(fields: dict[str, Any]) -> Row:
    return Row(0, "rows.jsonl:1", fields)


@cache
def encode(
    name: str, feature: str, *, expand: bool | None = None, blocks: bool = False, spm: bool = False
) -> list[tuple[Row, EncodedExample]]:
    """The examples of a chat, each with its row; none where the template refuses the chat."""
    tokenizer = tiny_chat.tokenizer(name, generation_blocks=blocks, sentencepiece=spm)
    task = make_task("causal_lm", max_length=4000, expand_turns=expand)
    encoder = task.encoder(tokenizer, {}, None)
    row = row_of(tiny_chat.FEATURES[feature])
    if feature in REFUSED.get(name, ()):
        with pytest.raises(DtlError, match=f"chat template of {name} does not accept"):
            [encoder(each) for each in task.expand_row(row, processor=tokenizer)]
        return []
    rows = task.expand_row(row, processor=tokenizer)
    return [(each, encoder(each)) for each in rows]


def plain_messages(name: str, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages as somebody passes them to this template in plain transformers."""
    made = []
    for message in messages:
        message = {k: v for k, v in message.items() if k not in ("weight", "train")}
        if isinstance(message.get("content"), list) and name not in ("llama4", "gemma3"):
            message["content"] = "".join(part["text"] for part in message["content"])
        if "reasoning_content" in message and name in REASONING_KEYS:
            message[REASONING_KEYS[name]] = message.pop("reasoning_content")
        if name == "deepseek_v3" and "tool_calls" in message:
            message = json.loads(json.dumps(message))
            for call in message["tool_calls"]:
                call["function"]["arguments"] = json.dumps(call["function"]["arguments"])
        made.append(message)
    return made


def apply_template(tokenizer: Any, name: str, fields: dict[str, Any], **options: Any) -> Any:
    """Plain `apply_chat_template`; some templates require the key `content` beside calls."""
    messages = plain_messages(name, fields["messages"])
    try:
        return tokenizer.apply_chat_template(messages, tools=fields.get("tools"), **options)
    except Exception:
        messages = [{"content": "", **message} for message in messages]
        return tokenizer.apply_chat_template(messages, tools=fields.get("tools"), **options)


def runs(flags: list[bool]) -> list[tuple[int, int]]:
    """The start and end of each run of true values."""
    text = "".join("x" if flag else "." for flag in flags)
    return [match.span() for match in re.finditer("x+", text)]


def supervised(example: EncodedExample) -> list[bool]:
    return [label != -100 for label in example.values["labels"]]


def expected_runs(name: str, row: Row) -> tuple[Any, list[str]]:
    """The ids of transformers, and the text of each answer that is learned, by the generation
    blocks of the template."""
    tokenizer = tiny_chat.tokenizer(name, generation_blocks=True)
    encoded = apply_template(
        tokenizer, name, row.fields, return_assistant_tokens_mask=True, return_dict=True
    )
    ids, mask = encoded["input_ids"], [bool(flag) for flag in encoded["assistant_masks"]]
    answers = [message for message in row.fields["messages"] if message["role"] == "assistant"]
    found = [tokenizer.decode(ids[start:end]) for start, end in runs(mask)]
    assert len(found) == len(answers)
    return ids, [
        text
        for text, message in zip(found, answers, strict=True)
        if message.get("weight", 1) and message.get("train", True)
    ]


@pytest.mark.parametrize(
    ("name", "expand"),
    [(name, expand) for name in tiny_chat.NAMES for expand in (None, True)]
    + [(name, False) for name in IRREGULAR],
)
def test_masks_and_tokens_are_those_of_transformers(name, expand):
    tokenizer = tiny_chat.tokenizer(name)
    for feature in tiny_chat.FEATURES:
        for row, example in encode(name, feature, expand=expand):
            ids, texts = expected_runs(name, row)
            tokens = list(example.values["input_ids"])
            if name not in PROMPT_ENDS_IN_BLANK:
                assert tokens == ids, feature
            assert tokenizer.decode(tokens) == tokenizer.decode(ids), feature
            found = runs(supervised(example))
            if name in WITHOUT_END:
                texts = [text.rstrip("\n") for text in texts]
            assert [tokenizer.decode(tokens[a:b]) for a, b in found] == texts, feature


@pytest.mark.parametrize("name", tiny_chat.NAMES)
def test_a_template_with_generation_blocks_gives_the_same_examples(name):
    for feature in tiny_chat.FEATURES:
        if name == "glm4" and feature == "blanks":
            continue  # without blocks, no one can tell a newline of the answer from the template's
        ours, marked = encode(name, feature), encode(name, feature, blocks=True)
        assert [example for _, example in ours] == [example for _, example in marked], feature


@pytest.mark.parametrize("name", tiny_chat.NAMES)
def test_chats_of_the_wild_are_refused_by_the_template_or_learned_as_its_blocks_say(name):
    """Consecutive messages of one role, equal texts, emoji, several calls of a message."""
    tokenizer = tiny_chat.tokenizer(name)
    marked = tiny_chat.tokenizer(name, generation_blocks=True)
    task = make_task("causal_lm", max_length=4000)
    encode, encode_marked = (task.encoder(each, {}, None) for each in (tokenizer, marked))
    for feature, fields in tiny_chat.WILD.items():
        row = row_of(fields)
        try:
            found = [encode(each) for each in task.expand_row(row, processor=tokenizer)]
        except DtlError as error:
            assert "does not accept the row" in str(error), feature
            continue
        if name == "glm4" and "call" in feature:
            # The model itself writes the token of its role between the parts of an answer.
            start, end = runs(supervised(found[0]))[0]
            text = tokenizer.decode(found[0].values["input_ids"][start:end])
            assert text.count("<|assistant|>") == (feature != "result_parts")
            continue
        expected = [encode_marked(each) for each in task.expand_row(row, processor=marked)]
        assert found == expected, feature


@pytest.mark.parametrize(
    ("name", "spm"),
    [(name, False) for name in tiny_chat.NAMES] + [(name, True) for name in BORDERS],
)
def test_what_is_learned_begins_after_the_tokens_of_the_generation_prompt(name, spm):
    tokenizer = tiny_chat.tokenizer(name, sentencepiece=spm)
    for feature in tiny_chat.FEATURES:
        for row, example in encode(name, feature, expand=True, spm=spm):
            beginning = {**row.fields, "messages": row.fields["messages"][:-1]}
            prompt = apply_template(
                tokenizer, name, beginning, add_generation_prompt=True, return_dict=False
            )
            start, _end = runs(supervised(example))[-1]
            tokens = list(example.values["input_ids"])
            if example.notes:
                assert name in OPENS_REASONING
                continue
            assert tokens[:start] == prompt, feature
            full = apply_template(tokenizer, name, row.fields, tokenize=False)
            text = apply_template(
                tokenizer, name, beginning, tokenize=False, add_generation_prompt=True
            )
            if not spm:
                assert tokenizer.decode(tokens[start:]) == full[len(text) :], feature


@pytest.mark.parametrize("name", sorted({*IRREGULAR, *BORDERS}))
def test_a_tokenizer_in_python_gives_the_same_texts_and_masks(name):
    """It does not give the characters of its tokens."""
    fast, slow = tiny_chat.tokenizer(name), tiny_chat.python_tokenizer(name)
    task = make_task("causal_lm", max_length=8000)
    encoder = task.encoder(slow, {}, None)
    for feature in tiny_chat.FEATURES:
        for row, expected in encode(name, feature):
            found = encoder(row)
            tokens = [list(each.values["input_ids"]) for each in (found, expected)]
            assert tokens[0] == apply_template(slow, name, row.fields, return_dict=False), feature
            learned = [
                [made.decode(ids[start:end]) for start, end in runs(supervised(each))]
                for made, ids, each in zip((slow, fast), tokens, (found, expected), strict=True)
            ]
            assert learned[0] == learned[1], feature
            assert (found.dropped, found.notes) == (expected.dropped, expected.notes), feature


@pytest.mark.parametrize("name", tiny_chat.NAMES)
def test_plain_chats_are_as_in_use_unless_the_template_itself_differs(name):
    for feature in ("plain", "two_turns", "three_turns", "weights"):
        for _, example in encode(name, feature):
            assert bool(example.notes) == (name in OPENS_REASONING), feature


@pytest.mark.parametrize("name", tiny_chat.NAMES)
def test_the_token_that_ends_an_answer_is_a_stop_token(name):
    tokenizer = tiny_chat.tokenizer(name)
    stops = find_stop_tokens(tokenizer, {})
    assert tokenizer.eos_token_id in stops
    for feature in tiny_chat.FEATURES:
        for _, example in encode(name, feature):
            _, end = runs(supervised(example))[-1]
            is_stop = example.values["input_ids"][end - 1] in stops
            assert is_stop == (name not in WITHOUT_END), feature


def with_sentinels(value: Any, path: tuple[Any, ...], found: dict[str, tuple[Any, ...]]) -> Any:
    """The value with a text of its own in place of each text that a chat must not lose."""
    if isinstance(value, dict):
        skipped = ("role", "type", "id", "tool_call_id", "required", "parameters")
        return {
            key: item if key in skipped else with_sentinels(item, (*path, key), found)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [with_sentinels(item, (*path, n), found) for n, item in enumerate(value)]
    if not isinstance(value, str) or (
        path[-1:] == ("name",) and path[0] == "messages" and ("tool_calls" not in path)
    ):
        return value
    sentinel = SENTINEL.format(len(found))
    found[sentinel] = path
    if "</think>" in value:
        other = SENTINEL.format(len(found))
        found[other] = (*path, "reasoning")
        return f"<think>\n{other}\n</think>\n\n{sentinel}"
    return sentinel


def feature_of(path: tuple[Any, ...], messages: list[dict[str, Any]]) -> str:
    if path[0] == "tools":
        return "tools"
    if "tool_calls" in path:
        return "tool_calls"
    if path[-1].startswith("reasoning"):
        return "reasoning"
    role = messages[path[1]]["role"]
    return {"system": "system", "tool": "tool_results"}.get(role, "content")


@pytest.mark.parametrize("name", tiny_chat.NAMES)
def test_each_text_of_a_chat_is_in_an_example_or_reported_as_dropped(name):
    tokenizer = tiny_chat.tokenizer(name)
    task = make_task("causal_lm", max_length=4000)
    encoder = task.encoder(tokenizer, {}, None)
    for feature, fields in tiny_chat.FEATURES.items():
        if feature in REFUSED.get(name, ()):
            continue
        sentinels: dict[str, tuple[Any, ...]] = {}
        row = row_of(
            {key: with_sentinels(value, (key,), sentinels) for key, value in fields.items()}
        )
        examples = [encoder(each) for each in task.expand_row(row, processor=tokenizer)]
        text = "".join(tokenizer.decode(each.values["input_ids"]) for each in examples)
        reported = {dropped for each in examples for dropped in each.dropped}
        last = supervised_indices(fields["messages"])[-1]
        lost = {
            feature_of(path, fields["messages"])
            for sentinel, path in sentinels.items()
            if sentinel not in text and not (path[0] == "messages" and path[1] > last)
        }
        assert reported == lost, feature


@pytest.mark.parametrize("name", tiny_chat.NAMES)
def test_each_further_key_of_a_message_is_in_the_text_or_reported(name):
    tokenizer = tiny_chat.tokenizer(name)
    encoder = make_task("causal_lm", max_length=4000).encoder(tokenizer, {}, None)
    sentinels = {"name": "zqannx", "foo": "zqfoox", "tool_plan": "zqplanx", "id": "zqidx"}
    for place in (0, 1):
        messages = [dict(tiny_chat.QUESTION), dict(tiny_chat.ANSWER)]
        messages[place] |= sentinels
        example = encoder(row_of({"messages": messages}))
        text = tokenizer.decode(example.values["input_ids"])
        lost = {f"messages.{key}" for key, sentinel in sentinels.items() if sentinel not in text}
        assert set(example.dropped) == lost
