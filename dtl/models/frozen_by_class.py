"""Parameters that a model's class freezes, such as sinusoidal positions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

NAMES = "_frozen_by_class"  # attribute of a model: names of the parameters that its class freezes


@contextmanager
def record_frozen_parameters() -> Iterator[None]:
    """Note on each model that is built here which parameters its class freezes. transformers 5.23
    unfreezes them when it loads weights."""
    from transformers import PreTrainedModel

    post_init = PreTrainedModel.post_init

    def note_and_post_init(model: Any) -> None:
        post_init(model)
        setattr(model, NAMES, frozen_names(model))

    PreTrainedModel.post_init = note_and_post_init
    try:
        yield
    finally:
        PreTrainedModel.post_init = post_init


def frozen_names(model: nn.Module) -> frozenset[str]:
    """Return the names of the frozen parameters."""
    return frozenset(name for name, value in model.named_parameters() if not value.requires_grad)


def refreeze(model: nn.Module) -> frozenset[str]:
    """Freeze again what the class of a loaded model freezes, and return the names."""
    names: frozenset[str] = getattr(model, NAMES, frozenset())
    for name, value in model.named_parameters():
        if name in names:
            value.requires_grad_(False)
    return names
