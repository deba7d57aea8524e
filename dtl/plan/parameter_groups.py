"""How each learning parameter is updated, and what the optimizer keeps of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, prod
from typing import TYPE_CHECKING

from dtl.config.optim import Optim
from dtl.core.errors import DtlError
from dtl.models.anatomy import depths, shape_of
from dtl.models.parameter_roles import decaying, head_and_new, hidden_matrices

if TYPE_CHECKING:
    from torch import nn

NUMBER = 4  # bytes, in fp32
BLOCK = 256  # numbers that share a scale in 8-bit moments
SMALLEST_8BIT = 4096  # numbers; bitsandbytes keeps the moments of smaller tensors in fp32


@dataclass(frozen=True)
class Update:
    """How some parameters are updated. `learning_rate`: the highest. `pull`: towards where they
    started (L2-SP). `as_matrix`: by Muon, where the optimizer is Muon."""

    learning_rate: float
    weight_decay: float = 0.0
    pull: float = 0.0
    as_matrix: bool = False


def alike(_: str) -> float:
    """Every parameter has the learning rate as it is."""
    return 1.0


def updates(
    model: nn.Module,
    options: Optim,
    *,
    learning_rate: float,
    new: frozenset[str],
    rate_factor: Callable[[str], float] = alike,
) -> dict[str, Update]:
    """Of every learning parameter, by its name. The model may be weightless or partitioned.

    `new`: names of the parameters that the base did not bring, before a strategy was applied.
    `rate_factor`: how many times the learning rate a parameter of this name has.
    Raises DtlError where an option finds nothing to work on.
    """
    learning = {name: value for name, value in model.named_parameters() if value.requires_grad}
    head = head_and_new(model, new)
    decay, matrices = decaying(model), hidden_matrices(model)
    brought = {id(value) for name, value in learning.items() if name not in new}
    by_depth = _by_depth(model, options.layer_decay)
    if options.head_learning_rate is not None:
        _found(
            "head_learning_rate", "the head does not learn, or is tied to the base", head, learning
        )
    if options.l2_sp is not None:
        _found("l2_sp", "no parameter of the base learns", brought, learning)
    if options.name == "muon":
        _found("name", "muon finds no matrix that learns", matrices, learning)

    def update(name: str, parameter: nn.Parameter) -> Update:
        rate = learning_rate * by_depth.get(name, 1.0) * rate_factor(name)
        if options.head_learning_rate is not None and id(parameter) in head:
            rate = options.head_learning_rate
        pull = (options.l2_sp or 0.0) if id(parameter) in brought else 0.0
        decays = id(parameter) in decay and not pull
        return Update(
            learning_rate=rate,
            weight_decay=options.weight_decay if decays else 0.0,
            pull=pull,
            as_matrix=options.name == "muon" and id(parameter) in matrices,
        )

    return {name: update(name, parameter) for name, parameter in learning.items()}


def _by_depth(model: nn.Module, decay: float | None) -> dict[str, float]:
    """The share of the learning rate that each parameter gets by its height in the model: 1 at the
    top, and times `decay` for each block further down (arXiv:1801.06146, arXiv:2106.08254)."""
    if decay is None:
        return {}
    height = depths(model)
    top = max(height.values())
    return {name: decay ** (top - depth) for name, depth in height.items()}


def _found(
    key: str, problem: str, wanted: frozenset[int] | set[int], learning: dict[str, nn.Parameter]
) -> None:
    if not any(id(parameter) in wanted for parameter in learning.values()):
        raise DtlError.of(f"optim.{key}", problem, f"remove optim.{key}, or take another strategy")


def moment_bytes(optimizer: str, parameter: nn.Parameter, update: Update) -> int:
    """What an optimizer keeps of one learning parameter."""
    shape = shape_of(parameter)
    numbers = prod(shape)
    moments = 1 if optimizer.startswith("lion") or update.as_matrix else 2
    if optimizer.endswith("8bit") and numbers >= SMALLEST_8BIT:
        return moments * (numbers + NUMBER * ceil(numbers / BLOCK))
    if optimizer == "adafactor":
        factored = numbers // shape[-1] + numbers // shape[-2] if len(shape) > 1 else numbers
        return NUMBER * factored
    return NUMBER * moments * numbers
