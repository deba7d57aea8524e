"""Sequences of uneven length as one tensor, padded on the right."""

# B batch, T tokens

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

PAD_TO_MULTIPLE = 8  # lengths are padded to a multiple of this


def pad_sequences(rows: list[Any], *, value: int, multiple: int = PAD_TO_MULTIPLE) -> Tensor:
    """Return integers of uneven length as one int64 tensor (B, T), padded with `value`.

    T is the longest length, rounded up to `multiple`.
    """
    import numpy as np
    import torch

    width = -(-max(len(row) for row in rows) // multiple) * multiple
    padded = np.full((len(rows), width), value, dtype=np.int64)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = row
    return torch.from_numpy(padded)


def attention_mask(rows: list[Any], *, multiple: int = PAD_TO_MULTIPLE) -> Tensor:
    """Return an int64 tensor (B, T): 1 where a row has a value, 0 where it is padded.

    It goes by length, so that a real token that equals the padding token still counts.
    """
    return pad_sequences([[1] * len(row) for row in rows], value=0, multiple=multiple)


def pad_token_inputs(examples: list[dict[str, Any]], *, pad_token_id: int) -> dict[str, Tensor]:
    """Return input_ids, attention_mask and, where the examples have them, token_type_ids (B, T)."""
    tokens = [example["input_ids"] for example in examples]
    batch = {
        "input_ids": pad_sequences(tokens, value=pad_token_id),
        "attention_mask": attention_mask(tokens),
    }
    if "token_type_ids" in examples[0]:
        types = [example["token_type_ids"] for example in examples]
        batch["token_type_ids"] = pad_sequences(types, value=0)
    return batch


def pad_lengths(lengths: np.ndarray) -> np.ndarray:
    """Return the lengths (N,) rounded up to the multiple to which tasks pad."""
    return -(-lengths // PAD_TO_MULTIPLE) * PAD_TO_MULTIPLE
