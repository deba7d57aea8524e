"""Check at the start that a model computes packed examples as if each were alone."""

# T tokens of an example, N of all, V vocabulary

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from dtl.core.errors import DtlError, shorten_message
from dtl.models.packing import PackedTexts
from dtl.models.structure.wrappers import find_transformers_model
from dtl.train.causality import TOLERANCE

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dtl.engine.base import Engine

LENGTHS = (5, 9, 2)
FIX = "set train.packing to false: the loss is the same without it"


def check_isolation(engine: Engine, *, vocab_size: int) -> None:
    """Raise DtlError if the logits of packed examples are not those of each alone.

    Every rank must call. The model is left in evaluation mode.
    """
    engine.unwrapped_model.eval()
    name = type(find_transformers_model(engine.unwrapped_model)[1]).__name__
    try:
        with torch.no_grad(), engine.autocast():
            change = change_of_packed_logits(
                engine.model, vocab_size=vocab_size, device=engine.device
            )
    except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        raise DtlError.of(
            "train.packing", f"{name} does not run packed: {shorten_message(error)}", FIX
        ) from error
    if change <= TOLERANCE[engine.settings.dtype]:
        return
    raise DtlError.of(
        "train.packing",
        f"{name} does not isolate packed examples: its logits differ from those of each example "
        f"alone (by {change:.1g} of their standard deviation)",
        FIX,
    )


def change_of_packed_logits(model: nn.Module, *, vocab_size: int, device: torch.device) -> float:
    """Return by how much the logits of packed examples differ from those of each alone, at most, as
    a share of their standard deviation. `model`: in evaluation mode."""
    rows = [
        (7 + 3 * torch.arange(length, device=device) + 5 * length) % vocab_size
        for length in LENGTHS
    ]
    alone_NV = torch.cat(
        [model(input_ids=row_T[None], use_cache=False).logits[0] for row_T in rows]
    ).float()
    tokens_BT = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask_BT = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], True)
    packed_NV: Tensor = PackedTexts.from_padded(tokens_BT, mask_BT).run(model).logits[0].float()
    return float((packed_NV - alone_NV).abs().max() / alone_NV.std())
