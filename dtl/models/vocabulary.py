"""Whether tokenizer and embedding agree, and the rows of tokens that the base does not know."""

# V rows of the embedding, D width

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dtl.config.schema import Model
from dtl.core.errors import DtlError
from dtl.models.full_shape import full_shape

if TYPE_CHECKING:
    from torch import nn

    Gather = Callable[[list[nn.Parameter]], AbstractContextManager[Any]]

NEW_ROWS = "_new_embedding_rows"  # attribute of a model: the numbers of its new rows
DELTA_NAME = "trainable_tokens_delta"  # PEFT's name of new rows that are trained beside LoRA


@dataclass(frozen=True)
class NewRows:
    """Rows of the embeddings that the base has no trained values for.

    `numbers`: of these rows, ascending. `vocab_size`: rows that the embeddings need.
    """

    numbers: tuple[int, ...]
    vocab_size: int


def changes_vocabulary(model: Model) -> bool:
    """Return whether the config adds tokens or rows to the base."""
    return bool(model.add_tokens or model.add_special_tokens or model.resize_embeddings)


def add_tokens(tokenizer: Any, model: Model) -> None:
    """Add the tokens of the config. Raises DtlError for one that the tokenizer has already."""
    from tokenizers import AddedToken

    for key in ("add_tokens", "add_special_tokens"):
        for text in getattr(model, key):
            is_special = key == "add_special_tokens"
            if text in tokenizer.get_vocab():
                raise DtlError.of(
                    f"model.{key}",
                    f"{text!r} is a token of {model.path} already",
                    f"remove it from model.{key}",
                )
            token = AddedToken(text, special=is_special, normalized=False)
            tokenizer.add_tokens([token], special_tokens=is_special)


def find_vocab_size(config: Any) -> int | None:
    """Return the rows of the embedding by a model's config; None if the model reads no tokens."""
    size = getattr(config.get_text_config(), "vocab_size", None)
    return size if isinstance(size, int) else None


def highest_token_id(tokenizer: Any) -> int:
    """Return the highest id in the vocabulary, which may have gaps."""
    return max(tokenizer.get_vocab().values())


def find_new_rows(model: Model, tokenizer: Any, *, rows: int) -> NewRows:
    """Return the new rows of a base whose embedding has `rows`; `tokenizer`: with added tokens.

    An added token may fall into a row that the embedding has, and that no token had.
    """
    needed = max(rows, highest_token_id(tokenizer) + 1)
    added = tokenizer.convert_tokens_to_ids([*model.add_tokens, *model.add_special_tokens])
    return NewRows(tuple(sorted({*added, *range(rows, needed)})), needed)


def check_vocabulary(model: Model, tokenizer: Any, config: Any) -> None:
    """Raise DtlError if the padding token has no row in the embedding."""
    rows = find_vocab_size(config)
    if rows is None or changes_vocabulary(model) or tokenizer.pad_token_id < rows:
        return
    raise DtlError.of(
        "model.path",
        f"the padding token {tokenizer.pad_token!r} of {model.path} has id "
        f"{tokenizer.pad_token_id}, but its embedding has {rows} rows",
        "set model.resize_embeddings=true to add rows, or take another tokenizer",
    )


def check_token_ids(ids: Iterable[int], *, rows: int, tokenizer: Any, location: str) -> None:
    """Raise DtlError if a token has no row in the embedding."""
    highest = max(ids, default=0)
    if highest < rows:
        return
    raise DtlError.of(
        location,
        f"the token {tokenizer.convert_ids_to_tokens(int(highest))!r} has id {highest}, but the "
        f"model's embedding has {rows} rows",
        "set model.resize_embeddings=true to add rows and train them, or remove the token",
    )


def resize_embeddings(network: nn.Module, new: NewRows) -> None:
    """Give the embeddings of the input and the output the rows of all tokens, if they have fewer.

    Raises DtlError if the model's class cannot.
    """
    if full_shape(_input_embedding(network).weight)[0] < new.vocab_size:
        try:
            with _tying_as_before(network):
                network.resize_token_embeddings(new.vocab_size, mean_resizing=False)  # type: ignore[operator]
        except (NotImplementedError, TypeError, AttributeError) as fault:
            raise DtlError.of(
                "model.resize_embeddings",
                f"the embedding of {type(network).__name__} cannot be resized ({fault})",
                "use a base that has the tokens",
            ) from fault
    setattr(network, NEW_ROWS, new.numbers)


def is_output_tied(network: nn.Module) -> bool:
    """Return whether the output layer has the weight of the input embedding."""
    output = network.get_output_embeddings()  # type: ignore[operator]
    return output is not None and output.weight is _input_embedding(network).weight


@contextmanager
def _tying_as_before(network: nn.Module) -> Iterator[None]:
    """Keep transformers from tying an output layer whose weights differ, which its config allows
    (a T5 whose files have both)."""
    config: Any = network.config
    ties = getattr(config, "tie_word_embeddings", False)
    if ties and not is_output_tied(network):
        config.tie_word_embeddings = False
    try:
        yield
    finally:
        if ties:
            config.tie_word_embeddings = ties


def get_new_rows(network: nn.Module) -> tuple[int, ...]:
    """Return the numbers of the rows that the base has no trained values for."""
    rows: tuple[int, ...] = getattr(network, NEW_ROWS, ())
    return rows


def resized_rows(model: nn.Module) -> int | None:
    """Return the rows of an embedding that has new ones; None where the base's are unchanged.

    `model`: may have an adapter.
    """
    inner = model.get_base_model() if hasattr(model, "peft_config") else model  # type: ignore[operator]
    return find_vocab_size(inner.config) if get_new_rows(inner) else None


def embedding_parameters(network: nn.Module) -> list[nn.Parameter]:
    """Return what has one row for each token: the embeddings, and the bias of the output layer."""
    output = network.get_output_embeddings()  # type: ignore[operator]
    parameters = [_input_embedding(network).weight]
    parameters += [] if output is None else [output.weight, getattr(output, "bias", None)]
    return list({id(each): each for each in parameters if each is not None}.values())


def trains_new_rows(network: nn.Module, embeddings: list[nn.Parameter]) -> bool:
    """Return whether the new rows are trained; True if there are none.

    `network`: with the strategy applied. `embeddings`: its `embedding_parameters` before that.
    """
    if not get_new_rows(network) or all(each.requires_grad for each in embeddings):
        return True
    return any(DELTA_NAME in name for name, _ in network.named_parameters())


def rows_to_read(network: nn.Module) -> list[nn.Parameter]:
    """Return the weights from which an adapter reads the initial values of new rows."""
    return embedding_parameters(network) if get_new_rows(network) else []


def init_new_rows(
    network: nn.Module, *, gather_for_update: Gather = lambda _: nullcontext()
) -> None:
    """Set the new rows to the mean of the others, fp32, so that they do not depend on the layout.

    A new token then is as likely as the others are on average (Hewitt 2021). `gather_for_update`:
    gives the full parameters where an engine has partitioned them.
    """
    import torch

    numbers = list(get_new_rows(network))
    if not numbers:
        return
    parameters = embedding_parameters(network)
    if parameters[0].is_meta:
        return
    with torch.no_grad(), gather_for_update(parameters):
        for parameter in parameters:
            if not parameter.numel():  # of another rank
                continue
            is_old = torch.ones(len(parameter), dtype=torch.bool, device=parameter.device)
            is_old[numbers] = False
            mean = parameter[is_old].double().mean(0)
            parameter[numbers] = mean.to(parameter.dtype)


def _input_embedding(network: nn.Module) -> Any:
    return network.get_input_embeddings()  # type: ignore[operator]
