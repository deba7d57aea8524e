"""LoftQ: LoRA that begins by making good what its base has lost in 4 bits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from dtl.core.errors import DtlError
from dtl.models.peft.adapters import NAME
from dtl.models.quantization.quantize import dequantized, layers

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

PLACE = "strategy.init"
INSIDE = "base_model.model."  # before each name in a model that PEFT has wrapped
MOST_LOST = 0.5  # of a weight's norm; nf4 takes a tenth


def make_good(
    adapted: nn.Module,
    *,
    whole: Mapping[str, Tensor],
    device: torch.device,
    beat: Callable[[], None],
) -> None:
    """Set A and B so that their scaled product is the nearest of its rank to what each weight has
    lost (arXiv:2310.08659, one step): its largest singular values, shared evenly by both.

    A layer that is not quantized has lost nothing, and keeps B zero. `whole`: the weights by their
    names in the base, without what was lost. Raises DtlError where they are not those of the base.
    """
    import torch

    quantized = {id(layer): layer for _, layer in layers(adapted)}
    for name, layer in adapted.named_modules():
        if not hasattr(layer, "lora_A") or NAME not in layer.lora_A:
            continue
        held: Any = quantized.get(id(layer.get_base_layer()))
        if held is None:
            continue
        beat()
        with torch.no_grad():
            kept = dequantized(held)
            lost = _weight(name.removeprefix(INSIDE), held, whole).float() - kept
            _refuse_another(name.removeprefix(INSIDE), kept, lost)
            _begin_with(layer, lost.to(device), kept.to(device))


def _weight(name: str, held: Any, whole: Mapping[str, Tensor]) -> Tensor:
    """The weight (out, in) as it was before; GPT-2's files have it the other way round."""
    from transformers.pytorch_utils import Conv1D

    weight = f"{name}.weight"
    if weight not in whole:
        raise DtlError.of(
            PLACE,
            f"loftq does not find {weight} in the base's files, which hold it in another form",
            f"leave {name.rpartition('.')[2]} out by strategy.exclude, or take init kaiming",
        )
    found = whole[weight]
    return found.t() if issubclass(held.source_cls, Conv1D) else found


def _refuse_another(name: str, kept: Tensor, lost: Tensor) -> None:
    """Raise DtlError where the files have changed since the base was read."""
    if not lost.norm() < MOST_LOST * kept.norm():
        raise DtlError.of(
            PLACE,
            f"{name} in 4 bits is far from its weight in the base's files",
            "check the files, or take init kaiming",
        )


def _begin_with(layer: Any, lost: Tensor, kept: Tensor) -> None:
    import torch

    left, values, right = torch.linalg.svd(lost, full_matrices=False)
    count = min(layer.r[NAME], len(values))  # beyond that nothing is lost, and B stays zero
    even = (values[:count] / layer.scaling[NAME]).sqrt()
    first, second = layer.lora_A[NAME].weight, layer.lora_B[NAME].weight
    first[:count].copy_(even[:, None] * right[:count])
    second[:, :count].copy_(left[:, :count] * even)
    magnitude = getattr(layer, "lora_magnitude_vector", {})
    if NAME in magnitude:  # DoRA's
        product = (second.float() @ first.float()).to(kept.device)
        norm = magnitude[NAME].get_weight_norm(kept, product, layer.scaling[NAME])
        magnitude[NAME].weight.copy_(norm)
