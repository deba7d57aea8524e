"""A whole model with its linear layers in 8 or 4 bits, by bitsandbytes."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dtl.core.errors import DtlError
from dtl.models.load import silence_transformers
from dtl.models.quantization.quantize import prepare_saved_model

if TYPE_CHECKING:
    import torch
    from torch import nn

QuantizedDtype = Literal["int8", "nf4"]


def check_package() -> None:
    """Raise DtlError where bitsandbytes is not installed."""
    if find_spec("bitsandbytes") is None:
        raise DtlError.of(
            "--quantize", "bitsandbytes is not installed", "pip install 'dtl[quantize]'"
        )


def write_quantized(
    model: Path,
    written: Path,
    *,
    bits: QuantizedDtype,
    architecture: Any,
    heads: tuple[str, ...],
    dtype: torch.dtype,
    shard_size: str,
) -> nn.Module:
    """Read a saved model with its linear layers quantised, but for its heads, and save that; the
    quantised model, which computes in fp32. `dtype`: of what is not quantised."""
    with silence_transformers():
        made = architecture.from_pretrained(
            model,
            quantization_config=_quantization_config(bits, heads=heads, dtype=dtype),
            dtype=dtype,
        )
    made.save_pretrained(written, max_shard_size=shard_size)
    return prepare_saved_model(made.eval())


def _quantization_config(
    bits: QuantizedDtype, *, heads: tuple[str, ...], dtype: torch.dtype
) -> Any:
    from transformers import BitsAndBytesConfig

    if bits == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=list(heads))
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=list(heads),
    )
