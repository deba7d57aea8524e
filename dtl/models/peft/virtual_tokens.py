"""Virtual tokens: how many an adapter has, and the positions and logits that they take."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from dtl.core.errors import DtlError
from dtl.data.modalities.text import count_positions
from dtl.models.peft.base import ADAPTER_NAME

if TYPE_CHECKING:
    from torch import nn


def drop_virtual_token_logits(adapted: Any) -> nn.Module:
    """Remove the logits of virtual tokens, which PEFT puts before those of the real tokens."""
    config = adapted.peft_config[ADAPTER_NAME]
    if config.is_prompt_learning and config.task_type in ("CAUSAL_LM", "TOKEN_CLS"):
        adapted.register_forward_hook(_slice_logits, with_kwargs=True)
    return adapted


def _slice_logits(_: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
    if hasattr(output, "logits"):  # not where the forward computes losses of learned tokens alone
        output.logits = output.logits[:, -kwargs["input_ids"].shape[1] :]
    return output


def count_virtual_tokens(model: nn.Module) -> int:
    """Return the number of positions that an adapter uses; 0 if the model has no adapter."""
    config = getattr(model, "peft_config", {}).get(ADAPTER_NAME)
    return getattr(config, "num_virtual_tokens", None) or 0


def reserve_virtual_tokens(config: Any, virtual_tokens: int) -> Any:
    """Return a model's config with the number of positions that virtual tokens leave for a text.

    Batches are padded to a multiple of 8. Raises DtlError if fewer than 8 positions are left.
    """
    positions = count_positions(config)
    if not positions or not virtual_tokens:
        return config
    left = (positions - virtual_tokens - 2) // 8 * 8
    if left < 8:
        raise DtlError.of(
            "strategy.num_virtual_tokens",
            f"{virtual_tokens} virtual tokens leave no text in the model's {positions} positions",
            f"set strategy.num_virtual_tokens to {max(positions - 10, 1)} or less",
        )
    narrowed = copy.copy(config)
    narrowed.max_position_embeddings -= positions - left
    return narrowed
