"""The processor of a CTC model: its tokenizer, its head size, and what SpecAugment masks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from dtl.core.errors import DtlError
from dtl.data.modalities.text_normalization import detect_case
from dtl.models.processor import SpeechProcessor
from dtl.models.speech import ctc_vocabulary

MAX_UNKNOWN_SHARE = 0.1  # of the characters of the training rows, in a vocabulary not requested
MAX_CHARACTERS_IN_MESSAGE = 10


@dataclass
class CtcProcessor(SpeechProcessor):
    """Feature extractor and tokenizer, and how training masks time spans (SpecAugment)."""

    mask: dict[str, Any]


def adapt_ctc_processor(
    processor: Any,
    dataset_stats: dict[str, Any],
    *,
    vocabulary: Literal["data", "model"] | None,
    language: str | None,
) -> tuple[CtcProcessor, dict[str, Any]]:
    """Return the processor for the characters of the training rows, and the stats with its head.

    Stats that are already adapted, as those of an export, are returned unchanged. Raises DtlError
    where the model's own vocabulary cannot be used.
    """
    if "blank" in dataset_stats:
        adapted = _with_tokenizer(processor, processor.tokenizer, dataset_stats)
        return adapted, dataset_stats
    uses_own = vocabulary == "model" or (
        vocabulary is None and _has_own_vocabulary(processor, dataset_stats, language)
    )
    if uses_own:
        tokenizer = ctc_vocabulary.configure_pretrained_tokenizer(processor.tokenizer, language)
    else:
        tokenizer = ctc_vocabulary.build_tokenizer(
            dataset_stats["characters"], base=processor.tokenizer, language=language
        )
    case = detect_case(tokenizer.get_vocab())
    if uses_own and vocabulary is None:
        _check_unknown_characters(dataset_stats["characters"], tokenizer, case)
    stats = {
        **dataset_stats,
        "case": case,
        "blank": tokenizer.pad_token_id,
        "placeholder": _any_letter(tokenizer),
        **_head_stats(tokenizer, dataset_stats, uses_own=uses_own, language=language),
    }
    del stats["characters"]  # the tokenizer has them
    loading = _loading_arguments(stats)
    return _with_tokenizer(processor, tokenizer, stats), {**stats, "loading": loading}


def _with_tokenizer(processor: Any, tokenizer: Any, stats: dict[str, Any]) -> CtcProcessor:
    return CtcProcessor(processor.feature_extractor, tokenizer, stats["mask"])


def _head_stats(
    tokenizer: Any, dataset_stats: dict[str, Any], *, uses_own: bool, language: str | None
) -> dict[str, Any]:
    """Return the size of the head, whether it is new, and the language adapter to load."""
    has_trained_head = uses_own and dataset_stats["has_head"]
    is_nested = ctc_vocabulary.has_language_vocabularies(tokenizer)
    size = tokenizer.vocab_size
    if has_trained_head and not is_nested:
        size = max(size, dataset_stats["head_size"])
    if not uses_own and size == dataset_stats["head_size"]:
        size += 1  # from_pretrained would load the old head if the sizes were equal
    loads_adapter = has_trained_head and is_nested and dataset_stats["has_language_adapters"]
    return {
        "vocabulary_size": size,
        "new_head": not has_trained_head,
        "target_lang": language if loads_adapter else None,
    }


def _any_letter(tokenizer: Any) -> str:
    """Return a letter that the tokenizer can write, as the placeholder of a missing text."""
    alphabetic = sorted(
        token for token in tokenizer.get_vocab() if len(token) == 1 and token.isalpha()
    )
    return alphabetic[0] if alphabetic else "a"


def _has_own_vocabulary(
    processor: Any, dataset_stats: dict[str, Any], language: str | None
) -> bool:
    """Return whether the model has a tokenizer and a head; of several languages, for this one."""
    tokenizer = processor.tokenizer
    if tokenizer is None or not dataset_stats["has_head"]:
        return False
    ctc_vocabulary.check_language_is_named(tokenizer, language)
    return not ctc_vocabulary.has_language_vocabularies(tokenizer) or language in tokenizer.vocab


def _check_unknown_characters(characters: dict[str, int], tokenizer: Any, case: str) -> None:
    """Raise DtlError where the model's vocabulary, used by default, lacks too many characters."""
    known = tokenizer.get_vocab()
    unknown = {
        character: count
        for character, count in characters.items()
        if not character.isspace()
        and (character.upper() if case == "upper" else character) not in known
    }
    total = sum(count for character, count in characters.items() if not character.isspace())
    if sum(unknown.values()) <= MAX_UNKNOWN_SHARE * total:
        return
    by_count = sorted(unknown, key=lambda character: (-unknown[character], character))
    raise DtlError.of(
        "task.vocabulary",
        f"the model's vocabulary lacks {sum(unknown.values()) / total:.0%} of the characters of "
        f"the training rows ({' '.join(by_count[:MAX_CHARACTERS_IN_MESSAGE])})",
        "set it to data, for a new head with the characters of the rows, or to model, to train "
        "without them",
    )


def _loading_arguments(stats: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of from_pretrained that give the base the trained head."""
    if stats["target_lang"]:
        return {"target_lang": stats["target_lang"], "ignore_mismatched_sizes": True}
    if stats["new_head"]:
        return {"vocab_size": stats["vocabulary_size"], "ignore_mismatched_sizes": True}
    return {}


def time_mask_settings(
    base_config: Any, *, fraction: float | None, length: int | None
) -> dict[str, Any]:
    """Return how training masks spans of frames, for draw_span_starts.

    `fraction` (of the frames) and `length` (frames of a span) default to those of the base.
    """
    is_on = getattr(base_config, "apply_spec_augment", True)
    base_fraction = getattr(base_config, "mask_time_prob", 0.0) if is_on else 0.0
    return {
        "fraction": base_fraction if fraction is None else fraction,
        "length": length or getattr(base_config, "mask_time_length", 10),
        "min_spans": getattr(base_config, "mask_time_min_masks", 0),
    }


def ctc_head_config(stats: dict[str, Any]) -> dict[str, Any]:
    """Return the changes to the model's config for the adapted stats."""
    mask = stats["mask"]
    config = {
        **stats["settings"],
        "vocab_size": stats["vocabulary_size"],
        "pad_token_id": stats["blank"],
        "ctc_zero_infinity": True,
        "apply_spec_augment": mask["fraction"] > 0,
        "mask_time_prob": mask["fraction"],
        "mask_time_length": mask["length"],
        "mask_feature_prob": 0.0,  # its bands would differ between layouts
    }
    return {**config, "target_lang": stats["target_lang"]} if stats["target_lang"] else config
