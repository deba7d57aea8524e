"""Inputs of predictions that are longer than the limit: refused, or cut and reported."""

import pytest

from dtl.config import registry
from dtl.data.example import EncodedExample, Skip
from dtl.data.sources.rows import Row
from dtl.jobs.input_limits import LimitedEncoder
from dtl.prepare.unlimited_encoder import unlimited_prompt_encoder
from tests import tiny

LIMIT = 16
WORDS = "the old stone house by a river keeps one light for every ship that passes it at night"


class Config:
    max_position_embeddings = 128
    model_type = "llama"


def make_encoder(name, *, truncates, **options):
    module = registry.load("tasks", name)
    task = module.Plugin(module.Options(**options))
    known = (tiny.tokenizer(), {"labels": ["a", "b"]}, Config)
    return task, LimitedEncoder(
        encode=task.prompt_encoder(*known),
        encode_all=unlimited_prompt_encoder(task, *known),
        max_length=task.max_length(*known),
        continues_input=task.auto_class == "AutoModelForCausalLM",
        truncates_prompts=truncates,
    )


def encode(name, fields, *, truncates=False, **options):
    task, encoder = make_encoder(name, truncates=truncates, **options)
    return encoder(Row(0, "here", task.with_placeholder_target(fields, {"labels": ["a", "b"]})))


def test_a_prompt_without_room_for_an_answer_is_refused_with_both_numbers():
    example, cut = encode("causal_lm", {"prompt": WORDS}, max_length=LIMIT)
    assert isinstance(example, Skip) and cut == 0
    length = len(tiny.tokenizer()(WORDS)["input_ids"])
    assert f"max_length ({LIMIT})" in example.reason and "--truncate-prompts" in example.reason
    assert f"({length}" in example.reason or f"({length + 2})" in example.reason


def test_a_prompt_that_is_cut_keeps_its_end_and_says_how_much_is_missing():
    example, cut = encode("causal_lm", {"prompt": WORDS}, truncates=True, max_length=LIMIT)
    assert isinstance(example, EncodedExample)
    tokens, made = list(example.values["input_ids"]), tiny.tokenizer()
    prompt = made(WORDS)["input_ids"]
    assert len(tokens) == LIMIT
    answer = sum(label != -100 for label in example.values["labels"])
    assert tokens[:-answer] == prompt[-(LIMIT - answer) :]
    assert cut == len(prompt) + answer - LIMIT


@pytest.mark.parametrize("truncates", [True, False])
def test_a_prompt_that_fits_is_unchanged(truncates):
    example, cut = encode("causal_lm", {"prompt": "the river"}, truncates=truncates, max_length=64)
    assert cut == 0
    prompt = tiny.tokenizer()("the river")["input_ids"]
    assert list(example.values["input_ids"])[: len(prompt)] == prompt


@pytest.mark.parametrize(
    ("name", "fields", "option"),
    [
        ("text_classification", {"text": WORDS}, "max_length"),
        ("seq2seq", {"source": WORDS}, "max_source_length"),
    ],
)
def test_an_input_that_is_cut_is_reported(name, fields, option):
    complete, nothing = encode(name, fields)
    example, cut = encode(name, fields, **{option: LIMIT})
    assert nothing == 0
    assert cut == len(complete.values["input_ids"]) - len(example.values["input_ids"]) > 0


def test_the_command_counts_them(capsys):
    """Each row has its reason; a line counts the rows."""
    from dtl.cli.models import _report_missing

    rows = [{"predicted": "a"}, {"predicted": None, "reason": "long"}, {"predicted": "b"}]
    rows[2] |= {"truncated_tokens": 3, "dropped": ["tools"]}
    assert list(_report_missing(rows)) == rows
    errors = capsys.readouterr().err
    assert "1 of 3 inputs have no prediction" in errors and "1 of 3 inputs were cut" in errors
    assert "1 of 3 inputs have something that the chat template does not render" in errors
