"""Attention of texts that are packed into one row: sample by sample, through PyTorch's sdpa."""

# N tokens of all texts, n tokens of one text, H heads, D width of a head

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

NAME = "dtl_packed_sdpa"  # of the attention implementation in a model's config
PLAIN = "sdpa"  # which it equals where nothing is packed

_lengths: ContextVar[tuple[int, ...] | None] = ContextVar("lengths of packed texts", default=None)


@dataclass(frozen=True)
class PackedMask:
    """What the layers of a model get as the mask of packed texts, of (N,) tokens together.

    `lengths`: of the texts. `masks`: of each text (1, 1, n, n), bool, True where a token attends to
    another; None: to all tokens before it.
    """

    lengths: tuple[int, ...]
    masks: tuple[Tensor | None, ...]


@contextmanager
def packed_texts(lengths: Sequence[int]) -> Iterator[None]:
    """Have the models that run here attend within texts of these lengths, which are one row."""
    token = _lengths.set(tuple(lengths))
    try:
        yield
    finally:
        _lengths.reset(token)


def register_packed_attention() -> None:
    """Make the attention known to transformers under its name."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, packed_sdpa)
    AttentionMaskInterface.register(NAME, packed_sdpa_mask)


def packed_sdpa_mask(*, batch_size: int, q_length: int, kv_length: int, **options: Any) -> Any:
    """Return a PackedMask where texts are packed, else the mask of transformers' sdpa.

    The arguments are those of `transformers.masking_utils.sdpa_mask`. Of the full mask, only the
    squares on its diagonal are computed, one for each text.
    """
    from transformers.masking_utils import sdpa_mask

    lengths = _lengths.get()
    if lengths is None:
        return sdpa_mask(batch_size=batch_size, q_length=q_length, kv_length=kv_length, **options)
    if batch_size != 1 or q_length != sum(lengths) or kv_length != q_length:
        raise ValueError("the model has changed the length of the packed texts")
    skips = {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    ends = tuple(accumulate(lengths))
    masks = (
        sdpa_mask(
            batch_size=1,
            q_length=length,
            kv_length=length,
            **{**options, **skips, "q_offset": end - length, "kv_offset": end - length},
        )
        for length, end in zip(lengths, ends, strict=True)
    )
    return PackedMask(lengths, tuple(map(_none_if_causal, masks)))


def _none_if_causal(mask: Tensor) -> Tensor | None:
    import torch

    causal = torch.ones_like(mask[0, 0]).tril()
    return None if torch.equal(mask[0, 0], causal) else mask


def packed_sdpa(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    **options: Any,
) -> tuple[Tensor, None]:
    """Return the attention (1, N, H, D) of packed texts; of others, that of transformers' sdpa.

    `query`, `key`, `value`: (1, H, N, D), the last two of fewer heads where they are grouped.
    """
    import torch
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if not isinstance(attention_mask, PackedMask):
        if _lengths.get() is not None:
            raise ValueError(f"{type(module).__name__} does not get the mask of packed texts")
        found: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, **options
        )
        return found
    if options.get("position_bias") is not None:
        raise ValueError(f"{type(module).__name__} adds a bias to the attention")
    parts = (each.split(attention_mask.lengths, dim=2) for each in (query, key, value))
    outputs = [
        sdpa_attention_forward(module, *part, mask, **options)[0]
        for *part, mask in zip(*parts, attention_mask.masks, strict=True)
    ]
    return torch.cat(outputs, dim=1), None
