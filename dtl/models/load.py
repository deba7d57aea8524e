"""Weights and processor of a pretrained model, from a folder, the hub or dtl's own miniatures."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dtl import mini
from dtl.config.schema import Model
from dtl.core.errors import DtlError, near
from dtl.models.dtypes import torch_dtype
from dtl.models.full_shape import full_shape
from dtl.models.peft import adapters
from dtl.models.quantization import quantize
from dtl.models.quantization.original_weights import find_original_weights
from dtl.models.trust import LOCATION, check_no_remote_code, check_safetensors

if TYPE_CHECKING:
    from torch import Tensor, nn


EXPORT_METADATA = "dtl.json"  # what dtl must know of an export


@dataclass(frozen=True)
class LoadedModel:
    """A model, and the names of the parameters that the base did not bring. `given`: values of some
    that come from a file of their own; `whole`: weights as they were before they were quantized,
    read when they are asked for."""

    model: nn.Module
    new_parameters: frozenset[str]
    language_weights: Mapping[str, Tensor] = field(default_factory=dict)
    original_weights: Mapping[str, Tensor] = field(default_factory=dict)


def locate_model(model: Model) -> str:
    """The folder or hub id that transformers opens. Raises DtlError where there is no folder."""
    if model.path.startswith("mini:"):
        return str(mini.base_folder(model.path.removeprefix("mini:")))
    folder = Path(model.path).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise DtlError.of(
                LOCATION,
                f"{folder} holds no config.json",
                "name a folder that save_pretrained wrote",
            )
        return str(folder)
    parent_is_here = folder.parent.is_dir() and str(folder.parent) != "."
    if model.path.startswith((".", "/", "~")) or model.path.count("/") > 1 or parent_is_here:
        siblings = [entry.name for entry in folder.parent.iterdir()] if parent_is_here else []
        raise DtlError.of(
            LOCATION,
            f"there is no folder {folder}",
            near(folder.name, siblings) or "name a model folder, a hub id, or mini:text",
        )
    return model.path


def load_model_config(model: Model) -> Any:
    """The model's own config (transformers' PretrainedConfig). Reads no weights."""
    from transformers import AutoConfig, PretrainedConfig

    where = locate_model(model)
    with _translate_load_errors(model, "config"):
        check_no_remote_code(where, model)
        written, _ = PretrainedConfig.get_config_dict(where, revision=model.revision)
        if written.get("model_type") == "timm_wrapper":
            raise DtlError.of(
                LOCATION,
                f"{model.path} is a model of timm, whose files dtl does not read",
                "take one that transformers itself knows, such as microsoft/resnet-50, "
                "facebook/convnext-tiny-224 or google/vit-base-patch16-224",
            )
        return AutoConfig.from_pretrained(
            where, revision=model.revision, trust_remote_code=model.trust_remote_code
        )


def load_tokenizer(model: Model) -> Any:
    """The model's tokenizer, with a padding token: its own, else its end token (padding is masked
    by length, so a learnt end token stays learnt)."""
    from transformers import AutoTokenizer

    where = locate_model(model)
    with _translate_load_errors(model, "tokenizer"):
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                where, revision=model.revision, trust_remote_code=model.trust_remote_code
            )
        except ImportError as fault:
            raise DtlError.of(
                LOCATION,
                f"the tokenizer cannot be read ({' '.join(str(fault).split()).partition('. ')[0]})",
                "install the package that it names",
            ) from fault
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise DtlError.of(
                LOCATION,
                f"the tokenizer of {model.path} has neither a padding nor an end token",
                "add one to its tokenizer_config.json",
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_processor(model: Model, processor_kind: str) -> Any:
    """What reads the model's input: its tokenizer, its feature extractor (`feature_extractor`), its image
    processor (`image_processor`), or extractor and tokenizer together (`processor`; the tokenizer is None where
    the model has none)."""
    import transformers

    if processor_kind == "tokenizer":
        return load_tokenizer(model)
    if processor_kind == "image_processor":
        return _load_component(model, transformers.AutoImageProcessor, "image processor")
    features = _load_component(model, transformers.AutoFeatureExtractor, "feature extractor")
    if processor_kind == "feature_extractor":
        return features
    return SpeechProcessor(features, load_tokenizer(model) if _has_tokenizer(model) else None)


def load_exported_processor(export: Path, processor_kind: str) -> Any:
    """The same from what a run has exported, beside an adapter too."""
    import transformers

    autos = {
        "tokenizer": transformers.AutoTokenizer,
        "image_processor": transformers.AutoImageProcessor,
        "feature_extractor": transformers.AutoFeatureExtractor,
    }
    if processor_kind != "processor":
        return autos[processor_kind].from_pretrained(export)
    parts = (autos[name].from_pretrained(export) for name in ("feature_extractor", "tokenizer"))
    return SpeechProcessor(*parts)


@dataclass
class SpeechProcessor:
    """A feature extractor and a tokenizer, which files of their own hold."""

    feature_extractor: Any
    tokenizer: Any

    def save_pretrained(self, folder: Path) -> None:
        self.feature_extractor.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def get_pad_token_id(processor: Any) -> int | None:
    """Its tokenizer's; None where nothing of it reads text."""
    tokenizer = getattr(processor, "tokenizer", processor)
    number: int | None = getattr(tokenizer, "pad_token_id", None)
    return number


def _load_component(model: Model, auto: Any, part: str) -> Any:
    where = locate_model(model)
    with _translate_load_errors(model, part):
        check_no_remote_code(where, model)
        return auto.from_pretrained(
            where, revision=model.revision, trust_remote_code=model.trust_remote_code
        )


def _has_tokenizer(model: Model) -> bool:
    """A base that was pretrained on sounds alone brings none."""
    from transformers.utils import cached_file

    found = [
        cached_file(
            locate_model(model),
            name,
            revision=model.revision,
            _raise_exceptions_for_missing_entries=False,
        )
        for name in ("tokenizer_config.json", "vocab.json", "tokenizer.json")
    ]
    return any(found)


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

    settings = _load_changed_config(model, config_changes)
    auto = _get_auto_class(auto_class, model)
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
    with _translate_load_errors(model, "weights"):
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
    settings = _load_changed_config(model, config_changes)
    auto = _get_auto_class(auto_class, model)
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
        network, brought = adapters.merge_into_base(loaded.model, folder)
        loaded = replace(loaded, model=network, new_parameters=loaded.new_parameters - brought)
    return loaded


def resolve_adapters(model: Model) -> list[Path]:
    """Where the adapters lie that are worked into the base. Raises DtlError where one is missing,
    or was learnt over another that does not come before it."""
    folders = [Path(path).expanduser() for path in model.adapters]
    for place, folder in enumerate(folders):
        adapters.check_adapter_folder(folder, "model.adapters")
        below = read_base_adapters(folder)
        if below != [earlier.resolve() for earlier in folders[:place]] and (below or place == 0):
            raise DtlError.of(
                "model.adapters",
                f"{folder} was learnt over other adapters",
                f"name them before it: [{', '.join(map(str, [*below, folder]))}]",
            )
    return folders


def read_base_adapters(folder: Path) -> list[Path]:
    """The adapters that another one was learnt over, as dtl has noted; none where it has not."""
    note = folder / EXPORT_METADATA
    base = json.loads(note.read_text(encoding="utf-8"))["base"] if note.is_file() else {}
    return [Path(path).expanduser().resolve() for path in base.get("adapters", ())]


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
            _get_auto_class(head, model),
            locate_model(model),
            settings,
            model,
            changes,
            dtype=torch_dtype(dtype),
            quantization_config=how,
        )
    quantize.configure_quantized_layers(loaded.model, dtype=dtype)
    with _translate_load_errors(model, "weights"):
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
    with _translate_load_errors(model, f"adapter of {language}"):
        file = cached_file(locate_model(model), name, revision=model.revision)
        given = load_file(str(file))
    return replace(
        loaded, new_parameters=loaded.new_parameters - given.keys(), language_weights=given
    )


def init_new_parameters(
    network: nn.Module,
    new_parameters: frozenset[str],
    *,
    seed: int,
    write_parameter: Callable[..., None],
) -> None:
    """Draw the new parameters from (seed, name), so that no layout changes them.

    Matrices: normal, with the model's own initializer_range; vectors: ones for the weight of a
    norm, else zeros. `fill(parameter, value)` writes a whole tensor, also into a partitioned one.
    """
    import hashlib

    import torch

    spread = getattr(network.config, "initializer_range", None) or 0.02
    for name, parameter in network.named_parameters():
        if name not in new_parameters:
            continue
        shape = full_shape(parameter)
        digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        if len(shape) > 1:
            value = torch.randn(tuple(shape), generator=generator) * spread
        else:
            value = (
                torch.ones(tuple(shape)) if name.endswith("weight") else torch.zeros(tuple(shape))
            )
        write_parameter(parameter, value)


def write_language_weights(loaded: LoadedModel, *, write_parameter: Callable[..., None]) -> None:
    """Write what files of their own bring into a model that may be partitioned."""
    for name, parameter in loaded.model.named_parameters():
        if name in loaded.language_weights:
            write_parameter(parameter, loaded.language_weights[name])


def _load_changed_config(model: Model, changes: dict[str, Any]) -> Any:
    settings = load_model_config(model)
    for name, value in changes.items():
        setattr(settings, name, value)
    return settings


def _get_auto_class(head: str, model: Model) -> Any:
    import transformers

    auto = getattr(transformers, head)
    settings = load_model_config(model)
    if not model.trust_remote_code and type(settings) not in auto._model_mapping:
        raise DtlError.of(
            LOCATION,
            f"{model.path} is a {settings.model_type} model, which has no {head} form",
            "take a model made for the task, or another task",
        )
    return auto


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


def _first_line(fault: BaseException) -> str:
    lines = [line for line in str(fault).splitlines() if line.strip()]
    return lines[0].strip() if lines else type(fault).__name__


class _translate_load_errors:
    """Turns what the hub and the file readers say into one sentence."""

    def __init__(self, model: Model, part: str) -> None:
        self.model, self.part = model, part

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: Any
    ) -> None:
        from safetensors import SafetensorError

        if isinstance(fault, ImportError):
            raise DtlError.of(
                LOCATION,
                f"the {self.part} of {self.model.path} asks for a library that is not installed "
                f"({_first_line(fault)})",
                "install it, or take another model",
            ) from fault
        if not isinstance(fault, (OSError, ValueError, SafetensorError, json.JSONDecodeError)):
            return
        reason = " ".join(str(fault).split())[:200]
        fix = (
            "check the name and the network, or fetch it once with `hf download`"
            if not Path(locate_model(self.model)).exists()
            else "check the files in the folder"
        )
        raise DtlError.of(
            LOCATION, f"cannot read the {self.part} of {self.model.path} ({reason})", fix
        ) from fault
