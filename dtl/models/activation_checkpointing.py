"""Recompute activations in the backward pass instead of storing them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def enable_activation_checkpointing(model: nn.Module) -> None:
    """Recompute the activations inside a block in the backward pass instead of storing them.

    transformers also makes the input require a gradient, which only reentrant checkpointing needs.
    It would extend the backward pass to the frozen layers below, and store their activations.
    """
    model.gradient_checkpointing_enable(  # type: ignore[operator]
        gradient_checkpointing_kwargs={"use_reentrant": False}
    )
    model.disable_input_require_grads()  # type: ignore[operator]
