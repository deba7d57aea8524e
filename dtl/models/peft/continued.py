"""An adapter that goes on learning from where an earlier one ended."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from dtl.core.errors import DtlError
from dtl.models.peft.adapters import (
    read_back,
    refuse_no_adapter,
    shared_matrices,
    task_type,
    whole_modules,
)

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch import Tensor, nn

PLACE = "strategy.continue_from"
OVER_THE_BASE = ("gaussian", "orthogonal", "eva")  # beginnings that have left it whole


def put_on_again(
    model: nn.Module, folder: Path, *, method: str, asked: dict[str, Any], new: frozenset[str]
) -> nn.Module:
    """The model with an adapter of the same form, to be filled. `asked`: what the config says of
    that form, by PEFT's names.

    Raises DtlError where the adapter is of another method, form or base.
    """
    from peft import get_peft_model

    config = _settings(folder, method, asked)
    task = task_type(model)
    config.modules_to_save = whole_modules(model, task, new, config.modules_to_save)
    config.task_type = task
    config.inference_mode = False
    config.base_model_name_or_path = None  # PEFT writes this base's name
    try:
        adapted = get_peft_model(model, config)
    except ValueError as fault:
        _refuse_other_base(folder, str(fault).splitlines()[0])
    places, tensors = _places(adapted), read_back(folder)
    heads = tuple(f".{name}." for name in config.modules_to_save or ())
    inside = {name for name in places.keys() | tensors.keys() if not _in(name, heads)}
    for name in sorted(inside):
        if name not in places or name not in tensors or not _fits(places[name], tensors[name]):
            _refuse_other_base(folder, name)
    return adapted


def fill_from(adapted: nn.Module, folder: Path, *, fill: Callable[..., None]) -> None:
    """Write the earlier adapter's weights. A head for something else is left out. `fill(parameter,
    value)` writes a whole tensor, also into a partitioned one."""
    import torch

    tensors, shared = read_back(folder), {id(each) for each in shared_matrices(adapted).values()}
    for name, place in _places(adapted).items():
        if name not in tensors or not _fits(place, tensors[name]):
            continue
        if id(place) in shared:  # each rank has them whole
            with torch.no_grad():
                place.copy_(tensors[name])
        else:
            fill(place, tensors[name])


def _settings(folder: Path, method: str, asked: dict[str, Any]) -> PeftConfig:
    """How the adapter was made. Raises DtlError where it cannot go on, or not so."""
    from peft import PeftConfig

    refuse_no_adapter(folder, PLACE)
    config = PeftConfig.from_pretrained(str(folder))
    found = str(getattr(config.peft_type, "value", config.peft_type)).lower()
    if found != method:
        raise DtlError.of(PLACE, f"{folder} holds an adapter of {found}", f"take strategy {found}")
    for name, value in asked.items():
        theirs = getattr(config, name, None)
        if _plain(theirs) != _plain(value):
            raise DtlError.of(
                PLACE,
                f"the adapter in {folder} has {name} {_plain(theirs)}, and the config asks for "
                f"{_plain(value)}",
                "leave the option out: the adapter brings its own",
            )
    init = getattr(config, "init_lora_weights", True)
    if isinstance(init, str) and init not in OVER_THE_BASE:
        raise DtlError.of(
            PLACE,
            f"the adapter in {folder} began by {init}, with a part of its base taken out",
            "save it as plain LoRA (PEFT's path_initial_model_for_weight_conversion); dtl's export "
            "is so",
        )
    if getattr(config, "bias", "none") != "none":
        raise DtlError.of(
            PLACE,
            f"the adapter in {folder} has biases in place of those of the base",
            f"work it into the base, model.adapters: [{folder}], and train another one over it",
        )
    if hasattr(config, "init_lora_weights"):
        config.init_lora_weights = True  # any values, as they are written over
    return config


def _places(adapted: nn.Module) -> dict[str, Tensor]:
    """The parameters, and what they share, by their names in a file."""
    from peft import get_peft_model_state_dict

    learning = {name: value for name, value in adapted.named_parameters() if value.requires_grad}
    return dict(
        get_peft_model_state_dict(
            adapted, state_dict=shared_matrices(adapted) | learning, save_embedding_layers=False
        )
    )


def _in(name: str, modules: tuple[str, ...]) -> bool:
    return any(module in f".{name}" for module in modules)


def _fits(place: Tensor, value: Tensor) -> bool:
    return tuple(getattr(place, "ds_shape", place.shape)) == tuple(value.shape)


def _plain(value: Any) -> Any:
    """PEFT keeps names of layers in sets, and its files in lists."""
    return sorted(value) if isinstance(value, (set, list, tuple)) else value


def _refuse_other_base(folder: Path, strange: str) -> NoReturn:
    raise DtlError.of(
        PLACE,
        f"{folder} does not belong to this base ({strange})",
        "name the base that it was learnt over as model.path",
    )
