"""What all modules about PEFT adapters share: file names, task types, shared matrices."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn


ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_NAME = "default"  # PEFT's name for a model's only adapter; no file contains it
INITIAL_FACTORS = (
    "_start_of_adapter"  # attribute of a model: the factors that were subtracted from its base
)


def find_task_type(model: nn.Module) -> str | None:
    """Return PEFT's task type, which says which forward it wraps; None is right for any model."""
    name = type(model).__name__
    if name.endswith("ForSequenceClassification"):
        return "SEQ_CLS"
    if name.endswith("ForTokenClassification"):
        return "TOKEN_CLS"
    if name.endswith("ForCausalLM") or name.endswith("LMHeadModel"):
        return "CAUSAL_LM"
    # Whisper is an encoder-decoder too, but reads audio: PEFT would pass input_ids to it.
    reads_text = getattr(model, "main_input_name", None) == "input_ids"
    generates = name.endswith(("ForConditionalGeneration", "MTModel"))
    if reads_text and generates and getattr(model.config, "is_encoder_decoder", False):
        return "SEQ_2_SEQ_LM"
    return None


def is_on_meta_device(model: nn.Module) -> bool:
    """Return whether the model has only shapes, as in the planner."""
    return any(parameter.is_meta for parameter in model.parameters())


@contextmanager
def draw_adapters_in_fp32() -> Iterator[None]:
    """Have PEFT keep the fp32 values of new adapters on a base in half precision.

    PEFT rounds them to the dtype of the base, and casts them back to fp32. Then their values would
    depend on the dtype in which the base is loaded.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    move = BaseTunerLayer._move_adapter_to_device_of_base_layer

    def move_exactly(layer: Any, adapter: str, *arguments: Any, **options: Any) -> None:
        values = [value.detach().clone() for value in _adapter_parameters(layer, adapter)]
        move(layer, adapter, *arguments, **options)
        for moved, value in zip(_adapter_parameters(layer, adapter), values, strict=True):
            if value.is_floating_point():
                moved.data = value.to(moved.device)

    BaseTunerLayer._move_adapter_to_device_of_base_layer = move_exactly
    try:
        yield
    finally:
        BaseTunerLayer._move_adapter_to_device_of_base_layer = move


def _adapter_parameters(layer: Any, adapter: str) -> list[nn.Parameter]:
    """Return the parameters of an adapter in one layer, without buffers."""
    from torch import nn

    groups = [getattr(layer, name, None) for name in layer.adapter_layer_names]
    items = [
        group[adapter]
        for group in groups
        if isinstance(group, nn.ModuleDict | nn.ParameterDict) and adapter in group
    ]
    return [
        value
        for item in items
        for value in (item.parameters() if isinstance(item, nn.Module) else [item])
    ]


def vera_matrices(model: nn.Module) -> dict[str, Tensor]:
    """Return the frozen matrices that all layers of VeRA share; empty for other methods."""
    return {
        name: value
        for name, value in model.named_buffers(remove_duplicate=False)
        if name.startswith("base_model.vera_")
    }
