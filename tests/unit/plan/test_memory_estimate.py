"""Memory of evaluation, export and the node: 8 B and Whisper-large on described hardware."""

import json

import numpy as np
import pytest

from dtl.assembly.parts import assemble
from dtl.config.schema import RunConfig
from dtl.core.errors import DtlError
from dtl.data.batching import Batching
from dtl.data.evaluation_batch import EvaluationBatchSize
from dtl.models.pretrained_config import load_model_config
from dtl.plan.activation_memory import ActivationBudget, ModelSizes
from dtl.plan.evaluation import EvaluationMemory
from dtl.plan.memory_estimate import (
    estimate_export_copies,
    estimate_host_bytes,
    estimate_offload_bytes,
)
from dtl.plan.planner import make_plan
from dtl.plan.records import Hardware, Layout, ParameterCounts, Plan
from dtl.plan.request import PlanRequest

GIB = 2**30
LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
}
WHISPER_LARGE = {
    "architectures": ["WhisperForConditionalGeneration"],
    "model_type": "whisper",
    "d_model": 1280,
    "encoder_layers": 32,
    "decoder_layers": 32,
    "encoder_attention_heads": 20,
    "decoder_attention_heads": 20,
    "encoder_ffn_dim": 5120,
    "decoder_ffn_dim": 5120,
    "num_mel_bins": 128,
    "vocab_size": 51866,
}
MODELS = {  # config of the base, task, strategy, length of the longest example
    "8b-lora": (LLAMA_8B, "causal_lm", "lora", 4096),
    "8b-full": (LLAMA_8B, "causal_lm", "full", 4096),
    "whisper-large": (WHISPER_LARGE, "asr_seq2seq", "full", 3000),
}


def gpus(count, gib, *, host_gib=None, has_compiler=True, supports_bf16=True):
    host = None if host_gib is None else host_gib * GIB
    name = f"GPU of {gib} GiB"
    return Hardware("cuda", count, gib * GIB, name, supports_bf16, has_compiler, host)


@pytest.fixture
def plan(tmp_path):
    """Return a function that plans a model of MODELS, of which there is a config but no weights."""

    def make(name, hardware, *, held_out=64, **sections):
        written, task, strategy, longest = MODELS[name]
        (tmp_path / "config.json").write_text(json.dumps(written))
        config = RunConfig.model_validate(
            {
                "model": {"path": str(tmp_path)},
                "task": task,
                "strategy": strategy,
                "data": {"train": "rows.jsonl", "eval": "rows.jsonl"},
                "train": {"steps": 10, **sections.pop("train", {})},
                **sections,
            }
        )
        parts, base = assemble(config), load_model_config(config.model)
        return make_plan(
            PlanRequest(
                config=config,
                parts=parts,
                dataset_stats=parts.task.collect_dataset_stats([], base),
                model_config=base,
                batching=Batching(1000, 16, 0),
                lengths=np.full(1000, longest),
                hardware=hardware,
                held_out_lengths=np.full(held_out, longest) if held_out else None,
            )
        )

    return make


def values(planned):
    return {decision.key: decision.value for decision in planned.decisions}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "hardware",
    [
        gpus(1, 141),
        gpus(8, 80, host_gib=1000),
        gpus(4, 40, host_gib=480),
        gpus(1, 80, host_gib=200),
    ],
    ids=["H200", "8xH100", "4xA100-40", "H100"],
)
def test_no_part_of_a_run_exceeds_the_device_by_the_plan_itself(plan, name, hardware):
    planned = plan(name, hardware)
    memory = planned.memory
    assert memory.device.keys() == {"training", "evaluation", "export"}
    assert memory.host.keys() == {"loading", "training", "export"}
    assert max(memory.device.values()) <= memory.device_limit == int(0.9 * hardware.memory_bytes)
    lines = "\n".join(planned.format_lines())
    assert "evaluation" in lines and "export" in lines and "main memory" in lines
    assert Plan.from_dict(json.loads(json.dumps(planned.to_dict()))) == planned


@pytest.mark.parametrize("name", ["8b-lora", "8b-full"])
def test_model_that_does_not_fit_is_a_fault_and_no_plan(plan, name):
    with pytest.raises(DtlError, match=r"model state takes .* and one example .*Fix: use more"):
        plan(name, gpus(1, 16, host_gib=64))


def test_evaluation_is_planned_by_tokens(plan):
    """A layer takes 10 GB for 16 x 4096 tokens: it does not fit beside 8 B parameters."""
    planned = plan("8b-lora", gpus(1, 26))
    batch = planned.layout.evaluation_batch
    assert batch.examples == 64, "of short examples"
    assert batch.padded_size % 4096 == 0
    assert batch.limit_to(4096) == int(values(planned)["evaluation batch"]) < 16
    assert batch.limit_to(16) == 64
    small, large = (plan("8b-lora", gpus(1, gib)).layout.evaluation_batch for gib in (26, 141))
    assert small.limit_to(4096) < large.limit_to(4096)


def test_requested_evaluation_batch_is_used_and_one_that_is_too_large_gets_a_warning(plan):
    planned = plan("8b-lora", gpus(1, 26), train={"evaluation_batch": 16})
    assert planned.layout.evaluation_batch == EvaluationBatchSize(16)
    reasons = {decision.key: decision.reason for decision in planned.decisions}
    assert "warning: it may not fit into memory" in reasons["evaluation batch"]
    assert reasons["memory per device"].startswith("warning: more than there is: training")


def test_run_without_held_out_examples_has_no_evaluation(plan):
    planned = plan("8b-lora", gpus(1, 80), held_out=0)
    assert planned.memory.device.keys() == {"training", "export"}
    assert "evaluation batch" not in values(planned)


def test_evaluation_bytes_by_hand():
    """10 tokens, width 4, 2 layers, 100 words, bf16: logits in 2 bytes, and 8 for their loss."""
    sizes = ModelSizes(4, layers=2, vocabulary_size=100, computes_all_logits=True)
    layer, logits = 10 * 4 * (17 + 2) * 2, 10 * 100 * (2 + 8)
    assert EvaluationMemory(sizes, "bf16", 0).estimate_bytes(10) == layer + logits
    many = EvaluationMemory(sizes, "bf16", 0).estimate_bytes(10_000)
    assert many == 1000 * layer + 10_000 * 100 * 2 + 512 * 100 * 8, "the loss is in chunks"
    generating = EvaluationMemory(sizes, "bf16", 100).estimate_bytes(10)
    assert generating == layer + 2 * 10 * 4 * 2 * 2 * 100, "keys and values of 100 beams"


def test_chunked_logits_by_hand():
    """Vocabulary 2**20: 64 positions are in memory together, in 2 bytes, and 8 for their loss."""
    sizes = ModelSizes(4, layers=2, vocabulary_size=2**20, computes_all_logits=False)
    layer, logits = 4 * (17 + 2) * 2, 2**20 * (2 + 8)
    evaluation = EvaluationMemory(sizes, "bf16", 0)
    assert evaluation.estimate_bytes(10) == 10 * (layer + logits)
    assert evaluation.estimate_bytes(1000) == 1000 * layer + 64 * logits
    training = ActivationBudget(0, example_length=100, sizes=sizes, dtype="bf16")
    assert training.estimate_bytes(10, checkpointing=False) == 1000 * 4 * 2 * 34 + 64 * logits


@pytest.mark.parametrize(
    ("name", "written", "value", "reason"),
    [
        ("8b-lora", {}, "learned", "of tokens that count in the loss, 523 at a time"),
        ("whisper-large", {}, "learned", "of tokens that count in the loss, 1293 at a time"),
        (
            "8b-lora",
            {"model_type": "bert", "architectures": ["BertLMHeadModel"], "is_decoder": True},
            "all",
            "BertLMHeadModel has no output layer of its own",
        ),
    ],
)
def test_plan_says_which_logits_are_computed(plan, monkeypatch, name, written, value, reason):
    base, *others = MODELS[name]
    monkeypatch.setitem(MODELS, name, ({**base, **written}, *others))
    decisions = {each.key: each for each in plan(name, gpus(1, 141)).decisions}
    assert (decisions["logits"].value, decisions["logits"].reason) == (value, reason)


def test_export_of_a_full_model_by_hand():
    """10 trained and 90 frozen in bf16: gathered 10 x 4 + 90 x 2, then two copies of 100 x 2."""
    counts = ParameterCounts(trainable=10, frozen=90)
    copies = estimate_export_copies(counts, dtype="bf16", exports_full_model=True)
    assert copies == 40 + 180 + 2 * 200
    adapter = estimate_export_copies(counts, dtype="bf16", exports_full_model=False)
    assert adapter == 3 * 40


def test_offloaded_optimizer_takes_16_bytes_per_parameter_of_the_nodes_by_hand():
    counts = ParameterCounts(trainable=1000, frozen=0)
    assert estimate_offload_bytes(counts, nodes=2) == 8000
    layout = Layout(2, 4, 2, "optimizer", 1, 1, False, "bf16", "cuda")
    host = estimate_host_bytes(counts, layout, exports_full_model=True)
    assert host == {
        "loading": 4 * 4000,  # each of 4 processes reads them, in fp32
        "training": 8000,
        "export": 8000 + 4000 + 2 * 2000,
    }


def test_optimizer_is_offloaded_only_where_main_memory_suffices(plan):
    with_room = plan("8b-full", gpus(1, 80, host_gib=200))
    assert with_room.layout.offload == "optimizer"
    assert "of a node's main memory" in "\n".join(with_room.format_lines())
    with pytest.raises(DtlError, match=r"cannot be offloaded: it would take 120 GiB .* 100 GiB of"):
        plan("8b-full", gpus(1, 80, host_gib=100))


@pytest.mark.parametrize("layout", [{}, {"offload": "optimizer"}], ids=["planned", "requested"])
def test_optimizer_is_not_offloaded_where_deepspeed_cannot_build_it(plan, layout):
    with pytest.raises(DtlError, match="builds its CPU optimizer with a C\\+\\+ compiler"):
        plan("8b-full", gpus(1, 80, has_compiler=False), layout=layout)
