"""Which parameters learn. One file in this folder is one strategy; the file's name is its name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, final

from pydantic import Field, model_validator

from dtl.config.record import ConfigFault, Record, refuse
from dtl.core.errors import DtlError
from dtl.models.peft import adapters, continued
from dtl.models.peft.adapters import COMPATIBILITY

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from torch.optim import Optimizer


class Strategy(ABC):
    """A way to adapt a model. A plugin file defines `Options` and a final `Plugin(Strategy)`.

    A strategy freezes and adds; it never trains. It is applied to real and to weightless (meta)
    models alike, so that the plan counts what the run will have.
    """

    learning_rate: ClassVar[float]  # where optim.learning_rate is left out
    starts_from: ClassVar[Literal["pretrained", "random"]] = "pretrained"
    exports: ClassVar[Literal["model", "adapter"]] = "model"
    keeps_base: bool = False  # whether what it adds can be set aside, which leaves the base
    max_zero_stage: int = 3  # ZeRO stage
    supports_checkpointing: bool = True  # whether its activations may be recomputed
    virtual_tokens: int = 0  # how many positions of the model it takes
    continues: Path | None = None  # the folder of the adapter that it goes on with
    needs_calibration: bool = False  # whether `begin` is wanted
    extra_state_bytes: int = 0  # that `tie` adds to the moments of each number that learns
    needs_base_weights: bool = False  # whether `begin_over` is wanted, of a base in nf4
    caches_features: bool | None = False  # whether the base's output is kept; None: as planned

    def __init__(self, options: Any) -> None:
        self.options = options

    @abstractmethod
    def apply(self, model: nn.Module, *, new: frozenset[str]) -> nn.Module:
        """Freeze and add. `new`: names of the parameters that the base did not bring; they learn.

        Raises DtlError when nothing would learn, or the model has no place for what is asked.
        """

    def init_from_data(
        self,
        model: nn.Module,
        *,
        batches: Iterable[dict[str, Tensor]],
        show: Callable[[nn.Module, dict[str, Tensor]], Any],
    ) -> None:
        """Begin from what the base makes of training examples: `batches` without end, the same on
        every rank and layout, which `show` runs through the model. Only before the first step."""
        return None

    def init_from_base_weights(
        self,
        model: nn.Module,
        *,
        whole: Mapping[str, Tensor],
        device: torch.device,
        beat: Callable[[], None],
    ) -> None:
        """Begin from what a base was before it was quantized: `whole` reads each weight when asked,
        by its name there. The work is done on `device`; `beat` is called before each part of it.
        Only before the first step."""
        return None

    def load_initial_values(self, model: nn.Module, *, fill: Callable[..., None]) -> None:
        """Write what the strategy begins with, where it brings values: `fill(parameter, value)`
        writes a whole tensor, also into a partitioned one."""
        return None

    def register_optimizer_hooks(
        self, model: nn.Module, optimizer: Optimizer, *, steps: int, done: int
    ) -> None:
        """Tie to the optimizer (`register_step_pre_hook`) what the strategy does in every step
        beside it: `steps` in all, of which so many are done. What it must remember of a parameter
        stands in the optimizer's state, under a name of `engine.KEPT`."""
        return None

    def training_mode(self, model: nn.Module) -> None:
        """Put every module in the mode that it trains in."""
        model.train()

    def rate_factor(self, name: str) -> float:
        """How many times the learning rate a learning parameter has of its own."""
        return 1.0

    def merge(self, model: nn.Module) -> nn.Module:
        """The same function as a plain model, without what the strategy added. Raises DtlError
        where that cannot be."""
        return model


def set_trainable(model: nn.Module, names: Collection[str]) -> nn.Module:
    """The parameters of these names learn, and no others. A tied weight has one name, its first."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
    return model


class Adapter(Strategy):
    """What PEFT adds beside a frozen base: a method of `adapters.REACH`, and its settings."""

    exports = "adapter"
    keeps_base = True
    method: ClassVar[str]

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self.max_zero_stage = COMPATIBILITY[self.method].zero
        self.supports_checkpointing = COMPATIBILITY[self.method].recomputes
        former = getattr(options, "continue_from", None)
        self.continues = None if former is None else Path(former).expanduser()

    @abstractmethod
    def settings(self, model: nn.Module) -> dict[str, Any]:
        """What the method's config of PEFT is given beside what `Targeted` asks for. `model` may be
        weightless."""

    @final
    def apply(self, model: nn.Module, *, new: frozenset[str]) -> nn.Module:
        adapters.refuse_out_of_reach(self.method, model)
        settings = self._settings(model)
        if self.continues is not None:
            usual = type(self)(type(self.options)())._settings(model)
            asked = {name: value for name, value in settings.items() if value != usual.get(name)}
            return continued.put_on_again(
                model, self.continues, method=self.method, asked=asked, new=new
            )
        try:
            return adapters.attach_adapter(model, self.method, settings, new=new)
        except ValueError as fault:
            problem = str(fault).splitlines()[0].rstrip(".")
            target = getattr(self.options, "target", None)
            raise DtlError.of(
                "strategy" if target is None else "strategy.target",
                f"{self.method if target is None else repr(target)} does not fit "
                f"{type(model).__name__} ({problem})",
                "name endings of its linear layers, such as [q_proj, v_proj], or all-linear",
            ) from fault

    def _settings(self, model: nn.Module) -> dict[str, Any]:
        return {**_placed(self.options), **self.settings(model)}

    @final
    def load_initial_values(self, model: nn.Module, *, fill: Callable[..., None]) -> None:
        if self.continues is not None:
            continued.fill_from(model, self.continues, fill=fill)

    @final
    def merge(self, model: nn.Module) -> nn.Module:
        if not COMPATIBILITY[self.method].merges:
            raise DtlError.of(
                "strategy",
                f"{self.method} learns tokens, which no weight of the model can take in",
                "use the adapter beside its base, or take strategy lora",
            )
        return adapters.merged(model)


class Targeted(Record):
    """Where an adapter goes."""

    target: str | tuple[str, ...] = Field(
        "all-linear",
        description="Which layers get an adapter: all-linear, a list of name endings, or a regular "
        "expression over whole module names (PEFT's target_modules).",
    )
    also_learn: tuple[str, ...] = Field(
        (), description="Whole modules that learn beside the adapters (PEFT's modules_to_save)."
    )


class GoingOn(Record):
    """What can begin with an earlier adapter."""

    continue_from: str | None = Field(
        None,
        description="Folder of an adapter of this kind, a run's export or PEFT's, that goes on "
        "learning. Rank, scale, layers and all else that makes its form are its own.",
    )


class Excluding(Targeted):
    """The same, with exceptions."""

    exclude: str | tuple[str, ...] | None = Field(None, description="Layers to leave out of these.")


class OfBlocks(Targeted):
    """The same, in some of the model's blocks."""

    layers: tuple[int, ...] | None = Field(
        None,
        description="Only blocks with these numbers (PEFT's layers_to_transform); target must then "
        "be a list.",
    )

    @model_validator(mode="after")
    def _layers_are_of_named_targets(self) -> Self:
        if self.layers is not None and isinstance(self.target, str):
            refuse(
                [
                    ConfigFault(
                        "layers",
                        problem=f"PEFT picks blocks of a list of names, not of '{self.target}'",
                        fix="list the layers, such as target: [q_proj, v_proj]",
                    )
                ]
            )
        return self


PLACES = {  # dtl's names -> PEFT's
    "target": "target_modules",
    "exclude": "exclude_modules",
    "layers": "layers_to_transform",
    "also_learn": "modules_to_save",
}


def _placed(options: Record) -> dict[str, Any]:
    """What PEFT is told of where an adapter goes; it wants lists."""
    given = {name: getattr(options, name) for name in PLACES if hasattr(options, name)}
    return {
        PLACES[name]: list(value) if isinstance(value, tuple) else value
        for name, value in given.items()
    }
