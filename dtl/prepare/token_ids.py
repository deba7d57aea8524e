"""Compare the tokens of a tokenizer, and those of each row, with the rows of the embedding."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any

from dtl.config.schema import Model
from dtl.core.errors import DtlError
from dtl.data.example import EncodedExample, Skip
from dtl.models.vocabulary import (
    changes_vocabulary,
    check_token_ids,
    check_vocabulary,
    find_new_rows,
    find_vocab_size,
)
from dtl.tasks.base import Encoder, Task

if TYPE_CHECKING:
    from dtl.data.sources.rows import Row


def check_processor(model: Model, task: Task, processor: Any, model_config: Any) -> None:
    """Raise DtlError if tokens are added for a task that reads none, or padding has no row."""
    tokenizer = getattr(processor, "tokenizer", processor)
    reads_tokens = hasattr(tokenizer, "get_vocab") and task.auto_class != "AutoModelForCTC"
    if changes_vocabulary(model) and not reads_tokens:
        key = "add_tokens" if model.add_tokens else "add_special_tokens"
        raise DtlError.of(
            "model.resize_embeddings" if model.resize_embeddings else f"model.{key}",
            "the model of this task has no embedding of tokens",
            "remove it",
        )
    if task.processor_kind == "tokenizer":
        check_vocabulary(model, tokenizer, model_config)


def find_embedding_rows(model: Model, task: Task, processor: Any, model_config: Any) -> int | None:
    """Return the rows that the embedding will have; None where no row of data is checked."""
    rows = find_vocab_size(model_config)
    if rows is None or not task.truncation_options:
        return None
    if changes_vocabulary(model):
        return find_new_rows(model, processor, rows=rows).vocab_size
    return rows


def checking_token_ids(encode: Encoder, task: Task, tokenizer: Any, *, rows: int | None) -> Encoder:
    """Return an encoder that raises DtlError for a token that has no row in the embedding.

    `rows`: of the embedding; None: no token is checked.
    """
    if rows is None:
        return encode
    names = tuple(chain.from_iterable(task.truncation_options.values()))

    def encode_and_check(row: Row) -> EncodedExample | Skip:
        example = encode(row)
        if isinstance(example, EncodedExample):
            for name in names:
                ids = example.values[name]
                check_token_ids(ids, rows=rows, tokenizer=tokenizer, location=row.location)
        return example

    return encode_and_check
