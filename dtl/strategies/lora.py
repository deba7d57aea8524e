"""LoRA: low-rank adapters beside frozen weights, by PEFT."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from dtl.config.record import ConfigFault, Record, refuse
from dtl.errors import DtlError
from dtl.models.anatomy import head_module_names
from dtl.models.quantize import on_plain_base
from dtl.strategies import Strategy

if TYPE_CHECKING:
    from torch import nn


class Options(Record):
    """Options of `strategy: lora` (Hu et al. 2021, arXiv:2106.09685)."""

    rank: int = Field(16, ge=1, description="Rank of the update.")
    alpha: float = Field(32.0, gt=0, description="Scale: the update is multiplied by alpha / rank.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout before the adapter.")
    target: str | tuple[str, ...] = Field(
        "all-linear",
        description="Which layers get an adapter: all-linear, a list of name endings, or a regular "
        "expression over whole module names (PEFT's target_modules).",
    )
    exclude: str | tuple[str, ...] | None = Field(None, description="Layers to leave out of these.")
    layers: tuple[int, ...] | None = Field(
        None,
        description="Only blocks with these numbers (PEFT's layers_to_transform); target must then "
        "be a list.",
    )
    bias: Literal["none", "all", "lora_only"] = Field("none", description="Which biases learn too.")
    rslora: bool = Field(False, description="Scale by alpha / sqrt(rank) (arXiv:2312.03732).")
    dora: bool = Field(False, description="Learn magnitude and direction apart (arXiv:2402.09353).")
    also_learn: tuple[str, ...] = Field(
        (), description="Whole modules that learn beside the adapters (PEFT's modules_to_save)."
    )

    @model_validator(mode="after")
    def _layers_are_of_named_targets(self) -> Self:
        if self.layers is not None and isinstance(self.target, str):
            refuse(
                [
                    ConfigFault(
                        "layers",
                        problem=f"PEFT picks blocks of a list of names, not of '{self.target}'",
                        mend="list the layers, such as target: [q_proj, v_proj]",
                    )
                ]
            )
        return self


class Plugin(Strategy):
    """The adapters move, and a new head."""

    learning_rate = 2e-4
    exports = "adapter"
    options: Options

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.keeps_base = options.bias == "none"  # biases learn in their place

    def apply(self, model: nn.Module, *, new: frozenset[str]) -> nn.Module:
        from peft import LoraConfig, get_peft_model

        options = self.options
        task_type = _task_type(model)
        # PEFT makes the head of a tagger learn whole, and would give it an adapter as well.
        whole = bool(new) or task_type == "TOKEN_CLS"
        heads = head_module_names(model) if whole else ()
        settings: dict[str, Any] = {
            "r": options.rank,
            "lora_alpha": options.alpha,
            "lora_dropout": options.dropout,
            "target_modules": _plain(options.target),
            "exclude_modules": _plain(options.exclude),
            "layers_to_transform": _plain(options.layers),
            "bias": options.bias,
            "use_rslora": options.rslora,
            "use_dora": options.dora,
            "modules_to_save": sorted({*options.also_learn, *heads, *_owners(new, heads)}) or None,
            "task_type": task_type,
        }
        try:
            return get_peft_model(model, LoraConfig(**settings))
        except ValueError as fault:
            raise DtlError.of(
                "strategy.target",
                f"{options.target!r} does not fit {type(model).__name__} ({_first_line(fault)})",
                "name endings of its linear layers, such as [q_proj, v_proj], or all-linear",
            ) from fault

    def merge(self, model: nn.Module) -> nn.Module:
        merged: nn.Module = on_plain_base(model).merge_and_unload(safe_merge=True)
        return merged


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _owners(new: frozenset[str], heads: tuple[str, ...]) -> set[str]:
    """Modules inside the base that hold new parameters, such as a pooler the base did not bring."""
    return {name.rpartition(".")[0] for name in new if name.partition(".")[0] not in heads}


def _first_line(fault: Exception) -> str:
    return str(fault).splitlines()[0].rstrip(".")


def _task_type(model: nn.Module) -> str | None:
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
