"""Continue the training of an earlier adapter."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from dtl.core.errors import DtlError
from dtl.models.full_shape import full_shape
from dtl.models.import_bitsandbytes import import_bitsandbytes
from dtl.models.peft.attach import collect_modules_to_save
from dtl.models.peft.base import find_task_type, vera_matrices
from dtl.models.peft.save_load import check_adapter_folder, load_adapter_tensors
from dtl.models.peft.token_rows import (
    check_token_rows,
    compute_only_new_rows,
    reading_rows_in_place,
)

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch import Tensor, nn

LOCATION = "strategy.continue_from"
BASE_PRESERVING_INITS = ("gaussian", "orthogonal", "eva")  # the base is unchanged


def attach_continued_adapter(
    model: nn.Module,
    folder: Path,
    *,
    method: str,
    requested: dict[str, Any],
    new_parameters: frozenset[str],
) -> nn.Module:
    """Return the model with an adapter of the same config, whose weights are to be written.

    `requested`: arguments of PEFT's config that the run's config sets. Raises DtlError if the
    earlier adapter has another method, config or base.
    """
    import_bitsandbytes()
    from peft import get_peft_model

    config = _load_peft_config(folder, method, requested)
    check_token_rows(model, getattr(config, "trainable_token_indices", None), location=LOCATION)
    task = find_task_type(model)
    config.modules_to_save = collect_modules_to_save(
        model, task, new_parameters, config.modules_to_save
    )
    config.task_type = task
    config.inference_mode = False
    config.base_model_name_or_path = None  # PEFT writes this base's name
    try:
        with reading_rows_in_place():
            adapted = compute_only_new_rows(get_peft_model(model, config))
    except ValueError as fault:
        _raise_other_base(folder, str(fault).splitlines()[0])
    _check_tensors_match(adapted, folder, heads=config.modules_to_save or ())
    return adapted


def _check_tensors_match(adapted: nn.Module, folder: Path, *, heads: Iterable[str]) -> None:
    """Raise DtlError if the file and the model do not have the same tensors, outside of heads."""
    parameters, tensors = _named_tensors(adapted), load_adapter_tensors(folder)
    infixes = tuple(f".{name}." for name in heads)
    for name in sorted(parameters.keys() | tensors.keys()):
        if any(infix in f".{name}" for infix in infixes):
            continue
        is_in_both = name in parameters and name in tensors
        if not is_in_both or not _has_same_shape(parameters[name], tensors[name]):
            _raise_other_base(folder, name)


def write_continued_weights(
    adapted: nn.Module, folder: Path, *, write_parameter: Callable[..., None]
) -> None:
    """Write the weights of the earlier adapter, except a head for other labels.

    `write_parameter(parameter, value)` writes a full tensor, also into a partitioned one.
    """
    import torch

    tensors = load_adapter_tensors(folder)
    shared = {id(matrix) for matrix in vera_matrices(adapted).values()}
    for name, parameter in _named_tensors(adapted).items():
        if name not in tensors or not _has_same_shape(parameter, tensors[name]):
            continue
        if id(parameter) in shared:  # not partitioned
            with torch.no_grad():
                parameter.copy_(tensors[name])
        else:
            write_parameter(parameter, tensors[name])


def _load_peft_config(folder: Path, method: str, requested: dict[str, Any]) -> PeftConfig:
    """Return the adapter's config. Raises DtlError if its training cannot continue like this."""
    from peft import PeftConfig

    check_adapter_folder(folder, LOCATION)
    config = PeftConfig.from_pretrained(str(folder))
    saved_method = str(getattr(config.peft_type, "value", config.peft_type)).lower()
    if saved_method != method:
        raise DtlError.of(
            LOCATION,
            f"{folder} has an adapter of method {saved_method} (expected {method})",
            f"take strategy {saved_method}",
        )
    for name, value in requested.items():
        saved, expected = _to_comparable(getattr(config, name, None)), _to_comparable(value)
        if saved != expected:
            raise DtlError.of(
                LOCATION,
                f"the adapter in {folder} has another {name} than the config (expected {expected}, "
                f"got {saved})",
                "remove the option: the adapter's own value is used",
            )
    init = getattr(config, "init_lora_weights", True)
    if isinstance(init, str) and init not in BASE_PRESERVING_INITS:
        raise DtlError.of(
            LOCATION,
            f"the adapter in {folder} was initialized by {init}, which changes the base",
            "save it as plain LoRA (PEFT's path_initial_model_for_weight_conversion), as dtl's "
            "exports are",
        )
    if getattr(config, "bias", "none") != "none":
        raise DtlError.of(
            LOCATION,
            f"the adapter in {folder} replaces biases of the base",
            f"merge it into the base, model.adapters: [{folder}], and train another one over it",
        )
    if hasattr(config, "init_lora_weights"):
        config.init_lora_weights = True  # any values: they are overwritten
    return config


def _named_tensors(adapted: nn.Module) -> dict[str, Tensor]:
    """Return the trainable parameters and shared matrices, by their names in a file."""
    from peft import get_peft_model_state_dict

    trainable = {name: value for name, value in adapted.named_parameters() if value.requires_grad}
    return dict(
        get_peft_model_state_dict(
            adapted, state_dict=vera_matrices(adapted) | trainable, save_embedding_layers=False
        )
    )


def _has_same_shape(parameter: Tensor, value: Tensor) -> bool:
    return full_shape(parameter) == tuple(value.shape)


def _to_comparable(value: Any) -> Any:
    """Return a sorted list for collections: PEFT has sets of layer names, its files lists."""
    return sorted(value) if isinstance(value, (set, list, tuple)) else value


def _raise_other_base(folder: Path, reason: str) -> NoReturn:
    raise DtlError.of(
        LOCATION,
        f"{folder} does not belong to this base ({reason})",
        "set model.path to the base that it was trained over",
    )
