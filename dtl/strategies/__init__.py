"""Which parameters learn. One file in this folder is one strategy; the file's name is its name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, ClassVar, Literal

if TYPE_CHECKING:
    from torch import nn


class Strategy(ABC):
    """A way to adapt a model. A plugin file defines `Options` and a final `Plugin(Strategy)`.

    A strategy freezes and adds; it never trains. It is applied to real and to weightless (meta)
    models alike, so that the plan counts what the run will have.
    """

    learning_rate: ClassVar[float]  # where optim.learning_rate is left out
    starts_from: ClassVar[Literal["pretrained", "random"]] = "pretrained"
    exports: ClassVar[Literal["model", "adapter"]] = "model"
    keeps_base: bool = False  # whether what it adds can be set aside, which leaves the base

    def __init__(self, options: Any) -> None:
        self.options = options

    @abstractmethod
    def apply(self, model: nn.Module, *, new: frozenset[str]) -> nn.Module:
        """Freeze and add. `new`: names of the parameters that the base did not bring; they learn.

        Raises DtlError when nothing would learn, or the model has no place for what is asked.
        """

    def training_mode(self, model: nn.Module) -> None:
        """Put every module in the mode that it trains in."""
        model.train()

    def merge(self, model: nn.Module) -> nn.Module:
        """The same function as a plain model, without what the strategy added."""
        return model


def let_learn(model: nn.Module, names: Collection[str]) -> nn.Module:
    """The parameters of these names learn, and no others. A tied weight has one name, its first."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
    return model
