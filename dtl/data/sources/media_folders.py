"""Folders of sounds or pictures as others lay them out: LibriSpeech, Common Voice, a folder a
class, a metadata file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dtl.data.modalities.media_files import SUFFIXES, renamed
from dtl.data.sources.formats import Item, read_tsv

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.tsv", "metadata.parquet")
TRANSCRIPTS = "*.trans.txt"


@dataclass(frozen=True)
class MediaFolder:
    """Rows made of a folder. `folder`: what the file names in them are relative to; `files`: those
    whose bytes say which rows there are."""

    folder: Path
    files: tuple[Path, ...]
    read: Callable[[], Iterator[Item]]


def media_folder(folder: Path, split: str | None, media: str) -> MediaFolder | None:
    """How to read a folder, or None where it is none of these."""
    inside = folder / split if split and (folder / split).is_dir() else folder
    if media == "audio":
        found = _libri_speech(inside) or _common_voice(folder, split)
        if found is not None:
            return found
    if any((inside / name).is_file() for name in METADATA):
        return None  # a data file like any other
    return _classes(inside, media)


def _libri_speech(folder: Path) -> MediaFolder | None:
    """speaker/chapter/speaker-chapter.trans.txt, a line an utterance: its name, its words."""
    transcripts = sorted(folder.rglob(TRANSCRIPTS))

    def read() -> Iterator[Item]:
        for transcript in transcripts:
            lines = transcript.read_text(encoding="utf-8").splitlines()
            for number, line in enumerate(lines, start=1):
                name, _, text = line.partition(" ")
                sound = _sound(transcript.parent / name)
                fields = {
                    "audio": str(sound.relative_to(folder)),
                    "text": text,
                    "speaker": name.partition("-")[0],
                }
                yield f"{transcript}:{number}", fields

    return MediaFolder(folder, tuple(transcripts), read) if transcripts else None


def _sound(stem: Path) -> Path:
    """The file of that name, whatever its kind."""
    every = (stem.with_name(stem.name + suffix) for suffix in SUFFIXES["audio"])
    return next((path for path in every if path.exists()), stem.with_name(stem.name + ".flac"))


def _common_voice(folder: Path, split: str | None) -> MediaFolder | None:
    """clips/ and a table a split, whose `sentence` is the text."""
    table, clips = folder / f"{split}.tsv", folder / "clips"
    if not clips.is_dir() or not table.is_file():
        return None

    def read() -> Iterator[Item]:
        for item in read_tsv(table, str(table)):
            if not isinstance(item, tuple):
                yield item
                continue
            place, given = item
            fields = renamed(dict(given), "audio")
            if "sentence" in fields:
                fields["text"] = fields.pop("sentence")
            yield place, fields

    return MediaFolder(clips, (table,), read)


def _classes(folder: Path, media: str) -> MediaFolder | None:
    """A folder a class; its name is the label."""
    files = [
        path
        for kind in sorted(entry for entry in folder.iterdir() if entry.is_dir())
        for path in sorted(kind.rglob("*"))
        if path.suffix.lower() in SUFFIXES[media]
    ]

    def read() -> Iterator[Item]:
        for path in files:
            name = path.relative_to(folder)
            yield str(path), {media: str(name), "label": name.parts[0]}

    return MediaFolder(folder, (), read) if files else None
