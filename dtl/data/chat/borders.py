"""Tokens of a text that is written in two steps: a prompt, and what a model generates after it.

A model that generates reads the tokens of the prompt alone. Tokenized together with its answer, the
text may have a token with characters of both, which the model never sees in use.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from operator import attrgetter
from typing import Any

from dtl.data.chat.template import added_tokens

ANCHORS = ("\n", "1", "a")  # before a text: one of them does not merge with it


@dataclass(frozen=True)
class TextToken:
    """A token, and its characters in the text."""

    id: int
    start: int
    end: int


def tokenize_with_borders(
    tokenizer: Any, text: str, borders: Iterable[int], ends: Iterable[int] = ()
) -> list[TextToken]:
    """Return the tokens of a text, without special tokens around it.

    Before each border stand the tokens of the text up to it, as it is tokenized alone. `ends`:
    further positions that matter to the caller, of a tokenizer that does not give the characters of
    its tokens.
    """
    inside = sorted({border for border in borders if 0 < border < len(text)})
    if not getattr(tokenizer, "is_fast", False):
        return _tokenize_steps(tokenizer, text, sorted({*inside, *ends}))
    tokens = _tokenize(tokenizer, text)
    pattern = added_tokens(tokenizer)
    added = [] if pattern is None else [match.start() for match in pattern.finditer(text)]
    limits = [0, *added, len(text)]
    for previous, border in pairwise([0, *inside]):
        after = bisect_left(added, border)  # the first added token after the border
        start, stop = limits[after : after + 2]
        tokens = _split_at(tokens, _Stretch(tokenizer, text, max(start, previous), border, stop))
    return tokens


@dataclass(frozen=True)
class _Stretch:
    """The characters of a text whose tokens a border may change. `start` is 0, a border, or the
    first character of an added token."""

    tokenizer: Any
    text: str
    start: int
    border: int
    stop: int

    def tokenize_before(self) -> list[TextToken]:
        """Return the tokens from the start to the border."""
        before = self.text[self.start : self.border]
        pattern = added_tokens(self.tokenizer)
        is_start = self.start == 0 or (pattern is not None and pattern.match(before) is not None)
        tokenize = _tokenize if is_start else _tokenize_continuation
        return _shift(tokenize(self.tokenizer, before), self.start)

    def tokenize_after(self) -> list[TextToken]:
        """Return the tokens from the border to the stop."""
        after = self.text[self.border : self.stop]
        return _shift(_tokenize_continuation(self.tokenizer, after), self.border)


_start, _end = attrgetter("start"), attrgetter("end")  # both ascend from token to token


def _split_at(tokens: list[TextToken], stretch: _Stretch) -> list[TextToken]:
    """Return the tokens, those of a stretch replaced where its border is inside a token, or where
    the text before it has other tokens alone."""
    first = bisect_left(tokens, stretch.start, key=_start)
    middle = bisect_right(tokens, stretch.border, key=_end)
    before = stretch.tokenize_before()
    is_inside_token = middle < len(tokens) and tokens[middle].start < stretch.border
    if not is_inside_token and _ids(before) == _ids(tokens[first:middle]):
        return tokens
    last = bisect_left(tokens, stretch.stop, key=_start)
    return [*tokens[:first], *before, *stretch.tokenize_after(), *tokens[last:]]


def _tokenize(tokenizer: Any, text: str) -> list[TextToken]:
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return [
        TextToken(token, start, end)
        for token, (start, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
    ]


def _tokenize_continuation(tokenizer: Any, text: str) -> list[TextToken]:
    """Return the tokens of a text that continues another one: without the blank that some
    tokenizers put before a text."""
    for anchor in ANCHORS:
        tokens = _tokenize(tokenizer, anchor + text)
        after = [token for token in tokens if token.start >= len(anchor)]
        if all(token.end <= len(anchor) for token in tokens[: len(tokens) - len(after)]):
            return _shift(after, -len(anchor))
    return _tokenize(tokenizer, text)


def _shift(tokens: Iterable[TextToken], offset: int) -> list[TextToken]:
    return [TextToken(token.id, token.start + offset, token.end + offset) for token in tokens]


def _ids(tokens: Sequence[TextToken]) -> list[int]:
    return [token.id for token in tokens]


def _tokenize_steps(tokenizer: Any, text: str, positions: Sequence[int]) -> list[TextToken]:
    """Return the tokens by tokenizing the text up to each position; those of a step have its
    characters."""
    tokens: list[TextToken] = []
    start = 0
    for end in _outside_added_tokens(tokenizer, text, positions):
        ids = _encode(tokenizer, text[:end])
        known = _ids(tokens)
        added = (
            ids[len(known) :]
            if ids[: len(known)] == known
            else _continue_ids(tokenizer, text[start:end])
        )
        tokens += [TextToken(token, start, end) for token in added]
        start = end
    return tokens


def _outside_added_tokens(tokenizer: Any, text: str, positions: Sequence[int]) -> list[int]:
    """Return the positions and the end of the text; for one inside an added token, the ends of this
    token."""
    pattern = added_tokens(tokenizer)
    found = {len(text), *(each for each in positions if 0 < each < len(text))}
    for match in () if pattern is None else pattern.finditer(text):
        inside = {each for each in found if match.start() < each < match.end()}
        found = (found - inside) | ({match.start(), match.end()} if inside else set())
    return sorted(found - {0})


def _continue_ids(tokenizer: Any, text: str) -> list[int]:
    for anchor in ANCHORS:
        before, both = _encode(tokenizer, anchor), _encode(tokenizer, anchor + text)
        if both[: len(before)] == before:
            return both[len(before) :]
    return _encode(tokenizer, text)


def _encode(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
