"""What all modules about PEFT adapters share: file names, task types, shared matrices."""

from __future__ import annotations

from typing import TYPE_CHECKING

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


def vera_matrices(model: nn.Module) -> dict[str, Tensor]:
    """Return the frozen matrices that all layers of VeRA share; empty for other methods."""
    return {
        name: value
        for name, value in model.named_buffers(remove_duplicate=False)
        if name.startswith("base_model.vera_")
    }
