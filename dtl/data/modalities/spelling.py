"""Texts as a model that writes letter by letter is to spell them."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from typing import Literal

How = Literal["basic", "none"]
Case = Literal["lower", "upper"]
PAUSES = ("P", "S")  # Unicode categories: punctuation, symbols
APOSTROPHES = "'\u2018\u2019\u02bc\u02bb"
APOSTROPHE = "'"


def speller(how: How, *, case: Case = "lower") -> Callable[[str], str]:
    """`basic`: one case, no punctuation, one blank between words. Apostrophes inside a word stay,
    as do marks on letters, and the joiners of Indic and Persian scripts. `none`: as written, but
    for blanks."""
    return _squeezed if how == "none" else lambda text: _basic(text, case)


def _squeezed(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())


def _basic(text: str, case: Case) -> str:
    written = unicodedata.normalize("NFC", text)
    written = written.upper() if case == "upper" else written.lower()
    kept = [
        _sound(mark, before=written[place - 1 : place], after=written[place + 1 : place + 2])
        for place, mark in enumerate(written)
    ]
    return " ".join("".join(kept).split())


def _sound(mark: str, *, before: str, after: str) -> str:
    if mark in APOSTROPHES and _is_letter(before) and _is_letter(after):
        return APOSTROPHE
    return " " if unicodedata.category(mark)[0] in PAUSES else mark


def _is_letter(mark: str) -> bool:
    return mark != "" and unicodedata.category(mark)[0] in "LM"


def count_characters(texts: Iterable[str]) -> dict[str, int]:
    """How often each character occurs, in the order of their numbers."""
    found: Counter[str] = Counter()
    for text in texts:
        found.update(text)
    return dict(sorted(found.items()))


def case_of(known: Collection[str]) -> Case:
    """The case of a vocabulary: upper where it has capitals alone, as that of Librispeech."""
    letters = [token for token in known if len(token) == 1]
    only_capitals = any(map(str.isupper, letters)) and not any(map(str.islower, letters))
    return "upper" if only_capitals else "lower"
