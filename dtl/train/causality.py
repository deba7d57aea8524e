"""Check at the start that a language model does not see the tokens that it has to predict."""

# B sequences, T tokens, V vocabulary

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from dtl.core.errors import DtlError
from dtl.models.structure.wrappers import find_transformers_model

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dtl.engine.base import Engine

CAUSAL_CLASS = "AutoModelForCausalLM"
TOKENS = 16
# Share of the spread of the logits by which rounding may move them: experts see other groups.
TOLERANCE = {"fp32": 1e-4, "bf16": 3e-2, "fp16": 1e-2}


def check_causality(engine: Engine, *, vocab_size: int) -> None:
    """Raise DtlError if the logits of earlier tokens depend on the last token.

    Such a model would copy the answer from its input. Every rank must call. The model is left in
    evaluation mode.
    """
    engine.unwrapped_model.eval()
    with torch.no_grad(), engine.autocast():
        change = change_of_earlier_logits(engine.model, vocab_size=vocab_size, device=engine.device)
    if change <= TOLERANCE[engine.settings.dtype]:
        return
    _, model = find_transformers_model(engine.unwrapped_model)
    raise DtlError.of(
        "task",
        f"{type(model).__name__} sees the tokens that it has to predict: its logits of earlier "
        f"tokens change with the last token (by {change:.1g} of their standard deviation)",
        "take a decoder, such as Llama, Qwen or GPT; this model fits text_classification or "
        "token_classification",
    )


def change_of_earlier_logits(model: nn.Module, *, vocab_size: int, device: torch.device) -> float:
    """Return by how much another last token moves the logits before it, at most, as a share of
    their standard deviation. `model`: in evaluation mode."""
    tokens_T = (7 + 3 * torch.arange(TOKENS, device=device)) % vocab_size
    other_T = tokens_T.clone()
    other_T[-1] = (other_T[-1] + 1) % vocab_size
    tokens_BT = torch.stack([tokens_T, other_T])
    logits_BTV: Tensor = model(
        input_ids=tokens_BT, attention_mask=torch.ones_like(tokens_BT), use_cache=False
    ).logits.float()
    earlier_BTV = logits_BTV[:, :-1]
    return float((earlier_BTV[0] - earlier_BTV[1]).abs().max() / earlier_BTV.std())
