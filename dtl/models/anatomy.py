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
    return [parameter for parameter in model.parameters() if len(shape_of(parameter)) > 2]


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


def shape_of(parameter: nn.Parameter) -> tuple[int, ...]:
    """Also of a parameter that ZeRO-3 has partitioned and emptied."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def without_adapter(model: nn.Module) -> nn.Module:
    """The model that PEFT has put adapters into, with them; any other model as it is."""
    inner: nn.Module = model.get_base_model() if hasattr(model, "peft_config") else model  # type: ignore[operator]
    return inner


def head_and_new(model: nn.Module, new: frozenset[str]) -> frozenset[int]:
    """The identities of the parameters of the head, and of those that the base did not bring, also
    where PEFT keeps a learning copy of them. `new`: their names before a strategy was applied."""
    inner = without_adapter(model)
    head = head_parameters(inner)
    return frozenset(
        id(value) for name, value in inner.named_parameters() if name in head or _plain(name) in new
    )


def _plain(name: str) -> str:
    """A parameter's name without what PEFT puts between module and parameter."""
    return name.replace(".modules_to_save.default.", ".").replace(".original_module.", ".")


def decaying(model: nn.Module) -> frozenset[int]:
    """The identities of the parameters that weight decay is meant for: all but norms, biases and
    scales.

    Biases and norms are told by name and kind, as some have two dimensions (relative positions,
    class tokens); so are the lengths of a normed kernel.
    """
    norms = {
        id(value)
        for module in model.modules()
        if "norm" in type(module).__name__.lower()
        for value in module.parameters(recurse=False)
    }
    return frozenset(
        id(value)
        for name, value in model.named_parameters()
        if id(value) not in norms and "bias" not in name and _is_matrix(name, shape_of(value))
    )


def _is_matrix(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor maps one space into another, and is no vector or set of scales."""
    if name.endswith((".weight_g", ".original0")):  # of torch's weight norm
        return False
    vector = len(shape) > 2 and sum(size > 1 for size in shape) <= 1
    return len(shape) > 1 and not vector


def hidden_matrices(model: nn.Module) -> frozenset[int]:
    """The identities of the weights of two dimensions between the embeddings and the head."""
    from torch import nn

    inner = without_adapter(model)
    outer = head_and_new(model, frozenset()) | {
        id(value)
        for module in inner.modules()
        if isinstance(module, nn.Embedding)
        for value in module.parameters(recurse=False)
    }
    every = {id(value) for value in inner.parameters() if len(shape_of(value)) == 2}
    return frozenset(every & decaying(inner) - outer)
