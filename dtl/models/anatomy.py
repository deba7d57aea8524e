"""The parts of any transformers model: base and head."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def head_module_names(model: nn.Module) -> tuple[str, ...]:
    """Top-level modules beside the base: `score`, `classifier`, `lm_head` ... that hold weights."""
    base = getattr(model, "base_model_prefix", "")
    return tuple(
        name
        for name, module in model.named_children()
        if name != base and any(True for _ in module.parameters())
    )


def head_modules(model: nn.Module) -> list[nn.Module]:
    """The head itself, wherever an adapter or an engine has wrapped it."""
    children = dict(model.named_children())
    return [children[name] for name in head_module_names(model)]


def head_parameters(model: nn.Module) -> frozenset[str]:
    """Names of the head's own parameters; what is tied to the base is the base's."""
    base = getattr(model, "base_model_prefix", "")
    in_base = {
        id(parameter)
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if base and name.startswith(f"{base}.")
    }
    return frozenset(
        name
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if not (base and name.startswith(f"{base}.")) and id(parameter) not in in_base
    )
