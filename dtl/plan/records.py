"""The decision: how a config is laid out over the hardware, and what it will hold there."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from dtl.core import units
from dtl.models.quantization.quantize import Quantized


@dataclass(frozen=True)
class Hardware:
    """What one node offers. `memory`: bytes of one device; `compiler`: a C++ compiler and ninja."""

    device: Literal["cpu", "cuda"]
    devices: int
    memory: int
    name: str
    bf16: bool
    compiler: bool


@dataclass(frozen=True)
class OuterLaunch:
    """A layout that an outer launcher (accelerate, torchrun) has fixed."""

    launcher: str
    ranks: int
    ranks_a_node: int
    zero: int | None
    offload: str | None


@dataclass(frozen=True)
class Layout:
    """How one global batch lies over the processes. `processes`: on each node."""

    nodes: int
    processes: int
    zero: int
    offload: str
    micro_batch: int
    accumulation: int
    activation_checkpointing: bool
    dtype: str
    device: str

    @property
    def ranks(self) -> int:
        return self.nodes * self.processes


@dataclass(frozen=True)
class Parameters:
    """Counted on the weightless model after the strategy was applied to it. `kept`: bytes of the
    optimizer's moments of the learning ones; left out: AdamW's. `starts`: numbers of which it also
    keeps where they started."""

    learning: int
    frozen: int
    quantized: Quantized = field(default=Quantized())  # among the frozen
    kept: int | None = None
    starts: int = 0

    @property
    def moments(self) -> int:
        """Bytes; AdamW keeps two fp32 numbers."""
        return 8 * self.learning if self.kept is None else self.kept

    @property
    def total(self) -> int:
        return self.learning + self.frozen


@dataclass(frozen=True)
class Decision:
    """One decision, its value and the reason for it."""

    key: str
    value: str
    reason: str


@dataclass(frozen=True)
class PhasePlan:
    """The part of a run in which one strategy learns: after step `before`, to step `last`."""

    strategy: str
    before: int
    last: int
    learning_rate: float  # the highest
    parameters: Parameters
    caches_features: bool = False  # whether the head learns from what the base was seen to make


@dataclass(frozen=True)
class Plan:
    """Everything that the worker needs beside the config."""

    layout: Layout
    parameters: Parameters  # of the phase in which most learns
    model_state: dict[str, int]  # bytes on one rank: weights, gradients, optimizer
    phases: tuple[PhasePlan, ...]
    steps: int
    steps_per_epoch: int
    deepspeed: dict[str, Any] | None
    choices: tuple[Decision, ...] = field(default=())

    @property
    def model_state_bytes(self) -> int:
        return sum(self.model_state.values())

    def phase_after(self, step: int) -> int:
        """The number of the phase, from 0, that goes on after so many steps."""
        ends = [phase.last for phase in self.phases]
        return min(bisect_right(ends, step), len(ends) - 1)

    def lines(self) -> list[str]:
        """The plan as plain text."""
        counts = self.parameters
        share = counts.learning / counts.total
        state = ", ".join(
            f"{name} {units.format_bytes(held)}" for name, held in self.model_state.items()
        )
        learning, frozen, total = (
            units.format_count(number) for number in (counts.learning, counts.frozen, counts.total)
        )
        rows = [
            (
                "parameters",
                f"{learning} learning, {frozen} frozen",
                f"{share:.1%} of {total} learn" + self._quantized(),
            ),
            ("model state a rank", units.format_bytes(self.model_state_bytes), state),
            *((chosen.key, chosen.value, chosen.reason) for chosen in self.choices),
        ]
        widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
        return [
            f"{key:<{widths[0]}}  {value:<{widths[1]}}  {why}".rstrip() for key, value, why in rows
        ]

    def _quantized(self) -> str:
        held = self.parameters.quantized
        if held.numbers == 0:
            return ""
        size = units.format_bytes(held.levels + held.scales)
        return f"; {units.format_count(held.numbers)} are quantized, in {size}"

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> Plan:
        """What to_dict wrote."""
        return cls(
            **{
                **stored,
                "layout": Layout(**stored["layout"]),
                "parameters": _parameters(stored["parameters"]),
                "phases": tuple(
                    PhasePlan(**{**phase, "parameters": _parameters(phase["parameters"])})
                    for phase in stored["phases"]
                ),
                "choices": tuple(Decision(**chosen) for chosen in stored["choices"]),
            }
        )


def _parameters(stored: dict[str, Any]) -> Parameters:
    return Parameters(**{**stored, "quantized": Quantized(**stored["quantized"])})
