"""Names and facts that all code on PEFT adapters shares."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn


ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_NAME = "default"  # PEFT's name for a model's only adapter; it stands in no file
INITIAL_FACTORS = "_start_of_adapter"  # where a model keeps what was taken out of its base


def find_task_type(model: nn.Module) -> str | None:
    """PEFT wants to know which forward it wraps; None serves any model."""
    name = type(model).__name__
    if name.endswith("ForSequenceClassification"):
        return "SEQ_CLS"
    if name.endswith("ForTokenClassification"):
        return "TOKEN_CLS"
    if name.endswith("ForCausalLM") or name.endswith("LMHeadModel"):
        return "CAUSAL_LM"
    # Whisper too has a decoder beside an encoder, but reads sounds: PEFT would give it input_ids.
    reads_text = getattr(model, "main_input_name", None) == "input_ids"
    generates = name.endswith(("ForConditionalGeneration", "MTModel"))
    if reads_text and generates and getattr(model.config, "is_encoder_decoder", False):
        return "SEQ_2_SEQ_LM"
    return None


def is_on_meta_device(model: nn.Module) -> bool:
    """Whether there are only shapes, as where the planner counts."""
    return any(parameter.is_meta for parameter in model.parameters())


def vera_matrices(model: nn.Module) -> dict[str, Tensor]:
    """What the layers of VeRA share and do not learn; nothing with other methods."""
    return {
        name: value
        for name, value in model.named_buffers(remove_duplicate=False)
        if name.startswith("base_model.vera_")
    }
