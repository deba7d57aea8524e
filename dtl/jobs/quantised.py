"""A whole model with its linear layers in 8 bits, by bitsandbytes."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dtl.errors import DtlError
from dtl.models.load import silent

if TYPE_CHECKING:
    import torch


def refuse_absent() -> None:
    """Raise DtlError where bitsandbytes is not installed."""
    if find_spec("bitsandbytes") is None:
        raise DtlError.of(
            "--quantize", "bitsandbytes is not installed", "pip install 'dtl[quantize]'"
        )


def write_quantised(
    model: Path,
    written: Path,
    *,
    architecture: Any,
    heads: tuple[str, ...],
    dtype: torch.dtype,
    shard_size: str,
) -> None:
    """Read a saved model with its linear layers quantised, but for its heads, and save that.
    `dtype`: of what is not quantised."""
    from transformers import BitsAndBytesConfig

    how = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=list(heads))
    with silent():
        made = architecture.from_pretrained(model, quantization_config=how, dtype=dtype)
    made.save_pretrained(written, max_shard_size=shard_size)
