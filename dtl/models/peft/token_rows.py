"""Train new rows of frozen embeddings beside LoRA, as PEFT's `trainable_token_indices` stores them.

PEFT copies the full embedding in each forward pass, and reads it outside of its module, which a
partitioned weight does not allow. Here only the new rows are computed, in a module of their own.
"""

# B batch, T tokens, K new rows, D width, V vocabulary

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from dtl.core.errors import DtlError
from dtl.models.vocabulary import DELTA_NAME, get_new_rows, is_output_tied

if TYPE_CHECKING:
    from torch import Tensor, nn


def token_row_settings(model: nn.Module, method: str) -> dict[str, Any]:
    """Return the argument of PEFT's config that trains the new rows; {} if there are none.

    Raises DtlError where PEFT cannot train and load them.
    """
    rows = list(get_new_rows(model))
    if not rows:
        return {}
    if method != "lora":
        raise DtlError.of(
            "strategy",
            f"{method} does not train the rows of added tokens",
            "take strategy lora, or full",
        )
    names = _embedding_names(model)
    return {"trainable_token_indices": {name: rows for name in names}}


def check_token_rows(model: nn.Module, saved: Any, *, location: str) -> None:
    """Raise DtlError if a saved adapter has other new rows than the model."""
    rows = sorted(get_new_rows(model))
    saved_rows = saved.values() if isinstance(saved, dict) else [saved or []]
    if all(sorted(each) == rows for each in saved_rows):
        return
    raise DtlError.of(
        location,
        f"the adapter trains the rows of {len(next(iter(saved_rows), []))} added tokens, the model "
        f"has {len(rows)}",
        "set model.add_tokens and model.add_special_tokens as they were for the adapter",
    )


def _embedding_names(model: nn.Module) -> list[str]:
    """Return the modules whose new rows are trained: input and output, or one if they are tied."""
    from torch import nn

    inputs, output = model.get_input_embeddings(), model.get_output_embeddings()  # type: ignore[operator]
    embeds = [
        name
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, nn.Embedding) and module.weight is inputs.weight
    ]
    found = embeds[:1]
    is_tied = is_output_tied(model)
    if output is not None and not is_tied:
        found.append(next(name for name, module in model.named_modules() if module is output))
    ties = bool(getattr(model.config, "tie_word_embeddings", False))  # as PEFT decides
    if len(embeds) > 1 and not (ties and is_tied):
        raise DtlError.of(
            "model.add_tokens",
            f"several modules of {type(model).__name__} share the embedding "
            f"({', '.join(embeds)}), whose new rows PEFT cannot train",
            "take strategy full",
        )
    if output is not None and getattr(output, "bias", None) is not None:
        raise DtlError.of(
            "model.add_tokens",
            f"the output layer of {type(model).__name__} has a bias, which PEFT drops where it "
            "trains new rows",
            "take strategy full",
        )
    return found


@contextmanager
def reading_rows_in_place() -> Iterator[None]:
    """Let PEFT read the initial rows from the weight of this rank, which must be gathered.

    Its own way under ZeRO-3 needs a CUDA device (PEFT 0.21).
    """
    from peft.tuners.trainable_tokens.layer import TrainableTokensLayer

    def read(self: Any, weight: Tensor, rows: Any, embed_dim: int) -> Tensor:
        return weight[rows].detach().clone()

    original = TrainableTokensLayer._collect_token_weights
    TrainableTokensLayer._collect_token_weights = read
    try:
        yield
    finally:
        TrainableTokensLayer._collect_token_weights = original


def compute_only_new_rows(adapted: nn.Module) -> nn.Module:
    """Return the model whose layers with new rows compute the others by their own module."""
    from peft.tuners.trainable_tokens.layer import TrainableTokensLayer

    rows, layers = _classes()
    for module in adapted.modules():
        if isinstance(module, TrainableTokensLayer):
            module.__class__ = layers
            getattr(module, DELTA_NAME).__class__ = rows
    return adapted


def _classes() -> tuple[type, type]:
    """Return the classes of the rows and of the layer; torch is imported only here."""
    from dtl.models.peft.token_row_modules import TokenRows, TokenRowsLayer

    return TokenRows, TokenRowsLayer
