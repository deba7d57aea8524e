"""Assign an update rule to each trainable parameter, and count the optimizer's bytes for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, prod
from typing import TYPE_CHECKING

from dtl.config.schema.optim import Optim
from dtl.core.errors import DtlError
from dtl.models.full_shape import full_shape
from dtl.models.structure.model_structure import parameter_depths
from dtl.models.structure.parameter_roles import (
    head_parameter_ids,
    hidden_matrix_ids,
    weight_decay_ids,
)
from dtl.plan.memory import FP32_BYTES

if TYPE_CHECKING:
    from torch import nn

QUANTIZATION_BLOCK = 256  # numbers that share a scale in 8-bit moments
MIN_8BIT_NUMBERS = 4096  # bitsandbytes keeps the moments of smaller tensors in fp32


@dataclass(frozen=True)
class UpdateRule:
    """How some parameters are updated.

    `learning_rate`: the highest. `l2_sp`: strength of the L2-SP penalty on the distance from their
    initial values. `uses_muon`: whether Muon updates them, where the optimizer is Muon.
    """

    learning_rate: float
    weight_decay: float = 0.0
    l2_sp: float = 0.0
    uses_muon: bool = False


def uniform_rate_factor(_: str) -> float:
    """Return 1: every parameter has the same learning rate."""
    return 1.0


def assign_update_rules(
    model: nn.Module,
    options: Optim,
    *,
    learning_rate: float,
    new: frozenset[str],
    rate_factor: Callable[[str], float] = uniform_rate_factor,
    head_learning_rate: float | None = None,
) -> dict[str, UpdateRule]:
    """Return the rule of every trainable parameter, by its name.

    The model may be on the meta device or partitioned. `new`: names of the parameters that are not
    in the base, before a strategy was applied. `rate_factor`: gives the factor on the learning
    rate of a parameter, by its name. `head_learning_rate`: the highest of the head and of new
    parameters, where it is planned; the option comes first. Raises DtlError where an option applies
    to no parameter.
    """
    trainable = {name: value for name, value in model.named_parameters() if value.requires_grad}
    head = head_parameter_ids(model, new)
    decay, matrices = weight_decay_ids(model), hidden_matrix_ids(model)
    from_base = {id(value) for name, value in trainable.items() if name not in new}
    by_depth = _layer_decay_factors(model, options.layer_decay)
    if options.head_learning_rate is not None:
        _check_any_trainable(
            "head_learning_rate", "the head is not trained, or is tied to the base", head, trainable
        )
    if options.l2_sp is not None:
        _check_any_trainable("l2_sp", "no parameter of the base is trained", from_base, trainable)
    if options.name == "muon":
        _check_any_trainable(
            "name", "no matrix that Muon could update is trained", matrices, trainable
        )

    head_rate = options.head_learning_rate or head_learning_rate

    def rule_for(name: str, parameter: nn.Parameter) -> UpdateRule:
        rate = learning_rate * by_depth.get(name, 1.0) * rate_factor(name)
        if head_rate is not None and id(parameter) in head:
            rate = head_rate
        l2_sp = (options.l2_sp or 0.0) if id(parameter) in from_base else 0.0
        decays = id(parameter) in decay and not l2_sp
        return UpdateRule(
            learning_rate=rate,
            weight_decay=options.weight_decay if decays else 0.0,
            l2_sp=l2_sp,
            uses_muon=options.name == "muon" and id(parameter) in matrices,
        )

    return {name: rule_for(name, parameter) for name, parameter in trainable.items()}


def _layer_decay_factors(model: nn.Module, decay: float | None) -> dict[str, float]:
    """Return the factor on the learning rate of each parameter, by its name: 1 at the top of the
    model, times `decay` for each block below (arXiv:1801.06146, arXiv:2106.08254)."""
    if decay is None:
        return {}
    depth_by_name = parameter_depths(model)
    top = max(depth_by_name.values())
    return {name: decay ** (top - depth) for name, depth in depth_by_name.items()}


def _check_any_trainable(
    key: str, problem: str, ids: frozenset[int] | set[int], trainable: dict[str, nn.Parameter]
) -> None:
    if not any(id(parameter) in ids for parameter in trainable.values()):
        raise DtlError.of(f"optim.{key}", problem, f"remove optim.{key}, or use another strategy")


def moment_bytes(optimizer: str, parameter: nn.Parameter, rule: UpdateRule) -> int:
    """Return the bytes of an optimizer's moments of one trainable parameter."""
    shape = full_shape(parameter)
    numbers = prod(shape)
    moments = 1 if optimizer.startswith("lion") or rule.uses_muon else 2
    if optimizer.endswith("8bit") and numbers >= MIN_8BIT_NUMBERS:
        return moments * (numbers + FP32_BYTES * ceil(numbers / QUANTIZATION_BLOCK))
    if optimizer == "adafactor":
        factored = numbers // shape[-1] + numbers // shape[-2] if len(shape) > 1 else numbers
        return FP32_BYTES * factored
    return FP32_BYTES * moments * numbers
