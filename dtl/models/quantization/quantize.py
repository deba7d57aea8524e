"""A base whose linear layers are stored in 4 or 8 bits, with bitsandbytes."""

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
from dtl.models.dtypes import torch_dtype
from dtl.models.import_bitsandbytes import import_bitsandbytes
from dtl.models.structure.head import head_module_names

if TYPE_CHECKING:
    from torch import Tensor, nn

LOCATION = "model.quantize"
BLOCK_SIZE = 64  # weights that share a scale
SCALE_BLOCK_SIZE = 256  # scales that share a scale, if double-quantized
NF4_TABLE_BYTES = 16 * 4  # every layer has a table of 16 fp32 levels
PACK_SIZE = 8  # 4-bit weights in one fp32 word: a layer whose size is no multiple is not quantized
SAVED_CONFIG_KEYS = (  # arguments of BitsAndBytesConfig that are needed to load the base again
    "load_in_4bit",
    "load_in_8bit",
    "bnb_4bit_quant_type",
    "bnb_4bit_use_double_quant",
    "bnb_4bit_compute_dtype",
    "llm_int8_skip_modules",
)


@dataclass(frozen=True)
class QuantizedSize:
    """The number of quantized weights, the bytes of their levels, and the bytes of their scales and
    tables, which ZeRO does not partition."""

    weights: int = 0
    level_bytes: int = 0
    scale_bytes: int = 0


def check_bitsandbytes(device: str) -> None:
    """Raise DtlError if bitsandbytes is not installed, or has no library for this CUDA version."""
    if find_spec("bitsandbytes") is None:
        raise DtlError.of(
            LOCATION,
            "bitsandbytes is not installed",
            "pip install 'dtl[quantize]', or remove it",
        )
    import_bitsandbytes()
    from bitsandbytes import cextension

    missing = isinstance(cextension.lib, cextension.ErrorHandlerMockBNBNativeLibrary)
    if device == "cuda" and missing:
        raise DtlError.of(
            LOCATION,
            "the installed bitsandbytes has no library for this CUDA",
            "run `python -m bitsandbytes` to see what it needs, or remove model.quantize",
        )


def check_not_quantized(base: Any, path: str) -> None:
    """Raise DtlError if the weight files are quantized. `base`: the model's config."""
    if getattr(base, "quantization_config", None) is not None:
        raise DtlError.of(
            LOCATION,
            f"the weights of {path} are quantized already",
            "take the unquantized base",
        )


def find_modules_to_skip(network: nn.Module, new_parameters: Iterable[str]) -> list[str]:
    """Return the modules that are not quantized: the head, modules with new parameters, and layers
    whose size is no multiple of `PACK_SIZE`.

    Raises DtlError if no linear layer is left.
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
    skipped = {*heads, *owners, *uneven}
    if all(name in skipped or name.partition(".")[0] in heads for name in linear):
        raise DtlError.of(
            LOCATION,
            f"{type(network).__name__} has no linear layers that can be quantized",
            "remove model.quantize",
        )
    return sorted(skipped)


def make_quantization_config(model: Model, *, dtype: str, skip_modules: list[str]) -> Any:
    """Return the BitsAndBytesConfig. Levels are stored in the dtype of the other weights, because
    ZeRO stage 3 partitions and gathers weights of one dtype."""
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
    """Return the arguments of BitsAndBytesConfig that load such a base; empty if not quantized.

    The storage dtype of the levels is not among them: only ZeRO stage 3 needs it.
    """
    config = getattr(model.config, "quantization_config", None)
    if config is None or not quantized_layers(model):
        return {}
    values = config.to_diff_dict()
    return {name: values[name] for name in SAVED_CONFIG_KEYS if name in values}


def quantize_on_meta_device(network: Any, model: Model, skip_modules: list[str]) -> None:
    """Replace linear layers of a model on the meta device by quantized ones, as loading does."""
    import_bitsandbytes()
    from transformers.quantizers.auto import AutoHfQuantizer

    quantizer = AutoHfQuantizer.from_config(
        make_quantization_config(model, dtype="fp32", skip_modules=skip_modules),
        pre_quantized=False,
    )
    quantizer.preprocess_model(model=network, device_map=None)
    quantizer.postprocess_model(network)


def configure_quantized_layers(network: nn.Module, *, dtype: str) -> None:
    """Set the quantized layers of a loaded model to compute in `dtype`, and the same in training,
    in evaluation and in any micro-batch."""
    _disable_repacking(network)
    for _, layer in quantized_layers(network):
        layer.compute_dtype = torch_dtype(dtype)
        if not _is_4bit(layer):
            from dtl.models.quantization.int8 import WeightOnly8bit

            layer.__class__ = WeightOnly8bit


def _disable_repacking(network: nn.Module) -> None:
    """Disable the repacking of 4-bit weights for CPUs with AVX512-BF16 (bitsandbytes 0.50).

    The first evaluation would repack them permanently: it fails for layers with fewer than 64
    inputs, computes in bf16, and has no gradient with respect to the input.
    """
    for _, layer in quantized_layers(network):
        layer.support_avx512bf16_for_cpu = False


def quantized_layers(model: nn.Module) -> list[tuple[str, Any]]:
    """Return names and modules of the quantized layers."""
    loaded = sys.modules.get("bitsandbytes")  # importing it takes seconds
    if loaded is None:
        return []
    classes = (loaded.nn.Linear4bit, loaded.nn.Linear8bitLt)
    return [pair for pair in model.named_modules() if isinstance(pair[1], classes)]


def measure_quantized_size(model: nn.Module, config: Model) -> QuantizedSize:
    """Return the size of the quantized layers of a model on the meta device.

    Raises DtlError if a parameter of such a layer is trainable: rounding would undo its updates.
    """
    total = QuantizedSize()
    for name, layer in quantized_layers(model):
        trainable = [each for each, value in layer.named_parameters() if value.requires_grad]
        if trainable:
            raise DtlError.of(
                LOCATION,
                f"{name}.{trainable[0]} is trainable, and its layer is quantized",
                "train only adapters and new modules (bias: none), or remove model.quantize",
            )
        size = _measure_layer(layer, config)
        total = QuantizedSize(
            total.weights + size.weights,
            total.level_bytes + size.level_bytes,
            total.scale_bytes + size.scale_bytes,
        )
    return total


def _measure_layer(layer: Any, config: Model) -> QuantizedSize:
    weights = layer.in_features * layer.out_features
    if config.quantize == "int8":
        return QuantizedSize(weights, weights, 4 * layer.out_features)
    blocks = -(-weights // BLOCK_SIZE)
    # Double-quantized: 1 byte for each scale, 4 for each block of them, 4 for their mean.
    double_quantized = blocks + 4 * -(-blocks // SCALE_BLOCK_SIZE) + 4
    scales = double_quantized if config.double_quantize else 4 * blocks
    return QuantizedSize(weights, -(-weights // 2), scales + NF4_TABLE_BYTES)


def compute_in_fp32(model: nn.Module) -> None:
    """Make a model compute in fp32, with dequantized weights that are not rounded to a dtype."""
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
    """Return a model that was saved quantized, made to compute in fp32; another one unchanged."""
    if quantized_layers(network):
        _disable_repacking(network)
        compute_in_fp32(network)
    return network


def dequantize(network: nn.Module) -> nn.Module:
    """Return the model with dequantized layers, fp32; it is changed in place."""
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
    """Return the plain layer, fp32; that of GPT-2 is a Conv1D with a transposed weight."""
    import torch
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    is_conv1d = issubclass(layer.source_cls, Conv1D)
    inputs, outputs, has_bias = layer.in_features, layer.out_features, layer.bias is not None
    with torch.device("meta"):
        plain = Conv1D(outputs, inputs) if is_conv1d else nn.Linear(inputs, outputs, bias=has_bias)
    weight = dequantize_weight(layer)
    plain.weight = nn.Parameter(
        weight.t().contiguous() if is_conv1d else weight, requires_grad=False
    )
    plain.bias = layer.bias
    return plain.train(layer.training)


def dequantize_base(model: Any) -> Any:
    """Return a PEFT model with the same adapter over the base dequantized to fp32; a model that is
    not quantized unchanged."""
    if not quantized_layers(model):
        return model
    from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    adapter = {
        name: value.detach().float()
        for name, value in get_peft_model_state_dict(model, save_embedding_layers=False).items()
    }
    config = model.peft_config[model.active_adapter]
    with suppress_peft_warnings():
        adapted = get_peft_model(dequantize(model.unload()), config)
    set_peft_model_state_dict(adapted, adapter)
    return adapted.train(model.training)


@contextmanager
def suppress_peft_warnings() -> Iterator[None]:
    """Hide warnings of PEFT about things that it then corrects itself."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fan_in_fan_out")  # GPT-2
        warnings.filterwarnings("ignore", message="The following rank_pattern keys")  # AdaLoRA
        yield


def _is_4bit(layer: Any) -> bool:
    return hasattr(layer.weight, "quant_state")


def dequantize_weight(layer: Any) -> Tensor:
    """Return the weight (out, in) of a quantized layer, fp32."""
    import torch

    if not _is_4bit(layer):
        from dtl.models.quantization.int8 import dequantize_int8, row_scales

        return dequantize_int8(layer.weight.data, row_scales(layer), torch.float32)
    from bitsandbytes.functional import dequantize_4bit

    state = copy.copy(layer.weight.quant_state)
    state.dtype = torch.float32
    weight: Tensor = dequantize_4bit(layer.weight.data, state)
    return weight
