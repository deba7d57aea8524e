"""The tokenizer of a CTC model: the pretrained one, or one from the training rows."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dtl.core.errors import DtlError, near

if TYPE_CHECKING:
    from torch import Tensor

BLANK, UNKNOWN, WORD_DELIMITER = "[PAD]", "[UNK]", "|"
LOCATION = "task.language"


def has_language_vocabularies(tokenizer: Any) -> bool:
    """Return whether the tokenizer has a vocabulary for each language, as that of MMS."""
    vocabulary = getattr(tokenizer, "vocab", None)
    return isinstance(vocabulary, dict) and any(isinstance(v, dict) for v in vocabulary.values())


def check_language_is_named(tokenizer: Any, language: str | None) -> None:
    """Raise DtlError if a model of several languages is used without a language."""
    if has_language_vocabularies(tokenizer) and language is None:
        raise DtlError.of(
            LOCATION,
            f"the model has {len(tokenizer.vocab)} languages, and none is set",
            "set the language of the texts by its ISO 639-3 code (swh, eng); an unknown language "
            "is added",
        )


def configure_pretrained_tokenizer(tokenizer: Any, language: str | None) -> Any:
    """Return the pretrained tokenizer, set to the language. Raises DtlError if it is not usable."""
    if tokenizer is None or not hasattr(tokenizer, "word_delimiter_token"):
        raise DtlError.of(
            "task.vocabulary",
            "the model has no tokenizer"
            if tokenizer is None
            else f"{type(tokenizer).__name__} is no CTC tokenizer",
            "set it to data, which builds one from the training rows",
        )
    check_language_is_named(tokenizer, language)
    if has_language_vocabularies(tokenizer):
        if language not in tokenizer.vocab:
            hint = near(str(language), list(tokenizer.vocab)) or "take task.vocabulary=data"
            raise DtlError.of(LOCATION, f"the model has no language {language!r}", hint)
        tokenizer.set_target_lang(language)
    return tokenizer


def build_tokenizer(characters: Iterable[str], *, base: Any, language: str | None) -> Any:
    """Return a tokenizer with these characters, as a further language if `base` has several."""
    check_language_is_named(base, language)
    names = (BLANK, WORD_DELIMITER, UNKNOWN)
    is_nested = has_language_vocabularies(base)
    if is_nested:  # its special tokens are the same in all languages
        names = (str(base.pad_token), str(base.word_delimiter_token), str(base.unk_token))
    ordered = sorted({c for c in characters if not c.isspace()} - {WORD_DELIMITER})
    vocabulary: dict[str, Any] = {name: n for n, name in enumerate([*names, *ordered])}
    return _make_tokenizer(
        {**base.vocab, str(language): vocabulary} if is_nested else vocabulary,
        names,
        language=language if is_nested else None,
    )


def _make_tokenizer(
    vocabulary: dict[str, Any], names: tuple[str, str, str], *, language: str | None
) -> Any:
    from transformers import Wav2Vec2CTCTokenizer

    blank, word_delimiter, unknown = names
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "vocab.json"
        file.write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
        return Wav2Vec2CTCTokenizer(
            str(file),
            pad_token=blank,
            unk_token=unknown,
            word_delimiter_token=word_delimiter,
            bos_token=None,
            eos_token=None,
            target_lang=language,
        )


def encode_labels(text: str, tokenizer: Any) -> list[int]:
    """Return the token ids of a text; a character that is not in the vocabulary is UNKNOWN."""
    blank = tokenizer.pad_token_id
    return [n for n in tokenizer(text)["input_ids"] if n is not None and n != blank]


def decode_path(path: Iterable[int], tokenizer: Any) -> str:
    """Return the text for the most likely token of each frame.

    Repeats are merged and blanks removed. The unknown token is written as transformers writes it.
    """
    tokens: list[int] = []
    previous = None
    for token in path:
        if token != previous and token != tokenizer.pad_token_id:
            tokens.append(token)
        previous = token
    text = tokenizer.decode(tokens, group_tokens=False)
    return " ".join(text.split())


def decode_greedily(logits_BFV: Tensor, batch: dict[str, Tensor], tokenizer: Any) -> list[str]:
    """Return the text of the most likely tokens, without repeats and blanks.

    `batch`: its `frames` (B,) are the frames of each example before padding.
    """
    paths, ends = logits_BFV.argmax(-1).tolist(), batch["frames"].tolist()
    return [decode_path(path[:end], tokenizer) for path, end in zip(paths, ends, strict=True)]
