"""The head of a model: its modules and parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def head_module_names(model: nn.Module) -> tuple[str, ...]:
    """Return the top-level modules with weights besides the base: `score`, `lm_head` ...

    T5 has its base in several modules; there the head is the output layer. Whisper's classifier has
    it under another name; there the head is all that is no model itself.
    """
    from transformers import PreTrainedModel

    base = getattr(model, "base_model_prefix", "")
    children = {
        name: module
        for name, module in model.named_children()
        if name != base and any(True for _ in module.parameters())
    }
    if hasattr(model, base) or not hasattr(model, "get_output_embeddings"):
        return tuple(children)
    output = model.get_output_embeddings()  # type: ignore[operator]
    if output is None and "For" in type(model).__name__:
        return tuple(n for n, module in children.items() if not isinstance(module, PreTrainedModel))
    return tuple(name for name, module in children.items() if module is output)


def head_modules(model: nn.Module) -> list[nn.Module]:
    """Return the modules of the head, also where an adapter or an engine has wrapped them."""
    children = dict(model.named_children())
    return [children[name] for name in head_module_names(model)]


def head_parameters(model: nn.Module) -> frozenset[str]:
    """Return the names of the head's own parameters; tied ones belong to the base."""
    heads = head_module_names(model)
    every = dict(model.named_parameters(remove_duplicate=False))
    in_base = {id(value) for name, value in every.items() if name.partition(".")[0] not in heads}
    return frozenset(name for name, value in every.items() if id(value) not in in_base)
