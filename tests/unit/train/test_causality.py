"""A language model that sees the answer is refused at the start."""

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from dtl.config.load import load_config
from dtl.core.errors import DtlError
from dtl.train.causality import change_of_earlier_logits
from tests import tiny
from tests.unit.jobs.test_adapter_runs import train_in_this_process

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
XLNET = {"vocab_size": 64, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64}
GPT2 = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
MAMBA = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}
BLOOM = {"vocab_size": 64, "hidden_size": 32, "n_layer": 2, "n_head": 4}
SEES_THE_ANSWER = {
    **dict.fromkeys(["bert", "roberta", "electra", "camembert", "roformer", "rembert"], SIZES),
    "xlnet": XLNET,
}
CAUSAL = {
    **dict.fromkeys(["llama", "qwen2", "gemma2", "opt", "gpt_neox", "phi", "mixtral"], SIZES),
    "gpt2": GPT2,
    "mamba": MAMBA,
    "bloom": BLOOM,
}


def change(kind, sizes, **more):
    torch.manual_seed(3)
    config = AutoConfig.for_model(kind, **sizes, **more)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        return change_of_earlier_logits(model, vocab_size=64, device=torch.device("cpu"))


@pytest.mark.parametrize("kind", SEES_THE_ANSWER)
def test_logits_of_an_encoder_move_with_a_later_token(kind):
    assert change(kind, SEES_THE_ANSWER[kind]) > 1e-3


@pytest.mark.parametrize("kind", CAUSAL)
def test_logits_of_a_decoder_do_not(kind):
    assert change(kind, CAUSAL[kind]) < 1e-5


def test_an_encoder_that_is_set_up_as_a_decoder_is_causal():
    assert change("bert", SIZES, is_decoder=True) < 1e-5


@pytest.mark.parametrize("strategy", ["full", "lora"])
def test_a_run_over_an_encoder_names_the_tasks_that_fit(strategy, encoder, tmp_path, cache):
    tiny.write_texts(tmp_path / "rows.jsonl", 6)
    options = {
        "run": {"dir": str(tmp_path / "runs"), "name": "copies"},
        "model": {"path": str(encoder), "dtype": "fp32"},
        "task": {"name": "causal_lm", "max_length": 32},
        "data": {"train": str(tmp_path / "rows.jsonl")},
        "strategy": strategy,
        "train": {"steps": 2, "global_batch": 4},
        "layout": {"processes_per_node": 1, "zero_stage": 0},
    }
    (tmp_path / "run.yaml").write_text(json.dumps(options))
    problem = r"task: BertLMHeadModel sees the tokens .*text_classification or token_classification"
    with pytest.raises(DtlError, match=problem):
        train_in_this_process(load_config(tmp_path / "run.yaml"))
