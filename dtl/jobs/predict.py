"""Predict: rows without answers in, the same rows with what the model says of them out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from dtl import mini
from dtl.config.schema import Source
from dtl.core.errors import DtlError, Fault
from dtl.data.example import Skip
from dtl.data.modalities.media_files import SUFFIXES
from dtl.data.sources.rows import Row, open_rows
from dtl.export.load_export import ExportedModel
from dtl.models.processor import get_pad_token_id

if TYPE_CHECKING:
    from torch import nn

T = TypeVar("T")


def read_input_rows(inputs: Iterable[str], exported: ExportedModel) -> Iterator[Row]:
    """The rows of all inputs: a text with blanks in it, a line of a text file, a sound or a picture
    is a row itself; other files are read as for training."""
    for given in inputs:
        if _is_text(given, exported):
            yield Row(0, f"{given[:40]!r}", {"text": given})
        elif given.startswith(mini.PREFIX):
            yield from open_rows(Source(path=given), {}, given, media=exported.task.media_column)
        else:
            yield from _read_file(Path(given), exported)


def _is_text(given: str, exported: ExportedModel) -> bool:
    """A name that is no file is not taken for a text."""
    return (
        exported.task.media_column is None
        and any(map(str.isspace, given))
        and not is_existing_input(given)
    )


def is_existing_input(given: str) -> bool:
    """Whether it is a file, or data that dtl brings."""
    try:
        return given.startswith(mini.PREFIX) or Path(given).exists()
    except OSError:  # too long for a name
        return False


def check_inputs_exist(inputs: Iterable[str]) -> None:
    """Raise DtlError for every input that is not there and can be no text either."""
    fix = "name a file of rows, of text lines, or a sound or picture"
    lost = [
        given
        for given in inputs
        if not is_existing_input(given) and not any(map(str.isspace, given))
    ]
    faults = [Fault(given, "no such file", fix) for given in lost]
    if faults:
        raise DtlError(*faults)


def _read_file(path: Path, exported: ExportedModel) -> Iterator[Row]:
    media = exported.task.media_column
    if path.suffix.lower() == ".txt":
        yield from _read_text_lines(path)
    elif media is not None and path.suffix.lower() in SUFFIXES[media]:
        yield Row(0, str(path), {media: path.name}, path.parent)
    else:
        yield from open_rows(Source(path=str(path)), {}, str(path), media=media)


def _read_text_lines(path: Path) -> Iterator[Row]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield Row(number - 1, f"{path}:{number}", {"text": line.rstrip("\n")})
    except UnicodeDecodeError:
        raise DtlError.of(str(path), "not UTF-8 text", "save the file as UTF-8") from None


@torch.no_grad()
def predict_rows(
    rows: Iterable[Row], exported: ExportedModel, *, batch: int, longest: int | None = None
) -> Iterator[dict[str, Any]]:
    """The fields of each row with its prediction, in order; a row of which nothing can be read has
    `predicted` null and the reason. Raises DtlError for a row at fault, with its place."""
    task = exported.task
    model = exported.model.to("cuda" if torch.cuda.is_available() else "cpu")
    encode = task.prompt_encoder(exported.processor, exported.dataset_stats, exported.model_config)
    for together in _batches(rows, batch):
        asked = [_prompt_row(row, exported) for row in together]
        pieces = [
            task.chunk_row(row, processor=exported.processor, dataset_stats=exported.dataset_stats)
            for row in asked
        ]
        found = [encode(piece) for of_row in pieces for piece in of_row]
        shown = (
            task.transform(dict(one.values), processor=exported.processor, rng=None)
            for one in found
            if not isinstance(one, Skip)
        )
        told = _predict_examples(shown, model, exported, batch=batch, longest=longest)
        answers = iter(
            {"predicted": None, "reason": one.reason} if isinstance(one, Skip) else next(told)
            for one in found
        )
        for row, of_row in zip(together, pieces, strict=True):
            yield {**_json_fields(row.fields), **_join_chunks(list(islice(answers, len(of_row))))}


def _predict_examples(
    shown: Iterable[dict[str, Any]],
    model: nn.Module,
    exported: ExportedModel,
    *,
    batch: int,
    longest: int | None,
) -> Iterator[dict[str, Any]]:
    """What the model says of each example, so many at a time."""
    device = next(model.parameters()).device
    padding = get_pad_token_id(exported.processor) or 0
    for together in _batches(shown, batch):
        tensors = exported.task.collate(together, pad_token_id=padding)
        yield from exported.task.predict(
            model,
            {name: tensor.to(device) for name, tensor in tensors.items()},
            processor=exported.processor,
            dataset_stats=exported.dataset_stats,
            max_new_tokens=longest,
        )


def _join_chunks(answers: list[dict[str, Any]]) -> dict[str, Any]:
    """Of the pieces of a row: the texts of those of which there are any."""
    texts = [answer["predicted"] for answer in answers]
    if len(answers) == 1 or not any(texts):
        return answers[0]
    return {"predicted": " ".join(filter(None, texts))}


def _json_fields(fields: dict[str, Any]) -> dict[str, Any]:
    """Without sounds and pictures themselves, which are no JSON."""
    return {
        name: value
        for name, value in fields.items()
        if not isinstance(value, bytes) and not (isinstance(value, dict) and "bytes" in value)
    }


def _prompt_row(row: Row, exported: ExportedModel) -> Row:
    """The row with its columns named as the task reads them, and an answer that nobody reads."""
    ours = {theirs: name for name, theirs in exported.columns.items()}
    fields = {ours.get(name, name): value for name, value in row.fields.items()}
    if set(row.fields) == {"text"} and "source" in exported.task.required_columns:
        fields = {"source": row.fields["text"]}
    asked = Row(
        row.index,
        row.location,
        exported.task.with_placeholder_target(fields, exported.dataset_stats),
        row.folder,
    )
    if fault := exported.task.find_row_fault(asked):
        raise DtlError(fault)
    return asked


def _batches(things: Iterable[T], size: int) -> Iterator[list[T]]:
    left = iter(things)
    while together := list(islice(left, size)):
        yield together
