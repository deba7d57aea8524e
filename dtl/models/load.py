"""Load the weights of a pretrained model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dtl.config.schema import Model
from dtl.core.errors import DtlError
from dtl.models.base_adapters import resolve_adapters
from dtl.models.dtypes import torch_dtype
from dtl.models.load_errors import translate_load_errors
from dtl.models.locate import locate_model
from dtl.models.peft.merge import merge_into_base
from dtl.models.pretrained_config import get_auto_class, load_changed_config, load_model_config
from dtl.models.quantization import quantize
from dtl.models.quantization.original_weights import find_original_weights
from dtl.models.trust import LOCATION, check_safetensors

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class LoadedModel:
    """A model, and the names of the parameters that the base did not bring. `given`: values of some
    that come from a file of their own; `whole`: weights as they were before they were quantized,
    read when they are asked for."""

    model: nn.Module
    new_parameters: frozenset[str]
    language_weights: Mapping[str, Tensor] = field(default_factory=dict)
    original_weights: Mapping[str, Tensor] = field(default_factory=dict)


def load_on_meta_device(
    model: Model, *, auto_class: str, config_changes: dict[str, Any]
) -> LoadedModel:
    """The model on the meta device: shapes and names, no bytes. For the planner.

    Quantized layers stand where the config asks for them. `new` is what transformers itself misses
    in the weight files, of which it reads the headers; for a hub id it is the whole head.
    """
    if model.quantize is not None:
        quantize.check_not_quantized(load_model_config(model), model.path)
    loaded = _load_unquantized_on_meta_device(
        model, auto_class=auto_class, config_changes=config_changes
    )
    if model.quantize is not None:
        keep = quantize.find_modules_to_skip(loaded.model, loaded.new_parameters)
        quantize.quantize_on_meta_device(loaded.model, model, keep)
    return loaded


def _load_unquantized_on_meta_device(
    model: Model, *, auto_class: str, config_changes: dict[str, Any]
) -> LoadedModel:
    import torch

    from dtl.models.anatomy import head_parameters

    settings = load_changed_config(model, config_changes)
    auto = get_auto_class(auto_class, model)
    where = locate_model(model)
    if not list(Path(where).glob("*.safetensors")):
        with torch.device("meta"):
            network = auto.from_config(settings, attn_implementation=model.attention)
        new = head_parameters(network) if config_changes else frozenset()
        return _merge_adapters(LoadedModel(network, new), model)
    with silence_transformers():
        loaded = _read_weights(
            auto, where, settings, model, config_changes, dtype=torch.float32, device_map="meta"
        )
        return _load_language_weights(_merge_adapters(loaded, model), model, config_changes)


@contextmanager
def silence_transformers() -> Iterator[None]:
    """Without transformers' bar and its table of missing weights, where dtl knows of them."""
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


def _read_weights(
    auto: Any, where: str, settings: Any, model: Model, changes: dict[str, Any], **how: Any
) -> LoadedModel:
    """The model from its files, and the names of what the files do not bring."""
    with translate_load_errors(model, "weights"):
        network, report = auto.from_pretrained(
            where,
            config=settings,
            revision=model.revision,
            trust_remote_code=model.trust_remote_code,
            attn_implementation=model.attention,
            use_safetensors=True,
            ignore_mismatched_sizes=bool(changes),
            output_loading_info=True,
            **how,
        )
    names = {name for name, _ in network.named_parameters()}
    mismatched = {
        entry[0] if isinstance(entry, tuple) else entry for entry in report["mismatched_keys"]
    }
    return LoadedModel(network, frozenset((set(report["missing_keys"]) | mismatched) & names))


def load_pretrained(
    model: Model,
    *,
    auto_class: str,
    config_changes: dict[str, Any],
    random_init: bool,
    seed: int,
    dtype: str,
    init_context: Callable[[bool], AbstractContextManager[None]] | None = None,
) -> LoadedModel:
    """The model on the CPU (or partitioned, under ZeRO-3), the same on every rank.

    `dtype`: fp32, bf16 or fp16. `random`: weights drawn from `seed`, nothing read.
    `loading(sharded)` comes from the engine: the context in which weights are made.
    Raises DtlError for weights that are pickles, that do not belong to this architecture, or that
    are not there.
    """
    import torch

    enter = init_context or (lambda sharded: nullcontext())
    settings = load_changed_config(model, config_changes)
    auto = get_auto_class(auto_class, model)
    torch.manual_seed(seed)
    if random_init:
        with enter(False):
            network = auto.from_config(
                settings, attn_implementation=model.attention, dtype=torch.float32
            )
        return LoadedModel(network.to(torch_dtype(dtype)), frozenset())
    where = locate_model(model)
    check_safetensors(where)
    if model.quantize is not None:
        loaded = _load_quantized(
            model, auto_class, settings, config_changes, dtype=dtype, enter=enter
        )
    else:
        with enter(not model.adapters):  # these are worked into whole weights
            loaded = _read_weights(
                auto, where, settings, model, config_changes, dtype=torch_dtype(dtype)
            )
    _check_weights_match(loaded.model, loaded.new_parameters, model)
    return _load_language_weights(_merge_adapters(loaded, model), model, config_changes)


def _merge_adapters(loaded: LoadedModel, model: Model) -> LoadedModel:
    """The base with earlier adapters in its weights; what these bring is not new."""
    for folder in resolve_adapters(model):
        network, brought = merge_into_base(loaded.model, folder)
        loaded = replace(loaded, model=network, new_parameters=loaded.new_parameters - brought)
    return loaded


def _load_quantized(
    model: Model,
    head: str,
    settings: Any,
    changes: dict[str, Any],
    *,
    dtype: str,
    enter: Callable[[bool], AbstractContextManager[None]],
) -> LoadedModel:
    """The model with its linear layers quantized as they are read, each rank the whole of it; under
    ZeRO-3 it is shared out later, as levels are made of whole weights."""
    with enter(False):
        planned = _load_unquantized_on_meta_device(model, auto_class=head, config_changes=changes)
        keep = quantize.find_modules_to_skip(planned.model, planned.new_parameters)
        how = quantize.make_quantization_config(model, dtype=dtype, skip_modules=keep)
        loaded = _read_weights(
            get_auto_class(head, model),
            locate_model(model),
            settings,
            model,
            changes,
            dtype=torch_dtype(dtype),
            quantization_config=how,
        )
    quantize.configure_quantized_layers(loaded.model, dtype=dtype)
    with translate_load_errors(model, "weights"):
        whole = find_original_weights(planned.model, locate_model(model), model.revision)
    return replace(loaded, original_weights=whole)


def _load_language_weights(
    loaded: LoadedModel, model: Model, changes: dict[str, Any]
) -> LoadedModel:
    """Where a language is asked for by `target_lang`: its adapters and head, as MMS has them.

    Not by transformers, which cannot write them into a partitioned model.
    Raises DtlError where the model has no such file.
    """
    language = changes.get("target_lang")
    if language is None:
        return loaded
    from safetensors.torch import load_file
    from transformers.utils import cached_file

    name = f"adapter.{language}.safetensors"
    with translate_load_errors(model, f"adapter of {language}"):
        file = cached_file(locate_model(model), name, revision=model.revision)
        given = load_file(str(file))
    return replace(
        loaded, new_parameters=loaded.new_parameters - given.keys(), language_weights=given
    )


def _check_weights_match(network: nn.Module, new: frozenset[str], model: Model) -> None:
    """A base of which most is missing is no base: training it would be scratch, unnamed."""
    from dtl.models.anatomy import head_parameters

    inside = [
        name for name, _ in network.named_parameters() if name not in head_parameters(network)
    ]
    lost = [name for name in inside if name in new]
    if len(lost) > len(inside) // 4:
        raise DtlError.of(
            LOCATION,
            f"the weights in {model.path} lack {len(lost)} of {len(inside)} tensors of "
            f"{type(network).__name__} (the first is {lost[0]})",
            "check that the weights and config.json belong together",
        )
