"""Attach a new adapter to a model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from dtl.core.errors import DtlError
from dtl.models.import_bitsandbytes import import_bitsandbytes
from dtl.models.peft.base import (
    INITIAL_FACTORS,
    draw_adapters_in_fp32,
    find_task_type,
    is_on_meta_device,
)
from dtl.models.peft.compatibility import BASE_CHANGING_INITS
from dtl.models.peft.token_rows import (
    compute_only_new_rows,
    reading_rows_in_place,
    token_row_settings,
)
from dtl.models.peft.virtual_tokens import drop_virtual_token_logits
from dtl.models.structure.head import head_module_names

if TYPE_CHECKING:
    from torch import Tensor, nn


def attach_adapter(
    model: nn.Module, method: str, settings: dict[str, Any], *, new_parameters: frozenset[str]
) -> nn.Module:
    """Return the model with an adapter of PEFT.

    `settings`: arguments of the method's PEFT config. `new_parameters`: names of parameters that
    the weight files do not contain; they are trained. Raises ValueError, as PEFT does, if the model
    does not have the layers that the settings name, and DtlError for a rank that is too high.
    """
    import_bitsandbytes()
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftType, get_peft_model

    task = find_task_type(model)
    modules_to_save = collect_modules_to_save(
        model, task, new_parameters, settings.pop("modules_to_save", None)
    )
    init = settings.get("init_lora_weights")
    if init is not None and is_on_meta_device(model):
        settings["init_lora_weights"] = True  # there are no values to initialize from
    config = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType[method.upper()]](
        **settings,
        **token_row_settings(model, method),
        task_type=task,
        modules_to_save=modules_to_save,
    )
    with reading_rows_in_place(), draw_adapters_in_fp32():
        adapted = compute_only_new_rows(get_peft_model(model, config))
    _check_rank_is_low(adapted, settings.get("r") if method == "lora" else None)
    for name, parameter in adapted.named_parameters():
        if ".ranknum." in name:  # AdaLoRA's scale, which PEFT forgets to freeze without weights
            parameter.requires_grad_(False)
    if init in BASE_CHANGING_INITS:
        factors = _copy_lora_factors(adapted)
        _check_rank(factors, init, settings["r"])
        setattr(adapted, INITIAL_FACTORS, factors)
    return drop_virtual_token_logits(adapted)


def collect_modules_to_save(
    model: nn.Module,
    task: str | None,
    new_parameters: frozenset[str],
    requested: Iterable[str] | None,
) -> list[str] | None:
    """Return the modules that are trained in full: those requested, the head, and the modules with
    new parameters."""
    # PEFT trains the head of a token classifier in full, and would also give it an adapter.
    heads = head_module_names(model) if new_parameters or task == "TOKEN_CLS" else ()
    return (
        sorted({*(requested or ()), *heads, *_modules_with_new_parameters(new_parameters, heads)})
        or None
    )


def _check_rank_is_low(adapted: nn.Module, rank: int | None) -> None:
    """Raise DtlError if the rank is higher than that of any weight with an adapter."""
    if rank is None:
        return
    base_layers: Iterable[Any] = (
        getattr(module, "base_layer", None) for module in adapted.modules()
    )
    ranks = [
        min(layer.in_features, layer.out_features)
        for layer in base_layers
        if hasattr(layer, "in_features") and hasattr(layer, "out_features")
    ]
    if ranks and rank > max(ranks):
        raise DtlError.of(
            "strategy.rank",
            f"the adapted layers have at most rank {max(ranks)} (got {rank})",
            f"set strategy.rank to {max(ranks)} or less, or train the layers in full (strategy "
            "full or partial)",
        )


def _check_rank(factors: dict[str, Tensor], init: str, rank: int) -> None:
    """Raise DtlError if the rank is higher than that of a weight, which is decomposed."""
    for name, value in factors.items():
        narrowest = value.shape[1] if ".lora_A." in name else value.shape[0]
        if rank > narrowest:
            layer = name.removeprefix("base_model.model.").partition(".lora_")[0]
            raise DtlError.of(
                "strategy.rank",
                f"init {init} decomposes {layer}, whose rank is {narrowest} (got {rank})",
                f"set strategy.rank to {narrowest} or less, or exclude the layer by "
                "strategy.exclude_modules",
            )


def _modules_with_new_parameters(new: frozenset[str], heads: tuple[str, ...]) -> set[str]:
    """Return modules inside the base that have new parameters, such as a new pooler."""
    return {name.rpartition(".")[0] for name in new if name.partition(".")[0] not in heads}


def _copy_lora_factors(adapted: nn.Module) -> dict[str, Tensor]:
    """Return copies of LoRA's factors A (rank, in) and B (out, rank), fp32, by file names."""
    from peft import get_peft_model_state_dict

    return {
        name: value.detach().float().clone()
        for name, value in get_peft_model_state_dict(adapted, save_embedding_layers=False).items()
        if ".lora_A." in name or ".lora_B." in name
    }
