"""A base whose linear layers are held in 4 or 8 bits, by bitsandbytes."""

from __future__ import annotations

import copy
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from dtl.config.schema import Model
from dtl.core.errors import DtlError
from dtl.models.anatomy import head_module_names
from dtl.models.dtypes import torch_dtype

if TYPE_CHECKING:
    from torch import Tensor, nn

LOCATION = "model.quantize"
BLOCK_SIZE, SCALE_BLOCK_SIZE = (
    64,
    256,
)  # numbers that share a scale; scales that share one, if doubled
NF4_TABLE_BYTES = 16 * 4  # bytes: every layer keeps its table of fp32 levels
PACK_SIZE = 8  # numbers in one fp32 word of 4-bit ones: a layer that leaves some over stays whole
SAVED_CONFIG_KEYS = (  # of the arguments of BitsAndBytesConfig, those that say what the base is
    "load_in_4bit",
    "load_in_8bit",
    "bnb_4bit_quant_type",
    "bnb_4bit_use_double_quant",
    "bnb_4bit_compute_dtype",
    "llm_int8_skip_modules",
)


@dataclass(frozen=True)
class QuantizedSize:
    """Of a model: how many numbers are quantized, the bytes of their levels, and the bytes of the
    scales and tables that bring them back, which ZeRO does not share out."""

    weights: int = 0
    level_bytes: int = 0
    scale_bytes: int = 0


def check_bitsandbytes(device: str) -> None:
    """Raise DtlError where bitsandbytes is not installed, or has nothing for this device's CUDA."""
    if find_spec("bitsandbytes") is None:
        raise DtlError.of(
            LOCATION,
            "bitsandbytes is not installed",
            "pip install 'dtl[quantize]', or leave it out",
        )
    from bitsandbytes import cextension

    missing = isinstance(cextension.lib, cextension.ErrorHandlerMockBNBNativeLibrary)
    if device == "cuda" and missing:
        raise DtlError.of(
            LOCATION,
            "the installed bitsandbytes has no library for this CUDA",
            "`python -m bitsandbytes` says what it looks for; or leave model.quantize out",
        )


def check_not_quantized(base: Any, path: str) -> None:
    """Raise DtlError where the base is quantized as it comes. `base`: its config."""
    if getattr(base, "quantization_config", None) is not None:
        raise DtlError.of(
            LOCATION,
            f"the weights of {path} are quantized already",
            "take the base that it was made of",
        )


def find_modules_to_skip(network: nn.Module, new_parameters: Iterable[str]) -> list[str]:
    """Modules that stay as they are: the head, what holds `new` parameters, what does not pack.

    Raises DtlError where no linear layer is left.
    """
    from torch import nn

    heads = head_module_names(network)
    owners = {name.rpartition(".")[0] for name in new_parameters}
    linear = {
        name: module
        for name, module in network.named_modules()
        if type(module) is nn.Linear or type(module).__name__ == "Conv1D"
    }
    uneven = {name for name, module in linear.items() if module.weight.numel() % PACK_SIZE}
    kept = {*heads, *owners, *uneven}
    if all(name in kept or name.partition(".")[0] in heads for name in linear):
        raise DtlError.of(
            LOCATION,
            f"{type(network).__name__} has no linear layers inside that could be quantized",
            "leave model.quantize out",
        )
    return sorted(kept)


def make_quantization_config(model: Model, *, dtype: str, skip_modules: list[str]) -> Any:
    """transformers' BitsAndBytesConfig. Levels are stored in the dtype of the other weights: ZeRO-3
    cuts and gathers weights of one dtype."""
    from transformers import BitsAndBytesConfig

    if model.quantize == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skip_modules)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=model.double_quantize,
        bnb_4bit_compute_dtype=torch_dtype(dtype),
        bnb_4bit_quant_storage=torch_dtype(dtype),
        llm_int8_skip_modules=skip_modules,
    )


def get_quantization_kwargs(model: Any) -> dict[str, Any]:
    """The arguments of BitsAndBytesConfig that load such a base; nothing of one that is whole.

    Not how levels are stored, for which only ZeRO-3 asks."""
    how = getattr(model.config, "quantization_config", None)
    if how is None or not quantized_layers(model):
        return {}
    given = how.to_diff_dict()
    return {name: given[name] for name in SAVED_CONFIG_KEYS if name in given}


def quantize_on_meta_device(network: Any, model: Model, skip_modules: list[str]) -> None:
    """Put quantized layers into a model on the meta device, as reading the weights would."""
    from transformers.quantizers.auto import AutoHfQuantizer

    quantizer = AutoHfQuantizer.from_config(
        make_quantization_config(model, dtype="fp32", skip_modules=skip_modules),
        pre_quantized=False,
    )
    quantizer.preprocess_model(model=network, device_map=None)
    quantizer.postprocess_model(network)


def configure_quantized_layers(network: nn.Module, *, dtype: str) -> None:
    """Make the quantized layers of a model that has been read compute in `dtype`, and compute the
    same in training, evaluation and any micro-batch."""
    _disable_repacking(network)
    for _, layer in quantized_layers(network):
        layer.compute_dtype = torch_dtype(dtype)
        if not _is_4bit(layer):
            from dtl.models.quantization.int8 import WeightOnly8bit

            layer.__class__ = WeightOnly8bit


def _disable_repacking(network: nn.Module) -> None:
    """On a CPU with AVX512-BF16 an evaluation would repack 4-bit weights for good: it fails with a
    layer that reads fewer than 64 numbers, computes in bf16, and no gradient would come through the
    weights any more (bitsandbytes 0.50)."""
    for _, layer in quantized_layers(network):
        layer.support_avx512bf16_for_cpu = False


def quantized_layers(model: nn.Module) -> list[tuple[str, Any]]:
    """Names and modules of the quantized layers."""
    loaded = sys.modules.get("bitsandbytes")  # it takes seconds to import: not for a plain model
    if loaded is None:
        return []
    kinds = (loaded.nn.Linear4bit, loaded.nn.Linear8bitLt)
    return [pair for pair in model.named_modules() if isinstance(pair[1], kinds)]


def measure_quantized_size(model: nn.Module, how: Model) -> QuantizedSize:
    """What the quantized layers of a weightless model will hold. Raises DtlError where one of their
    own parameters would learn: rounding or casting would undo its steps."""
    found = QuantizedSize()
    for name, layer in quantized_layers(model):
        learning = [each for each, value in layer.named_parameters() if value.requires_grad]
        if learning:
            raise DtlError.of(
                LOCATION,
                f"{name}.{learning[0]} would learn, and lies in a quantized layer",
                "let only adapters and new modules learn (bias: none), or leave model.quantize out",
            )
        held = _measure_layer(layer, how)
        found = QuantizedSize(
            found.weights + held.weights,
            found.level_bytes + held.level_bytes,
            found.scale_bytes + held.scale_bytes,
        )
    return found


def _measure_layer(layer: Any, how: Model) -> QuantizedSize:
    numbers = layer.in_features * layer.out_features
    if how.quantize == "int8":
        return QuantizedSize(numbers, numbers, 4 * layer.out_features)
    blocks = -(-numbers // BLOCK_SIZE)
    # Doubled: a byte for each scale, an fp32 number for a block of them, and one for their mean.
    doubled = blocks + 4 * -(-blocks // SCALE_BLOCK_SIZE) + 4
    scales = doubled if how.double_quantize else 4 * blocks
    return QuantizedSize(numbers, -(-numbers // 2), scales + NF4_TABLE_BYTES)


def compute_in_fp32(model: nn.Module) -> None:
    """Compute in fp32, with what the levels stand for before it is rounded to any dtype."""
    import torch

    levels = {id(layer.weight) for _, layer in quantized_layers(model)}
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point() and id(tensor) not in levels:
            tensor.data = tensor.data.float()
    for _, layer in quantized_layers(model):
        layer.compute_dtype = torch.float32
        if _is_4bit(layer):
            layer.weight.quant_state.dtype = torch.float32


def prepare_saved_model(network: nn.Module) -> nn.Module:
    """A model that was saved quantized, as it is to be used here; a plain one as it is."""
    if quantized_layers(network):
        _disable_repacking(network)
        compute_in_fp32(network)
    return network


def dequantize(network: nn.Module) -> nn.Module:
    """The plain model that a quantized one stands for, in fp32; it is changed in place."""
    compute_in_fp32(network)
    for name, layer in quantized_layers(network):
        network.set_submodule(name, _dequantize_layer(layer))
    for flag in ("is_loaded_in_4bit", "is_loaded_in_8bit", "is_quantized"):
        if hasattr(network, flag):
            setattr(network, flag, False)
    for mark in ("hf_quantizer", "quantization_method"):
        if hasattr(network, mark):
            delattr(network, mark)
    if hasattr(network.config, "quantization_config"):
        del network.config.quantization_config
    return network


def _dequantize_layer(layer: Any) -> nn.Module:
    """GPT-2's layers are no nn.Linear, and keep their weight the other way round."""
    import torch
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    turned = issubclass(layer.source_cls, Conv1D)
    inner, outer, has_bias = layer.in_features, layer.out_features, layer.bias is not None
    with torch.device("meta"):
        plain = Conv1D(outer, inner) if turned else nn.Linear(inner, outer, bias=has_bias)
    weight = dequantize_weight(layer)
    plain.weight = nn.Parameter(weight.t().contiguous() if turned else weight, requires_grad=False)
    plain.bias = layer.bias
    return plain.train(layer.training)


def dequantize_base(model: Any) -> Any:
    """An adapter model of PEFT on a quantized base, as the same adapter on the base that it was
    trained against, dequantized to fp32; a model that is not quantized as it is."""
    if not quantized_layers(model):
        return model
    from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    learnt = {
        name: value.detach().float()
        for name, value in get_peft_model_state_dict(model, save_embedding_layers=False).items()
    }
    how = model.peft_config[model.active_adapter]
    with suppress_peft_warnings():
        again = get_peft_model(dequantize(model.unload()), how)
    set_peft_model_state_dict(again, learnt)
    return again.train(model.training)


@contextmanager
def suppress_peft_warnings() -> Iterator[None]:
    """Without what PEFT warns of, and then sees to itself."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fan_in_fan_out")  # of GPT-2
        warnings.filterwarnings("ignore", message="The following rank_pattern keys")  # of AdaLoRA
        yield


def _is_4bit(layer: Any) -> bool:
    return hasattr(layer.weight, "quant_state")


def dequantize_weight(layer: Any) -> Tensor:
    """The weight (out, in) that a layer's levels stand for, in fp32."""
    import torch

    if not _is_4bit(layer):
        from dtl.models.quantization.int8 import dequantize_int8, row_scales

        return dequantize_int8(layer.weight.data, row_scales(layer), torch.float32)
    from bitsandbytes.functional import dequantize_4bit

    state = copy.copy(layer.weight.quant_state)
    state.dtype = torch.float32
    whole: Tensor = dequantize_4bit(layer.weight.data, state)
    return whole
