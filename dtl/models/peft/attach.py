"""Attach a new adapter to a model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from dtl.core.errors import DtlError
from dtl.models.anatomy import head_module_names
from dtl.models.peft.base import INITIAL_FACTORS, find_task_type, is_on_meta_device
from dtl.models.peft.compatibility import BASE_CHANGING_INITS
from dtl.models.peft.virtual_tokens import drop_virtual_token_logits

if TYPE_CHECKING:
    from torch import Tensor, nn


def attach_adapter(
    model: nn.Module, method: str, settings: dict[str, Any], *, new_parameters: frozenset[str]
) -> nn.Module:
    """The model with what PEFT adds. `new`: parameters that the base did not bring; they learn.

    Raises ValueError as PEFT does, where the settings find no place in the model.
    """
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftType, get_peft_model

    task = find_task_type(model)
    also = collect_modules_to_save(
        model, task, new_parameters, settings.pop("modules_to_save", None)
    )
    init = settings.get("init_lora_weights")
    if init is not None and is_on_meta_device(model):
        settings["init_lora_weights"] = True  # there are no values to begin from
    config = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType[method.upper()]](
        **settings, task_type=task, modules_to_save=also
    )
    adapted = get_peft_model(model, config)
    for name, parameter in adapted.named_parameters():
        if ".ranknum." in name:  # AdaLoRA's scale, which PEFT forgets to freeze without weights
            parameter.requires_grad_(False)
    if init in BASE_CHANGING_INITS:
        start = _copy_lora_factors(adapted)
        _check_rank(start, init, settings["r"])
        setattr(adapted, INITIAL_FACTORS, start)
    return drop_virtual_token_logits(adapted)


def collect_modules_to_save(
    model: nn.Module,
    task: str | None,
    new_parameters: frozenset[str],
    requested: Iterable[str] | None,
) -> list[str] | None:
    """Modules that learn whole: those asked for, the head, and whatever holds new parameters."""
    # PEFT makes the head of a tagger learn whole, and would give it an adapter as well.
    heads = head_module_names(model) if new_parameters or task == "TOKEN_CLS" else ()
    return (
        sorted({*(requested or ()), *heads, *_modules_with_new_parameters(new_parameters, heads)})
        or None
    )


def _check_rank(start: dict[str, Tensor], init: str, rank: int) -> None:
    """A weight cannot be taken apart into more than its rank. Raises DtlError."""
    for name, value in start.items():
        narrowest = value.shape[1] if ".lora_A." in name else value.shape[0]
        if rank > narrowest:
            layer = name.removeprefix("base_model.model.").partition(".lora_")[0]
            raise DtlError.of(
                "strategy.rank",
                f"init {init} takes a rank of {rank} out of {layer}, whose rank is {narrowest}",
                f"set strategy.rank to {narrowest} or less, or leave it out by strategy.exclude",
            )


def _modules_with_new_parameters(new: frozenset[str], heads: tuple[str, ...]) -> set[str]:
    """Modules inside the base that hold new parameters, such as a pooler the base did not bring."""
    return {name.rpartition(".")[0] for name in new if name.partition(".")[0] not in heads}


def _copy_lora_factors(adapted: nn.Module) -> dict[str, Tensor]:
    """LoRA's factors as they are, in fp32, by their names in a file."""
    from peft import get_peft_model_state_dict

    return {
        name: value.detach().float().clone()
        for name, value in get_peft_model_state_dict(adapted, save_embedding_layers=False).items()
        if ".lora_A." in name or ".lora_B." in name
    }
