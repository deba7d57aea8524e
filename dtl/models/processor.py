"""Load what prepares the input of a model: tokenizer, feature extractor, image processor."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dtl.config.schema import Model
from dtl.core.errors import DtlError
from dtl.models.load_errors import translate_load_errors
from dtl.models.locate import locate_model
from dtl.models.trust import LOCATION, check_no_remote_code
from dtl.models.vocabulary import add_tokens


def load_tokenizer(model: Model) -> Any:
    """Return the model's tokenizer, with the tokens of `model.add_tokens` and a padding token: its
    own, else its end token.

    Padding is masked by length, so a supervised end token stays supervised.
    """
    from transformers import AutoTokenizer

    where = locate_model(model)
    with translate_load_errors(model, "tokenizer"):
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
    add_tokens(tokenizer, model)
    return tokenizer


def load_processor(model: Model, processor_kind: str) -> Any:
    """Return what prepares the model's input.

    `processor_kind`: `tokenizer`, `feature_extractor`, `image_processor`, or `processor`, which is
    feature extractor and tokenizer together (the tokenizer is None if the model has none).
    """
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
    """Return the processor from the export of a run, also of a run that exports an adapter."""
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
    """A feature extractor and a tokenizer, each with its own files."""

    feature_extractor: Any
    tokenizer: Any

    def save_pretrained(self, folder: Path) -> None:
        self.feature_extractor.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def get_pad_token_id(processor: Any) -> int | None:
    """Return the id of the tokenizer's padding token; None if the processor has no tokenizer."""
    tokenizer = getattr(processor, "tokenizer", processor)
    pad_token_id: int | None = getattr(tokenizer, "pad_token_id", None)
    return pad_token_id


def set_pad_token_id(config: Any, pad_token_id: int) -> None:
    """Set the padding token of a model's config, also of the text model inside a composite one."""
    config.pad_token_id = config.get_text_config().pad_token_id = pad_token_id


def _load_component(model: Model, auto: Any, part: str) -> Any:
    where = locate_model(model)
    with translate_load_errors(model, part):
        check_no_remote_code(where, model)
        return auto.from_pretrained(
            where, revision=model.revision, trust_remote_code=model.trust_remote_code
        )


def _has_tokenizer(model: Model) -> bool:
    """Return whether the model has a tokenizer; one that was pretrained only on audio has none."""
    from transformers.utils import cached_file

    files = [
        cached_file(
            locate_model(model),
            name,
            revision=model.revision,
            _raise_exceptions_for_missing_entries=False,
        )
        for name in ("tokenizer_config.json", "vocab.json", "tokenizer.json")
    ]
    return any(files)
