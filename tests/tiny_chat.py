# ruff: noqa: RUF001
"""Chat templates of public model families, a tiny tokenizer for each, and chats with every feature.

The templates in tests/chat_templates are written after the documented format of each family. What
the assistant writes, with the token that ends it, stands in generation blocks: a template without
them is the same template with the blocks taken out.
"""

from __future__ import annotations

import copy
import re
from functools import cache
from pathlib import Path
from typing import Any

from tests import tiny

FOLDER = Path(__file__).parent / "chat_templates"
NAMES = sorted(path.stem for path in FOLDER.glob("*.jinja"))
SPECIAL = {  # bos and eos token of a family, where they are not those of the tiny tokenizer
    "deepseek_v3": ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
    "deepseek_r1": ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
    "deepseek_v3_1": ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
    "olmo2": ("<|endoftext|>", "<|endoftext|>"),
    "granite3": (None, "<|end_of_text|>"),
}
ADDED = re.compile(
    r"<\|[^|<> ]+\|>|<｜[^｜]+｜>|\[\|\w+\|\]|</?(?:think|tool_call|tool_response)>"
    r"|</?arg_(?:key|value)>|<(?:start|end)_of_turn>|\[/?(?:INST|TOOL_CALLS|AVAILABLE_TOOLS|TOOL_RESULTS|SYSTEM_PROMPT"
    r"|gMASK)\]|<sop>|\]~!b\[|\]~b\]|\[e~\["
)
PLAIN = re.compile(r"</?\w+>(?<!of_turn>)(?<!sop>)")  # added, but not special, as in Qwen
# Templates that build a token from the role of a message.
ROLES = ("system", "user", "assistant")


def read_template(name: str, *, generation_blocks: bool = False) -> str:
    """Return a template; without generation blocks, a block that is always true is in their
    place, which leaves blanks and newlines as they are."""
    text = (FOLDER / f"{name}.jinja").read_text(encoding="utf-8").rstrip("\n")
    if generation_blocks:
        return text
    return text.replace("{%- generation %}", "{%- if true %}").replace(
        "{%- endgeneration %}", "{%- endif %}"
    )


@cache
def _byte_level() -> Any:
    return tiny.tokenizer()


@cache
def sentencepiece_like() -> Any:
    """A BPE that writes a blank as a part of the word after it, and puts one before a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    inner.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    inner.train_from_iterator(
        [" ".join(tiny.WORDS)] * 4,
        trainers.BpeTrainer(
            vocab_size=560,
            special_tokens=["<pad>", "<s>", "</s>", "<unk>", *(f"<0x{n:02X}>" for n in range(256))],
            initial_alphabet=list(map(chr, range(32, 127))),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    )


@cache
def tokenizer(name: str, *, generation_blocks: bool = False, sentencepiece: bool = False) -> Any:
    """A tiny tokenizer with the template and the added tokens of a family."""
    made = copy.deepcopy(sentencepiece_like() if sentencepiece else _byte_level())
    template = read_template(name, generation_blocks=generation_blocks)
    bos, eos = SPECIAL.get(name, (None, None))
    tokens = set(ADDED.findall(template)) | {token for token in (bos, eos) if token}
    for opening, closing in (("'<|' + ", "|>"), ("'[|' + ", "|]"), ("'<|im_' + ", "|>")):
        if opening in template:
            tokens |= {opening[1:].split("'")[0] + role + closing for role in ROLES}
    plain = sorted(token for token in tokens if PLAIN.fullmatch(token))
    made.add_special_tokens({"additional_special_tokens": sorted(tokens - set(plain))})
    made.add_tokens(plain)
    made.bos_token, made.eos_token = bos or made.bos_token, eos or made.eos_token
    made.chat_template = template
    made.name_or_path = name
    return made


def python_tokenizer(name: str) -> Any:
    """A tokenizer of bytes in Python, which does not give the characters of its tokens, with the
    template and the added tokens of a family."""
    from tokenizers import AddedToken
    from transformers import ByT5Tokenizer

    fast = tokenizer(name)
    own = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    made = ByT5Tokenizer(
        extra_ids=0,
        **{key: AddedToken(text, normalized=False, special=True) for key, text in own.items()},
    )
    added = fast.added_tokens_decoder.values()
    special = [str(token) for token in added if token.special and str(token) not in own.values()]
    made.add_special_tokens({"additional_special_tokens": special})
    made.add_tokens([str(token) for token in added if not token.special])
    made.bos_token, made.eos_token = fast.bos_token, fast.eos_token
    made.chat_template, made.name_or_path = fast.chat_template, name
    assert not made.is_fast
    return made


def call(name: str = "find_ship", **arguments: Any) -> dict[str, Any]:
    return {
        "type": "function",
        "id": "call00001",
        "function": {"name": name, "arguments": arguments},
    }


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "find_ship",
            "description": "Finds a ship on the river.",
            "parameters": {
                "type": "object",
                "properties": {"river": {"type": "string", "description": "Its name."}},
                "required": ["river"],
            },
        },
    }
]
SYSTEM = {"role": "system", "content": "Be slow and quiet."}
QUESTION = {"role": "user", "content": "Which ship is old?"}
ANSWER = {"role": "assistant", "content": "The large one, under the stone."}
AGAIN = {"role": "user", "content": "And which is new?"}
SECOND = {"role": "assistant", "content": "It is the small one.\nIt turns often."}
REASONED = {
    "role": "assistant",
    "content": "The small one.",
    "reasoning_content": "A new ship keeps its light.",
}
CALLING = {"role": "assistant", "tool_calls": [call(river='The "old" one', depth=3)]}
RESULT = {
    "role": "tool",
    "name": "find_ship",
    "tool_call_id": "call00001",
    "content": "An engine, opened.",
}
FEATURES: dict[str, dict[str, Any]] = {
    "plain": {"messages": [QUESTION, ANSWER]},
    "two_turns": {"messages": [QUESTION, ANSWER, AGAIN, SECOND]},
    "three_turns": {"messages": [QUESTION, ANSWER, AGAIN, SECOND, QUESTION, ANSWER]},
    "open_end": {"messages": [QUESTION, ANSWER, AGAIN]},
    "system": {"messages": [SYSTEM, QUESTION, ANSWER, AGAIN, SECOND]},
    "tools": {"messages": [SYSTEM, QUESTION, ANSWER], "tools": TOOLS},
    "calls": {"messages": [SYSTEM, QUESTION, CALLING, RESULT, ANSWER], "tools": TOOLS},
    "calls_twice": {
        "messages": [SYSTEM, QUESTION, CALLING, RESULT, ANSWER, AGAIN, CALLING, RESULT, SECOND],
        "tools": TOOLS,
    },
    "reasoning": {"messages": [QUESTION, REASONED]},
    "reasoning_twice": {
        "messages": [QUESTION, {**ANSWER, "reasoning_content": "Under it."}, AGAIN, REASONED]
    },
    "inline_reasoning": {
        "messages": [
            QUESTION,
            {**ANSWER, "content": "<think>\nOften again.\n</think>\n\nThe large one."},
        ]
    },
    "weights": {"messages": [QUESTION, {**ANSWER, "weight": 0}, AGAIN, {**SECOND, "weight": 1}]},
    "first_only": {"messages": [QUESTION, ANSWER, AGAIN, {**SECOND, "train": False}]},
    "parts": {
        "messages": [QUESTION, {**ANSWER, "content": [{"type": "text", "text": "The one."}]}]
    },
    "blanks": {"messages": [QUESTION, {**ANSWER, "content": "  The  large one. \n"}]},
}
# What chats in the wild have besides.
WILD: dict[str, dict[str, Any]] = {
    "two_questions": {"messages": [QUESTION, AGAIN, ANSWER]},
    "two_answers": {"messages": [QUESTION, ANSWER, SECOND]},
    "empty_system": {"messages": [{"role": "system", "content": ""}, QUESTION, ANSWER]},
    "answer_first": {"messages": [ANSWER, QUESTION, SECOND]},
    "same_texts": {"messages": [QUESTION, ANSWER, QUESTION, ANSWER]},
    "answer_in_question": {
        "messages": [
            {"role": "user", "content": "Say: yes"},
            {"role": "assistant", "content": "yes"},
            {"role": "user", "content": "assistant: yes"},
            {"role": "assistant", "content": "yes"},
        ]
    },
    "unicode": {
        "messages": [
            {"role": "user", "content": "q\r\nw \U0001f600 \u00e9 \u202e"},
            {"role": "assistant", "content": "b\r\n\r\nc \U0001f469\u200d\U0001f680 n\u0303"},
            AGAIN,
            {"role": "assistant", "content": "\u65e5\u672c\u8a9e\u3002"},
        ]
    },
    "call_with_text": {
        "messages": [QUESTION, {**CALLING, "content": "I look it up."}, RESULT, ANSWER],
        "tools": TOOLS,
    },
    "two_calls": {
        "messages": [
            QUESTION,
            {"role": "assistant", "tool_calls": [call(river="x"), call("count_words", n=2)]},
            RESULT,
            {**RESULT, "name": "count_words", "content": "7 words"},
            ANSWER,
        ],
        "tools": TOOLS,
    },
    "result_parts": {
        "messages": [
            QUESTION,
            CALLING,
            {**RESULT, "content": [{"type": "text", "text": "An engine."}]},
            ANSWER,
        ],
        "tools": TOOLS,
    },
}
