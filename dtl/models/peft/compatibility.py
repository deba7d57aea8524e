"""The table of the PEFT methods that work with each kind of model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from dtl.core.errors import DtlError
from dtl.models.peft.base import find_task_type
from dtl.models.structure.head import head_module_names

if TYPE_CHECKING:
    from torch import nn


BASE_CHANGING_INITS = (
    "pissa",
    "olora",
)  # the initial adapter is subtracted from the base
ModelKind = Literal[
    "decoder",
    "classifier on a decoder",
    "encoder",
    "encoder-decoder",
    "classifier on an encoder-decoder",
    "speech",
    "vision",
    "convolutional",
]
MODEL_KIND_EXAMPLES: dict[ModelKind, str] = {
    "decoder": "Llama, Qwen, GPT: text generation",
    "classifier on a decoder": "the same models: a label for a text",
    "encoder": "BERT, RoBERTa; on any model: labels for tokens",
    "encoder-decoder": "T5, BART: text to text",
    "classifier on an encoder-decoder": "the same models: a label for a text",
    "speech": "wav2vec2, HuBERT, Whisper",
    "vision": "ViT, Swin, ConvNeXt",
    "convolutional": "ResNet; `target_modules` must list its convolutions",
}
LINEAR_KINDS: tuple[ModelKind, ...] = tuple(
    kind for kind in MODEL_KIND_EXAMPLES if kind != "convolutional"
)
TEXT_KINDS: tuple[ModelKind, ...] = ("decoder", "encoder", "encoder-decoder")


@dataclass(frozen=True)
class Compatibility:
    """The kinds of model that a method works with, its highest ZeRO stage, whether it can be merged
    into the weights, and the method to take for other kinds of model."""

    kinds: tuple[ModelKind, ...]
    max_zero_stage: int = 3
    can_merge: bool = True
    supports_gradient_checkpointing: bool = True
    alternative: str = "lora"


COMPATIBILITY: dict[str, Compatibility] = {
    "lora": Compatibility((*LINEAR_KINDS, "convolutional")),
    "adalora": Compatibility((*LINEAR_KINDS, "convolutional"), max_zero_stage=0),
    "ia3": Compatibility((*LINEAR_KINDS, "convolutional")),
    "loha": Compatibility((*LINEAR_KINDS, "convolutional"), max_zero_stage=2),
    "lokr": Compatibility((*LINEAR_KINDS, "convolutional"), max_zero_stage=2),
    "oft": Compatibility(LINEAR_KINDS),
    "vera": Compatibility(LINEAR_KINDS),
    "prompt_tuning": Compatibility(TEXT_KINDS, can_merge=False),
    "p_tuning": Compatibility(TEXT_KINDS, can_merge=False),
    "prefix_tuning": Compatibility(
        (*TEXT_KINDS, "classifier on a decoder"),
        can_merge=False,
        supports_gradient_checkpointing=False,
    ),
}


def find_model_kind(model: nn.Module) -> ModelKind:
    """Return the kind of a model: by its input, its task and its architecture."""
    reads = getattr(model, "main_input_name", "input_ids")
    if reads in ("input_values", "input_features"):
        return "speech"
    if reads == "pixel_values":
        return "vision" if _has_linear_layers(model) else "convolutional"
    task = find_task_type(model)
    if task == "SEQ_CLS" and getattr(model.config, "is_encoder_decoder", False):
        return "classifier on an encoder-decoder"
    if task == "SEQ_CLS" and hasattr(model, "score"):  # it classifies the last token
        return "classifier on a decoder"
    if task == "CAUSAL_LM":
        return "decoder"
    return "encoder-decoder" if task == "SEQ_2_SEQ_LM" else "encoder"


def _has_linear_layers(model: nn.Module) -> bool:
    from torch import nn

    heads = head_module_names(model)
    return any(
        isinstance(module, nn.Linear) and name.partition(".")[0] not in heads
        for name, module in model.named_modules()
    )


def check_compatibility(method: str, model: nn.Module) -> None:
    """Raise DtlError if the method does not work with this kind of model."""
    entry, kind = COMPATIBILITY[method], find_model_kind(model)
    if kind not in entry.kinds:
        raise DtlError.of(
            "strategy",
            f"{method} does not work with {type(model).__name__} ({kind})",
            f"take strategy {entry.alternative}"
            + (" and list its convolutions in target_modules" if kind == "convolutional" else ""),
        )
