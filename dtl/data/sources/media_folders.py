"""Reads media folders in common layouts: LibriSpeech, Common Voice, one folder per class."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dtl.data.modalities.media_files import SUFFIXES, rename_media_column
from dtl.data.sources.delimited_text import read_tsv
from dtl.data.sources.results import ReadResult

METADATA_FILES = ("metadata.jsonl", "metadata.csv", "metadata.tsv", "metadata.parquet")
TRANSCRIPT_PATTERN = "*.trans.txt"


@dataclass(frozen=True)
class MediaFolder:
    """Rows made from a folder. `folder`: the base of relative file names; `files`: the tables or
    transcripts whose bytes decide the rows."""

    folder: Path
    files: tuple[Path, ...]
    read_rows: Callable[[], Iterator[ReadResult]]


def detect_media_folder(folder: Path, split: str | None, media: str) -> MediaFolder | None:
    """Return how to read a folder, or None if it has no known media layout."""
    inside = folder / split if split and (folder / split).is_dir() else folder
    if media == "audio":
        audio_corpus = _detect_librispeech(inside) or _detect_common_voice(folder, split)
        if audio_corpus is not None:
            return audio_corpus
    if any((inside / name).is_file() for name in METADATA_FILES):
        return None  # read as an ordinary data file
    return _detect_class_folders(inside, media)


def _detect_librispeech(folder: Path) -> MediaFolder | None:
    """Detect speaker/chapter/speaker-chapter.trans.txt: one utterance per line, name and text."""
    transcripts = sorted(folder.rglob(TRANSCRIPT_PATTERN))

    def read_rows() -> Iterator[ReadResult]:
        for transcript in transcripts:
            lines = transcript.read_text(encoding="utf-8").splitlines()
            for number, line in enumerate(lines, start=1):
                name, _, text = line.partition(" ")
                audio = _find_audio_file(transcript.parent / name)
                fields = {
                    "audio": str(audio.relative_to(folder)),
                    "text": text,
                    "speaker": name.partition("-")[0],
                }
                yield f"{transcript}:{number}", fields

    return MediaFolder(folder, tuple(transcripts), read_rows) if transcripts else None


def _find_audio_file(stem: Path) -> Path:
    """Return the audio file with this stem, whatever its format."""
    candidates = (stem.with_name(stem.name + suffix) for suffix in SUFFIXES["audio"])
    return next((path for path in candidates if path.exists()), stem.with_name(stem.name + ".flac"))


def _detect_common_voice(folder: Path, split: str | None) -> MediaFolder | None:
    """Detect clips/ and one table per split, whose `sentence` column is the text."""
    table, clips = folder / f"{split}.tsv", folder / "clips"
    if not clips.is_dir() or not table.is_file():
        return None

    def read_rows() -> Iterator[ReadResult]:
        for result in read_tsv(table, str(table)):
            if not isinstance(result, tuple):
                yield result
                continue
            location, raw_fields = result
            fields = rename_media_column(dict(raw_fields), "audio")
            if "sentence" in fields:
                fields["text"] = fields.pop("sentence")
            yield location, fields

    return MediaFolder(clips, (table,), read_rows)


def _detect_class_folders(folder: Path, media: str) -> MediaFolder | None:
    """Detect one folder per class; the folder's name is the label."""
    files = [
        path
        for class_folder in sorted(entry for entry in folder.iterdir() if entry.is_dir())
        for path in sorted(class_folder.rglob("*"))
        if path.suffix.lower() in SUFFIXES[media]
    ]

    def read_rows() -> Iterator[ReadResult]:
        for path in files:
            name = path.relative_to(folder)
            yield str(path), {media: str(name), "label": name.parts[0]}

    return MediaFolder(folder, (), read_rows) if files else None
