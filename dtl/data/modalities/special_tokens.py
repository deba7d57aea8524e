"""Special tokens of a tokenizer inside texts of users, read as text instead of as tokens."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

FIRST_STAND_IN = 0xF0000  # of Unicode's private characters: one for each special token
ANCHORS = ("\n", "1", "a")  # before a text that continues another: one does not merge with it


def special_texts(tokenizer: Any) -> list[str]:
    """Return the special tokens of a tokenizer as text, the longest first."""
    added = tokenizer.added_tokens_decoder.values()
    found = {str(token) for token in added if token.special} | set(tokenizer.all_special_tokens)
    return sorted(found - {""}, key=lambda text: (-len(text), text))


def find_special_texts(text: str, tokenizer: Any) -> set[str]:
    """Return the special tokens that a text contains."""
    return {special for special in special_texts(tokenizer) if special in text}


@lru_cache(maxsize=8)
def as_textual(tokenizer: Any) -> TextualTokenizer:
    """Return the tokenizer that reads special tokens of hidden texts as text."""
    return TextualTokenizer(tokenizer)


@dataclass(frozen=True, eq=False)
class TextualTokenizer:
    """A tokenizer that reads the special tokens of hidden texts as text, and all others as tokens.

    `hide` puts a stand-in for each special token into the texts of a row before they are rendered;
    calling the tokenizer on the rendered text puts it back.
    """

    tokenizer: Any

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)

    def __len__(self) -> int:
        return len(self.tokenizer)

    @cached_property
    def _specials(self) -> list[str]:
        return special_texts(self.tokenizer)

    @cached_property
    def _stand_in(self) -> re.Pattern[str]:
        last = chr(FIRST_STAND_IN + max(len(self._specials) - 1, 0))
        return re.compile(f"[{chr(FIRST_STAND_IN)}-{last}]")

    @cached_property
    def _special(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, self._specials)) or r"(?!)")

    def hide(self, value: Any) -> Any:
        """Return a value with a stand-in for each special token in its texts."""
        if isinstance(value, str):
            return self._special.sub(lambda found: self._hidden(found.group()), value)
        if isinstance(value, list):
            return [self.hide(each) for each in value]
        if isinstance(value, dict):
            return {key: self.hide(each) for key, each in value.items()}
        return value

    def _hidden(self, special: str) -> str:
        return chr(FIRST_STAND_IN + self._specials.index(special))

    def __call__(self, text: str, **options: Any) -> Any:
        """Return `input_ids`, and `offset_mapping` in characters of the text with its stand-ins."""
        if not self._stand_in.search(text):
            return self.tokenizer(text, **options)
        tokens: list[int] = []
        offsets: list[tuple[int, int]] = []
        for start, piece in self._pieces(text):
            ids, spans = self._encode(piece, is_first=start == 0)
            tokens += ids
            offsets += [(start + first, start + last) for first, last in spans]
        return {"input_ids": tokens, "offset_mapping": offsets}

    def _pieces(self, text: str) -> Iterator[tuple[int, str]]:
        """Yield the text between its special tokens, and these, each with its position."""
        start = 0
        for found in self._special.finditer(text):
            if found.start() > start:
                yield start, text[start : found.start()]
            yield found.start(), found.group()
            start = found.end()
        if start < len(text):
            yield start, text[start:]

    def _encode(self, piece: str, *, is_first: bool) -> tuple[list[int], list[tuple[int, int]]]:
        if self._special.fullmatch(piece):
            return [self.tokenizer.convert_tokens_to_ids(piece)], [(0, len(piece))]
        restored, position = self._restore(piece)
        anchors = ("",) if is_first or not self.tokenizer.is_fast else (*ANCHORS, "")
        for anchor in anchors:
            pairs = self._encode_as_text(anchor + restored)
            if all(end <= len(anchor) or first >= len(anchor) for _, (first, end) in pairs):
                break
        inside = [(token, span) for token, span in pairs if span[1] > len(anchor)]
        shift = len(anchor)
        return (
            [token for token, _ in inside],
            [
                (position[first - shift], position[end - shift - 1] + 1)
                for _, (first, end) in inside
            ],
        )

    def _encode_as_text(self, text: str) -> list[tuple[int, tuple[int, int]]]:
        """Return the tokens with their characters; all characters, if the tokenizer gives none."""
        options = {"add_special_tokens": False, "split_special_tokens": True}
        if not self.tokenizer.is_fast:
            ids = self.tokenizer(text, **options)["input_ids"]
            return [(token, (0, len(text))) for token in ids]
        found = self.tokenizer(text, return_offsets_mapping=True, **options)
        return list(zip(found["input_ids"], found["offset_mapping"], strict=True))

    def _restore(self, piece: str) -> tuple[str, list[int]]:
        """Return a text with its special tokens, and the position in `piece` of each character."""
        restored, position = "", []
        for index, character in enumerate(piece):
            is_stand_in = self._stand_in.match(character)
            text = self._specials[ord(character) - FIRST_STAND_IN] if is_stand_in else character
            restored += text
            position += [index] * len(text)
        return restored, [*position, len(piece)]
