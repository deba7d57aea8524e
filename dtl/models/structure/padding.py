"""What a causal model gets of a batch of texts that is padded on the right."""

# B batch, T tokens

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dtl.models.packing import is_packing
from dtl.models.router_outputs import has_routers
from dtl.models.structure.wrappers import find_transformers_model, unwrap

if TYPE_CHECKING:
    from torch import Tensor, nn


def right_padded_inputs(model: nn.Module, tokens_BT: Tensor, mask_BT: Tensor) -> dict[str, Any]:
    """Return the arguments of a causal model's forward, with the attention mask where it is needed.

    No token attends to the padding after it, so that its hidden state is the same without a mask.
    Attention is faster without one: sdpa then runs its flash kernel, and copies no keys and values.
    Where texts are packed, the mask says where they end.
    """
    inputs = {"input_ids": tokens_BT, "use_cache": False}
    needs_mask = is_packing() or find_mask_reason(model) is not None
    return {**inputs, "attention_mask": mask_BT} if needs_mask else inputs


def find_mask_reason(model: nn.Module) -> str | None:
    """Return why a causal model needs the mask of a batch that is padded on the right; None where
    it does not."""
    outer = unwrap(model)
    inner: Any = find_transformers_model(outer)[1]
    kind = type(inner)
    if getattr(getattr(outer, "active_peft_config", None), "is_prompt_learning", False):
        return "virtual tokens are before the text"
    if not kind.__module__.startswith("transformers."):
        return f"{kind.__name__} is not of transformers"
    if has_routers(inner.config):
        return f"the routers of {kind.__name__} count tokens, and not padding"
    return None
