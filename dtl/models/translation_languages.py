"""Source and target language of multilingual text models: mBART, M2M100, NLLB."""

from __future__ import annotations

from typing import Any

from dtl.core.errors import DtlError, near

MAX_NAMES_IN_HINT = 20


def set_languages(tokenizer: Any, *, source: str | None, target: str | None) -> None:
    """Set the languages that the tokenizer reads and writes.

    Raises DtlError for a language that it lacks, and where it needs one and none is set.
    """
    for attribute, key, language in (
        ("src_lang", "task.source_language", source),
        ("tgt_lang", "task.target_language", target),
    ):
        if language is None:
            if getattr(tokenizer, attribute, "none needed") is None:
                raise DtlError.of(
                    key,
                    f"{type(tokenizer).__name__} reads several languages, and none is set",
                    "set task.source_language and task.target_language",
                )
            continue
        _check_language(tokenizer, attribute, language, key)
        setattr(tokenizer, attribute, language)


def _check_language(tokenizer: Any, attribute: str, language: str, key: str) -> None:
    if not hasattr(tokenizer, attribute):
        raise DtlError.of(
            key,
            f"{type(tokenizer).__name__} has no languages",
            "leave the key out, or specify the language in task.source_prefix",
        )
    if _language_token(tokenizer, language) is None:
        known = [str(token) for token in tokenizer.all_special_tokens]
        hint = near(language, known) or f"it has {', '.join(known[:MAX_NAMES_IN_HINT])}"
        raise DtlError.of(
            key, f"the tokenizer has no language {language!r}", f"use one of its own ({hint})"
        )


def _language_token(tokenizer: Any, language: str) -> int | None:
    if hasattr(tokenizer, "get_lang_id"):  # M2M100: the token of `fr` is `__fr__`
        return tokenizer.lang_token_to_id.get(tokenizer.lang_code_to_token.get(language))
    token = tokenizer.convert_tokens_to_ids(language)
    return None if token in (None, tokenizer.unk_token_id) else token


def first_token_settings(tokenizer: Any) -> dict[str, int]:
    """Return the generation settings that put the target language where the model expects it.

    mBART-50, M2M100 and NLLB generate its token first; mBART-25, whose targets end with it, starts
    from it.
    """
    language = getattr(tokenizer, "tgt_lang", None)
    if language is None:
        return {}
    token = _language_token(tokenizer, language)
    assert token is not None
    is_last = tokenizer(text_target="a")["input_ids"][-1] == token
    return {"decoder_start_token_id" if is_last else "forced_bos_token_id": token}
