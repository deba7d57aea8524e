"""Write a model whose linear layers are quantized to 8 or 4 bits, with bitsandbytes."""

from __future__ import annotations

from dataclasses import dataclass
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


@dataclass(frozen=True)
class QuantizedExport:
    """How a model is quantized.

    `head_modules`: names of modules that stay as they are. `dtype`: of all weights that are not
    quantized. `shard_size`: of the largest weight file, such as 5GB.
    """

    quantize: QuantizedDtype
    head_modules: tuple[str, ...]
    dtype: torch.dtype
    shard_size: str


def check_package() -> None:
    """Raise DtlError where bitsandbytes is not installed."""
    if find_spec("bitsandbytes") is None:
        raise DtlError.of(
            "--quantize", "bitsandbytes is not installed", "run `pip install 'dtl[quantize]'`"
        )


def write_quantized(
    source: Path, target: Path, options: QuantizedExport, *, architecture: Any
) -> nn.Module:
    """Load a saved model quantized, save it to `target`, and return it; it computes in fp32.

    `architecture`: the class of the model.
    """
    with silence_transformers():
        model = architecture.from_pretrained(
            source, quantization_config=_quantization_config(options), dtype=options.dtype
        )
    model.save_pretrained(target, max_shard_size=options.shard_size)
    return prepare_saved_model(model.eval())


def _quantization_config(options: QuantizedExport) -> Any:
    from transformers import BitsAndBytesConfig

    skipped = list(options.head_modules)
    if options.quantize == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=options.dtype,
        llm_int8_skip_modules=skipped,
    )
