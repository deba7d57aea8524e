"""The tokens of a text that is given as words: which word each token belongs to."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

# Pieces of blanks only: of SentencePiece, also with byte fallback, and of byte-level BPE.
BLANK_PIECE = re.compile(r"(?:[\s\u2581\u0120\u010a\u0109\u010d]|##|<0x(?:20|09|0A|0D)>)*")


@dataclass(frozen=True)
class TokenizedWords:
    """Model inputs, and the index of the word that each token belongs to (None: special tokens, and
    tokens of blanks only)."""

    inputs: dict[str, list[int]]
    word_ids: list[int | None]

    def first_tokens(self, words: int) -> list[int]:
        """Return the position of each word's first token; -1 for a word that was truncated."""
        first = [-1] * words
        for position, word in enumerate(self.word_ids):
            if word is not None and first[word] < 0:
                first[word] = position
        return first


def tokenize_words(words: list[str], tokenizer: Any, limit: int) -> TokenizedWords:
    """Tokenize words as one text with blanks between them, as the model was pretrained.

    A byte-level tokenizer would make other tokens of words that are passed one by one.
    """
    text = " ".join(words)
    word_of_character = [index for index, word in enumerate(words) for _ in range(len(word) + 1)]
    encoding = tokenizer(
        text,
        truncation=True,
        max_length=limit,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
    )
    pieces = tokenizer.convert_ids_to_tokens(encoding["input_ids"])
    columns = zip(pieces, encoding["offset_mapping"], encoding["special_tokens_mask"], strict=True)
    word_ids: list[int | None] = []
    for piece, (start, _), is_special in columns:
        # A token may begin with the blank before its word. SentencePiece may put that blank into a
        # token of its own, whose offsets are those of the word's first character.
        solid = next((at for at in range(start, len(text)) if not text[at].isspace()), None)
        is_blank = BLANK_PIECE.fullmatch(piece) is not None
        word_ids.append(
            None if is_special or is_blank or solid is None else word_of_character[solid]
        )
    inputs = {
        name: list(encoding[name]) for name in ("input_ids", "token_type_ids") if name in encoding
    }
    return TokenizedWords(inputs, word_ids)
