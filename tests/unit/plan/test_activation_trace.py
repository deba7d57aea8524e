"""The traced memory of a pass is what the allocator counts when the pass runs."""

import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig, LlamaForCausalLM

from dtl.assembly.parts import assemble
from dtl.config import registry
from dtl.config.schema import RunConfig
from dtl.data.batching import Batching
from dtl.models.activation_checkpointing import enable_activation_checkpointing
from dtl.models.dtypes import torch_dtype
from dtl.models.pretrained_config import load_model_config
from dtl.plan.activation_trace import LAYER_DROP, ActivationTracer, Pass
from dtl.plan.planner import make_plan
from dtl.plan.records import Hardware
from dtl.plan.request import PlanRequest
from tests import task_bench

EXAMPLES = 12
GPU = Hardware("cuda", 1, 80 * 2**30, "H100", supports_bf16=True, has_compiler=True)


def open_case(request, task, index, strategy):
    """Return the tracer of a task and a strategy, the bench of the task, and a batch maker."""
    case = task_bench.CASES[task][index]
    folder = request.getfixturevalue(case.base)
    bench = task_bench.make_bench(folder, task, index)
    config = RunConfig.model_validate(
        {
            "model": {"path": str(folder)},
            "task": {"name": task, **case.options},
            "strategy": strategy,
            "data": {"train": "rows.jsonl"},
            "train": {"steps": 3},
        }
    )
    longest = bench.all[-1]

    def make_batch(examples):
        return bench.collate([longest] * examples)

    return ActivationTracer(config, assemble(config), bench.dataset_stats, make_batch, 1)


def allocated_at_once(tracer, *, checkpointing=False, trains=True, dtype=torch.float32):
    """Return the most bytes that the allocator of the CPU has given out in a real pass."""
    parts, config = tracer.parts, tracer.config
    loaded = task_bench.load_with_new_parameters(config.model, parts.task, tracer.stats)
    model = parts.apply_strategy(loaded)
    for name in LAYER_DROP:
        if hasattr(model.config, name):
            setattr(model.config, name, 0.0)
    for parameter in model.parameters():
        if dtype is not torch.float32 and not parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
        if trains and parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    parts.set_training_mode(model) if trains else model.eval()
    if checkpointing:
        enable_activation_checkpointing(model)
    batch = tracer.longest_batch(EXAMPLES)

    def run():
        with (
            torch.set_grad_enabled(trains),
            torch.autocast("cpu", dtype, enabled=dtype is not torch.float32),
        ):
            loss = parts.task.loss(model, dict(batch))
        if trains:
            loss.backward()

    run()  # what is made once
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    now = most = 0
    for event in profiled.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


def compare(tracer, *, dtype="fp32", checkpointing=False, trains=True):
    """Return the traced memory as a share of the allocated one."""
    traced = Pass(EXAMPLES, dtype, dtype != "fp32", checkpointing, trains)
    real = allocated_at_once(
        tracer, checkpointing=checkpointing, trains=trains, dtype=torch_dtype(dtype)
    )
    return tracer.trace(traced).peak_bytes / real


def every_task():
    """Yield each task and strategy; the slow ones are those of `make test-all`."""
    quick = {("causal_lm", 1, "lora"), ("text_classification", 0, "full")}
    for task, index in task_bench.TRIALS:
        needs_adapter = registry.load("tasks", task).Plugin.compares_with_base
        has_linear_layers = task_bench.CASES[task][index].base != "resnet"
        for strategy in ["full"] * (not needs_adapter) + ["lora"] * has_linear_layers:
            marks = () if (task, index, strategy) in quick else pytest.mark.slow
            yield pytest.param(task, index, strategy, marks=marks)


@pytest.mark.parametrize(("task", "index", "strategy"), list(every_task()))
def test_trace_of_a_task_is_what_the_allocator_counts(request, task, index, strategy):
    tracer = open_case(request, task, index, strategy)
    assert compare(tracer) == pytest.approx(1, abs=0.3 if has_convolutions(tracer) else 0.015)


def has_convolutions(tracer):
    """Whether the model has convolutions: kernels of small ones make other copies than large ones,
    and a tiny model takes little else."""
    model = tracer.build_model(Pass(1, "fp32", False, False))
    return any("Conv" in type(module).__name__ for module in model.modules())


@pytest.fixture(scope="session")
def deep_decoder(decoder, tmp_path_factory):
    """Ten layers, of which a trace runs a few."""
    folder = tmp_path_factory.mktemp("deep")
    shutil.copytree(decoder, folder, dirs_exist_ok=True)
    words = json.loads((folder / "config.json").read_text())["vocab_size"]
    config = LlamaConfig(
        hidden_size=128,
        intermediate_size=344,
        num_hidden_layers=10,
        num_attention_heads=8,
        num_key_value_heads=4,
        vocab_size=words,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def open_deep(folder, strategy, *, length=128, layout=None):
    config = RunConfig.model_validate(
        {
            "model": {"path": str(folder)},
            "task": "causal_lm",
            "strategy": strategy,
            "data": {"train": "rows.jsonl"},
            "train": {"steps": 3},
            "layout": layout or {},
        }
    )

    def make_batch(examples):
        tokens = torch.arange(length).repeat(examples, 1)
        return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": tokens}

    return ActivationTracer(config, assemble(config), {}, make_batch, length)


STRATEGIES = {"full": "full", "lora": "lora", "top half": {"name": "partial", "top": 5}}


def every_layout():
    quick = {("top half", "fp32", True)}
    for strategy in STRATEGIES:
        for dtype in ("fp32", "bf16"):
            for checkpointing in (False, True):
                case = (strategy, dtype, checkpointing)
                yield pytest.param(*case, marks=() if case in quick else pytest.mark.slow)


@pytest.mark.filterwarnings("ignore:.*checkpointing.*:FutureWarning")
@pytest.mark.parametrize(("strategy", "dtype", "checkpointing"), list(every_layout()))
def test_trace_of_a_few_blocks_is_that_of_all(deep_decoder, strategy, dtype, checkpointing):
    tracer = open_deep(deep_decoder, STRATEGIES[strategy])
    assert compare(tracer, dtype=dtype, checkpointing=checkpointing) == pytest.approx(1, abs=0.005)
    assert compare(tracer, dtype=dtype, trains=False) == pytest.approx(1, abs=0.02)


def test_trace_leaves_model_and_random_generators_as_they_were(deep_decoder):
    tracer = open_deep(deep_decoder, "full")
    state, draws = torch.get_rng_state(), np.random.get_state()[1].copy()
    one = Pass(1, "fp32", False, False)
    first = tracer.trace(one)
    model = tracer.build_model(one)
    assert len(model.model.layers) == 10
    assert all(value.is_meta for value in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], draws)
    again = open_deep(deep_decoder, "full").trace(one)
    assert (again.peak_bytes, again.flops) == (first.peak_bytes, first.flops)


def test_operations_by_hand(deep_decoder):
    """Forward and backward take 6 operations a weight and token; attention 12 a layer, width and
    pair of tokens (flash attention computes the scores again)."""
    tracer = open_deep(deep_decoder, "full")
    model = tracer.build_model(Pass(1, "fp32", False, False))
    weights = sum(value.numel() for value in model.parameters() if value.dim() == 2)
    weights -= model.model.embed_tokens.weight.numel()  # a table
    products = 6 * weights * 128
    attention = (4 + 10) * 10 * 128 * 128 * 128
    assert tracer.trace(Pass(1, "fp32", False, False)).flops == pytest.approx(
        products + attention, rel=0.01
    )


def test_copy_of_a_quantized_weight_is_added(deep_decoder):
    one = Pass(1, "bf16", autocasts=True, checkpointing=False)
    plain = open_deep(deep_decoder, "lora")
    model = {"path": str(deep_decoder), "quantize": "nf4"}
    config = RunConfig.model_validate({**plain.config.model_dump(mode="json"), "model": model})
    added = replace(plain, config=config, _found={}, _models={}).trace(one).peak_bytes
    assert added - plain.trace(one).peak_bytes == 344 * 128 * 2, "the largest layer, in bf16"


def test_plan_is_made_by_the_trace(deep_decoder):
    tracer = open_deep(deep_decoder, "lora")
    planned = plan_on_gpu(tracer, tracer.longest_batch)
    decisions = {each.key: each for each in planned.decisions}
    assert decisions["activations"].reason == "from a trace of the longest one"
    layout = tracer.for_layout("bf16", zero_stage=0)
    training = layout.training_bytes(planned.layout.micro_batch, False)
    assert planned.memory.device["training"] == sum(planned.model_state.values()) + training


@pytest.mark.parametrize(
    ("fails", "named"),
    [
        (lambda model: True, ["training"]),
        (lambda model: not model.training, ["evaluation"]),
        (lambda model: model.dtype is torch.bfloat16, ["training", "evaluation"]),
    ],
    ids=["every pass", "evaluation", "ZeRO"],
)
def test_pass_that_needs_values_is_planned_by_the_formula(deep_decoder, monkeypatch, fails, named):
    tracer = open_deep(deep_decoder, "full", layout={"zero_stage": 2, "nodes": 2})
    plain = type(tracer.parts.task).loss

    def read_a_value(task, model, batch):
        loss = plain(task, model, batch)
        return loss * loss.item() if fails(model) else loss

    monkeypatch.setattr(type(tracer.parts.task), "loss", read_a_value)
    planned = plan_on_gpu(tracer, tracer.longest_batch)
    reasons = [each.reason for each in planned.decisions if each.value == "estimated"]
    assert [why.split(",")[0] for why in reasons] == [f"by a formula for {each}" for each in named]
    assert all("the model does not run without values" in why for why in reasons)


def plan_on_gpu(tracer, longest_batch):
    return make_plan(
        PlanRequest(
            config=tracer.config,
            parts=tracer.parts,
            dataset_stats={},
            model_config=load_model_config(tracer.config.model),
            batching=Batching(32, 8, 0),
            lengths=np.full(32, tracer.example_length),
            hardware=GPU,
            held_out_lengths=np.full(4, tracer.example_length),
            longest_batch=longest_batch,
        )
    )


def test_bytes_of_many_examples_follow_from_some(deep_decoder):
    layout = open_deep(deep_decoder, "lora").for_layout("fp32", zero_stage=0)
    some = 2048 // 128
    exact = layout.tracer.trace(Pass(3 * some, "fp32", False, False)).peak_bytes
    assert layout.training_bytes(3 * some, False) == pytest.approx(exact, rel=0.01)
    assert math.isclose(layout.evaluation_bytes(128), layout.evaluation_bytes(100))
