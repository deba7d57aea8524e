"""The tokens that tell a speech model which language to write, and to transcribe or to translate.

Whisper begins each text with <|startoftranscript|><|de|><|transcribe|><|notimestamps|>; its
English-only models leave out the two in the middle. Speech2Text of many languages begins with one
token, which it must be made to generate first.
"""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dtl.core.errors import DtlError, near

if TYPE_CHECKING:
    from torch import nn

LOCATION = "task.language"
ACTIONS = ("transcribe", "translate")
ENGLISH_ONLY = 51864  # entries in the vocabulary of all English-only models of OpenAI's
FIRST_LANGUAGE = "<|en|>"


def read_is_multilingual(base: Any) -> bool | None:
    """Whether the base's generation_config.json calls it multilingual; None: it does not say.

    The tokenizer does not tell: those of English-only models have the languages' tokens too.
    Raises DtlError where it cannot be read.
    """
    from transformers.utils import cached_file

    try:
        found = cached_file(
            base.name_or_path,
            "generation_config.json",
            revision=getattr(base, "_commit_hash", None),
            _raise_exceptions_for_missing_entries=False,
        )
        settings = json.loads(Path(found).read_text(encoding="utf-8")) if found else {}
    except (OSError, ValueError) as fault:
        reason = " ".join(str(fault).split())[:200]
        raise DtlError.of(
            "model.path",
            f"cannot read generation_config.json of {base.name_or_path} ({reason})",
            "check the file, or the network",
        ) from fault
    said = settings.get("is_multilingual")
    if said is None and "lang_to_id" in settings:
        return True
    return None if said is None else bool(said)


def configure_prompt(
    tokenizer: Any, *, language: str | None, action: str, multilingual: bool | None
) -> str | None:
    """Make the tokenizer begin its texts as asked; returns the code of the language of the texts,
    or None where nothing tells it. Raises DtlError for what the model does not know."""
    if hasattr(tokenizer, "set_prefix_tokens"):
        return _configure_whisper(tokenizer, language, action, multilingual)
    if action != "transcribe":
        raise DtlError.of(
            "task.action",
            f"{type(tokenizer).__name__} has no token for it",
            "leave the key out: such a model does what it was made for",
        )
    known = sorted(getattr(tokenizer, "lang_code_to_id", None) or ())
    if language is None and not known:
        return None
    if not known:
        raise DtlError.of(
            LOCATION,
            f"{type(tokenizer).__name__} knows no languages",
            "leave the key out; task.normalizer_language names the language for the normalised scores",
        )
    if language not in known:
        raise DtlError.of(
            LOCATION,
            "the model writes several languages, and none is named"
            if language is None
            else f"the model has no language {language!r}",
            f"name one of {', '.join(known)}",
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
            "the model writes many languages, and none is named",
            "name the one that is spoken, such as task.language=de",
        )
    _check_language_token(tokenizer, code)
    tokenizer.init_kwargs.update(language=code, task=action)
    tokenizer.set_prefix_tokens(language=code, task=action, predict_timestamps=False)
    return "en" if action == "translate" else code


def _configure_english_only(tokenizer: Any, code: str | None, action: str) -> str:
    if code not in (None, "en"):
        raise DtlError.of(
            LOCATION,
            f"the model knows English only, and {code!r} is asked for",
            "take a multilingual model, such as one whose name does not end in .en",
        )
    if action != "transcribe":
        raise DtlError.of(
            "task.action",
            "the model knows English only, and cannot translate",
            "leave the key out, or take a multilingual model",
        )
    tokenizer.language = tokenizer.task = None
    tokenizer.init_kwargs.update(language=None, task=None)
    tokenizer.set_prefix_tokens(predict_timestamps=False)
    return "en"


def _find_language_code(tokenizer: Any, language: str) -> str:
    """The code of a language that is named by it or in English. Raises DtlError for another."""
    from transformers.models.whisper.tokenization_whisper import LANGUAGES, TO_LANGUAGE_CODE

    asked = language.lower().removeprefix("<|").removesuffix("|>")
    code: str = TO_LANGUAGE_CODE.get(asked, asked)
    if code not in LANGUAGES:
        hint = near(asked, [*TO_LANGUAGE_CODE, *LANGUAGES]) or "give a code such as de, or german"
        raise DtlError.of(LOCATION, f"Whisper knows no language {language!r}", hint)
    return code


def _check_language_token(tokenizer: Any, code: str) -> None:
    """The tokenizer counts languages from the start token on: in a vocabulary of fewer languages it
    would take another token, and say nothing."""
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    token = tokenizer.get_vocab().get(f"<|{code}|>")
    start = tokenizer.convert_tokens_to_ids("<|startoftranscript|>")
    if token is None or token != start + 1 + list(LANGUAGES).index(code):
        raise DtlError.of(
            LOCATION,
            f"this model has no token for {code!r}",
            "take a larger model of the family (large-v3 knows the most languages)",
        )


def configure_generation(model: nn.Module, tokenizer: Any) -> None:
    """Make the model generate as its tokenizer begins, also by itself once it is exported."""
    model.config.forced_decoder_ids = None  # type: ignore[union-attr]
    _set_start_tokens(model.generation_config, tokenizer)
    # Else transformers, when it saves the model, would make it anew from the config alone.
    model.generation_config._from_model_config = False  # type: ignore[union-attr]


def _set_start_tokens(settings: Any, tokenizer: Any) -> None:
    """Generation configs from before 2023 lack what transformers asks for: it is put in."""
    if hasattr(tokenizer, "set_prefix_tokens"):
        settings.update(**_whisper_generation_settings(tokenizer))
        if tokenizer.language is None and hasattr(settings, "lang_to_id"):
            del settings.lang_to_id  # with it, the language would be guessed from the sound
    elif getattr(tokenizer, "lang_code_to_id", None):
        settings.forced_bos_token_id = tokenizer.lang_code_to_id[tokenizer.tgt_lang]


def _whisper_generation_settings(tokenizer: Any) -> dict[str, Any]:
    many = tokenizer.language is not None
    numbers = tokenizer.get_vocab()
    found: dict[str, Any] = {
        "forced_decoder_ids": None,
        "return_timestamps": False,
        "no_timestamps_token_id": numbers["<|notimestamps|>"],
        "decoder_start_token_id": numbers["<|startoftranscript|>"],
        "is_multilingual": many,
        "language": tokenizer.language,
        "task": tokenizer.task if many else None,
    }
    if many:
        languages = {name: n for name, n in numbers.items() if _is_language_token(name)}
        found["lang_to_id"] = dict(sorted(languages.items(), key=lambda pair: pair[1]))
        found["task_to_id"] = {action: numbers[f"<|{action}|>"] for action in ACTIONS}
    return found


def _is_language_token(token: str) -> bool:
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    found = re.fullmatch(r"<\|([a-z]+)\|>", token)
    return found is not None and found[1] in LANGUAGES


def generate_texts(
    model: Any, inputs: dict[str, Any], tokenizer: Any, *, max_new_tokens: int, beams: int | None
) -> list[str]:
    """One text for each sound, in one call of generate: under ZeRO-3 all ranks must make as many.

    `longest`: tokens after the prompt, no more than the model has positions for.
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
        # Whisper would start over after a time token, a rank more often than another; and its
        # `synced_gpus` is False where all other models' is found out.
        whisper = {"force_unique_generate_call": True, "synced_gpus": None}
    tokens_BT = model.generate(**inputs, **whisper, generation_config=settings)
    texts: list[str] = tokenizer.batch_decode(tokens_BT, skip_special_tokens=True)
    return [text.strip() for text in texts]
