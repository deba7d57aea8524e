"""LoftQ: initialize LoRA to compensate for the quantization error of its base."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from dtl.core.errors import DtlError
from dtl.models.peft.base import ADAPTER_NAME
from dtl.models.quantization.quantize import dequantize_weight, quantized_layers

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

LOCATION = "strategy.init"
PEFT_PREFIX = "base_model.model."  # before each name in a model that PEFT has wrapped
MAX_RELATIVE_ERROR = 0.5  # norm of the error / norm of the weight; nf4 has about 0.1


def init_loftq(
    adapted: nn.Module,
    *,
    original_weights: Mapping[str, Tensor],
    device: torch.device,
    heartbeat: Callable[[], None],
) -> None:
    """Set A (rank, in) and B (out, rank) so that their scaled product is the best approximation of
    this rank of each weight's quantization error (arXiv:2310.08659, one step).

    It has the largest singular values of the error, distributed evenly over A and B. In a layer
    that is not quantized, B stays zero. `original_weights`: the weights before quantization, by
    their names in the base. `device`: where to compute. Raises DtlError if they are not the weights
    of this base.
    """
    import torch

    quantized = {id(layer): layer for _, layer in quantized_layers(adapted)}
    for name, layer in adapted.named_modules():
        if not hasattr(layer, "lora_A") or ADAPTER_NAME not in layer.lora_A:
            continue
        base_layer: Any = quantized.get(id(layer.get_base_layer()))
        if base_layer is None:
            continue
        heartbeat()
        base_name = name.removeprefix(PEFT_PREFIX)
        with torch.no_grad():
            weight = dequantize_weight(base_layer)
            original = _original_weight(base_name, base_layer, original_weights)
            error = original.float() - weight
            _check_same_weight(base_name, weight, error)
            _set_factors(layer, error.to(device), weight.to(device))


def _original_weight(name: str, layer: Any, original_weights: Mapping[str, Tensor]) -> Tensor:
    """Return the weight (out, in) before quantization; GPT-2's files have it transposed."""
    from transformers.pytorch_utils import Conv1D

    key = f"{name}.weight"
    if key not in original_weights:
        raise DtlError.of(
            LOCATION,
            f"loftq does not find {key} in the base's files, which store it in another form",
            f"exclude {name.rpartition('.')[2]} by strategy.exclude_modules, or take init kaiming",
        )
    weight = original_weights[key]
    return weight.t() if issubclass(layer.source_cls, Conv1D) else weight


def _check_same_weight(name: str, weight: Tensor, error: Tensor) -> None:
    """Raise DtlError if the files have changed since the base was read."""
    if not error.norm() < MAX_RELATIVE_ERROR * weight.norm():
        raise DtlError.of(
            LOCATION,
            f"{name} in 4 bits is far from its weight in the base's files",
            "check the files, or take init kaiming",
        )


def _set_factors(layer: Any, error: Tensor, weight: Tensor) -> None:
    """Set A and B from the quantization error (out, in), and DoRA's magnitude from the weight."""
    import torch

    left, values, right = torch.linalg.svd(error, full_matrices=False)
    count = min(layer.r[ADAPTER_NAME], len(values))  # further ranks are 0: B stays zero
    root = (values[:count] / layer.scaling[ADAPTER_NAME]).sqrt()
    factor_a, factor_b = layer.lora_A[ADAPTER_NAME].weight, layer.lora_B[ADAPTER_NAME].weight
    factor_a[:count].copy_(root[:, None] * right[:count])
    factor_b[:, :count].copy_(left[:, :count] * root)
    magnitude = getattr(layer, "lora_magnitude_vector", {})
    if ADAPTER_NAME in magnitude:  # DoRA's
        product = (factor_b.float() @ factor_a.float()).to(weight.device)
        norm = magnitude[ADAPTER_NAME].get_weight_norm(weight, product, layer.scaling[ADAPTER_NAME])
        magnitude[ADAPTER_NAME].weight.copy_(norm)
