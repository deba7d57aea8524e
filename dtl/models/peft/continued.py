"""An adapter that goes on learning from where an earlier one ended."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from dtl.core.errors import DtlError
from dtl.models.full_shape import full_shape
from dtl.models.peft.attach import collect_modules_to_save
from dtl.models.peft.base import find_task_type, vera_matrices
from dtl.models.peft.save_load import check_adapter_folder, load_adapter_tensors

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch import Tensor, nn

LOCATION = "strategy.continue_from"
BASE_PRESERVING_INITS = ("gaussian", "orthogonal", "eva")  # beginnings that have left it whole


def attach_continued_adapter(
    model: nn.Module,
    folder: Path,
    *,
    method: str,
    requested: dict[str, Any],
    new_parameters: frozenset[str],
) -> nn.Module:
    """The model with an adapter of the same form, to be filled. `asked`: what the config says of
    that form, by PEFT's names.

    Raises DtlError where the adapter is of another method, form or base.
    """
    from peft import get_peft_model

    config = _load_peft_config(folder, method, requested)
    task = find_task_type(model)
    config.modules_to_save = collect_modules_to_save(
        model, task, new_parameters, config.modules_to_save
    )
    config.task_type = task
    config.inference_mode = False
    config.base_model_name_or_path = None  # PEFT writes this base's name
    try:
        adapted = get_peft_model(model, config)
    except ValueError as fault:
        _raise_other_base(folder, str(fault).splitlines()[0])
    places, tensors = _named_tensors(adapted), load_adapter_tensors(folder)
    heads = tuple(f".{name}." for name in config.modules_to_save or ())
    inside = {name for name in places.keys() | tensors.keys() if not _is_inside(name, heads)}
    for name in sorted(inside):
        if (
            name not in places
            or name not in tensors
            or not _has_same_shape(places[name], tensors[name])
        ):
            _raise_other_base(folder, name)
    return adapted


def write_continued_weights(
    adapted: nn.Module, folder: Path, *, write_parameter: Callable[..., None]
) -> None:
    """Write the earlier adapter's weights. A head for something else is left out. `fill(parameter,
    value)` writes a whole tensor, also into a partitioned one."""
    import torch

    tensors, shared = (
        load_adapter_tensors(folder),
        {id(each) for each in vera_matrices(adapted).values()},
    )
    for name, place in _named_tensors(adapted).items():
        if name not in tensors or not _has_same_shape(place, tensors[name]):
            continue
        if id(place) in shared:  # each rank has them whole
            with torch.no_grad():
                place.copy_(tensors[name])
        else:
            write_parameter(place, tensors[name])


def _load_peft_config(folder: Path, method: str, asked: dict[str, Any]) -> PeftConfig:
    """How the adapter was made. Raises DtlError where it cannot go on, or not so."""
    from peft import PeftConfig

    check_adapter_folder(folder, LOCATION)
    config = PeftConfig.from_pretrained(str(folder))
    found = str(getattr(config.peft_type, "value", config.peft_type)).lower()
    if found != method:
        raise DtlError.of(
            LOCATION, f"{folder} holds an adapter of {found}", f"take strategy {found}"
        )
    for name, value in asked.items():
        theirs = getattr(config, name, None)
        if _to_comparable(theirs) != _to_comparable(value):
            raise DtlError.of(
                LOCATION,
                f"the adapter in {folder} has {name} {_to_comparable(theirs)}, and the config asks for "
                f"{_to_comparable(value)}",
                "leave the option out: the adapter brings its own",
            )
    init = getattr(config, "init_lora_weights", True)
    if isinstance(init, str) and init not in BASE_PRESERVING_INITS:
        raise DtlError.of(
            LOCATION,
            f"the adapter in {folder} began by {init}, with a part of its base taken out",
            "save it as plain LoRA (PEFT's path_initial_model_for_weight_conversion); dtl's export "
            "is so",
        )
    if getattr(config, "bias", "none") != "none":
        raise DtlError.of(
            LOCATION,
            f"the adapter in {folder} has biases in place of those of the base",
            f"work it into the base, model.adapters: [{folder}], and train another one over it",
        )
    if hasattr(config, "init_lora_weights"):
        config.init_lora_weights = True  # any values, as they are written over
    return config


def _named_tensors(adapted: nn.Module) -> dict[str, Tensor]:
    """The parameters, and what they share, by their names in a file."""
    from peft import get_peft_model_state_dict

    learning = {name: value for name, value in adapted.named_parameters() if value.requires_grad}
    return dict(
        get_peft_model_state_dict(
            adapted, state_dict=vera_matrices(adapted) | learning, save_embedding_layers=False
        )
    )


def _is_inside(name: str, modules: tuple[str, ...]) -> bool:
    return any(module in f".{name}" for module in modules)


def _has_same_shape(place: Tensor, value: Tensor) -> bool:
    return full_shape(place) == tuple(value.shape)


def _to_comparable(value: Any) -> Any:
    """PEFT keeps names of layers in sets, and its files in lists."""
    return sorted(value) if isinstance(value, (set, list, tuple)) else value


def _raise_other_base(folder: Path, strange: str) -> NoReturn:
    raise DtlError.of(
        LOCATION,
        f"{folder} does not belong to this base ({strange})",
        "name the base that it was learnt over as model.path",
    )
