"""The plan: bytes and counts against independent numbers, decisions with reasons, faults."""

import json
import shutil
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
from pydantic import ValidationError

from dtl.assembly.parts import assemble
from dtl.config.optimizers import OPTIMIZERS
from dtl.config.schema import RunConfig
from dtl.config.schema.optim import Optim
from dtl.core.errors import DtlError
from dtl.core.units import format_bytes
from dtl.data.batching import Batching
from dtl.models.load import load_pretrained
from dtl.models.new_parameters import init_new_parameters
from dtl.models.pretrained_config import HeadConfig, load_model_config
from dtl.plan import zero_stage
from dtl.plan.disk import checkpoint_bytes
from dtl.plan.hardware import free_disk_bytes
from dtl.plan.memory import estimate_model_state
from dtl.plan.planner import make_plan
from dtl.plan.records import ExternalLaunch, Hardware, ParameterCounts, Plan
from dtl.plan.request import PlanRequest

GB = 10**9
WITH_EVAL = {"train": "rows.jsonl", "eval_fraction": 0.1}
LAPTOP = Hardware("cpu", 8, 16 * GB, "8 CPU cores", supports_bf16=True, has_compiler=True)
NO_COMPILER = Hardware("cpu", 8, 16 * GB, "8 CPU cores", supports_bf16=True, has_compiler=False)
EIGHT_GPUS = Hardware("cuda", 8, 80 * GB, "80 GB GPU", supports_bf16=True, has_compiler=True)
OLD_GPU = Hardware("cuda", 1, 16 * GB, "old GPU", supports_bf16=False, has_compiler=True)
DATASET_STATS = {"causal_lm": {}, "text_classification": {"labels": ["early", "late", "never"]}}


def configure(base, *, task="causal_lm", strategy="lora", **sections):
    """Return a config: `sections` replace parts of a small default."""
    given = {
        "run": {"name": "test"},
        "model": {"path": str(base)} | sections.pop("model", {}),
        "task": task,
        "strategy": strategy,
        "data": {"train": "rows.jsonl"},
        "train": {"steps": 10} | sections.pop("train", {}),
        **sections,
    }
    return RunConfig.model_validate(given)


def plan(config, hardware=LAPTOP, *, external=None, examples=100, longest=24, free_disk=None):
    """The plan for examples that are all of one length."""
    lengths = np.full(examples, longest)
    return plan_for_lengths(config, hardware, lengths, external=external, free_disk=free_disk)


def plan_for_lengths(config, hardware, lengths, *, external=None, free_disk=None):
    options = config.train
    size = options.global_batch
    batching = Batching(
        len(lengths),
        size.limit,
        options.seed,
        sizes=None if size.unit == "examples" else lengths,
        lengths=lengths if options.group_by_length else None,
    )
    return make_plan(
        PlanRequest(
            config=config,
            parts=assemble(config),
            dataset_stats=DATASET_STATS[config.task.name],
            model_config=load_model_config(config.model),
            batching=batching,
            lengths=lengths,
            hardware=hardware,
            external=external,
            free_disk_bytes=free_disk,
        )
    )


def values(planned):
    return {decision.key: decision.value for decision in planned.decisions}


def reason(planned, key):
    return next(decision.reason for decision in planned.decisions if decision.key == key)


# Bytes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("zero", "gigabytes"), [(0, 120), (1, 31.4), (2, 16.6), (3, 1.9)])
def test_model_state_equals_the_zero_paper(zero, gigabytes):
    """arXiv:1910.02054, figure 1: 7.5 B parameters, Adam, mixed precision, 64 devices."""
    counts = ParameterCounts(trainable=7_500_000_000, frozen=0)
    state = estimate_model_state(
        counts,
        zero_stage=zero,
        data_parallel_size=64,
        dtype="bf16",
        grad_accum_dtype="bf16",
        offload="none",
    )
    assert sum(state.values()) / GB == pytest.approx(gigabytes, abs=0.05)


@pytest.mark.parametrize(
    ("zero", "dtype", "gradients", "offload", "expected"),
    [
        # 1000 trainable and 9000 frozen, 4 ranks. Stage 0: frozen in 2 bytes, trainable in 4.
        (0, "bf16", "fp32", "none", {"weights": 22_000, "gradients": 4_000, "optimizer": 8_000}),
        (0, "fp32", "fp32", "none", {"weights": 40_000, "gradients": 4_000, "optimizer": 8_000}),
        # Stages 1 to 3: the optimizer holds fp32 masters and two moments, 12 bytes, a quarter here.
        (1, "bf16", "bf16", "none", {"weights": 20_000, "gradients": 2_000, "optimizer": 3_000}),
        (2, "bf16", "bf16", "none", {"weights": 20_000, "gradients": 500, "optimizer": 3_000}),
        (3, "bf16", "bf16", "none", {"weights": 5_000, "gradients": 500, "optimizer": 3_000}),
        # Sums in fp32: 4 bytes of the shard; stage 1 has all of them, and those in bf16 besides.
        (1, "bf16", "fp32", "none", {"weights": 20_000, "gradients": 6_000, "optimizer": 3_000}),
        (2, "bf16", "fp32", "none", {"weights": 20_000, "gradients": 1_000, "optimizer": 3_000}),
        (3, "bf16", "fp32", "none", {"weights": 5_000, "gradients": 1_000, "optimizer": 3_000}),
        (3, "fp32", "fp32", "none", {"weights": 10_000, "gradients": 1_000, "optimizer": 3_000}),
        (2, "bf16", "fp32", "optimizer", {"weights": 20_000, "gradients": 1_000, "optimizer": 0}),
    ],
)
def test_model_state_with_frozen_parameters_by_hand(zero, dtype, gradients, offload, expected):
    state = estimate_model_state(
        ParameterCounts(trainable=1_000, frozen=9_000),
        zero_stage=zero,
        data_parallel_size=4,
        dtype=dtype,
        grad_accum_dtype=gradients,
        offload=offload,
    )
    assert state == expected


def test_shards_that_do_not_divide_are_rounded_up():
    state = estimate_model_state(
        ParameterCounts(10, 0),
        zero_stage=3,
        data_parallel_size=4,
        dtype="fp32",
        grad_accum_dtype="fp32",
        offload="none",
    )
    assert state == {"weights": 12, "gradients": 12, "optimizer": 36}


# Counts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "task", "strategies"),
    [
        ("decoder", "causal_lm", "full lora frozen scratch"),
        ("decoder", "text_classification", "full lora frozen scratch"),
        ("tied_decoder", "causal_lm", "full lora scratch"),  # no head of its own to train
        ("tied_decoder", "text_classification", "full lora frozen scratch"),
        ("encoder", "text_classification", "full lora frozen scratch"),
    ],
)
def test_counts_are_those_of_the_trained_model(base, task, strategies, request):
    for strategy in strategies.split():
        config = configure(request.getfixturevalue(base), task=task, strategy=strategy)
        parts = assemble(config)
        loaded = load_pretrained(
            config.model,
            head=HeadConfig(parts.task.auto_class, parts.task.head_config(DATASET_STATS[task])),
            random_init=parts.strategy.starts_from == "random",
            seed=0,
            dtype="fp32",
        )
        model = parts.strategy.apply(loaded.model, new_parameters=loaded.new_parameters)
        trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
        frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
        planned = plan(config)
        found = (strategy, planned.parameters.trainable, planned.parameters.frozen)
        assert found == (strategy, trainable, frozen)
        assert planned.parameters.total == trainable + frozen


def test_lora_counts_by_hand(decoder):
    """Rank 4 beside the 7 linear layers of each of 2 blocks (32 wide, 64 inner, 16 for keys and
    values): 4 x (in + out) each."""
    block = 2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 64)
    planned = plan(configure(decoder, strategy={"name": "lora", "rank": 4}))
    assert planned.parameters.trainable == 4 * 2 * block


# Decisions ----------------------------------------------------------------------------------------


def test_laptop_runs_one_process_in_fp32_without_zero(decoder):
    planned = plan(configure(decoder))
    layout = planned.layout
    assert (layout.nodes, layout.processes_per_node, layout.zero_stage, layout.offload) == (
        1,
        1,
        0,
        "none",
    )
    assert (layout.dtype, layout.device, layout.activation_checkpointing) == ("fp32", "cpu", False)
    assert planned.deepspeed is None
    assert values(planned)["dtype"] == "fp32"
    assert "no GPU" in reason(planned, "processes")


def test_eight_gpus_run_eight_processes_in_bf16(decoder):
    planned = plan(configure(decoder), EIGHT_GPUS)
    layout = planned.layout
    assert (layout.processes_per_node, layout.dtype, layout.device, layout.zero_stage) == (
        8,
        "bf16",
        "cuda",
        0,
    )
    assert "80 GB GPU" in reason(planned, "processes")
    assert (layout.micro_batch, layout.accumulation_steps) == (2, 1)


def test_gpu_without_bf16_gets_fp16(decoder):
    assert plan(configure(decoder), OLD_GPU).layout.dtype == "fp16"


def test_no_more_processes_than_examples_in_a_step(decoder):
    planned = plan(configure(decoder, train={"global_batch": 3}), EIGHT_GPUS)
    assert (planned.layout.processes_per_node, planned.layout.micro_batch) == (3, 1)


@pytest.mark.parametrize(
    ("memory", "stage", "offload"),
    [(16.1, 0, "none"), (15.9, 2, "none"), (5.4, 3, "none"), (3.9, 3, "optimizer")],
)
def test_zero_stage_is_the_least_sharding_that_fits(decoder, memory, stage, offload):
    """Full tuning on 4 GPUs takes 16, 2 + 14/4, 16/4 and 4/4 bytes a parameter (ZeRO paper), and
    0.63 of a device is planned for them."""
    config = configure(decoder, strategy="full")
    held = memory * plan(config).parameters.total / (0.9 * 0.7)
    hardware = Hardware("cuda", 4, int(held), "small GPU", supports_bf16=True, has_compiler=True)
    layout = plan(config, hardware).layout
    assert (layout.zero_stage, layout.offload) == (stage, offload)


def test_cpu_without_a_compiler_gets_no_zero_and_the_plan_says_so(decoder):
    config = configure(
        decoder, layout={"zero_stage": 2, "offload": "optimizer", "processes_per_node": 2}
    )
    assert plan(config).layout.zero_stage == 2
    planned = plan(config, NO_COMPILER)
    assert (planned.layout.zero_stage, planned.layout.offload, planned.deepspeed) == (
        0,
        "none",
        None,
    )
    assert "ZeRO 2 was requested" in reason(planned, "ZeRO stage")
    assert "compiler" in reason(planned, "ZeRO stage")
    assert any("compiler" in line for line in planned.format_lines())


def test_keys_that_are_set_are_used(decoder):
    config = configure(
        decoder,
        model={"dtype": "bf16"},
        optim={"learning_rate": 0.5},
        train={"global_batch": 24},
        layout={
            "nodes": 2,
            "processes_per_node": 3,
            "zero_stage": 3,
            "offload": "optimizer",
            "micro_batch": 2,
            "activation_checkpointing": True,
        },
    )
    planned = plan(config)
    layout = planned.layout
    assert (layout.nodes, layout.processes_per_node, layout.world_size) == (2, 3, 6)
    assert (layout.zero_stage, layout.offload, layout.dtype) == (3, "optimizer", "bf16")
    assert (layout.micro_batch, layout.accumulation_steps) == (2, 2)
    assert layout.activation_checkpointing
    assert planned.phases[0].learning_rate == 0.5


def test_external_launcher_overrides_the_config(decoder):
    external = ExternalLaunch(
        "torchrun", world_size=4, local_world_size=2, zero_stage=3, offload="none"
    )
    planned = plan(
        configure(decoder, layout={"processes_per_node": 1, "zero_stage": 1}), external=external
    )
    assert (planned.layout.nodes, planned.layout.processes_per_node, planned.layout.zero_stage) == (
        2,
        2,
        3,
    )
    assert reason(planned, "processes") == reason(planned, "ZeRO stage") == "fixed by torchrun"


@pytest.mark.parametrize(
    ("hardware", "layout"),
    [
        (LAPTOP, {}),
        (LAPTOP, {"nodes": 2}),
        (EIGHT_GPUS, {}),
        (EIGHT_GPUS, {"offload": "optimizer"}),
    ],
)
def test_every_planned_key_has_a_reason(decoder, hardware, layout):
    planned = plan(configure(decoder, layout=layout), hardware)
    explained = {
        "processes",
        "dtype",
        "ZeRO stage",
        "activation checkpointing",
        "micro-batch",
        "accumulation",
        "steps",
        "learning rate",
    }
    assert explained <= set(values(planned))
    assert all(decision.reason for decision in planned.decisions)
    text = "\n".join(planned.format_lines())
    assert all(decision.reason in text for decision in planned.decisions)


@pytest.mark.parametrize(
    ("hardware", "ranks"), [(LAPTOP, 1), (LAPTOP, 2), (LAPTOP, 3), (EIGHT_GPUS, 5), (EIGHT_GPUS, 8)]
)
@pytest.mark.parametrize("global_batch", [8, 16, 33, 1000])
def test_micro_batch_and_accumulation_hold_the_global_batch(decoder, hardware, ranks, global_batch):
    config = configure(
        decoder, train={"global_batch": global_batch}, layout={"processes_per_node": ranks}
    )
    layout = plan(config, hardware).layout
    held = layout.micro_batch * layout.accumulation_steps * ranks
    assert held >= global_batch
    assert layout.micro_batch * (layout.accumulation_steps - 1) * ranks < global_batch


def test_long_examples_get_small_micro_batches(decoder):
    """24 tokens or 100 000: what does not fit at once is accumulated."""
    config = configure(decoder, train={"global_batch": 64})
    small = Hardware("cuda", 1, GB, "small GPU", supports_bf16=True, has_compiler=True)
    assert plan(config, small, longest=24).layout.micro_batch == 64
    layout = plan(config, small, longest=100_000).layout
    assert layout.micro_batch < 8
    assert layout.micro_batch * layout.accumulation_steps >= 64


UNEVEN = np.array([(7 * number) % 97 + 4 for number in range(300)])  # 4 to 100 tokens


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("grouped", [False, True])
def test_batches_of_tokens_are_planned_for_the_longest_examples(decoder, ranks, grouped):
    train = {"steps": None, "epochs": 3, "global_batch": "900 tokens", "group_by_length": grouped}
    layout = {"processes_per_node": ranks, "micro_batch": 8}
    train |= {"packing": False}
    planned = plan_for_lengths(configure(decoder, train=train, layout=layout), LAPTOP, UNEVEN)
    batching = Batching(300, 900, 0, UNEVEN, UNEVEN if grouped else None)
    assert planned.steps_per_epoch == len(batching.form_epoch(0))
    assert planned.steps == sum(len(batching.form_epoch(epoch)) for epoch in range(3))
    assert planned.layout.micro_batch == 8
    assert "900 tokens per step" in reason(planned, "accumulation")
    assert "at most 832 tokens, padded" in reason(
        planned, "accumulation"
    )  # 8 of 100, which pad to 104
    asked = configure(decoder, train=train, layout={"processes_per_node": ranks, "micro_batch": 1})
    small = plan_for_lengths(asked, LAPTOP, UNEVEN).layout
    assert small.micro_batch == 1
    assert small.accumulation_steps >= 900 / 104 / ranks
    assert small.accumulation_steps > planned.layout.accumulation_steps


# As many examples of 8, 16, 32, ... 1024 tokens.
DOUBLED = 2 ** (3 + np.arange(320) % 8)


@pytest.mark.parametrize(
    ("lengths", "hardware", "micro_batch"),
    [
        (DOUBLED, LAPTOP, 2),  # 5 % of the positions are padding, 32 % with 8
        (DOUBLED // 32 + 8, LAPTOP, 8),  # a pass costs more than padding
        (np.full(320, 1024), LAPTOP, 8),
        (DOUBLED, EIGHT_GPUS, 32),
    ],
    ids=["uneven", "short", "equal", "gpu"],
)
def test_cpu_takes_the_micro_batch_of_least_work(decoder, lengths, hardware, micro_batch):
    train, layout = (
        {"global_batch": 32, "packing": False},
        {"processes_per_node": 1, "activation_checkpointing": False},
    )
    planned = plan_for_lengths(configure(decoder, train=train, layout=layout), hardware, lengths)
    assert planned.layout.micro_batch == micro_batch
    assert ("padding" in reason(planned, "micro-batch")) == (micro_batch < 8)


def test_padding_is_reported_with_what_reduces_it(decoder):
    layout, padded = {"micro_batch": 8}, {"packing": False}
    plain = plan_for_lengths(configure(decoder, layout=layout, train=padded), LAPTOP, UNEVEN)
    # in one process, two micro-batches of 8 halve the lengths of a step, which are spread evenly
    assert 0.15 < float(values(plain)["padding"].rstrip("%")) / 100 < 0.4
    assert "train.group_by_length=true" in reason(plain, "padding")
    config = configure(decoder, layout=layout, train={"group_by_length": True, **padded})
    grouped = plan_for_lengths(config, LAPTOP, UNEVEN)
    assert "padding" not in values(grouped)
    assert "padding" not in values(plan(configure(decoder)))


def test_no_more_processes_than_examples_in_a_step_of_tokens(decoder):
    config = configure(decoder, train={"global_batch": "500 tokens"})
    assert plan(config, EIGHT_GPUS, longest=100).layout.processes_per_node == 5
    asked = configure(
        decoder, train={"global_batch": "500 tokens"}, layout={"processes_per_node": 6}
    )
    with pytest.raises(DtlError, match="500 tokens are 5 examples on average, and cannot feed 6"):
        plan(asked, EIGHT_GPUS, longest=100)


def test_example_that_does_not_fit_gets_activation_checkpointing(decoder):
    small = Hardware("cuda", 1, 3 * GB, "small GPU", supports_bf16=True, has_compiler=True)
    config = configure(decoder, strategy="lora")
    assert not plan(config, small, longest=24).layout.activation_checkpointing
    assert plan(config, small, longest=2_000_000).layout.activation_checkpointing


@pytest.mark.parametrize(
    ("train", "examples", "steps", "an_epoch"),
    [
        ({"steps": 7}, 100, 7, 7),
        ({"steps": None, "epochs": 3}, 100, 21, 7),
        ({"steps": None, "epochs": 0.5}, 96, 3, 6),
        ({"steps": None, "epochs": 0.01}, 16, 1, 1),
    ],
)
def test_steps_count_batches_of_16(decoder, train, examples, steps, an_epoch):
    planned = plan(configure(decoder, train=train), examples=examples)
    assert (planned.steps, planned.steps_per_epoch) == (steps, an_epoch)


def test_the_learning_rates_of_a_phase_are_planned_with_their_formula(decoder):
    planned = plan(configure(decoder, strategy="full", task="text_classification"))
    (phase,) = planned.phases
    assert (phase.learning_rate, phase.head_learning_rate) == (3.2e-4, 8e-3)
    formula = "default of full 2e-05, times 8 for a width of 32, times 2 for 10 steps"
    assert reason(planned, "learning rate").startswith(formula)
    assert "new head" in reason(planned, "head learning rate")
    (phase,) = plan(configure(decoder, strategy="full")).phases
    assert phase.head_learning_rate is None, "the base has this head"


# DeepSpeed --------------------------------------------------------------------------------------


def numbers_in(value):
    if isinstance(value, dict):
        return [leaf for part in value.values() for leaf in numbers_in(part)]
    return [value]


@pytest.mark.parametrize("zero", [1, 2, 3])
@pytest.mark.parametrize(("clip", "written"), [(0.7, 0.7), (None, 0.0)])
def test_deepspeed_config_has_no_auto(decoder, zero, clip, written):
    """Without a key DeepSpeed would use its own number; it checks that the batch is a product."""
    config = configure(
        decoder,
        optim={"gradient_clip": clip},
        layout={"zero_stage": zero, "processes_per_node": 2, "micro_batch": 4},
    )
    planned = plan(config)
    found = planned.deepspeed
    assert "auto" not in numbers_in(found)
    assert found["zero_optimization"]["stage"] == zero
    assert found["gradient_clipping"] == written
    assert found["train_batch_size"] == (
        found["train_micro_batch_size_per_gpu"] * found["gradient_accumulation_steps"] * 2
    )
    assert found["gradient_accumulation_steps"] == 2
    assert not found["bf16"]["enabled"] and not found["fp16"]["enabled"]


@pytest.mark.parametrize("zero", [1, 2, 3])
@pytest.mark.parametrize(("hardware", "dtype"), [(EIGHT_GPUS, "bf16"), (OLD_GPU, "fp16")])
def test_gradients_are_accumulated_and_reduced_in_fp32(decoder, hardware, dtype, zero):
    planned = plan(configure(decoder, layout={"zero_stage": zero}), hardware)
    assert planned.layout.dtype == dtype
    assert planned.deepspeed["data_types"] == {"grad_accum_dtype": "fp32"}
    assert planned.deepspeed["communication_data_type"] == "fp32"
    assert "accumulated and reduced without rounding" in "\n".join(planned.format_lines())


def test_gradients_in_bf16_take_less_memory_and_the_plan_says_so(decoder):
    plans = [
        plan(
            configure(decoder, layout={"zero_stage": 2, "grad_accum_dtype": accumulated}),
            EIGHT_GPUS,
        )
        for accumulated in ("fp32", "bf16")
    ]
    exact, rounded = (planned.model_state["gradients"] for planned in plans)
    assert exact == 2 * rounded
    assert plans[1].deepspeed["data_types"] == {"grad_accum_dtype": "bf16"}
    assert plans[1].deepspeed["communication_data_type"] == "bf16"
    assert "each sum is rounded to bf16" in "\n".join(plans[1].format_lines())


def test_deepspeed_itself_reads_the_config(decoder):
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    for zero in (1, 2, 3):
        layout = {"zero_stage": zero, "offload": "optimizer"}
        found = plan(configure(decoder, layout=layout)).deepspeed["zero_optimization"]
        read = DeepSpeedZeroConfig(**found)
        assert read.stage == zero
        assert read.offload_optimizer.device == "cpu"


# Faults -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hardware", "sections", "external", "place"),
    [
        (EIGHT_GPUS, {"layout": {"processes_per_node": 9}}, None, "layout.processes_per_node"),
        (LAPTOP, {"model": {"dtype": "fp16"}}, None, "model.dtype"),
        (OLD_GPU, {"model": {"dtype": "bf16"}}, None, "model.dtype"),
        (
            LAPTOP,
            {"train": {"global_batch": 3}},
            ExternalLaunch(
                "torchrun", world_size=4, local_world_size=4, zero_stage=None, offload=None
            ),
            "train.global_batch",
        ),
        (
            Hardware("cuda", 2, 10_000, "toy", supports_bf16=True, has_compiler=True),
            {},
            None,
            "layout",
        ),
    ],
)
def test_layout_that_is_impossible_is_a_fault(decoder, hardware, sections, external, place):
    with pytest.raises(DtlError) as caught:
        plan(configure(decoder, **sections), hardware, external=external)
    (fault,) = caught.value.faults
    assert fault.location == place
    assert fault.fix
    assert caught.value.exit_code == 2


def test_model_without_a_head_of_its_own_cannot_be_frozen(tied_decoder):
    with pytest.raises(DtlError, match="has no head of its own to train"):
        plan(configure(tied_decoder, strategy="frozen"))


# On disk ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("zero", [0, 2])
def test_plan_survives_json(decoder, zero):
    planned = plan(configure(decoder, layout={"zero_stage": zero, "processes_per_node": 2}))
    assert Plan.from_dict(json.loads(json.dumps(planned.to_dict()))) == planned


def test_causal_lm_head_of_the_base_is_not_initialized(decoder):
    """A causal LM brings its head: nothing is new."""
    config = configure(decoder)
    loaded = load_pretrained(
        config.model,
        head=HeadConfig("AutoModelForCausalLM", {}),
        random_init=False,
        seed=0,
        dtype="fp32",
    )
    assert loaded.new_parameters == frozenset()
    init_new_parameters(loaded.model, loaded.new_parameters, seed=0, write_parameter=pytest.fail)


# Disk -------------------------------------------------------------------------------------------


def test_disk_that_cannot_hold_the_checkpoints_gives_a_warning(decoder):
    config = configure(decoder, strategy="full", train={"keep_last": 3}, data=WITH_EVAL)
    planned = plan(config, free_disk=10**12)
    trainable = planned.parameters.trainable
    # three checkpoints and one being written, at 12 bytes a parameter, and the fp32 export twice
    written = trainable * 12 * 4 + trainable * 4 * 2
    assert values(planned)["disk"] == format_bytes(written)
    assert "warning" not in reason(planned, "disk")
    assert "warning" not in reason(plan(config, free_disk=written), "disk")
    assert reason(plan(config, free_disk=written - 1), "disk").startswith("warning: more than the")


def test_best_checkpoint_and_those_for_rollback_are_counted(decoder):
    train = {
        "keep_last": 1,
        "evaluate_every": 5,
        "save_every": 4,
        "loss_spike": {"rollback_steps": 10},
    }
    config = configure(decoder, strategy="full", train=train, data=WITH_EVAL)
    planned = plan(config, free_disk=10**12)
    # the last one, the best, four for a rollback of ten steps, one being written
    trainable = planned.parameters.trainable
    assert values(planned)["disk"] == format_bytes(trainable * 12 * 7 + trainable * 4 * 2)


def test_free_space_is_that_of_the_disk_of_the_folder(tmp_path):
    free = free_disk_bytes(str(tmp_path / "not" / "yet"))
    assert free == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.05)


# 8-bit moments ----------------------------------------------------------------------------------


def test_8_bit_moments_take_a_quarter_and_prevent_zero(decoder):
    config = configure(decoder, strategy="full", optim={"name": "adamw_8bit"})
    planned = plan(config, EIGHT_GPUS)
    # The embeddings and the head, 320 x 32, have 40 blocks of 256 each: two bytes a number, and two
    # scales a block. All other tensors, 2 blocks of layers, are too small: two fp32 numbers.
    large = 2 * (320 * 32 * 2 + 40 * 8)
    assert planned.model_state["optimizer"] == large + 8 * (
        planned.parameters.trainable - 2 * 320 * 32
    )
    assert (planned.layout.zero_stage, planned.deepspeed) == (0, None)
    assert "blocks" in reason(planned, "ZeRO stage")
    external = ExternalLaunch(
        "accelerate launch", world_size=2, local_world_size=2, zero_stage=2, offload=None
    )
    with pytest.raises(DtlError, match="does not work with ZeRO 2, which accelerate launch fixes"):
        plan(config, external=external)


@pytest.mark.parametrize("layout", [{"zero_stage": 2}, {"offload": "optimizer"}])
def test_8_bit_moments_with_zero_are_a_fault(decoder, layout):
    with pytest.raises(ValidationError, match="adamw_8bit does not work with ZeRO: 8-bit"):
        configure(decoder, optim={"name": "adamw_8bit"}, layout=layout)


@pytest.mark.parametrize(
    "name", [n for n, each in OPTIMIZERS.items() if each.unshardable_reason is not None]
)
def test_unshardable_optimizers_run_without_zero(decoder, name):
    with pytest.raises(
        ValidationError, match=f"{name} does not work with ZeRO: .* ZeRO (would split|shards)"
    ):
        configure(decoder, optim={"name": name}, layout={"zero_stage": 1})
    assert plan(configure(decoder, optim={"name": name}), EIGHT_GPUS).layout.zero_stage == 0
    assert get_args(Optim.model_fields["name"].annotation) == tuple(OPTIMIZERS)


def test_paged_optimizer_needs_a_gpu(decoder):
    config = configure(decoder, optim={"name": "paged_adamw_8bit"})
    with pytest.raises(DtlError, match=r"there is no GPU\. Fix: use adamw_8bit"):
        plan(config)
    assert plan(config, EIGHT_GPUS).layout.zero_stage == 0


@pytest.mark.parametrize(
    ("sections", "kind"),
    [
        ({"optim": {"name": "lion"}}, "lion"),
        ({"strategy": "full", "optim": {"l2_sp": 0.1}}, "optim.l2_sp"),
        ({"train": {"ema_decay": 0.9, "export": "ema"}}, "train.ema_decay"),
    ],
)
def test_state_that_stays_on_the_device_is_not_offloaded(decoder, sections, kind):
    with pytest.raises(ValidationError, match=rf"{kind} does not work in main memory"):
        configure(decoder, **sections, layout={"offload": "optimizer"})
    external = ExternalLaunch("accelerate launch", 2, 2, zero_stage=2, offload="optimizer")
    with pytest.raises(DtlError, match=rf"{kind} does not work in main memory"):
        plan(configure(decoder, **sections), external=external)
    small = Hardware("cuda", 1, 10_000, "tiny GPU", supports_bf16=True, has_compiler=True)
    with pytest.raises(DtlError, match="at ZeRO 0, and one example"):
        plan(configure(decoder, **sections), small)


def test_l2_sp_and_ema_are_counted_by_hand(decoder):
    """All of the base has a start; both are fp32 numbers, and shared out as the moments are."""
    extras = {"optim": {"l2_sp": 0.1}, "train": {"ema_decay": 0.9, "export": "ema"}}
    config = configure(
        decoder, strategy="full", layout={"zero_stage": 2, "processes_per_node": 2}, **extras
    )
    planned = plan(config)
    trainable = planned.parameters.trainable
    assert planned.model_state["optimizer"] == trainable // 2 * (4 + 8 + 4 + 4)
    assert checkpoint_bytes(planned.parameters) == trainable * (4 + 8 + 4)  # starts are the base's


def test_l2_sp_needs_a_trained_base(decoder):
    for strategy, problem in (("lora", "does not change the base"), ("scratch", "random weights")):
        with pytest.raises(DtlError, match=problem):
            assemble(configure(decoder, strategy=strategy, optim={"l2_sp": 0.1}))


@pytest.mark.parametrize(("hardware", "says"), [(LAPTOP, "8 CPU cores"), (OLD_GPU, "old GPU")])
def test_a_model_state_beyond_the_memory_is_refused(decoder, hardware, says):
    config = configure(decoder, strategy="full", layout={"zero_stage": 0})
    small = replace(hardware, memory_bytes=100_000)
    with pytest.raises(DtlError, match=rf"model\.path: the model state of .* of {says}"):
        plan(config, small)


def test_head_learning_rate_needs_a_trained_head(decoder):
    with pytest.raises(DtlError, match=r"optim\.head_learning_rate: the head is not trained"):
        plan(configure(decoder, optim={"head_learning_rate": 0.1}))


@pytest.mark.parametrize(
    ("train", "problem"),
    [
        ({"ema_decay": 0.9}, "no held-out examples to show whether the average is better"),
        ({"export": "ema"}, r"train\.ema_decay is not set"),
        (
            {"average_checkpoints": 3, "save_every": 2, "export": "average"},
            "3 checkpoints are averaged, but train.keep_last is 2",
        ),
        ({"average_checkpoints": 2, "export": "average"}, "there is only one checkpoint"),
    ],
)
def test_average_without_checkpoints_or_examples_is_a_fault(decoder, train, problem):
    with pytest.raises(ValidationError, match=problem):
        configure(decoder, train=train)


def test_missing_bitsandbytes_is_reported_with_its_extra(decoder, monkeypatch):
    monkeypatch.setattr(zero_stage, "find_spec", lambda name: None)
    with pytest.raises(DtlError, match=r"pip install 'dtl\[quantize\]'"):
        plan(configure(decoder, optim={"name": "adamw_8bit"}))


# Limits of strategies -----------------------------------------------------------------------------


PISSA = {"name": "lora", "rank": 4, "init": "pissa"}


def test_stage_above_the_limit_of_a_strategy_is_a_fault(decoder):
    for strategy in (PISSA, {**PISSA, "init": "olora"}, {**PISSA, "init": "eva"}, "loha", "lokr"):
        config = configure(decoder, strategy=strategy, layout={"zero_stage": 3})
        with pytest.raises(
            DtlError, match=r"^layout.zero_stage: .*up to ZeRO 2.*set layout.zero_stage to 2"
        ):
            plan(config)
    assert plan(configure(decoder, strategy=PISSA, layout={"zero_stage": 2})).layout.zero_stage == 2
    external = ExternalLaunch(
        "torchrun", world_size=2, local_world_size=2, zero_stage=3, offload=None
    )
    with pytest.raises(DtlError, match=r"^torchrun: .*up to ZeRO 2"):
        plan(configure(decoder, strategy=PISSA), external=external)


def test_planned_stage_respects_the_limit_of_a_strategy(decoder):
    """A GPU that holds two thirds of the frozen weights is enough for ZeRO 3 alone."""
    counts = plan(configure(decoder)).parameters
    room = 0.9 * 0.7
    small = Hardware("cuda", 8, int(counts.frozen * 4 * 2 / 3 / room), "tiny GPU", True, True)
    layout = {"micro_batch": 1}
    planned = plan(configure(decoder, model={"dtype": "fp32"}, layout=layout), small, longest=2)
    assert planned.layout.zero_stage == 3
    with pytest.raises(DtlError, match="at ZeRO 2 with offload"):
        config = configure(decoder, model={"dtype": "fp32"}, layout=layout, strategy=PISSA)
        plan(config, small, longest=2)


def test_strategy_without_checkpointing_is_a_fault_or_disables_it(decoder):
    strategy = {"name": "prefix_tuning", "num_virtual_tokens": 4}
    config = configure(decoder, strategy=strategy, layout={"activation_checkpointing": True})
    with pytest.raises(DtlError, match=r"^layout.activation_checkpointing: .*prefix_tuning"):
        plan(config)
    small = Hardware("cuda", 1, 3 * GB, "small GPU", supports_bf16=True, has_compiler=True)
    planned = plan(configure(decoder, strategy=strategy), small, longest=24)
    assert not planned.layout.activation_checkpointing
    assert "prefix_tuning" in reason(planned, "activation checkpointing")
    with pytest.raises(DtlError, match=r"one example .* of 2.79 GiB on small GPU"):
        plan(configure(decoder, strategy=strategy), small, longest=2_000_000)


def test_incompatible_method_is_a_fault_of_the_plan(decoder):
    config = configure(decoder, task="text_classification", strategy="prompt_tuning")
    with pytest.raises(DtlError, match=r"classifier on a decoder\)\. Fix: take strategy lora"):
        plan(config)


# Attention --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "attention", ["flash_attention_2", "flash_attention_3", "kernels-community/flash-attn2"]
)
def test_flash_attention_is_planned_for_gpus_on_a_machine_without_one(decoder, attention):
    planned = plan(configure(decoder, model={"attention": attention}), EIGHT_GPUS)
    assert values(planned)["attention"] == attention


@pytest.mark.parametrize(
    ("attention", "hardware", "model", "problem"),
    [
        ("flash_attention_2", LAPTOP, {}, "flash_attention_2 does not train on a CPU"),
        ("flex_attention", LAPTOP, {}, "flex_attention does not train on a CPU"),
        ("flash_attention_2", EIGHT_GPUS, {"dtype": "fp32"}, "bf16 or fp16 only"),
    ],
)
def test_attention_that_cannot_train_is_a_fault(decoder, attention, hardware, model, problem):
    config = configure(decoder, model={"attention": attention, **model})
    with pytest.raises(DtlError, match=f"model.attention: .*{problem}"):
        plan(config, hardware)
