"""Selects the held-out examples with the highest loss and shows their rows."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from dtl.core.errors import DtlError
from dtl.core.units import format_bytes
from dtl.data.modalities.audio import load_audio, read_sampling_rate
from dtl.data.modalities.image import load_image
from dtl.data.sources.rows import Row
from dtl.metrics.base import EvalRecord
from dtl.prepare.splits import find_held_out_rows
from dtl.report.page import ExampleCard
from dtl.run.folder import RunFolder
from dtl.tasks.base import Task

MAX_EXAMPLES = 12
MAX_TEXT_LENGTH = 600  # characters
MAX_MEDIA_BYTES = 300 * 1024  # bytes of one recording or image, before base64
MAX_IMAGE_SIDE = 240  # pixels of the shorter side of an image
MAX_LOSSLESS_SIDE = 64  # pixels of the shorter side of an image stored as PNG
SHOWN_ELSEWHERE = (
    "row",
    "loss",
    "group",
    "label",
    "predicted",
)  # fields of a record in other places


@dataclass(frozen=True)
class WorstExamples:
    """The cards of the worst examples. `unreadable_reason`: why their rows are missing, or None."""

    examples: tuple[ExampleCard, ...]
    unreadable_reason: str | None


def loss_per_target(record: EvalRecord) -> float:
    """Return the mean loss over the targets of an example (nats)."""
    return float(record["loss"]) / max(1, record.get("targets", 1))


def select_worst_examples(
    folder: RunFolder, task: Task, records: list[EvalRecord]
) -> WorstExamples:
    """Return the examples with the highest loss per target. Their rows are read again, if the data
    has not changed since."""
    worst = sorted(records, key=loss_per_target, reverse=True)[:MAX_EXAMPLES]
    try:
        rows = _read_rows(folder, task, {record["row"] for record in worst})
        unreadable_reason = None
    except DtlError as fault:
        rows, unreadable_reason = {}, str(fault)
    cards = (_make_card(one, rows.get(one["row"]), task, folder.dataset_stats) for one in worst)
    return WorstExamples(tuple(cards), unreadable_reason)


def _read_rows(folder: RunFolder, task: Task, row_indices: set[int]) -> dict[int, Row]:
    held_out = find_held_out_rows(folder.config, task)
    assert held_out is not None, "scored examples are held out"
    source, rows = held_out
    recorded_hash = folder.data.get("sources", {}).get(source.key, {}).get("sha256")
    if recorded_hash != source.rows.fingerprint:
        raise DtlError.of(
            source.rows.name,
            "the data has changed since the run began",
            "restore the original data",
        )
    return _pick_rows(rows, row_indices)


def _pick_rows(rows: Iterable[Row], row_indices: set[int]) -> dict[int, Row]:
    rows_by_index: dict[int, Row] = {}
    for row in rows:
        if row.index in row_indices:
            rows_by_index[row.index] = row
            if len(rows_by_index) == len(row_indices):
                break
    return rows_by_index


def _make_card(
    record: EvalRecord, row: Row | None, task: Task, dataset_stats: dict[str, Any]
) -> ExampleCard:
    prediction = task.describe_prediction(record, dataset_stats)
    numbers = tuple(
        (name.replace("_", " "), f"{value:.4g}")
        for name, value in record.items()
        if isinstance(value, int | float) and name not in SHOWN_ELSEWHERE
    )
    card = ExampleCard(
        row=record["row"],
        loss=f"{loss_per_target(record):.4g}",
        expected=_truncate(prediction.expected),
        predicted=_truncate(prediction.predicted),
        numbers=numbers,
        fields=(),
    )
    if row is None:
        return card
    fields = (
        (name, _format_field(value))
        for name, value in row.fields.items()
        if name != task.media_column
    )
    nonempty = tuple((name, text) for name, text in fields if text not in ("", prediction.expected))
    return _add_media(replace(card, fields=nonempty), row, task.media_column)


def _format_field(value: object) -> str:
    """Return a field of a row as text; empty for None and bytes."""
    if isinstance(value, list) and all(isinstance(word, str) for word in value):
        value = " ".join(value)
    if value is None or isinstance(value, bytes):
        return ""
    return _truncate(value if isinstance(value, str) else json.dumps(value, default=str)) or ""


def _truncate(text: str | None) -> str | None:
    if text is None or len(text) <= MAX_TEXT_LENGTH:
        return text
    return f"{text[:MAX_TEXT_LENGTH]}… ({len(text):,} characters)"


def _add_media(card: ExampleCard, row: Row, column: str | None) -> ExampleCard:
    """Return the card with the audio or image of its row, unless it is too large or unreadable."""
    if column is None:
        return card
    try:
        mime_type, data = _encode_audio(row) if column == "audio" else _encode_image(row)
    except DtlError as fault:
        return replace(card, note=str(fault))
    if len(data) > MAX_MEDIA_BYTES:
        limit = format_bytes(MAX_MEDIA_BYTES)
        return replace(card, note=f"{row.location}: {format_bytes(len(data))}, above {limit}")
    uri = f"data:{mime_type};base64,{base64.b64encode(data).decode()}"
    return replace(card, audio_uri=uri) if column == "audio" else replace(card, image_uri=uri)


def _encode_audio(row: Row) -> tuple[str, bytes]:
    """Return MIME type and bytes of the audio as FLAC, which every browser plays."""
    rate = read_sampling_rate(row)
    samples = load_audio(row, sampling_rate=rate)
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format="FLAC", subtype="PCM_16")
    return "audio/flac", buffer.getvalue()


def _encode_image(row: Row) -> tuple[str, bytes]:
    """Return MIME type and bytes of the image: PNG if it is small, else JPEG."""
    pixels = load_image(row, max_short_side=MAX_IMAGE_SIDE)
    from PIL import Image

    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    if min(image.size) <= MAX_LOSSLESS_SIDE:
        image.save(buffer, format="PNG")
        return "image/png", buffer.getvalue()
    image.save(buffer, format="JPEG", quality=85)
    return "image/jpeg", buffer.getvalue()
