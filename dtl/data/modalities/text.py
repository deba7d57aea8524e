"""Texts of rows: their faults, and how much of them a model can read."""

from __future__ import annotations

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


def bos_tokens(tokenizer: Any) -> list[int]:
    """Return the start token if the tokenizer itself puts one before a text, as in pretraining."""
    bos = tokenizer.bos_token_id
    if bos is None or list(tokenizer("a")["input_ids"])[:1] != [bos]:
        return []
    return [bos]


def encode_reference(text: str) -> np.ndarray:
    """Return the bytes (UTF-8) of a text, (N,) uint8: a batch carries them for scoring."""
    import numpy as np

    return np.frombuffer(text.encode(), dtype=np.uint8)


def decode_reference(numbers: list[int]) -> str:
    """Return the text of such bytes; negative numbers are padding."""
    return bytes(number for number in numbers if number >= 0).decode()
