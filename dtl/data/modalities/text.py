"""Texts of rows: their faults, and how much of them a model can read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dtl.core.errors import Fault

if TYPE_CHECKING:
    import numpy as np

    from dtl.data.sources.rows import Row

MAX_TEXT_CHARACTERS = 1_000_000  # about one second for a tokenizer
MAX_TOKEN_CHARACTERS = 64  # more than a token has on average in any text
NO_LIMIT = 2**31
COUNTS_AFTER_PADDING = (  # model types whose position of the first token is pad_token_id + 1
    "camembert",
    "data2vec-text",
    "ibert",
    "layoutlmv3",
    "lilt",
    "longformer",
    "luke",
    "markuplm",
    "mpnet",
    "roberta",
    "roberta-prelayernorm",
    "xlm-roberta",
    "xlm-roberta-xl",
    "xmod",
)


def find_text_fault(row: Row, column: str) -> Fault | None:
    """Return the fault of a column that is missing or is not text; None: there is none."""
    value = row.fields.get(column)
    if isinstance(value, str):
        return None
    return Fault(
        row.location,
        f"the column `{column}` is missing (the row has {', '.join(map(repr, row.fields))})"
        if value is None
        else f"`{column}` is {type(value).__name__} ({str(value)[:40]!r}), not text",
        f"give a string, or map the column in data.columns: {{{column}: ...}}",
    )


def get_text(row: Row, column: str, *, max_tokens: int) -> str:
    """Return the text of a column that has passed find_text_fault.

    It is cut off far beyond the first `max_tokens` tokens: a row of megabytes would take minutes.
    """
    return str(row.fields[column])[: max_characters(max_tokens)]


def max_characters(max_tokens: int) -> int:
    """Return a number of characters that holds so many tokens of any tokenizer."""
    return max(MAX_TEXT_CHARACTERS, max_tokens * MAX_TOKEN_CHARACTERS)


def limit_to_positions(requested: int, base_config: Any) -> int:
    """Return `requested` tokens, but no more than the model has positions for."""
    return min(requested, count_positions(base_config) or NO_LIMIT)


def count_positions(base_config: Any) -> int | None:
    """Return the longest text that a model has positions for, in tokens; None: it has no limit.

    XLNet writes -1 for no limit. RoBERTa and its kin count from the number of the padding token.
    """
    positions = getattr(base_config, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions <= 0:
        return None
    if getattr(base_config, "model_type", None) in COUNTS_AFTER_PADDING:
        return positions - (base_config.pad_token_id or 0) - 1
    return positions


def limit_to_tokenizer(requested: int, tokenizer: Any, base_config: Any) -> int:
    """Return `requested` tokens, but no more than model and tokenizer allow.

    RoBERTa numbers its positions from 2: only its tokenizer knows the true limit.
    """
    return int(min(limit_to_positions(requested, base_config), tokenizer.model_max_length))


def tokenize(tokenizer: Any, text: str, *, reads_special_tokens: bool = True) -> list[int]:
    """Return the tokens of a text without special tokens around it. `reads_special_tokens`: those
    that the text spells out are special tokens; False: they are text."""
    options = {} if reads_special_tokens else {"split_special_tokens": True}
    return list(tokenizer(text, add_special_tokens=False, **options)["input_ids"])


def surrounding_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Return the tokens that the tokenizer itself writes before and after a text."""
    inner = tokenize(tokenizer, "a")
    complete = list(tokenizer("a")["input_ids"])
    for start in range(len(complete) - len(inner) + 1):
        end = start + len(inner)
        if complete[start:end] == inner:
            return complete[:start], complete[end:]
    return [], []


def tokenize_texts(
    tokenizer: Any, texts: Sequence[str], *, has_end: bool, reads_special_tokens: bool = True
) -> list[list[int]]:
    """Return the tokens of each of the texts, which follow each other.

    Before the first stands what the tokenizer itself writes before a text. `has_end`: after the
    last stands what it writes there, or an end-of-sequence token. Neither is doubled where the text
    has its own.
    """
    tokens = [
        tokenize(tokenizer, text, reads_special_tokens=reads_special_tokens) for text in texts
    ]
    start, end = surrounding_tokens(tokenizer)
    if not end and tokenizer.eos_token_id is not None:
        end = [tokenizer.eos_token_id]
    if tokens[0][: len(start)] != start:
        tokens[0] = [*start, *tokens[0]]
    if has_end and end and tokens[-1][-len(end) :] != end:
        tokens[-1] = [*tokens[-1], *end]
    return tokens


def encode_reference(text: str) -> np.ndarray:
    """Return the bytes (UTF-8) of a text, (N,) uint8: a batch carries them for scoring."""
    import numpy as np

    return np.frombuffer(text.encode(), dtype=np.uint8)


def decode_reference(numbers: list[int]) -> str:
    """Return the text of such bytes; negative numbers are padding."""
    return bytes(number for number in numbers if number >= 0).decode()
