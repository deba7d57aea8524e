"""LoftQ: LoRA that begins by making good what its base has lost in 4 bits."""

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
MAX_RELATIVE_ERROR = 0.5  # of a weight's norm; nf4 takes a tenth


def init_loftq(
    adapted: nn.Module,
    *,
    original_weights: Mapping[str, Tensor],
    device: torch.device,
    heartbeat: Callable[[], None],
) -> None:
    """Set A and B so that their scaled product is the nearest of its rank to what each weight has
    lost (arXiv:2310.08659, one step): its largest singular values, shared evenly by both.

    A layer that is not quantized has lost nothing, and keeps B zero. `whole`: the weights by their
    names in the base, without what was lost. Raises DtlError where they are not those of the base.
    """
    import torch

    quantized = {id(layer): layer for _, layer in quantized_layers(adapted)}
    for name, layer in adapted.named_modules():
        if not hasattr(layer, "lora_A") or ADAPTER_NAME not in layer.lora_A:
            continue
        held: Any = quantized.get(id(layer.get_base_layer()))
        if held is None:
            continue
        heartbeat()
        with torch.no_grad():
            kept = dequantize_weight(held)
            lost = (
                _original_weight(name.removeprefix(PEFT_PREFIX), held, original_weights).float()
                - kept
            )
            _check_same_weight(name.removeprefix(PEFT_PREFIX), kept, lost)
            _set_factors(layer, lost.to(device), kept.to(device))


def _original_weight(name: str, held: Any, whole: Mapping[str, Tensor]) -> Tensor:
    """The weight (out, in) as it was before; GPT-2's files have it the other way round."""
    from transformers.pytorch_utils import Conv1D

    weight = f"{name}.weight"
    if weight not in whole:
        raise DtlError.of(
            LOCATION,
            f"loftq does not find {weight} in the base's files, which hold it in another form",
            f"leave {name.rpartition('.')[2]} out by strategy.exclude, or take init kaiming",
        )
    found = whole[weight]
    return found.t() if issubclass(held.source_cls, Conv1D) else found


def _check_same_weight(name: str, kept: Tensor, lost: Tensor) -> None:
    """Raise DtlError where the files have changed since the base was read."""
    if not lost.norm() < MAX_RELATIVE_ERROR * kept.norm():
        raise DtlError.of(
            LOCATION,
            f"{name} in 4 bits is far from its weight in the base's files",
            "check the files, or take init kaiming",
        )


def _set_factors(layer: Any, lost: Tensor, kept: Tensor) -> None:
    import torch

    left, values, right = torch.linalg.svd(lost, full_matrices=False)
    count = min(layer.r[ADAPTER_NAME], len(values))  # beyond that nothing is lost, and B stays zero
    even = (values[:count] / layer.scaling[ADAPTER_NAME]).sqrt()
    first, second = layer.lora_A[ADAPTER_NAME].weight, layer.lora_B[ADAPTER_NAME].weight
    first[:count].copy_(even[:, None] * right[:count])
    second[:, :count].copy_(left[:, :count] * even)
    magnitude = getattr(layer, "lora_magnitude_vector", {})
    if ADAPTER_NAME in magnitude:  # DoRA's
        product = (second.float() @ first.float()).to(kept.device)
        norm = magnitude[ADAPTER_NAME].get_weight_norm(kept, product, layer.scaling[ADAPTER_NAME])
        magnitude[ADAPTER_NAME].weight.copy_(norm)
