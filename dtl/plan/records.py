"""The records of a plan: hardware, layout, parameter counts, decisions and phases."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from dtl.core import units
from dtl.core.parallel_dims import ParallelDims
from dtl.core.tables import format_table
from dtl.data.evaluation_batch import EvaluationBatchSize
from dtl.models.quantization.quantize import QuantizedSize


@dataclass(frozen=True)
class Hardware:
    """What one node offers.

    `memory_bytes`: of one device. `has_compiler`: whether a C++ compiler and ninja are installed.
    `host_memory_bytes`: main memory of the node; None: unknown.
    """

    device: Literal["cpu", "cuda"]
    device_count: int
    memory_bytes: int
    name: str
    supports_bf16: bool
    has_compiler: bool
    host_memory_bytes: int | None = None


@dataclass(frozen=True)
class ExternalLaunch:
    """A layout that an external launcher (accelerate, torchrun, srun) has fixed.

    `zero_stage`, `offload`: None where the launcher does not fix them.
    """

    launcher: str
    world_size: int
    local_world_size: int
    zero_stage: int | None
    offload: str | None


@dataclass(frozen=True)
class Layout:
    """How one global batch is divided over the processes.

    `packed_positions`: the most positions of a micro-batch of packed examples; None: examples are
    padded. `micro_batch` is then how many of the longest examples have as many positions.
    """

    nodes: int
    processes_per_node: int
    zero_stage: int
    offload: str
    micro_batch: int
    accumulation_steps: int
    activation_checkpointing: bool
    dtype: str
    device: str
    grad_accum_dtype: str = "fp32"
    evaluation_batch: EvaluationBatchSize = field(default=EvaluationBatchSize(16))
    packed_positions: int | None = None

    @property
    def parallel_dims(self) -> ParallelDims:
        """The parallel dimensions of all processes."""
        return ParallelDims(self.nodes * self.processes_per_node)

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return self.parallel_dims.world_size


@dataclass(frozen=True)
class MemoryEstimate:
    """The most bytes that a run takes, by what it does.

    `device`: of one device: training, evaluation, export. `device_limit`: what is planned for.
    `host`: of the main memory of a node: loading, training, export; empty where the run is on a
    CPU. `host_limit`: None where it is unknown.
    """

    device: dict[str, int]
    device_limit: int
    host: dict[str, int]
    host_limit: int | None


@dataclass(frozen=True)
class ParameterCounts:
    """Numbers of parameters, counted on the meta device after the strategy was applied.

    `moment_bytes`: of the optimizer's moments of the trainable ones; None: those of AdamW.
    `l2_sp_numbers`: trainable ones whose initial value the optimizer keeps as well.
    `trainable_in_model`: trainable ones of the model itself, its head included, not of adapters.
    `largest`: numbers in the largest parameter.
    """

    trainable: int
    frozen: int
    quantized: QuantizedSize = field(default=QuantizedSize())  # among the frozen
    moment_bytes: int | None = None
    l2_sp_numbers: int = 0
    trainable_in_model: int = 0
    largest: int = 0

    @property
    def optimizer_state_bytes(self) -> int:
        """Bytes of the moments; AdamW has two fp32 numbers per trainable parameter."""
        return 8 * self.trainable if self.moment_bytes is None else self.moment_bytes

    @property
    def total(self) -> int:
        return self.trainable + self.frozen


@dataclass(frozen=True)
class Decision:
    """One decision, its value and the reason for it."""

    key: str
    value: str
    reason: str


@dataclass
class DecisionLog:
    """The decisions of a plan, in their order."""

    decisions: list[Decision] = field(default_factory=list)

    def add(self, key: str, value: object, reason: str) -> None:
        """Append a decision."""
        self.decisions.append(Decision(key, str(value), reason))


@dataclass(frozen=True)
class PhasePlan:
    """The part of a run in which one strategy trains.

    `start_step`: steps done before it. `last_step`: its last step. `learning_rate`: the highest.
    `caches_features`: whether the head is trained on cached features of the base.
    `head_learning_rate`: the highest of the head and other new parameters; None: the same.
    """

    strategy: str
    start_step: int
    last_step: int
    learning_rate: float
    parameters: ParameterCounts
    caches_features: bool = False
    head_learning_rate: float | None = None


@dataclass(frozen=True)
class Plan:
    """Everything that the worker needs in addition to the config.

    `parameters`: of the phase that trains most. `model_state`: bytes on one rank of weights,
    gradients and optimizer. `deepspeed`: DeepSpeed's config, None at ZeRO 0. `memory`: None in the
    plans of earlier versions.
    """

    layout: Layout
    parameters: ParameterCounts
    model_state: dict[str, int]
    phases: tuple[PhasePlan, ...]
    steps: int
    steps_per_epoch: int
    deepspeed: dict[str, Any] | None
    decisions: tuple[Decision, ...] = field(default=())
    memory: MemoryEstimate | None = None

    @property
    def model_state_bytes(self) -> int:
        return sum(self.model_state.values())

    def phase_index(self, step: int) -> int:
        """Return the index of the phase that trains next after so many steps."""
        ends = [phase.last_step for phase in self.phases]
        return min(bisect_right(ends, step), len(ends) - 1)

    def format_lines(self, *, width: int | None = None) -> list[str]:
        """Return the plan as aligned lines: key, value and reason. `width`: of the terminal, where
        reasons are wrapped; None: each decision is one line."""
        counts = self.parameters
        share = counts.trainable / counts.total
        state = ", ".join(
            f"{name} {units.format_bytes(size)}" for name, size in self.model_state.items()
        )
        trainable, frozen, total = (
            units.format_count(number) for number in (counts.trainable, counts.frozen, counts.total)
        )
        rows = [
            (
                "parameters",
                f"{trainable} trainable, {frozen} frozen",
                f"{share:.1%} of {total} are trained" + self._format_quantized(),
            ),
            ("model state per rank", units.format_bytes(self.model_state_bytes), state),
            *((decision.key, decision.value, decision.reason) for decision in self.decisions),
        ]
        return format_table(rows, width=width)

    def _format_quantized(self) -> str:
        quantized = self.parameters.quantized
        if quantized.weights == 0:
            return ""
        size = units.format_bytes(quantized.level_bytes + quantized.scale_bytes)
        return f"; {units.format_count(quantized.weights)} are quantized, in {size}"

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> Plan:
        """Return the plan that `to_dict` made these values from."""
        phases = (
            PhasePlan(**{**phase, "parameters": _counts_from_dict(phase["parameters"])})
            for phase in stored["phases"]
        )
        return cls(
            **{
                **stored,
                "layout": _layout_from_dict(stored["layout"]),
                "parameters": _counts_from_dict(stored["parameters"]),
                "phases": tuple(phases),
                "decisions": tuple(Decision(**decision) for decision in stored["decisions"]),
                "memory": MemoryEstimate(**memory) if (memory := stored.get("memory")) else None,
            }
        )


def _layout_from_dict(stored: dict[str, Any]) -> Layout:
    if "evaluation_batch" not in stored:  # in the plans of earlier versions
        return Layout(**stored)
    return Layout(
        **{**stored, "evaluation_batch": EvaluationBatchSize(**stored["evaluation_batch"])}
    )


def _counts_from_dict(stored: dict[str, Any]) -> ParameterCounts:
    return ParameterCounts(**{**stored, "quantized": QuantizedSize(**stored["quantized"])})
