"""What every strategy is built on: the interface, and the options and behavior of PEFT adapters.

One file in this folder is one strategy; the file's name is its name in a config.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, final

from pydantic import Field, field_validator, model_validator

from dtl.config.schema.base import ConfigFault, Record, check_path, raise_config_faults
from dtl.core.errors import DtlError, shorten_message
from dtl.models.peft import continued
from dtl.models.peft.attach import attach_adapter
from dtl.models.peft.compatibility import COMPATIBILITY, check_compatibility
from dtl.models.peft.merge import merge_adapter
from dtl.models.peft.named_modules import check_modules_exist

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from torch.optim import Optimizer


class Strategy(ABC):
    """A way to adapt a model. A plugin file defines `Options` and a final `Plugin(Strategy)`.

    A strategy freezes parameters and adds modules; it never trains. It is applied to real models
    and to models on the meta device alike, so that the plan counts what the run will have.
    """

    learning_rate: ClassVar[float]  # the default of optim.learning_rate
    scales_learning_rate: ClassVar[bool] = False  # whether it depends on width and steps
    starts_from: ClassVar[Literal["pretrained", "random"]] = "pretrained"
    export_kind: ClassVar[Literal["model", "adapter"]] = "model"
    preserves_base: bool = False  # whether disabling the adapter gives the pretrained base
    max_zero_stage: int = 3
    supports_gradient_checkpointing: bool = True
    num_virtual_tokens: int = 0  # positions of the model that the strategy uses
    continue_from: Path | None = None  # the folder of the adapter whose training it continues
    needs_calibration: bool = False  # whether `init_from_data` must be called
    needs_base_weights: bool = False  # whether `init_from_base_weights` must be called
    extra_optimizer_bytes: int = 0  # bytes per trainable number that its optimizer hooks add
    cache_features: bool | None = False  # whether the base's output is cached; None: planned

    def __init__(self, options: Any) -> None:
        self.options = options

    @abstractmethod
    def apply(self, model: nn.Module, *, new_parameters: frozenset[str]) -> nn.Module:
        """Freeze parameters, add modules and return the model.

        `new_parameters`: names of the parameters that the weight files do not contain; they are
        trained. Raises DtlError if no parameter would be trained, or if the model does not have the
        layers that the options name.
        """

    def init_from_data(
        self,
        model: nn.Module,
        *,
        batches: Iterable[dict[str, Tensor]],
        forward: Callable[[nn.Module, dict[str, Tensor]], Any],
    ) -> None:
        """Initialize from the base's activations on training examples, before the first step.

        `batches`: an endless iterator, the same on every rank and layout. `forward(model, batch)`
        runs the model on a batch.
        """
        return None

    def init_from_base_weights(
        self,
        model: nn.Module,
        *,
        original_weights: Mapping[str, Tensor],
        device: torch.device,
        heartbeat: Callable[[], None],
    ) -> None:
        """Initialize from the base's weights as they were before quantization, before the first
        step.

        `original_weights`: the weights by their names in the base, each read from its file when it
        is accessed. `device`: where to compute. `heartbeat()` is called before each layer.
        """
        return None

    def load_initial_values(
        self, model: nn.Module, *, write_parameter: Callable[..., None]
    ) -> None:
        """Write the initial values that the strategy reads from files, if any.

        `write_parameter(parameter, value)` writes a full tensor, also into a partitioned one.
        """
        return None

    def register_optimizer_hooks(
        self, model: nn.Module, optimizer: Optimizer, *, total_steps: int, completed_steps: int
    ) -> None:
        """Register on the optimizer (`register_step_pre_hook`) what the strategy does in each step.

        `total_steps`: optimizer steps of the run. `completed_steps`: those before this process. The
        state of a parameter is stored in the optimizer's state, so that checkpoints hold it.
        """
        return None

    def set_training_mode(self, model: nn.Module) -> None:
        """Set each module to training mode, or to evaluation mode where it must not change."""
        model.train()

    def trains_by_name(self, name: str) -> bool:
        """Return whether the options name this parameter, which the model's class may freeze."""
        return False

    def learning_rate_factor(self, name: str) -> float:
        """Return the factor by which the learning rate of this parameter is multiplied."""
        return 1.0

    def merge(self, model: nn.Module) -> nn.Module:
        """Return a plain model that computes the same, without the modules that the strategy added.

        Raises DtlError if the strategy cannot be merged.
        """
        return model


def set_trainable(model: nn.Module, names: Collection[str]) -> nn.Module:
    """Set `requires_grad` for the parameters of these names, and unset it for all others.

    A tied parameter has one name, its first in `named_parameters()`.
    """
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
    return model


class Adapter(Strategy):
    """A PEFT method on a frozen base. `method` is its name in `COMPATIBILITY`."""

    export_kind = "adapter"
    preserves_base = True
    method: ClassVar[str]

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self.max_zero_stage = COMPATIBILITY[self.method].max_zero_stage
        self.supports_gradient_checkpointing = COMPATIBILITY[
            self.method
        ].supports_gradient_checkpointing
        folder = getattr(options, "continue_from", None)
        self.continue_from = None if folder is None else Path(folder).expanduser()

    @abstractmethod
    def peft_config_kwargs(self, model: nn.Module) -> dict[str, Any]:
        """Return the arguments of the method's PEFT config, without those of `TargetModules`.

        `model` may be on the meta device.
        """

    @final
    def apply(self, model: nn.Module, *, new_parameters: frozenset[str]) -> nn.Module:
        check_compatibility(self.method, model)
        settings = self._all_config_kwargs(model)
        check_modules_exist(model, _target_kwargs(self.options))
        if self.continue_from is not None:
            defaults = type(self)(type(self.options)())._all_config_kwargs(model)
            requested = {
                name: value for name, value in settings.items() if value != defaults.get(name)
            }
            return continued.attach_continued_adapter(
                model,
                self.continue_from,
                method=self.method,
                requested=requested,
                new_parameters=new_parameters,
            )
        try:
            return attach_adapter(model, self.method, settings, new_parameters=new_parameters)
        except ValueError as fault:
            problem = str(fault).splitlines()[0].rstrip(".")
            target = getattr(self.options, "target_modules", None)
            raise DtlError.of(
                "strategy" if target is None else "strategy.target_modules",
                f"{self.method if target is None else repr(target)} does not fit "
                f"{type(model).__name__} ({problem})",
                "list endings of its linear layers' names, as [q_proj, v_proj], or use all-linear",
            ) from fault

    def _all_config_kwargs(self, model: nn.Module) -> dict[str, Any]:
        return {**_target_kwargs(self.options), **self.peft_config_kwargs(model)}

    @final
    def load_initial_values(
        self, model: nn.Module, *, write_parameter: Callable[..., None]
    ) -> None:
        if self.continue_from is not None:
            continued.write_continued_weights(
                model, self.continue_from, write_parameter=write_parameter
            )

    @final
    def merge(self, model: nn.Module) -> nn.Module:
        if not COMPATIBILITY[self.method].can_merge:
            raise DtlError.of(
                "strategy",
                f"{self.method} trains virtual tokens, which cannot be merged into the model's "
                "weights",
                "use the adapter together with its base, or take strategy lora",
            )
        return merge_adapter(model)


class TargetModules(Record):
    """Options: the layers that get an adapter."""

    target_modules: str | tuple[str, ...] = Field(
        "all-linear",
        description="Layers that get an adapter: all-linear, a list of name endings, or a regular "
        "expression over full module names.",
    )
    modules_to_save: tuple[str, ...] = Field(
        (),
        description="Modules that are trained in full, in addition to the adapters, and saved with "
        "them.",
    )

    @field_validator("target_modules", "exclude_modules", check_fields=False)
    @classmethod
    def _check_pattern(cls, value: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        if isinstance(value, str):
            try:
                re.compile(value)
            except re.error as fault:
                raise_config_faults(
                    [
                        ConfigFault(
                            problem=f"'{shorten_message(value)}' is no regular expression "
                            f"({fault})",
                            fix="list endings of layers' names, as [q_proj, v_proj], or correct "
                            "the expression",
                        )
                    ]
                )
        return value


class ContinueFrom(Record):
    """Options: an adapter whose training continues."""

    continue_from: str | None = Field(
        None,
        description="Folder of an adapter of this method (the export of a run, or saved by PEFT) "
        "whose training continues. Its rank, scale and layers are used.",
    )

    @field_validator("continue_from")
    @classmethod
    def _check_continue_from(cls, path: str | None) -> str | None:
        return None if path is None else check_path(path)


class ExcludeModules(TargetModules):
    """Options: the layers that get an adapter, with exceptions."""

    exclude_modules: str | tuple[str, ...] | None = Field(
        None,
        description="Layers of target_modules that get no adapter: a list of name endings, or a "
        "regular expression over full module names.",
    )


class LayersToTransform(TargetModules):
    """Options: the layers that get an adapter, in some of the model's blocks."""

    layers_to_transform: tuple[int, ...] | None = Field(
        None,
        description="Numbers of the blocks that get adapters, from 0; default: all. "
        "target_modules must then be a list.",
    )

    @model_validator(mode="after")
    def _check_target_modules_is_list(self) -> Self:
        if self.layers_to_transform is not None and isinstance(self.target_modules, str):
            raise_config_faults(
                [
                    ConfigFault(
                        "layers_to_transform",
                        problem="PEFT selects blocks only from a list of layer names, not from "
                        f"'{self.target_modules}'",
                        fix="list the layers, such as target_modules: [q_proj, v_proj]",
                    )
                ]
            )
        return self


TARGET_KEYS = ("target_modules", "exclude_modules", "layers_to_transform", "modules_to_save")


def _target_kwargs(options: Record) -> dict[str, Any]:
    """Return the options of `TARGET_KEYS` as arguments of a PEFT config, which takes lists."""
    values = {name: getattr(options, name) for name in TARGET_KEYS if hasattr(options, name)}
    return {
        name: list(value) if isinstance(value, tuple) else value for name, value in values.items()
    }
