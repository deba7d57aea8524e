"""Find a model inside the wrapper of an engine or of PEFT."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model inside an engine's wrapper, which has it as `module`."""
    inner: nn.Module = getattr(model, "module", model)
    return inner


def find_transformers_model(model: nn.Module) -> tuple[str, nn.Module]:
    """Return the model inside PEFT's wrapper, and the prefix of its names there."""
    from transformers import PreTrainedModel

    for name, module in model.named_modules():
        if isinstance(module, PreTrainedModel):
            return f"{name}." if name else "", module
    return "", model
