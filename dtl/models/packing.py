"""Texts of a batch as one row of a causal model, which computes each as if it were alone."""

# B texts, T tokens of the longest one, N tokens of all texts

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dtl.models.packed_attention import NAME, PLAIN, packed_texts, register_packed_attention
from dtl.models.structure.wrappers import find_transformers_model, unwrap

if TYPE_CHECKING:
    from torch import Tensor, nn

_is_packing: ContextVar[bool] = ContextVar("whether texts are packed", default=False)


@contextmanager
def packing_texts(*, is_on: bool) -> Iterator[None]:
    """Have the losses of texts computed on packed batches in this context, or on padded ones."""
    token = _is_packing.set(is_on)
    try:
        yield
    finally:
        _is_packing.reset(token)


def is_packing() -> bool:
    """Return whether the losses of texts are computed on packed batches here."""
    return _is_packing.get()


@dataclass(frozen=True)
class PackedTexts:
    """The texts of a batch in one row, without their padding.

    `tokens_1N`, `positions_1N`: int64; positions start at 0 in each text. `is_text_BT`: bool, where
    the batch has tokens. `lengths`: of the texts that have tokens.
    """

    tokens_1N: Tensor
    positions_1N: Tensor
    is_text_BT: Tensor
    lengths: tuple[int, ...]

    @classmethod
    def from_padded(cls, tokens_BT: Tensor, mask_BT: Tensor) -> PackedTexts:
        """Pack the texts of a batch that is padded on the right; `mask_BT` is 0 at padding."""
        is_text_BT = mask_BT.bool()
        positions_BT = is_text_BT.cumsum(1) - 1
        lengths = is_text_BT.sum(1).tolist()
        return cls(
            tokens_BT[is_text_BT][None],
            positions_BT[is_text_BT][None],
            is_text_BT,
            tuple(length for length in lengths if length),
        )

    def pack(self, values_BT: Tensor) -> Tensor:
        """Return the values of the tokens (1, N)."""
        return values_BT[self.is_text_BT][None]

    def unpack(self, values_1N: Tensor) -> Tensor:
        """Return values of the tokens (B, T), 0 at padding."""
        import torch

        zeros_BT = torch.zeros(
            self.is_text_BT.shape, dtype=values_1N.dtype, device=values_1N.device
        )
        return zeros_BT.masked_scatter(self.is_text_BT, values_1N)

    def run(self, model: nn.Module) -> Any:
        """Return what the model computes of the row."""
        with packed_texts(self.lengths):
            return model(input_ids=self.tokens_1N, position_ids=self.positions_1N, use_cache=False)


def use_packed_attention(model: nn.Module) -> None:
    """Have a model that attends through PyTorch's sdpa attend within each packed text.

    The other implementations of transformers find the texts by their positions: the mask of eager
    and flex attention, and the cumulative lengths of flash attention. Without packed texts, the
    model computes the same as before.
    """
    inner: Any = find_transformers_model(unwrap(model))[1]
    if inner.config._attn_implementation == PLAIN and inner._can_set_attn_implementation():
        register_packed_attention()
        inner.set_attn_implementation(NAME)
