"""What causal_lm supervises of a row, and its loss and scores."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from dtl.config.schema import Model
from dtl.data.example import EncodedExample
from dtl.data.sources.rows import Row
from dtl.models.pretrained_config import load_model_config
from tests import tiny
from tests.task_bench import make_bench, make_task


def learned(encoded: EncodedExample) -> list[int]:
    """The tokens that count, as `labels` has them; the first is never a target."""
    tokens, labels = encoded.values["input_ids"], encoded.values["labels"]
    assert len(tokens) == len(labels) == encoded.length
    assert all(label in (-100, token) for token, label in zip(tokens, labels, strict=True))
    counted = [label for label in labels[1:] if label != -100]
    assert len(counted) == encoded.targets
    return counted


def encode_with(tokenizer: Any, fields: dict[str, Any], **options: Any) -> Any:
    task = make_task("causal_lm", **options)
    return task.encoder(tokenizer, {}, None)(Row(0, "rows.jsonl:1", fields))


def without_padding_token(tokenizer: Any) -> Any:
    """As dtl does it for models without one: the end token pads."""
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def with_start_token(tokenizer: Any) -> Any:
    """As Llama has it: the tokenizer itself puts the start token before a text."""
    from tokenizers.processors import TemplateProcessing

    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    return tokenizer


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# It strips what people write, puts no newline between messages, and has a mark before each answer.
STRIPPING = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] "
    "{{ m['content'] | trim }} [/INST]{% else %} {{ m['content'] | trim }}{{ eos_token }}"
    "{% endif %}{% endfor %}"
)
# An answer is only a turn of the model's once the next question follows.
REWRITING = (
    "{% for m in messages %}{% if m['role'] == 'assistant' and not loop.last %}(answered)"
    "{% else %}{{ m['content'] }}{% endif %}\n{% endfor %}"
)
TALK = [
    {"role": "system", "content": "be old"},
    {"role": "user", "content": "the river"},
    {"role": "assistant", "content": " keeps light"},
    {"role": "user", "content": "again </s>"},
    {"role": "assistant", "content": "over the stone "},
]


@pytest.mark.parametrize("base", ["decoder", "tied_decoder"])
def test_causal_lm_loss_is_that_of_transformers(base, request):
    bench = make_bench(request.getfixturevalue(base), "causal_lm", 0)
    model = request.getfixturevalue(base)
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    batch = bench.collate(bench.all)
    targets = sum(example.targets for example in bench.encoded)
    with torch.no_grad():
        mean = theirs(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            labels=batch["labels"],
        ).loss.item()
        ours = bench.task.loss(theirs, batch).item()
    assert ours == pytest.approx(mean * targets, rel=1e-5)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (tiny.TEMPLATE, " keeps light</s>over the stone </s>"),
        (CHATML, " keeps light<|im_end|>over the stone <|im_end|>"),
    ],
    ids=["tiny", "chatml"],
)
@pytest.mark.parametrize("change", [lambda t: t, without_padding_token, with_start_token])
def test_of_a_chat_exactly_the_answers_and_their_end_marks_are_learned(template, expected, change):
    tokenizer = change(tiny.tokenizer(chat=True))
    tokenizer.chat_template = template
    encoded = encode_with(tokenizer, {"messages": TALK})
    assert tokenizer.decode(learned(encoded)) == expected
    complete = tokenizer.apply_chat_template(TALK, tokenize=False)
    assert tokenizer.decode(encoded.values["input_ids"]) == complete


def test_a_template_without_a_mark_for_the_answer_works_too():
    tokenizer = tiny.tokenizer(chat=True)
    tokenizer.chat_template = STRIPPING
    encoded = encode_with(tokenizer, {"messages": TALK[1:]})
    assert tokenizer.decode(learned(encoded)) == " keeps light</s> over the stone</s>"
    assert encoded.values["input_ids"].count(tokenizer.bos_token_id) == 1


def test_every_token_of_a_chat_may_be_learned():
    tokenizer = tiny.tokenizer(chat=True)
    encoded = encode_with(tokenizer, {"messages": TALK}, train_on="all")
    assert learned(encoded) == encoded.values["input_ids"][1:]


@pytest.mark.parametrize(
    ("change", "start"),
    [(lambda t: t, ""), (without_padding_token, ""), (with_start_token, "<s>")],
)
def test_of_prompt_and_completion_the_completion_and_the_end_are_learned(change, start):
    tokenizer = change(tiny.tokenizer())
    row = {"prompt": "the old ship", "completion": " carries a letter"}
    encoded = encode_with(tokenizer, row)
    assert tokenizer.decode(learned(encoded)) == " carries a letter</s>"
    assert tokenizer.decode(encoded.values["input_ids"]) == (
        f"{start}the old ship carries a letter</s>"
    )
    open_end = encode_with(tokenizer, row, append_eos=False)
    assert tokenizer.decode(learned(open_end)) == " carries a letter"
    everything = encode_with(tokenizer, row, train_on="all")
    assert learned(everything) == everything.values["input_ids"][1:]


@pytest.mark.parametrize("change", [lambda t: t, without_padding_token, with_start_token])
def test_all_of_a_plain_text_is_learned_with_its_end(change):
    tokenizer = change(tiny.tokenizer())
    encoded = encode_with(tokenizer, {"text": "the river turns"})
    body = tokenizer("the river turns", add_special_tokens=False)["input_ids"]
    end = [tokenizer.eos_token_id]
    start = [tokenizer.bos_token_id] if change is with_start_token else []
    assert encoded.values["input_ids"] == start + body + end
    assert learned(encoded) == (start + body + end)[1:]


def test_the_end_token_counts_in_a_padded_batch_where_it_is_also_the_padding(decoder):
    """Padding is known by length: the loss of a padded example is that of the example alone."""
    from transformers import AutoModelForCausalLM

    tokenizer = without_padding_token(tiny.tokenizer())
    task = make_task("causal_lm")
    rows = [encode_with(tokenizer, {"text": text}) for text in ("a river", " ".join(tiny.WORDS))]
    batch = task.collate([row.values for row in rows], pad_token_id=tokenizer.pad_token_id)
    assert batch["attention_mask"].sum(1).tolist() == [row.length for row in rows]
    assert (batch["labels"][0] == tokenizer.eos_token_id).sum() == 1
    model = AutoModelForCausalLM.from_pretrained(decoder, dtype=torch.float32).eval()
    with torch.no_grad():
        found = [record["loss"] for record in task.eval_records(model, batch, processor=tokenizer)]
        for row, loss in zip(rows, found, strict=True):
            tokens = torch.tensor([row.values["input_ids"]])
            alone = model(input_ids=tokens, labels=tokens).loss.item() * row.targets
            assert loss == pytest.approx(alone, rel=1e-5)


def test_what_is_cut_off_is_not_counted():
    tokenizer = tiny.tokenizer()
    row = {"prompt": "the old ship", "completion": " carries a letter"}
    prompt = len(tokenizer("the old ship")["input_ids"])
    cut = encode_with(tokenizer, row, max_length=prompt + 1)
    assert (cut.length, cut.targets) == (prompt + 1, 1)
    nothing = encode_with(tokenizer, row, max_length=prompt)
    assert nothing.reason == "no target left after truncation"
    assert encode_with(tokenizer, {"text": ""}).reason == "empty text"


def test_a_row_is_cut_to_what_the_model_can_read(decoder):
    """128 positions, though max_length allows 512."""
    task = make_task("causal_lm")
    settings = load_model_config(Model(path=str(decoder)))
    encode = task.encoder(tiny.tokenizer(), {}, settings)
    assert encode(Row(0, "", {"text": "the river " * 200})).length == 128


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"messages": "hello"}, "is not a list of chat messages"),
        ({"messages": []}, "is not a list of chat messages"),
        ({"messages": ["hello"]}, "is not a list of chat messages"),
        ({"messages": [{"role": "user"}]}, "is not a list of chat messages"),
        ({"messages": [{"role": "user", "content": 7}]}, "is not a list of chat messages"),
        ({"text": 5}, "`text` is int"),
        ({"prompt": "x", "completion": ["y"]}, "`completion` is list"),
        ({"text": None}, "the row has 'text'"),
        ({"title": "x", "body": "y"}, "the row has 'title', 'body'"),
        ({"prompt": "x"}, "the task reads"),
        ({}, "the row has nothing"),
    ],
)
def test_a_row_at_fault_is_named(fields, message):
    fault = make_task("causal_lm").find_row_fault(Row(0, "rows.jsonl:1", fields))
    assert fault.location == "rows.jsonl:1"
    assert message in fault.problem
    assert fault.fix


def test_a_chat_needs_a_template():
    from dtl.core.errors import DtlError

    with pytest.raises(DtlError, match=r"^rows\.jsonl:1: .* has no chat template"):
        encode_with(tiny.tokenizer(), {"messages": TALK})


def test_answer_that_the_template_rewrites_later_is_an_example_of_its_own():
    tokenizer = tiny.tokenizer(chat=True)
    tokenizer.chat_template = REWRITING
    task = make_task("causal_lm")
    rows = task.expand_row(Row(0, "rows.jsonl:1", {"messages": TALK}), processor=tokenizer)
    encode = task.encoder(tokenizer, {}, None)
    assert [tokenizer.decode(learned(encode(row))) for row in rows] == [
        " keeps light",
        "over the stone ",
    ]
    assert not any(encode(row).dropped for row in rows)
    full = encode_with(tokenizer, {"messages": TALK}, expand_turns=False)
    assert full.dropped == ("content",)


def test_a_template_that_refuses_a_row_says_why():
    from dtl.core.errors import DtlError

    tokenizer = tiny.tokenizer(chat=True)
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(DtlError, match="roles must alternate"):
        encode_with(tokenizer, {"messages": TALK})


def test_scores_of_a_language_model_by_hand():
    """3 nats over 4 targets, 3 guessed right: exp(0.75) = 2.117."""
    records = [{"loss": 1.0, "targets": 3, "correct": 2}, {"loss": 2.0, "targets": 1, "correct": 1}]
    scores = make_task("causal_lm").score(records, {})
    assert scores == pytest.approx({"loss": 0.75, "perplexity": 2.1170000, "accuracy": 0.75})
    hopeless = make_task("causal_lm").score([{"loss": 1e6, "targets": 1, "correct": 0}], {})
    assert math.isfinite(hopeless["perplexity"])
