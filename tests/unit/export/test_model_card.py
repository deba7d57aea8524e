"""The model card: its content is right, and the code in it runs."""

import re

import pytest
import torch
import yaml

from dtl import mini
from dtl.config.schema import RunConfig
from dtl.export.model_card import ModelCardData, render_model_card
from dtl.plan.records import Layout, ParameterCounts, PhasePlan, Plan
from tests import tiny

PLAN = Plan(
    layout=Layout(1, 2, 2, "none", 4, 2, False, "bf16", "cpu"),
    parameters=ParameterCounts(trainable=123_456, frozen=2_000_000),
    model_state={},
    phases=(PhasePlan("lora", 0, 40, 3e-4, ParameterCounts(123_456, 2_000_000)),),
    steps=40,
    steps_per_epoch=7,
    deepspeed=None,
)
SCORES = {
    "unadapted": {"loss": 3.25, "perplexity": 25.790340, "confusion/a/b": 3},
    "adapted": {"loss": 2.5, "perplexity": 12.182494, "confusion/a/b": 1},
}


def test_scores_by_label_are_a_table():
    scores = {"loss": 1.0, "micro_f1": 0.5, "f1/a|b": 0.25, "best_threshold/a|b": 0.3, "f1/c": 1.0}
    text = render("base", scores={"adapted": {**scores, "support/c": 2, "confusion/a/c": 1}})
    assert "| label | f1 | best threshold | support |" in text
    assert "| a\\|b | 0.25 | 0.3 |  |" in text and "| c | 1 |  | 2 |" in text


def render(
    base,
    *,
    kind="adapter",
    auto_class="AutoModelForCausalLM",
    labels=None,
    scores=SCORES,
    card=None,
    **data,
):
    """Return a model card. `card`: further fields of ModelCardData; `data`: of the config."""
    config = RunConfig.model_validate(
        {
            "run": {"name": "first"},
            "model": {"path": str(base)},
            "task": "causal_lm",
            "strategy": {"name": "lora", "rank": 4},
            "data": {"train": "rows.jsonl", "eval": "held.jsonl"} | data,
            "train": {"steps": 40, "global_batch": 24},
        }
    )
    return render_model_card(
        ModelCardData(
            config=config,
            plan=PLAN,
            kind=kind,
            auto_class=auto_class,
            labels=labels,
            scores=scores,
            versions={"dtl": "0.1", "torch": "2.13"},
            **(card or {}),
        )
    )


def code_of(text):
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    return code


def run_code(text, folder):
    scope = {}
    exec(code_of(text).replace("path/of/this/folder", str(folder)), scope)
    return scope


def save_adapter(base, folder, auto, **config_changes):
    """Save an adapter with plain PEFT, with weights that change the output; return the model."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoTokenizer

    task_types = {
        "AutoModelForCausalLM": "CAUSAL_LM",
        "AutoModelForSeq2SeqLM": "SEQ_2_SEQ_LM",
        "AutoModelForTokenClassification": "TOKEN_CLS",
        "AutoModelForSequenceClassification": "SEQ_CLS",
    }
    heads = ["classifier"] if "Classification" in auto.__name__ else None
    config = LoraConfig(
        r=2, target_modules="all-linear", task_type=task_types[auto.__name__], modules_to_save=heads
    )
    model = get_peft_model(auto.from_pretrained(base, **config_changes), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.constant_(parameter, 0.02)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return model.eval()


def test_front_matter_is_yaml_and_names_only_bases_on_the_hub(decoder):
    assert "base_model" not in yaml.safe_load(render(decoder).split("---")[1])
    front = yaml.safe_load(render("owner/base").split("---")[1])
    assert front == {
        "base_model": "owner/base",
        "library_name": "peft",
        "tags": ["dtl", "causal_lm", "lora"],
    }
    assert yaml.safe_load(render(decoder, kind="model").split("---")[1])["library_name"] == (
        "transformers"
    )


def test_table_has_data_strategy_steps_and_layout(decoder):
    text = render(decoder)
    for line in (
        "| training data | rows.jsonl |",
        "| evaluated on | held.jsonl |",
        "| steps | 40 |",
        "| global batch | 24 examples |",
        "| learning rate | 0.0003, cosine |",
        "| layout | 2 ranks, ZeRO 2, bf16 |",
        "| trainable parameters | 123 k |",
        '"rank": 4',
        "- torch 2.13",
    ):
        assert line in text


def test_scores_of_unadapted_and_adapted_model_are_in_one_table(decoder):
    text = render(decoder)
    assert "| model | loss | perplexity |" in text
    assert "| unadapted | 3.25 | 25.7903 |" in text
    assert "| adapted | 2.5 | 12.1825 |" in text
    assert "confusion" not in text


def test_missing_scores_are_stated(decoder):
    assert "There was no held-out data." in render(decoder, scores={}, eval=None)


def test_held_out_fraction_is_stated(decoder):
    assert "| evaluated on | 0.1 of the rows |" in render(decoder, eval=None, eval_fraction=0.1)


@pytest.mark.parametrize("by_name", [False, True])
def test_code_loads_an_adapter(decoder, tmp_path, monkeypatch, by_name):
    """Also on a base that dtl ships."""
    from transformers import AutoModelForCausalLM

    trained = save_adapter(decoder, tmp_path, AutoModelForCausalLM)
    monkeypatch.setattr(mini, "base_folder", lambda name: {"text": decoder}[name])
    loaded = run_code(render("mini:text" if by_name else decoder), tmp_path)
    tokens = loaded["tokenizer"]("the river", return_tensors="pt").input_ids
    with torch.no_grad():
        assert torch.equal(loaded["model"](tokens).logits, trained(tokens).logits)


def test_code_loads_the_head_of_a_classifier(encoder, tmp_path):
    from transformers import AutoModelForSequenceClassification

    auto = AutoModelForSequenceClassification
    trained = save_adapter(encoder, tmp_path, auto, num_labels=3)
    loaded = run_code(render(encoder, auto_class=auto.__name__, labels=["a", "b", "c"]), tmp_path)
    tokens = loaded["tokenizer"]("the river", return_tensors="pt").input_ids
    with torch.no_grad():
        assert torch.equal(loaded["model"](tokens).logits, trained(tokens).logits)


def test_code_loads_a_token_classifier_on_a_base_with_another_head(encoder, tmp_path):
    from transformers import AutoModelForTokenClassification

    auto, base, adapter = AutoModelForTokenClassification, tmp_path / "base", tmp_path / "adapter"
    auto.from_pretrained(encoder, num_labels=5).save_pretrained(base)
    tiny.tokenizer().save_pretrained(base)
    trained = save_adapter(base, adapter, auto, num_labels=3, ignore_mismatched_sizes=True)
    loaded = run_code(render(base, auto_class=auto.__name__, labels=["O", "B-x", "I-x"]), adapter)
    tokens = loaded["tokenizer"]("the river", return_tensors="pt").input_ids
    with torch.no_grad():
        assert torch.equal(loaded["model"](tokens).logits, trained(tokens).logits)
    assert loaded["model"].config.id2label == {0: "O", 1: "B-x", 2: "I-x"}


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_code_loads_a_seq2seq_adapter(family, request, tmp_path):
    from transformers import AutoModelForSeq2SeqLM

    base, auto = request.getfixturevalue(family), AutoModelForSeq2SeqLM
    trained = save_adapter(base, tmp_path, auto)
    loaded = run_code(render(base, auto_class=auto.__name__), tmp_path)
    tokens = loaded["tokenizer"]("the river", return_tensors="pt").input_ids
    with torch.no_grad():
        expected = trained(input_ids=tokens, labels=tokens).logits
        assert torch.equal(loaded["model"](input_ids=tokens, labels=tokens).logits, expected)
        generated = trained.generate(input_ids=tokens, max_new_tokens=8)
        assert torch.equal(loaded["model"].generate(input_ids=tokens, max_new_tokens=8), generated)


@pytest.mark.parametrize("base", ["decoder", "mini:text"])
def test_code_loads_a_model(decoder, base):
    text = render(base, kind="model", auto_class="AutoModelForCausalLM")
    loaded = run_code(text, decoder)
    assert type(loaded["model"]).__name__ == "LlamaForCausalLM"
    assert "import mini" not in code_of(text)


def test_code_loads_a_ctc_adapter_with_its_head_and_vocabulary(wav2vec2, tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoFeatureExtractor, AutoModelForCTC

    from dtl.models.speech.ctc_vocabulary import build_tokenizer

    build_tokenizer("aeimn", base=None, language=None).save_pretrained(tmp_path)
    AutoFeatureExtractor.from_pretrained(wav2vec2).save_pretrained(tmp_path)
    base_kwargs = {"vocab_size": 8, "ignore_mismatched_sizes": True}
    config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"])
    trained = get_peft_model(
        AutoModelForCTC.from_pretrained(wav2vec2, **base_kwargs), config
    ).eval()
    trained.save_pretrained(tmp_path, save_embedding_layers=False)
    card = {"processor_kind": "processor", "base_kwargs": base_kwargs}
    loaded = run_code(render(wav2vec2, auto_class="AutoModelForCTC", card=card), tmp_path)
    audio = torch.randn(4000, generator=torch.Generator().manual_seed(1)).numpy()
    features = loaded["feature_extractor"](audio, sampling_rate=16_000, return_tensors="pt")
    with torch.no_grad():
        logits = loaded["model"](**features).logits
        assert torch.equal(logits, trained(**features).logits)
    assert loaded["tokenizer"].batch_decode(torch.tensor([[3, 3, 0, 3, 1, 4]])) == ["aa e"]


def test_code_with_quotes_in_a_path_compiles(tmp_path):
    folder = tmp_path / 'the "big" one'
    assert compile(code_of(render(folder)), "card", "exec")
