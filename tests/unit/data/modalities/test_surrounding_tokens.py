"""A plain text starts exactly as the tokenizer itself writes it, and nothing is doubled."""

from __future__ import annotations

from typing import Any

import pytest

from dtl.data.modalities.text import surrounding_tokens
from dtl.data.sources.rows import Row
from tests import tiny
from tests.task_bench import make_task

TEXT = "a ship turns"


def tokenizer_that_writes(before: list[str], after: list[str]) -> Any:
    """As GLM's, whose texts start with two special tokens."""
    from tokenizers.processors import TemplateProcessing

    made = tiny.tokenizer()
    names = [*before, *after]
    made.add_special_tokens({"additional_special_tokens": names})
    made.backend_tokenizer.post_processor = TemplateProcessing(
        single=" ".join([*before, "$A", *after]),
        special_tokens=[(name, made.convert_tokens_to_ids(name)) for name in names],
    )
    return made


CASES = [
    ([], []),
    (["<s>"], []),
    (["[gMASK]", "<sop>"], []),
    (["[CLS]"], ["[SEP]"]),
    (["<s>"], ["[SEP]", "</s>"]),
]
IDS = ["none", "llama", "glm", "bert", "two-ends"]
FIELDS = [
    ("causal_lm", {"text": TEXT}, "input_ids"),
    ("causal_lm", {"prompt": "a ship", "completion": " turns"}, "input_ids"),
    ("dpo", {"prompt": "a ship", "chosen": " turns", "rejected": " sends"}, "chosen"),
    ("kto", {"prompt": "a ship", "completion": " turns", "label": True}, "input_ids"),
    ("reward", {"prompt": "a ship", "chosen": " turns", "rejected": " sends"}, "chosen"),
]


@pytest.mark.parametrize(("before", "after"), CASES, ids=IDS)
def test_tokens_around_a_text_are_found(before, after):
    made = tokenizer_that_writes(before, after)
    start, end = surrounding_tokens(made)
    assert made.convert_ids_to_tokens(start) == before
    assert made.convert_ids_to_tokens(end) == after


@pytest.mark.parametrize(("name", "fields", "column"), FIELDS)
@pytest.mark.parametrize(("before", "after"), CASES, ids=IDS)
def test_texts_start_and_end_as_the_tokenizer_writes_them(before, after, name, fields, column):
    made = tokenizer_that_writes(before, after)
    task = make_task(name)

    def encode(fields: dict[str, Any]) -> list[int]:
        return list(task.encoder(made, {}, None)(Row(0, "", fields)).values[column])

    expected = list(made(TEXT)["input_ids"])
    if not after:
        expected.append(made.eos_token_id)
    first = next(iter(fields))
    last = next(key for key in ("completion", "chosen", "text") if key in fields)
    found = encode(fields)
    assert made.decode(found) == made.decode(expected)
    assert found[: len(before)] == expected[: len(before)]
    with_own = {**fields, first: "".join(before) + fields[first]}
    with_own[last] += "".join(after) or made.eos_token
    assert encode(with_own) == found, "nothing is doubled"
