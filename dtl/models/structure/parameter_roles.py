"""The role of a parameter, where its update depends on it: head, matrix, norm, bias."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dtl.models.full_shape import full_shape, num_dimensions
from dtl.models.structure.head import head_parameters
from dtl.models.structure.module_kinds import norm_modules
from dtl.models.vocabulary import DELTA_NAME

if TYPE_CHECKING:
    from torch import nn


def _get_base_model(model: nn.Module) -> nn.Module:
    """Return the model inside PEFT's wrapper, with its adapters; any other model unchanged."""
    inner: nn.Module = model.get_base_model() if hasattr(model, "peft_config") else model  # type: ignore[operator]
    return inner


def head_parameter_ids(model: nn.Module, new_parameters: frozenset[str]) -> frozenset[int]:
    """Return the ids of the parameters of the head, and of new parameters, also where PEFT has a
    trainable copy of them. `new_parameters`: their names before a strategy was applied."""
    inner = _get_base_model(model)
    head = head_parameters(inner)
    return frozenset(
        id(value)
        for name, value in inner.named_parameters()
        if name in head or _remove_peft_infixes(name) in new_parameters
    )


def trains_new_head(model: nn.Module, new_parameters: frozenset[str]) -> bool:
    """Return whether a parameter of the head is trained that the base does not have."""
    inner = _get_base_model(model)
    new_head = {_remove_peft_infixes(name) for name in head_parameters(inner)} & new_parameters
    return any(
        value.requires_grad and _remove_peft_infixes(name) in new_head
        for name, value in inner.named_parameters()
    )


def _remove_peft_infixes(name: str) -> str:
    """Return a parameter's name without the infixes of PEFT's `ModulesToSaveWrapper`."""
    return name.replace(".modules_to_save.default.", ".").replace(".original_module.", ".")


def weight_decay_ids(model: nn.Module) -> frozenset[int]:
    """Return the ids of the parameters that get weight decay: all but norms, biases and scales.

    Biases and norms are identified by name and class, because some have two dimensions (relative
    positions, class tokens); so are the magnitudes of weight norm.
    """
    of_norms = {
        id(value) for _, module in norm_modules(model) for value in module.parameters(recurse=False)
    }
    return frozenset(
        id(value)
        for name, value in model.named_parameters()
        if id(value) not in of_norms and "bias" not in name and _is_matrix(name, full_shape(value))
    )


def _is_matrix(name: str, shape: tuple[int, ...]) -> bool:
    """Return whether a tensor is a matrix or kernel, not a vector or a set of scales."""
    if name.endswith((".weight_g", ".original0")):  # torch's weight norm
        return False
    is_vector = len(shape) > 2 and sum(size > 1 for size in shape) <= 1
    return len(shape) > 1 and not is_vector


def hidden_matrix_ids(model: nn.Module) -> frozenset[int]:
    """Return the ids of the two-dimensional weights between the embeddings and the head."""
    from torch import nn

    inner = _get_base_model(model)
    outer = head_parameter_ids(model, frozenset()) | {
        id(value)
        for module in inner.modules()
        if isinstance(module, nn.Embedding)
        for value in module.parameters(recurse=False)
    }
    every = {
        id(value)
        for name, value in inner.named_parameters()
        if num_dimensions(value) == 2 and DELTA_NAME not in name  # rows of an embedding
    }
    return frozenset(every & weight_decay_ids(inner) - outer)
