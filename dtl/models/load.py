"""Load the weights of a pretrained model."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from dtl.config.schema import Model
from dtl.core.errors import DtlError
from dtl.models.attention import (
    attention_on_meta_device,
    check_attention_is_supported,
    check_attention_runs_here,
)
from dtl.models.base_adapters import resolve_adapters
from dtl.models.batch_norm import use_fp32_statistics
from dtl.models.dtypes import torch_dtype
from dtl.models.frozen_by_class import frozen_names, record_frozen_parameters, refreeze
from dtl.models.full_shape import full_shape
from dtl.models.load_errors import translate_load_errors
from dtl.models.locate import locate_model
from dtl.models.peft.merge import merge_into_base
from dtl.models.pretrained_config import (
    HeadConfig,
    get_auto_class,
    get_class_arguments,
    load_changed_config,
    load_model_config,
)
from dtl.models.processor import load_tokenizer
from dtl.models.quantization import quantize
from dtl.models.quantization.original_weights import find_original_weights
from dtl.models.structure.module_kinds import BATCH_NORM_STATISTICS
from dtl.models.trust import LOCATION, check_safetensors
from dtl.models.vocabulary import (
    changes_vocabulary,
    find_new_rows,
    init_new_rows,
    resize_embeddings,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

    InitContext = Callable[[bool], AbstractContextManager[None]]


class LoadingEngine(Protocol):
    """What loading needs of an engine that may partition weights."""

    def init_context(
        self, is_sharded: bool, *, in_fp32: bool = False
    ) -> AbstractContextManager[None]:
        """Return the context in which weights are created."""

    def gather_for_update(self, parameters: list[nn.Parameter]) -> AbstractContextManager[Any]:
        """Return the context in which full parameters are written."""


@dataclass(frozen=True)
class LoadedModel:
    """A model, and the names of the parameters that its weight files do not contain.

    `language_weights`: values of parameters that are in a separate file for a language.
    `original_weights`: the weights before quantization, each read when it is accessed.
    `frozen_by_class`: names of the parameters that the model's class freezes.
    """

    model: nn.Module
    new_parameters: frozenset[str]
    language_weights: Mapping[str, Tensor] = field(default_factory=dict)
    original_weights: Mapping[str, Tensor] = field(default_factory=dict)
    frozen_by_class: frozenset[str] = frozenset()


def load_on_meta_device(model: Model, *, head: HeadConfig) -> LoadedModel:
    """Return the model on the meta device: shapes and names without values, for the planner.

    Its layers are quantized if the config says so. `new_parameters` are those that transformers
    does not find in the headers of the weight files; for a hub id, all parameters of the head.
    """
    if model.quantize is not None:
        quantize.check_not_quantized(load_model_config(model), model.path)
    loaded = _load_unquantized_on_meta_device(model, head)
    check_attention_is_supported(loaded.model, model)
    if model.quantize is not None:
        skipped = quantize.find_modules_to_skip(loaded.model, loaded.new_parameters)
        quantize.quantize_on_meta_device(loaded.model, model, skipped)
    return loaded


def _load_unquantized_on_meta_device(model: Model, head: HeadConfig) -> LoadedModel:
    import torch

    from dtl.models.structure.head import head_parameters

    if not list(Path(locate_model(model)).glob("*.safetensors")):
        config, auto_class = load_changed_config(model, head), get_auto_class(model, head)
        with torch.device("meta"):
            network = auto_class.from_config(
                config,
                attn_implementation=attention_on_meta_device(model),
                **get_class_arguments(model, head),
            )
        _add_rows(network, model)
        new = head_parameters(network) if head.config_changes else frozenset()
        loaded = LoadedModel(network, new, frozen_by_class=frozen_names(network))
        return _merge_adapters(loaded, model)
    with silence_transformers():
        loaded = _read_weights(
            model,
            head,
            attention=attention_on_meta_device(model),
            dtype=torch.float32,
            device_map="meta",
        )
        _check_weights_match(loaded.model, loaded.new_parameters, model)
        _add_rows(loaded.model, model)
        return _load_language_weights(_merge_adapters(loaded, model), model, head)


@contextmanager
def silence_transformers() -> Iterator[None]:
    """Hide the progress bar and the table of missing weights of transformers."""
    from transformers.utils import logging

    level, has_bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if has_bar:
            logging.enable_progress_bar()


def _read_weights(
    model: Model, head: HeadConfig, *, attention: str | None, **arguments: Any
) -> LoadedModel:
    """Return the model from its files, and the names of the parameters that they do not contain.

    `arguments`: further ones of `from_pretrained`.
    """
    config, auto_class = load_changed_config(model, head), get_auto_class(model, head)
    with translate_load_errors(model, "weights"), record_frozen_parameters():
        network, report = auto_class.from_pretrained(
            locate_model(model),
            config=config,
            revision=model.revision,
            trust_remote_code=model.trust_remote_code,
            attn_implementation=attention,
            use_safetensors=True,
            ignore_mismatched_sizes=bool(head.config_changes),
            output_loading_info=True,
            **get_class_arguments(model, head),
            **arguments,
        )
    names = {name for name, _ in network.named_parameters()}
    mismatched = {
        entry[0] if isinstance(entry, tuple) else entry for entry in report["mismatched_keys"]
    }
    new = frozenset((set(report["missing_keys"]) | mismatched) & names)
    return LoadedModel(network, new, frozen_by_class=refreeze(network))


def load_pretrained(
    model: Model,
    *,
    head: HeadConfig,
    random_init: bool,
    seed: int,
    dtype: str,
    engine: LoadingEngine | None = None,
) -> LoadedModel:
    """Return the model on the CPU (partitioned under ZeRO stage 3), the same on every rank.

    `dtype`: fp32, bf16 or fp16; the statistics of BatchNorm are fp32 in any case. `random_init`:
    draw all weights with `seed` and read none.
    `engine`: partitions the weights while they are read, or not; None: nothing is partitioned.
    Raises DtlError if the weights are missing, are pickles, or do not belong to this architecture.
    """
    import torch

    make_context = _init_context(engine, dtype=dtype)
    check_attention_runs_here(model, head)
    config, auto_class = load_changed_config(model, head), get_auto_class(model, head)
    torch.manual_seed(seed)
    if random_init:
        with make_context(False):
            network = auto_class.from_config(
                config,
                attn_implementation=model.attention,
                dtype=torch.float32,
                **get_class_arguments(model, head),
            )
        _add_rows(network, model)
        use_fp32_statistics(network)
        network = network.to(torch_dtype(dtype))
        return LoadedModel(network, frozenset(), frozen_by_class=frozen_names(network))
    check_safetensors(locate_model(model))
    with load_in_fp32(BATCH_NORM_STATISTICS):
        if model.quantize is not None:
            loaded = _load_quantized(model, head, dtype=dtype, make_context=make_context)
        else:
            with make_context(not model.adapters):  # adapters are merged into full weights
                loaded = _read_weights(
                    model, head, attention=model.attention, dtype=torch_dtype(dtype)
                )
    use_fp32_statistics(loaded.model)
    _check_weights_match(loaded.model, loaded.new_parameters, model)
    _add_rows(loaded.model, model)
    gather = engine.gather_for_update if engine else (lambda parameters: nullcontext())
    init_new_rows(loaded.model, gather_for_update=gather)
    return _load_language_weights(_merge_adapters(loaded, model), model, head)


def _init_context(engine: LoadingEngine | None, *, dtype: str) -> InitContext:
    """Return the function that makes the context in which weights are created."""
    if engine is None:
        return lambda is_sharded: nullcontext()
    return partial(engine.init_context, in_fp32=dtype == "fp32")


def _add_rows(network: nn.Module, model: Model) -> None:
    """Give the embeddings rows for the tokens that the config adds."""
    if not changes_vocabulary(model):
        return
    rows = full_shape(network.get_input_embeddings().weight)[0]  # type: ignore[operator]
    resize_embeddings(network, find_new_rows(model, load_tokenizer(model), rows=rows))


@contextmanager
def load_in_fp32(names: Iterable[str]) -> Iterator[None]:
    """Have transformers load the tensors of these names, full or below their module, in fp32."""
    import torch
    from transformers import PreTrainedModel

    get_dtype_plan = PreTrainedModel._get_dtype_plan
    patterns = [rf"(?:^|\.){re.escape(name)}$" for name in sorted(names)]

    def get_plan(network: Any, dtype: torch.dtype) -> dict[str, torch.dtype]:
        return dict.fromkeys(patterns, torch.float32) | get_dtype_plan(network, dtype)

    PreTrainedModel._get_dtype_plan = get_plan
    try:
        yield
    finally:
        PreTrainedModel._get_dtype_plan = get_dtype_plan


def _merge_adapters(loaded: LoadedModel, model: Model) -> LoadedModel:
    """Return the base with `model.adapters` merged; parameters that they contain are not new."""
    for folder in resolve_adapters(model):
        network, replaced = merge_into_base(loaded.model, folder)
        loaded = replace(loaded, model=network, new_parameters=loaded.new_parameters - replaced)
    return loaded


def _load_quantized(
    model: Model, head: HeadConfig, *, dtype: str, make_context: InitContext
) -> LoadedModel:
    """Return the model with linear layers that are quantized while they are read.

    Each rank reads the full model, because quantization needs full weights; the engine partitions
    it later.
    """
    with make_context(False):
        planned = _load_unquantized_on_meta_device(model, head)
        skipped = quantize.find_modules_to_skip(planned.model, planned.new_parameters)
        loaded = _read_weights(
            model,
            head,
            attention=model.attention,
            dtype=torch_dtype(dtype),
            quantization_config=quantize.make_quantization_config(
                model, dtype=dtype, skip_modules=skipped
            ),
        )
    quantize.configure_quantized_layers(loaded.model, dtype=dtype)
    with translate_load_errors(model, "weights"):
        original = find_original_weights(planned.model, locate_model(model), model.revision)
    return replace(loaded, original_weights=original)


def _load_language_weights(loaded: LoadedModel, model: Model, head: HeadConfig) -> LoadedModel:
    """Read the adapters and the head of the language `target_lang`, as MMS stores them.

    transformers cannot write them into a partitioned model. Raises DtlError if there is no such
    file.
    """
    language = head.config_changes.get("target_lang")
    if language is None:
        return loaded
    from safetensors.torch import load_file
    from transformers.utils import cached_file

    name = f"adapter.{language}.safetensors"
    with translate_load_errors(model, f"adapter of {language}"):
        weights = load_file(str(cached_file(locate_model(model), name, revision=model.revision)))
    new = loaded.new_parameters - weights.keys()
    return replace(loaded, new_parameters=new, language_weights=weights)


def _check_weights_match(network: nn.Module, new_parameters: frozenset[str], model: Model) -> None:
    """Raise DtlError if most of the base is missing: that would be training from scratch."""
    from dtl.models.structure.head import head_parameters

    base_parameters = [
        name for name, _ in network.named_parameters() if name not in head_parameters(network)
    ]
    missing = [name for name in base_parameters if name in new_parameters]
    if len(missing) > len(base_parameters) // 4:
        raise DtlError.of(
            LOCATION,
            f"{len(missing)} of {len(base_parameters)} parameters of {type(network).__name__} "
            f"are missing in the weight files of {model.path} (the first is {missing[0]})",
            "check that the weights match config.json",
        )
