"""The table of the PEFT methods that work with each kind of model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from dtl.core.errors import DtlError
from dtl.models.anatomy import head_module_names
from dtl.models.peft.base import find_task_type

if TYPE_CHECKING:
    from torch import nn


BASE_CHANGING_INITS = (
    "pissa",
    "olora",
)  # what such an adapter begins with is no longer in the base
ModelKind = Literal[
    "decoder",
    "classifier on a decoder",
    "encoder",
    "encoder-decoder",
    "classifier on an encoder-decoder",
    "sound",
    "pictures",
    "convolutions",
]
MODEL_KIND_EXAMPLES: dict[ModelKind, str] = {
    "decoder": "Llama, Qwen, GPT, going on with a text",
    "classifier on a decoder": "the same, with a label for a text",
    "encoder": "BERT, RoBERTa; labels for tokens on any model",
    "encoder-decoder": "T5, BART, turning a text into another",
    "classifier on an encoder-decoder": "the same, with a label for a text",
    "sound": "wav2vec2, HuBERT, Whisper",
    "pictures": "ViT, Swin, ConvNeXt",
    "convolutions": "ResNet, with `target` naming its convolutions",
}
LINEAR_KINDS: tuple[ModelKind, ...] = tuple(
    kind for kind in MODEL_KIND_EXAMPLES if kind != "convolutions"
)
TEXT_KINDS: tuple[ModelKind, ...] = ("decoder", "encoder", "encoder-decoder")


@dataclass(frozen=True)
class Compatibility:
    """What a method goes with. `zero`: the highest ZeRO stage. `merges`: whether it can become part
    of the weights. `recomputes`: whether activations may be recomputed. `instead`: the nearest
    method for the other kinds of model."""

    kinds: tuple[ModelKind, ...]
    max_zero_stage: int = 3
    can_merge: bool = True
    supports_gradient_checkpointing: bool = True
    alternative: str = "lora"


COMPATIBILITY: dict[str, Compatibility] = {
    "lora": Compatibility((*LINEAR_KINDS, "convolutions")),
    "adalora": Compatibility((*LINEAR_KINDS, "convolutions"), max_zero_stage=0),
    "ia3": Compatibility((*LINEAR_KINDS, "convolutions")),
    "loha": Compatibility((*LINEAR_KINDS, "convolutions"), max_zero_stage=2),
    "lokr": Compatibility((*LINEAR_KINDS, "convolutions"), max_zero_stage=2),
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
    """What a method must know of a model: how it reads, and what it makes of it."""
    reads = getattr(model, "main_input_name", "input_ids")
    if reads in ("input_values", "input_features"):
        return "sound"
    if reads == "pixel_values":
        return "pictures" if _has_linear_layers(model) else "convolutions"
    task, both = find_task_type(model), getattr(model.config, "is_encoder_decoder", False)
    if task == "SEQ_CLS" and both:
        return "classifier on an encoder-decoder"
    if task == "SEQ_CLS" and hasattr(model, "score"):  # it reads the label at the last token
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
    """Raise DtlError where the method does nothing right with this kind of model."""
    entry, kind = COMPATIBILITY[method], find_model_kind(model)
    if kind not in entry.kinds:
        raise DtlError.of(
            "strategy",
            f"{method} does not go with {type(model).__name__} ({kind})",
            f"take strategy {entry.alternative}"
            + (", with target naming its convolutions" if kind == "convolutions" else ""),
        )
