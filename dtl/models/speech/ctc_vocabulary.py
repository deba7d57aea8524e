"""The letters that a CTC model writes: its tokenizer, its own or one of the training rows."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dtl.core.errors import DtlError, near

BLANK, UNKNOWN, WORD_DELIMITER = "[PAD]", "[UNK]", "|"
LOCATION = "task.language"


def has_language_vocabularies(tokenizer: Any) -> bool:
    """Whether it holds a vocabulary for each language, as that of MMS does."""
    vocabulary = getattr(tokenizer, "vocab", None)
    return isinstance(vocabulary, dict) and any(isinstance(v, dict) for v in vocabulary.values())


def list_languages(tokenizer: Any) -> tuple[str, ...]:
    return tuple(tokenizer.vocab) if has_language_vocabularies(tokenizer) else ()


def check_language_is_named(tokenizer: Any, language: str | None) -> None:
    """Raise DtlError where a model of many languages is told none."""
    if has_language_vocabularies(tokenizer) and language is None:
        raise DtlError.of(
            LOCATION,
            f"the model writes {len(tokenizer.vocab)} languages, and none is named",
            "name the one of the texts, as ISO 639-3 has it (swh, eng); one that the model does "
            "not know is added",
        )


def configure_pretrained_tokenizer(tokenizer: Any, language: str | None) -> Any:
    """The model's own tokenizer, set to the language. Raises DtlError where it cannot be used."""
    if tokenizer is None or not hasattr(tokenizer, "word_delimiter_token"):
        raise DtlError.of(
            "task.vocabulary",
            "the model has no letters of its own"
            if tokenizer is None
            else f"{type(tokenizer).__name__} is none that writes letters for CTC",
            "take data, which makes them of the training rows",
        )
    check_language_is_named(tokenizer, language)
    if has_language_vocabularies(tokenizer):
        if language not in tokenizer.vocab:
            hint = near(str(language), list(tokenizer.vocab)) or "take task.vocabulary=data"
            raise DtlError.of(LOCATION, f"the model has no language {language!r}", hint)
        tokenizer.set_target_lang(language)
    return tokenizer


def build_tokenizer(characters: Iterable[str], *, base: Any, language: str | None) -> Any:
    """A tokenizer of these characters; beside the other languages where `base` has several."""
    check_language_is_named(base, language)
    names = (BLANK, WORD_DELIMITER, UNKNOWN)
    if has_language_vocabularies(base):  # its special tokens serve all its languages
        names = (str(base.pad_token), str(base.word_delimiter_token), str(base.unk_token))
    letters = sorted({c for c in characters if not c.isspace()} - {WORD_DELIMITER})
    vocabulary: dict[str, Any] = {name: n for n, name in enumerate([*names, *letters])}
    nested = has_language_vocabularies(base)
    return _make_tokenizer(
        {**base.vocab, str(language): vocabulary} if nested else vocabulary,
        names,
        language=language if nested else None,
    )


def _make_tokenizer(
    vocabulary: dict[str, Any], names: tuple[str, str, str], *, language: str | None
) -> Any:
    from transformers import Wav2Vec2CTCTokenizer

    blank, between, unknown = names
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "vocab.json"
        file.write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
        return Wav2Vec2CTCTokenizer(
            str(file),
            pad_token=blank,
            unk_token=unknown,
            word_delimiter_token=between,
            bos_token=None,
            eos_token=None,
            target_lang=language,
        )


def encode_labels(text: str, tokenizer: Any) -> list[int]:
    """Labels of a spelt text; what the vocabulary lacks is its token for the unknown."""
    blank = tokenizer.pad_token_id
    return [n for n in tokenizer(text)["input_ids"] if n is not None and n != blank]


def decode_path(path: Iterable[int], tokenizer: Any) -> str:
    """The text of the most likely token of each frame: repeats are one, blanks part them. The token
    for the unknown is written out, as transformers writes it."""
    tokens: list[int] = []
    before = None
    for token in path:
        if token != before and token != tokenizer.pad_token_id:
            tokens.append(token)
        before = token
    text = tokenizer.decode(tokens, group_tokens=False)
    return " ".join(text.split())
