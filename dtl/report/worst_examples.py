"""The held-out examples that a model is worst at, with what they are."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from dtl.core.errors import DtlError
from dtl.core.units import format_bytes
from dtl.data.modalities.audio import rate_of, sound_of
from dtl.data.modalities.image import picture_of
from dtl.data.sources.rows import Row
from dtl.prepare.dataset import held_out_rows
from dtl.report.page import Shown
from dtl.run.folder import RunFolder
from dtl.tasks.base import EvalRecord, Task

SHOWN = 12
LONGEST_TEXT = 600  # characters
LARGEST_MEDIA = 300 * 1024  # bytes of one sound or picture, before base64 makes it a third larger
SIDE = 240  # pixels of the shorter side of a picture, at most
LOSSLESS_SIDE = 64  # of a picture that is kept as it is, pixel by pixel
TOLD = ("row", "loss", "group", "label", "predicted")  # of an outcome, elsewhere


@dataclass(frozen=True)
class Worst:
    """`unread`: why their rows cannot be shown, or None."""

    examples: tuple[Shown, ...]
    unread: str | None


def loss_of(outcome: EvalRecord) -> float:
    """Of one target, so that long examples are not the worst for being long."""
    return float(outcome["loss"]) / max(1, outcome.get("targets", 1))


def worst_of(folder: RunFolder, task: Task, outcomes: list[EvalRecord]) -> Worst:
    """Those with the highest loss a target. Their rows are read anew, if they are still those that
    were scored."""
    chosen = sorted(outcomes, key=loss_of, reverse=True)[:SHOWN]
    try:
        rows, unread = _rows(folder, task, {outcome["row"] for outcome in chosen}), None
    except DtlError as fault:
        rows, unread = {}, str(fault)
    shown = (_shown(one, rows.get(one["row"]), task, folder.facts) for one in chosen)
    return Worst(tuple(shown), unread)


def _rows(folder: RunFolder, task: Task, wanted: set[int]) -> dict[int, Row]:
    found = held_out_rows(folder.config, task)
    assert found is not None, "what was scored is held out"
    source, rows = found
    noted = folder.data.get("sources", {}).get(source.place, {}).get("sha256")
    if noted != source.rows.fingerprint:
        raise DtlError.of(
            source.rows.name, "the data has changed since the run began", "put back what was there"
        )
    return _picked(rows, wanted)


def _picked(rows: Iterable[Row], wanted: set[int]) -> dict[int, Row]:
    found: dict[int, Row] = {}
    for row in rows:
        if row.index in wanted:
            found[row.index] = row
            if len(found) == len(wanted):
                break
    return found


def _shown(outcome: EvalRecord, row: Row | None, task: Task, facts: dict[str, Any]) -> Shown:
    answers = task.describe_prediction(outcome, facts)
    numbers = tuple(
        (name.replace("_", " "), f"{value:.4g}")
        for name, value in outcome.items()
        if isinstance(value, int | float) and name not in TOLD
    )
    shown = Shown(
        row=outcome["row"],
        loss=f"{loss_of(outcome):.4g}",
        expected=_cut(answers.expected),
        said=_cut(answers.predicted),
        numbers=numbers,
        fields=(),
    )
    if row is None:
        return shown
    fields = (
        (name, _words(value)) for name, value in row.fields.items() if name != task.media_column
    )
    told = tuple((name, text) for name, text in fields if text not in ("", answers.expected))
    return _with_media(replace(shown, fields=told), row, task.media_column)


def _words(value: object) -> str:
    """A field of a row as a person reads it."""
    if isinstance(value, list) and all(isinstance(word, str) for word in value):
        value = " ".join(value)
    if value is None or isinstance(value, bytes):
        return ""
    return _cut(value if isinstance(value, str) else json.dumps(value, default=str)) or ""


def _cut(text: str | None) -> str | None:
    if text is None or len(text) <= LONGEST_TEXT:
        return text
    return f"{text[:LONGEST_TEXT]}… ({len(text):,} characters)"


def _with_media(shown: Shown, row: Row, media: str | None) -> Shown:
    """With the sound or picture of its row, unless that is too large or cannot be read."""
    if media is None:
        return shown
    try:
        kind, data = _sound(row) if media == "audio" else _picture(row)
    except DtlError as fault:
        return replace(shown, note=str(fault))
    if len(data) > LARGEST_MEDIA:
        limit = format_bytes(LARGEST_MEDIA)
        return replace(shown, note=f"{row.location}: {format_bytes(len(data))}, above {limit}")
    uri = f"data:{kind};base64,{base64.b64encode(data).decode()}"
    return replace(shown, sound=uri) if media == "audio" else replace(shown, picture=uri)


def _sound(row: Row) -> tuple[str, bytes]:
    """FLAC, which every browser plays."""
    rate = rate_of(row)
    samples = sound_of(row, rate=rate)
    import soundfile

    written = io.BytesIO()
    soundfile.write(written, samples, rate, format="FLAC", subtype="PCM_16")
    return "audio/flac", written.getvalue()


def _picture(row: Row) -> tuple[str, bytes]:
    pixels = picture_of(row, longest_short_side=SIDE)
    from PIL import Image

    written = io.BytesIO()
    picture = Image.fromarray(pixels)
    if min(picture.size) <= LOSSLESS_SIDE:
        picture.save(written, format="PNG")
        return "image/png", written.getvalue()
    picture.save(written, format="JPEG", quality=85)
    return "image/jpeg", written.getvalue()
