"""Trace the memory of a training or evaluation pass of the model of a run, without its weights."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import ceil
from typing import TYPE_CHECKING, Any

from dtl.assembly.parts import Parts
from dtl.config.schema import RunConfig
from dtl.core.errors import shorten_message
from dtl.core.units import format_bytes
from dtl.models.activation_checkpointing import enable_activation_checkpointing
from dtl.models.dtypes import torch_dtype
from dtl.models.load import load_on_meta_device
from dtl.models.pretrained_config import HeadConfig
from dtl.models.structure.token_head import find_token_head
from dtl.plan.activation_memory import ActivationBudget, ModelSizes
from dtl.plan.block_runs import FEWEST, MORE, BlockRun, find_long_runs, shorten
from dtl.plan.records import DecisionLog
from dtl.plan.request import PlanRequest
from dtl.tasks.base import DatasetStats

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dtl.plan.memory_trace import Trace

    Batch = dict[str, Tensor]

KEY = "activations"
SMALL_SHARE = 1 / 20  # of the main memory, for one example
TRACED_LENGTH = 2048  # in the task's unit, of the examples of a trace, if there are several
LAYER_DROP = ("layerdrop", "encoder_layerdrop", "decoder_layerdrop")  # in configs


@dataclass(frozen=True)
class Pass:
    """What is traced. `examples`: of the longest length. `autocasts`: trainable weights are in fp32
    and operations in `dtype`; else everything is in `dtype`. `trains`: with a backward pass."""

    examples: int
    dtype: str
    autocasts: bool
    checkpointing: bool
    trains: bool = True


@dataclass(frozen=True)
class ActivationTracer:
    """Traces passes of the model of a phase on batches of the longest examples.

    `longest_batch`: makes such a batch of so many examples, on the CPU. `example_length`: of each.
    `log`: gets the reason where a pass cannot be traced.
    """

    config: RunConfig
    parts: Parts
    stats: DatasetStats
    longest_batch: Callable[[int], Batch]
    example_length: int
    log: DecisionLog = field(default_factory=DecisionLog)
    _found: dict[Pass, Trace] = field(default_factory=dict)
    _models: dict[Pass, nn.Module] = field(default_factory=dict)
    _failed: set[Pass] = field(default_factory=set)

    def trace(self, traced: Pass) -> Trace:
        """Return what a pass takes.

        Of long runs of blocks that are alike a few are traced, and the others are added. Raises
        any error of a model's code that does not run without values.
        """
        if traced not in self._found:
            self._found[traced] = self._trace(traced)
        return self._found[traced]

    def try_trace(self, traced: Pass) -> Trace | None:
        """Return what a pass takes; None, with a decision in the log, where the model's code does
        not run without values."""
        kind = replace(traced, examples=1)
        if kind in self._failed:
            return None
        try:
            return self.trace(traced)
        except Exception as error:  # of code of any model, which does not expect to run like this
            why = f"the model does not run without values: {type(error).__name__}: {error}"
            name = "training" if traced.trains else "evaluation"
            reason = f"by a formula for {name}, because {shorten_message(why)}"
            self.log.add(KEY, "estimated", reason)
            self._failed.add(kind)
            return None

    def _trace(self, traced: Pass) -> Trace:
        kind = replace(traced, examples=1)
        if kind not in self._models:
            self._models[kind] = self.build_model(traced)
        model = self._models[kind]
        runs = find_long_runs(model)
        shortest = dict.fromkeys(runs, FEWEST)
        cost = self._run(model, traced, shortest)
        peak = cost.peak_bytes + self._count_dequantized_bytes(model, traced)
        flops = cost.flops
        for run in runs:
            longer = self._run(model, traced, {**shortest, run: MORE})
            blocks = run.length - FEWEST
            peak += blocks * (longer.peak_bytes - cost.peak_bytes) // (MORE - FEWEST)
            flops += blocks * (longer.flops - cost.flops) // (MORE - FEWEST)
        return replace(cost, peak_bytes=peak, flops=flops)

    def _count_dequantized_bytes(self, model: Any, traced: Pass) -> int:
        """Return the bytes of the largest quantized weight in the dtype, a copy of which a layer
        makes while it runs; 0 where nothing is quantized."""
        from torch import nn

        if self.config.model.quantize is None:
            return 0
        head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
        largest = max(
            module.weight.numel()
            for module in model.modules()
            if isinstance(module, nn.Linear) and module is not head
        )
        return largest * torch_dtype(traced.dtype).itemsize

    def build_model(self, traced: Pass) -> nn.Module:
        """Return the model on the meta device, in the dtypes of the run."""
        import torch

        # Quantized layers compute with copies of their weights in the dtype, which are added.
        base = self.config.model.model_copy(update={"quantize": None})
        head = HeadConfig(self.parts.task.auto_class, self.parts.task.head_config(self.stats))
        loaded = load_on_meta_device(base, head=head)
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the run raises them again, into its log
            model = self.parts.apply_strategy(loaded)
        dtype = torch_dtype(traced.dtype)
        for parameter in model.parameters():
            is_fp32 = traced.autocasts and parameter.requires_grad
            parameter.data = parameter.data.to(torch.float32 if is_fp32 else dtype)
            if traced.trains and parameter.requires_grad:
                parameter.grad = torch.empty_like(parameter)  # of the micro-batches before
        if traced.trains:
            self.parts.set_training_mode(model)
        else:
            model.eval()
        if traced.checkpointing:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                enable_activation_checkpointing(model)
        if self.parts.task.predicts_tokens:  # known from now on: to find it takes values
            find_token_head(model, shifts_labels=self.parts.task.passes_labels)
        return model

    def _run(self, model: nn.Module, traced: Pass, lengths: dict[BlockRun, int]) -> Trace:
        import torch

        from dtl.plan.memory_trace import trace

        batch = self.longest_batch(traced.examples)
        dtype = torch_dtype(traced.dtype)
        batch = {
            name: value.to(dtype) if not traced.autocasts and value.is_floating_point() else value
            for name, value in batch.items()
        }

        def run() -> None:
            with (
                torch.set_grad_enabled(traced.trains),
                torch.autocast("cpu", dtype, enabled=traced.autocasts and traced.dtype != "fp32"),
            ):
                loss = self.parts.task.loss(model, dict(batch))
            if traced.trains:
                loss.backward()

        with shorten(model, lengths), _without_layer_drop(model), _same_random_state():
            return trace(model, run)

    def for_layout(self, dtype: str, *, zero_stage: int) -> LayoutTracer:
        """Return the estimates of a dtype and ZeRO stage; ZeRO casts what is trained as well."""
        return LayoutTracer(self, dtype, autocasts=zero_stage == 0 and dtype != "fp32")


@dataclass(frozen=True)
class LayoutTracer:
    """Bytes of the passes of a run in a dtype, with fp32 weights that are trained or without."""

    tracer: ActivationTracer
    dtype: str
    autocasts: bool

    def training_bytes(self, examples: int, checkpointing: bool) -> int | None:
        """Return the bytes of a forward and backward pass of so many of the longest examples; None
        where it cannot be traced."""
        return self._estimate(examples, Pass(1, self.dtype, self.autocasts, checkpointing))

    def evaluation_bytes(self, tokens: int) -> int | None:
        """Return the bytes of a pass without gradients of so many tokens, padding included; None
        where it cannot be traced."""
        examples = ceil(tokens / self.tracer.example_length)
        return self._estimate(
            examples, Pass(1, self.dtype, self.autocasts, checkpointing=False, trains=False)
        )

    def _estimate(self, examples: int, one: Pass) -> int | None:
        """Return the bytes of so many examples; those of many follow from those of some and of
        twice as many, because a pass of many chunks of logits takes long to trace."""
        some = max(1, TRACED_LENGTH // self.tracer.example_length)
        if examples <= 2 * some:
            found = self.tracer.try_trace(replace(one, examples=examples))
            return None if found is None else found.peak_bytes
        fewer, more = self._estimate(some, one), self._estimate(2 * some, one)
        if fewer is None or more is None:
            return None
        return more + (more - fewer) * (examples - 2 * some) // some


def open_tracer(
    request: PlanRequest, phase: int, sizes: ModelSizes, *, dtype: str, log: DecisionLog
) -> ActivationTracer | None:
    """Return the tracer of a phase; None where activations are estimated by a formula.

    They are on a CPU, as long as the formula gives a small share of the memory. A model whose code
    does not run without values is not traced either, and the plan says so.
    """
    if request.longest_batch is None:
        return None
    budget = ActivationBudget(0, request.longest_example, sizes, dtype)
    formula = budget.estimate_by_formula(1, checkpointing=False)
    if request.hardware.device == "cpu" and formula < SMALL_SHARE * request.hardware.memory_bytes:
        return None
    tracer = ActivationTracer(
        request.config,
        request.parts.for_phase(phase),
        request.dataset_stats,
        request.longest_batch,
        request.longest_example,
        log,
    )
    one = tracer.for_layout(dtype, zero_stage=0).training_bytes(1, False)
    if one is None:
        return None
    log.add(KEY, f"{format_bytes(one)} per example", "from a trace of the longest one")
    return tracer


@contextmanager
def _without_layer_drop(model: Any) -> Iterator[None]:
    """Run all layers: a pass that skips some takes less."""
    config = model.config
    before = {name: getattr(config, name) for name in LAYER_DROP if hasattr(config, name)}
    for name in before:
        setattr(config, name, 0.0)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(config, name, value)


@contextmanager
def _same_random_state() -> Iterator[None]:
    """Leave the random generators of torch and NumPy as they are."""
    import numpy as np
    import torch

    state = np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        yield
    np.random.set_state(state)
