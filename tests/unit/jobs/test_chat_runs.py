"""The answers of a model are the same in dtl, in plain PEFT and merged, and they end.

Its template ends an answer with a token that is not the tokenizer's end-of-sequence token, and its
generation prompt ends in a blank.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from dtl import api
from dtl.config.load import load_config
from dtl.data.sources.rows import Row
from dtl.export.load_export import load_export
from dtl.jobs import export as export_job
from dtl.jobs.predict import predict_rows
from tests import tiny, tiny_chat

END = "<|eom|>"
QUESTIONS = ["Which ship is old?", "Which is new?", "The river", "a house"]
ANSWERS = ["The large one.", "It is the small one", "turns", "stone light stone"]
MAX_NEW_TOKENS = 24
ROWS = [
    {
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
    }
    for question, answer in zip(QUESTIONS, ANSWERS, strict=True)
]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A model that knows the answers by heart."""
    folder = tmp_path_factory.mktemp("models") / "chat"
    tiny.decoder(folder, made=tiny_chat.tokenizer("jamba"))
    tiny.teach_chats(folder, ROWS, END)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory, base):
    """A finished run that has trained an adapter a little further."""
    folder = tmp_path_factory.mktemp("chats")
    tiny.write_rows(folder / "rows.jsonl", ROWS)
    config = {
        "run": {"dir": str(folder / "runs"), "name": "done"},
        "model": {"path": str(base), "dtype": "fp32"},
        "task": {"name": "causal_lm", "max_length": 96},
        "data": {"train": str(folder / "rows.jsonl")},
        "strategy": {"name": "lora", "rank": 2},
        "optim": {"learning_rate": 0.001},
        "train": {"steps": 2, "global_batch": 4},
        "layout": {"processes_per_node": 1, "zero_stage": 0},
    }
    (folder / "done.yaml").write_text(json.dumps(config))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DTL_CACHE", str(folder / "cache"))
        outcome = api.train(load_config(folder / "done.yaml"), print_line=lambda line: None)
        assert outcome.exit_code == 0
        yield outcome.run


def questions() -> list[dict[str, Any]]:
    return [{"messages": [{"role": "user", "content": question}]} for question in QUESTIONS]


def answers_of_dtl(folder) -> list[str]:
    rows = [Row(n, "", fields) for n, fields in enumerate(questions())]
    found = predict_rows(rows, load_export(folder), batch_size=4, max_new_tokens=MAX_NEW_TOKENS)
    return [row["predicted"] for row in found]


def plain_answers(model: Any, folder: Any) -> list[str]:
    """In plain transformers, one by one; each ends with the token that ends an answer."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = []
    for fields in questions():
        inputs = tokenizer.apply_chat_template(
            fields["messages"], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        with torch.no_grad():
            tokens = model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        new = tokens[0, inputs["input_ids"].shape[1] :]
        assert tokenizer.convert_ids_to_tokens([int(new[-1])]) == [END]
        texts.append(tokenizer.decode(new, skip_special_tokens=True))
    return texts


def load_with_peft(run, base):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, GenerationConfig

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), run.export)
    model.generation_config = GenerationConfig.from_pretrained(run.export)
    return model.eval()


def test_answers_of_dtl_plain_peft_and_the_merged_model_stop_and_are_the_same(
    run, base, monkeypatch
):
    from transformers import AutoModelForCausalLM

    assert answers_of_dtl(run.path) == ANSWERS
    assert plain_answers(load_with_peft(run, base), run.export) == ANSWERS
    # The comparison of the logits needs a fresh process, and has its own tests.
    monkeypatch.setattr(export_job, "compute_logits_in_fresh_process", compute_logits_here)
    merged = api.export(run.path, merge=True, print_line=lambda line: None)
    assert plain_answers(AutoModelForCausalLM.from_pretrained(merged).eval(), merged) == ANSWERS
    assert answers_of_dtl(merged) == ANSWERS


def compute_logits_here(export, inputs, folder):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(export).eval()
    with torch.no_grad():
        return [model(**each).logits for each in inputs]


def test_card_of_the_adapter_loads_its_stop_tokens(run):
    card = (run.export / "README.md").read_text()
    assert "model.generation_config = GenerationConfig.from_pretrained(" in card
    stops = json.loads((run.export / "generation_config.json").read_text())["eos_token_id"]
    tokens = tiny_chat.tokenizer("jamba").convert_ids_to_tokens(stops)
    assert set(tokens) == {"</s>", END}


def test_a_base_without_template_learns_chats_and_the_export_carries_the_template(
    tmp_path, monkeypatch
):
    """Also where the file of the template is gone."""
    from transformers import AutoTokenizer

    monkeypatch.setenv("DTL_CACHE", str(tmp_path / "cache"))
    tiny.decoder(tmp_path / "base")
    tiny.write_rows(tmp_path / "rows.jsonl", ROWS)
    template = tmp_path / "own.jinja"
    template.write_text(
        "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ '<|eom|>' if m.role == 'assistant' "
        "else ' ' }}{% endfor %}{{ 'assistant: ' if add_generation_prompt }}"
    )
    config = {
        "run": {"dir": str(tmp_path / "runs"), "name": "done"},
        "model": {"path": str(tmp_path / "base"), "add_special_tokens": [END]},
        "task": {"name": "causal_lm", "chat_template": str(template)},
        "data": {"train": str(tmp_path / "rows.jsonl")},
        "strategy": {"name": "lora", "rank": 2},
        "train": {"steps": 1, "global_batch": 4},
    }
    (tmp_path / "done.yaml").write_text(json.dumps(config))
    outcome = api.train(load_config(tmp_path / "done.yaml"), print_line=lambda line: None)
    assert outcome.exit_code == 0
    exported, text = outcome.run.export, template.read_text()
    template.unlink()
    tokenizer = AutoTokenizer.from_pretrained(exported)
    assert tokenizer.chat_template == text
    stops = json.loads((exported / "generation_config.json").read_text())["eos_token_id"]
    assert tokenizer.convert_tokens_to_ids(END) in stops
    rows = [Row(0, "", {**questions()[0], "tools": [{"name": "find_ship"}]})]
    (found,) = predict_rows(rows, load_export(exported), batch_size=1, max_new_tokens=2)
    assert isinstance(found["predicted"], str)
    assert found["dropped"] == ["tools"]
