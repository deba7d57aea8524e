"""The parts of any transformers model: base and head."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def unwrapped(model: nn.Module) -> nn.Module:
    """The model itself: what spreads it over processes holds it as `module`."""
    inner: nn.Module = getattr(model, "module", model)
    return inner


def batch_norms(model: nn.Module) -> list[nn.Module]:
    """Modules that keep running statistics of what they see."""
    import torch

    return [
        module
        for module in model.modules()
        if isinstance(getattr(module, "running_mean", None), torch.Tensor)
    ]


def convolutions(model: nn.Module) -> list[nn.Parameter]:
    """Kernels of convolutions: weights of three dimensions or more."""
    return [
        parameter
        for parameter in model.parameters()
        if len(getattr(parameter, "ds_shape", parameter.shape)) > 2
    ]


def head_module_names(model: nn.Module) -> tuple[str, ...]:
    """Top-level modules beside the base: `score`, `classifier`, `lm_head` ... that hold weights.

    T5 keeps its base in several modules; there the head is what makes the output.
    """
    base = getattr(model, "base_model_prefix", "")
    children = {
        name: module
        for name, module in model.named_children()
        if name != base and any(True for _ in module.parameters())
    }
    if hasattr(model, base) or not hasattr(model, "get_output_embeddings"):
        return tuple(children)
    output = model.get_output_embeddings()  # type: ignore[operator]
    return tuple(name for name, module in children.items() if module is output)


def head_modules(model: nn.Module) -> list[nn.Module]:
    """The head itself, wherever an adapter or an engine has wrapped it."""
    children = dict(model.named_children())
    return [children[name] for name in head_module_names(model)]


def head_parameters(model: nn.Module) -> frozenset[str]:
    """Names of the head's own parameters; what is tied to the base is the base's."""
    heads = head_module_names(model)
    every = dict(model.named_parameters(remove_duplicate=False))
    in_base = {id(value) for name, value in every.items() if name.partition(".")[0] not in heads}
    return frozenset(name for name, value in every.items() if id(value) not in in_base)
