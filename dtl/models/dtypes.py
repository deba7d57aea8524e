"""The dtypes of a config as PyTorch names them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def torch_dtype(name: str) -> torch.dtype:
    """Return the dtype of fp32, bf16 or fp16."""
    return _dtypes()[name]


def dtype_name(dtype: torch.dtype | None) -> str | None:
    """Return fp32, bf16 or fp16; None for any other dtype."""
    return next((name for name, value in _dtypes().items() if value == dtype), None)


def _dtypes() -> dict[str, torch.dtype]:
    import torch

    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
