"""Text normalization for models that output characters."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from typing import Literal

Normalization = Literal["basic", "none"]
Case = Literal["lower", "upper"]
SEPARATOR_CATEGORIES = ("P", "S")  # Unicode categories: punctuation, symbols
APOSTROPHES = "'\u2018\u2019\u02bc\u02bb"
APOSTROPHE = "'"


def create_text_normalizer(
    normalization: Normalization, *, case: Case = "lower"
) -> Callable[[str], str]:
    """Return a function that normalizes a text.

    `basic`: one case, no punctuation, single spaces. Apostrophes inside a word, diacritics, and the
    joiners of Indic and Persian scripts are preserved. `none`: only collapse whitespace.
    """
    if normalization == "none":
        return _collapse_whitespace
    return lambda text: _normalize_basic(text, case)


def _collapse_whitespace(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())


def _normalize_basic(text: str, case: Case) -> str:
    normalized = unicodedata.normalize("NFC", text)
    normalized = normalized.upper() if case == "upper" else normalized.lower()
    characters = [
        _normalize_character(
            character,
            before=normalized[index - 1 : index],
            after=normalized[index + 1 : index + 2],
        )
        for index, character in enumerate(normalized)
    ]
    return " ".join("".join(characters).split())


def _normalize_character(character: str, *, before: str, after: str) -> str:
    if character in APOSTROPHES and _is_letter(before) and _is_letter(after):
        return APOSTROPHE
    return " " if unicodedata.category(character)[0] in SEPARATOR_CATEGORIES else character


def _is_letter(character: str) -> bool:
    return character != "" and unicodedata.category(character)[0] in "LM"


def count_characters(texts: Iterable[str]) -> dict[str, int]:
    """Return the count of each character, in the order of their code points."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    return dict(sorted(counts.items()))


def detect_case(vocabulary: Collection[str]) -> Case:
    """Return the case of a vocabulary: upper if all are uppercase, as LibriSpeech's."""
    characters = [token for token in vocabulary if len(token) == 1]
    is_upper = any(map(str.isupper, characters)) and not any(map(str.islower, characters))
    return "upper" if is_upper else "lower"
