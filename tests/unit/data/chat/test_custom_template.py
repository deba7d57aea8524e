"""`task.chat_template`: for a base without a chat template, in every task that reads chats."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest

from dtl.core.errors import DtlError
from dtl.data.chat.custom_template import set_chat_template, template_names
from dtl.data.chat.options import ChatOptions
from dtl.data.chat.stop_tokens import find_stop_tokens
from dtl.data.sources.rows import Row
from tests import tiny, tiny_chat
from tests.task_bench import make_task

CHAT_TASKS = ("causal_lm", "dpo", "ipo", "cpo", "orpo", "simpo", "kto", "reward")
# Tokens of a model family that a template is made for.
TOKENS = {
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "llama3": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
}
OWN = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}{{ eos_token }}{% endfor %}"


@cache
def _tokenizer() -> Any:
    return tiny.tokenizer()


def tokenizer_for(name: str = "") -> Any:
    made = copy.deepcopy(_tokenizer())
    made.add_special_tokens({"additional_special_tokens": list(TOKENS.get(name, ()))})
    return made


def refuse(value: str, tokenizer: Any = None) -> str:
    with pytest.raises(DtlError) as error:
        set_chat_template(tokenizer or tokenizer_for(), {}, ChatOptions(chat_template=value))
    return str(error.value)


@pytest.mark.parametrize("name", template_names())
def test_answers_follow_the_generation_prompt_and_end_at_a_stop_token(name):
    task = make_task("causal_lm", chat_template=name, max_length=4000)
    tokenizer, stats = task.adapt_processor(tokenizer_for(name), {})
    encode = task.encoder(tokenizer, stats, None)
    for feature in ("plain", "system", "two_turns"):
        row = Row(0, "", tiny_chat.FEATURES[feature])
        (expanded,) = task.expand_row(row, processor=tokenizer)
        example = encode(expanded)
        assert not example.dropped and not example.notes, feature
        tokens, labels = example.values["input_ids"], example.values["labels"]
        messages = row.fields["messages"]
        prompt = tokenizer.apply_chat_template(
            messages[:-1], add_generation_prompt=True, return_dict=False
        )
        full = tokenizer.apply_chat_template(messages, return_dict=False)
        assert tokens[: len(prompt)] == prompt and tokens == full, feature
        learned = [label for label in labels[len(prompt) :] if label != -100]
        assert learned[-1] in find_stop_tokens(tokenizer, {}), feature
        assert tokenizer.decode(learned[:-1]).strip() == messages[-1]["content"], feature


@pytest.mark.parametrize("name", CHAT_TASKS)
def test_each_task_takes_a_file_and_an_export_needs_it_no_more(name, tmp_path):
    file = tmp_path / "own.jinja"
    file.write_text(OWN + "\n", encoding="utf-8")
    task = make_task(name, chat_template=str(file))
    tokenizer, stats = task.adapt_processor(tokenizer_for(), {"other": 1})
    assert tokenizer.chat_template == OWN
    assert stats == {"other": 1, "chat_template": OWN}
    assert str(file) in "".join(task.find_data_notes(stats))
    file.unlink()
    again, _ = task.adapt_processor(tokenizer_for(), stats)
    assert again.chat_template == OWN


@pytest.mark.parametrize("name", [name for name in CHAT_TASKS if name != "reward"])
def test_each_task_stops_generation_at_the_end_of_an_answer(name, tmp_path):
    """Also one that is not the tokenizer's end token, and that the base does not know."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tokenizer_for("chatml")
    task = make_task(name, chat_template="chatml")
    tokenizer, _ = task.adapt_processor(tokenizer, {})
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=330,
            hidden_size=4,
            intermediate_size=4,
            num_hidden_layers=1,
            num_attention_heads=1,
            eos_token_id=2,
        )
    )
    task.configure_model(model, processor=tokenizer)
    assert model.generation_config.eos_token_id == [
        2,
        tokenizer.convert_tokens_to_ids("<|im_end|>"),
    ]


def test_an_end_that_is_not_a_token_is_refused_with_the_tokens_to_add():
    message = refuse("chatml")
    assert "'<|im_end|>', which is not a token of the model" in message
    assert "model.add_special_tokens=[<|im_start|>, <|im_end|>]" in message


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{% for m in messages %}{{ m.content }}{{ eos_token }}", "line 1 of the template is not"),
        ("{{ eos_token }}", "does not render the messages"),
        ("{% for m in messages %}{{ m.content }}.{% endfor %}", "ends an answer with '.'"),
        (" \n", "has 2 characters"),
        ("{{ raise_exception('no') }}", "does not accept the row (no)"),
    ],
)
def test_a_template_that_no_chat_can_use_is_refused(text, problem, tmp_path):
    (tmp_path / "own.jinja").write_text(text, encoding="utf-8")
    assert problem in refuse(str(tmp_path / "own.jinja"))


def test_an_unknown_name_is_refused_with_the_closest(tmp_path):
    message = refuse("chatlm")
    assert (
        "task.chat_template: 'chatlm' is neither" in message and "did you mean chatml?" in message
    )
    (tmp_path / "a.jinja").write_bytes(b"\xff\xfe\xfa")
    assert "not UTF-8" in refuse(str(tmp_path / "a.jinja"))
    assert "Is a directory" in refuse(str(tmp_path))


def test_a_row_of_a_base_without_template_names_the_key():
    task = make_task("causal_lm")
    row = Row(0, "rows.jsonl:1", tiny_chat.FEATURES["plain"])
    with pytest.raises(DtlError, match=r"set task\.chat_template"):
        task.expand_row(row, processor=tokenizer_for())
