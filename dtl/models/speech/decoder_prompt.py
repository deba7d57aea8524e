"""The prompt of a speech decoder: its tokens for the language and for transcribe or translate.

Whisper starts each text with <|startoftranscript|><|de|><|transcribe|><|notimestamps|>; its
English-only models have no language and no action. Multilingual Speech2Text starts with one
language token, which it must be forced to generate first.
"""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dtl.core.errors import DtlError, near, shorten_message

if TYPE_CHECKING:
    from torch import nn

LOCATION = "task.language"
ACTIONS = ("transcribe", "translate")
ENGLISH_ONLY = 51864  # vocabulary size of all English-only models of OpenAI
FIRST_LANGUAGE = "<|en|>"


def read_is_multilingual(base: Any) -> bool | None:
    """Return `is_multilingual` of the base's generation_config.json; None if it is not there.

    The tokenizer does not show it: those of English-only models have language tokens too. Raises
    DtlError if the file cannot be read.
    """
    from transformers.utils import cached_file

    try:
        file = cached_file(
            base.name_or_path,
            "generation_config.json",
            revision=getattr(base, "_commit_hash", None),
            _raise_exceptions_for_missing_entries=False,
        )
        settings = json.loads(Path(file).read_text(encoding="utf-8")) if file else {}
    except (OSError, ValueError) as fault:
        reason = shorten_message(fault)
        raise DtlError.of(
            "model.path",
            f"cannot read generation_config.json of {base.name_or_path} ({reason})",
            "check the file, or the network",
        ) from fault
    value = settings.get("is_multilingual")
    if value is None and "lang_to_id" in settings:
        return True
    return None if value is None else bool(value)


def configure_prompt(
    tokenizer: Any, *, language: str | None, action: str, multilingual: bool | None
) -> str | None:
    """Set the prompt of a tokenizer; return the code of the language of the texts, or None if it is
    not known. Raises DtlError for a language or action that the model does not have."""
    if hasattr(tokenizer, "set_prefix_tokens"):
        return _configure_whisper(tokenizer, language, action, multilingual)
    if action != "transcribe":
        raise DtlError.of(
            "task.action",
            f"{type(tokenizer).__name__} has no token for {action}",
            "remove the key: such a model has one action",
        )
    known = sorted(getattr(tokenizer, "lang_code_to_id", None) or ())
    if language is None and not known:
        return None
    if not known:
        raise DtlError.of(
            LOCATION,
            f"{type(tokenizer).__name__} has no language tokens",
            "remove the key; task.normalizer_language names the language of normalized scores",
        )
    if language not in known:
        raise DtlError.of(
            LOCATION,
            "the model has several languages, and none is set"
            if language is None
            else f"the model has no language {language!r}",
            f"use one of {', '.join(known)}",
        )
    tokenizer.tgt_lang = language
    return language


def _configure_whisper(
    tokenizer: Any, language: str | None, action: str, multilingual: bool | None
) -> str:
    if multilingual is None:
        multilingual = FIRST_LANGUAGE in tokenizer.get_vocab() and len(tokenizer) != ENGLISH_ONLY
    code = None if language is None else _find_language_code(tokenizer, language)
    if not multilingual:
        return _configure_english_only(tokenizer, code, action)
    if code is None:
        raise DtlError.of(
            LOCATION,
            "the model has many languages, and none is set",
            "set the spoken language, such as task.language=de",
        )
    _check_language_token(tokenizer, code)
    tokenizer.init_kwargs.update(language=code, task=action)
    tokenizer.set_prefix_tokens(language=code, task=action, predict_timestamps=False)
    return "en" if action == "translate" else code


def _configure_english_only(tokenizer: Any, code: str | None, action: str) -> str:
    if code not in (None, "en"):
        raise DtlError.of(
            LOCATION,
            f"the model is English-only (got {code!r})",
            "take a multilingual model, such as one whose name does not end in .en",
        )
    if action != "transcribe":
        raise DtlError.of(
            "task.action",
            "the model is English-only and cannot translate",
            "remove the key, or take a multilingual model",
        )
    tokenizer.language = tokenizer.task = None
    tokenizer.init_kwargs.update(language=None, task=None)
    tokenizer.set_prefix_tokens(predict_timestamps=False)
    return "en"


def _find_language_code(tokenizer: Any, language: str) -> str:
    """Return the code of a language from its code or English name. Raises DtlError if unknown."""
    from transformers.models.whisper.tokenization_whisper import LANGUAGES, TO_LANGUAGE_CODE

    name = language.lower().removeprefix("<|").removesuffix("|>")
    code: str = TO_LANGUAGE_CODE.get(name, name)
    if code not in LANGUAGES:
        hint = near(name, [*TO_LANGUAGE_CODE, *LANGUAGES]) or "write a code such as de, or german"
        raise DtlError.of(LOCATION, f"Whisper has no language {language!r}", hint)
    return code


def _check_language_token(tokenizer: Any, code: str) -> None:
    """Raise DtlError if the model has no token for the language.

    The tokenizer counts languages from the start token on: with a vocabulary of fewer languages it
    would silently use another token.
    """
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    token = tokenizer.get_vocab().get(f"<|{code}|>")
    start = tokenizer.convert_tokens_to_ids("<|startoftranscript|>")
    if token is None or token != start + 1 + list(LANGUAGES).index(code):
        raise DtlError.of(
            LOCATION,
            f"this model has no token for {code!r}",
            "take a larger model of the family (large-v3 has the most languages)",
        )


def configure_generation(model: nn.Module, tokenizer: Any) -> None:
    """Set the model's generation config to its tokenizer's prompt, also for the exported model."""
    model.config.forced_decoder_ids = None  # type: ignore[union-attr]
    _set_start_tokens(model.generation_config, tokenizer)
    # Otherwise transformers would derive it from the config again when it saves the model.
    model.generation_config._from_model_config = False  # type: ignore[union-attr]


def _set_start_tokens(settings: Any, tokenizer: Any) -> None:
    """Set the start tokens, and keys that generation configs from before 2023 lack."""
    if hasattr(tokenizer, "set_prefix_tokens"):
        settings.update(**_whisper_generation_settings(tokenizer))
        if tokenizer.language is None and hasattr(settings, "lang_to_id"):
            del settings.lang_to_id  # with it, the language would be detected from the audio
    elif getattr(tokenizer, "lang_code_to_id", None):
        settings.forced_bos_token_id = tokenizer.lang_code_to_id[tokenizer.tgt_lang]


def _whisper_generation_settings(tokenizer: Any) -> dict[str, Any]:
    is_multilingual = tokenizer.language is not None
    ids = tokenizer.get_vocab()
    settings: dict[str, Any] = {
        "forced_decoder_ids": None,
        "return_timestamps": False,
        "no_timestamps_token_id": ids["<|notimestamps|>"],
        "decoder_start_token_id": ids["<|startoftranscript|>"],
        "is_multilingual": is_multilingual,
        "language": tokenizer.language,
        "task": tokenizer.task if is_multilingual else None,
    }
    if is_multilingual:
        languages = {name: token_id for name, token_id in ids.items() if _is_language_token(name)}
        settings["lang_to_id"] = dict(sorted(languages.items(), key=lambda pair: pair[1]))
        settings["task_to_id"] = {action: ids[f"<|{action}|>"] for action in ACTIONS}
    return settings


def _is_language_token(token: str) -> bool:
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    match = re.fullmatch(r"<\|([a-z]+)\|>", token)
    return match is not None and match[1] in LANGUAGES


def generate_texts(
    model: Any, inputs: dict[str, Any], tokenizer: Any, *, max_new_tokens: int, beams: int | None
) -> list[str]:
    """Return one text for each recording, from one call of `generate`: at ZeRO stage 3 all ranks
    must make the same number of calls.

    `max_new_tokens`: tokens after the prompt; the model's positions are a further limit.
    """
    settings = copy.deepcopy(model.generation_config)
    prompted = hasattr(tokenizer, "set_prefix_tokens")  # Whisper adds the prompt to max_length
    settings.update(
        max_length=min(max_new_tokens + (not prompted), model.config.max_target_positions),
        max_new_tokens=None,
        min_length=0,
        num_beams=beams or settings.num_beams,
        do_sample=False,
        return_dict_in_generate=False,
        pad_token_id=tokenizer.pad_token_id,
    )
    _set_start_tokens(settings, tokenizer)
    whisper: dict[str, Any] = {}
    if prompted:
        # Whisper would generate again after a time token, on some ranks more often than on others;
        # and its default of `synced_gpus` is False, where other models detect it.
        whisper = {"force_unique_generate_call": True, "synced_gpus": None}
    tokens_BT = model.generate(**inputs, **whisper, generation_config=settings)
    texts: list[str] = tokenizer.batch_decode(tokens_BT, skip_special_tokens=True)
    return [text.strip() for text in texts]
