"""Texts as a model that writes letter by letter is to spell them."""

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
    """`basic`: one case, no punctuation, one blank between words. Apostrophes inside a word stay,
    as do marks on letters, and the joiners of Indic and Persian scripts. `none`: as written, but
    for blanks."""
    return (
        _collapse_whitespace
        if normalization == "none"
        else lambda text: _normalize_basic(text, case)
    )


def _collapse_whitespace(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())


def _normalize_basic(text: str, case: Case) -> str:
    normalized = unicodedata.normalize("NFC", text)
    normalized = normalized.upper() if case == "upper" else normalized.lower()
    characters = [
        _normalize_character(
            mark, before=normalized[place - 1 : place], after=normalized[place + 1 : place + 2]
        )
        for place, mark in enumerate(normalized)
    ]
    return " ".join("".join(characters).split())


def _normalize_character(character: str, *, before: str, after: str) -> str:
    if character in APOSTROPHES and _is_letter(before) and _is_letter(after):
        return APOSTROPHE
    return " " if unicodedata.category(character)[0] in SEPARATOR_CATEGORIES else character


def _is_letter(character: str) -> bool:
    return character != "" and unicodedata.category(character)[0] in "LM"


def count_characters(texts: Iterable[str]) -> dict[str, int]:
    """How often each character occurs, in the order of their numbers."""
    found: Counter[str] = Counter()
    for text in texts:
        found.update(text)
    return dict(sorted(found.items()))


def detect_case(vocabulary: Collection[str]) -> Case:
    """The case of a vocabulary: upper where it has capitals alone, as that of Librispeech."""
    letters = [token for token in vocabulary if len(token) == 1]
    only_capitals = any(map(str.isupper, letters)) and not any(map(str.islower, letters))
    return "upper" if only_capitals else "lower"
