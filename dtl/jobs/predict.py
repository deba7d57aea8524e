"""Predict: read rows without targets, and return them with the model's predictions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from dtl import mini
from dtl.config.schema import Source
from dtl.core.errors import DtlError, Fault
from dtl.data.example import EncodedExample, Skip
from dtl.data.modalities.media_files import SUFFIXES
from dtl.data.row_formats.base import RowInput
from dtl.data.sources.rows import Row, open_rows
from dtl.export.load_export import ExportedModel
from dtl.jobs.input_limits import LimitedEncoder
from dtl.models.processor import get_pad_token_id
from dtl.models.vocabulary import find_vocab_size
from dtl.prepare.token_ids import checking_token_ids
from dtl.prepare.unlimited_encoder import unlimited_prompt_encoder

if TYPE_CHECKING:
    from torch import nn

T = TypeVar("T")


def check_inputs_exist(inputs: Iterable[str]) -> None:
    """Raise DtlError for every input that is neither a file nor a text."""
    faults = [
        Fault(name, "no such file", "use a file of rows or of text lines, an audio file or image")
        for name in inputs
        if not is_existing_input(name) and not _has_whitespace(name)
    ]
    if faults:
        raise DtlError(*faults)


def is_existing_input(name: str) -> bool:
    """Whether an input is a file, or data that dtl ships."""
    try:
        return name.startswith(mini.PREFIX) or Path(name).exists()
    except OSError:  # too long for the name of a file
        return False


def read_input_rows(inputs: Iterable[str], exported: ExportedModel) -> Iterator[Row]:
    """Yield the rows of all inputs.

    A text with whitespace, a line of a text file, an audio file and an image are one row each.
    Other files are read as for training.
    """
    reads = exported.task.row_input
    for name in inputs:
        if reads.media is None and _has_whitespace(name) and not is_existing_input(name):
            yield Row(0, f"{name[:40]!r}", {"text": name})
        elif name.startswith(mini.PREFIX):
            yield from open_rows(Source(path=name), {}, name, reads=reads)
        else:
            yield from _read_file(Path(name), reads)


def _has_whitespace(text: str) -> bool:
    return any(map(str.isspace, text))


def _read_file(path: Path, reads: RowInput) -> Iterator[Row]:
    """Yield the rows of a file."""
    if reads.media is not None and path.suffix.lower() in SUFFIXES[reads.media]:
        yield Row(0, str(path), {reads.media: path.name}, path.parent)
    else:
        yield from open_rows(Source(path=str(path)), {}, str(path), reads=reads)


@torch.no_grad()
def predict_rows(
    rows: Iterable[Row],
    exported: ExportedModel,
    *,
    batch_size: int,
    max_new_tokens: int | None = None,
    truncate_prompts: bool = False,
) -> Iterator[dict[str, Any]]:
    """Yield the fields of each row with its prediction, in order.

    A row without anything to read, or with a prompt that is too long, has `predicted` None and a
    `reason`. Where the input was cut, `truncated_tokens` says by how much; `dropped` names what the
    chat template does not render. `truncate_prompts`: cut
    the beginning of such a prompt. Raises DtlError for an invalid row, with its location.
    """
    task = exported.task
    model = exported.model.to("cuda" if torch.cuda.is_available() else "cpu")
    encode = _make_encoder(exported, truncate_prompts=truncate_prompts)
    for batch in _batches(rows, batch_size):
        # 1. Split long rows into chunks, and encode them.
        chunks_by_row = [
            task.chunk_row(
                _prompt_row(row, exported),
                processor=exported.processor,
                dataset_stats=exported.dataset_stats,
            )
            for row in batch
        ]
        limited = [encode(chunk) for chunks in chunks_by_row for chunk in chunks]
        encoded = [example for example, _ in limited]
        # 2. Predict the examples; skipped ones have a reason instead.
        examples = (
            task.transform(dict(example.values), processor=exported.processor, rng=None)
            for example in encoded
            if not isinstance(example, Skip)
        )
        predictions = _predict_examples(
            _batches(examples, batch_size), model, exported, max_new_tokens=max_new_tokens
        )
        results = iter(
            {"predicted": None, "reason": example.reason}
            if isinstance(example, Skip)
            else {**next(predictions), **_describe_missing(example, cut)}
            for example, cut in limited
        )
        # 3. Join the chunks of each row.
        for row, chunks in zip(batch, chunks_by_row, strict=True):
            yield {**_json_fields(row.fields), **_join_chunks(list(islice(results, len(chunks))))}


def _describe_missing(example: EncodedExample, cut: int) -> dict[str, Any]:
    """Return what the model does not read of an input; `cut`: the tokens that were cut."""
    return {
        **({"truncated_tokens": cut} if cut else {}),
        **({"dropped": list(example.dropped)} if example.dropped else {}),
    }


def _make_encoder(exported: ExportedModel, *, truncate_prompts: bool) -> LimitedEncoder:
    task, processor = exported.task, exported.processor
    known = (processor, exported.dataset_stats, exported.model_config)
    rows = find_vocab_size(exported.model.config) if task.truncation_options else None
    return LimitedEncoder(
        encode=checking_token_ids(task.prompt_encoder(*known), task, processor, rows=rows),
        encode_all=unlimited_prompt_encoder(task, *known),
        max_length=task.max_length(*known) if task.truncation_options else 0,
        continues_input=task.auto_class == "AutoModelForCausalLM",
        truncates_prompts=truncate_prompts,
    )


def _predict_examples(
    batches: Iterable[list[dict[str, Any]]],
    model: nn.Module,
    exported: ExportedModel,
    *,
    max_new_tokens: int | None,
) -> Iterator[dict[str, Any]]:
    """Yield the prediction of each example."""
    device = next(model.parameters()).device
    pad_token_id = get_pad_token_id(exported.processor) or 0
    for batch in batches:
        tensors = exported.task.collate(batch, pad_token_id=pad_token_id)
        yield from exported.task.predict(
            model,
            {name: tensor.to(device) for name, tensor in tensors.items()},
            processor=exported.processor,
            dataset_stats=exported.dataset_stats,
            max_new_tokens=max_new_tokens,
        )


def _join_chunks(predictions: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the prediction of a row: of several chunks, their texts joined by blanks."""
    texts = [prediction["predicted"] for prediction in predictions]
    if len(predictions) == 1 or not any(texts):
        return predictions[0]
    return {"predicted": " ".join(filter(None, texts))}


def _json_fields(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields without the bytes of audio and images, which JSON cannot contain."""
    return {
        name: value
        for name, value in fields.items()
        if not isinstance(value, bytes) and not (isinstance(value, dict) and "bytes" in value)
    }


def _prompt_row(row: Row, exported: ExportedModel) -> Row:
    """Return the row with the task's column names and a placeholder target.

    Raises DtlError for an invalid row.
    """
    names = {column: name for name, column in exported.columns.items()}
    fields = {names.get(column, column): value for column, value in row.fields.items()}
    if set(row.fields) == {"text"} and "source" in exported.task.required_columns:
        fields = {"source": row.fields["text"]}
    prompt = Row(
        row.index,
        row.location,
        exported.task.with_placeholder_target(fields, exported.dataset_stats),
        row.folder,
    )
    if fault := exported.task.find_row_fault(prompt):
        raise DtlError(fault)
    return prompt


def _batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
