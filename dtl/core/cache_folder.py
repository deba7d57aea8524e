"""The folder for what dtl can make again."""

import os
import uuid
from pathlib import Path


def folder() -> Path:
    """Where dtl keeps what it can make again: $DTL_CACHE, else ~/.cache/dtl."""
    chosen = os.environ.get("DTL_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "dtl"


def write_note(note: Path, text: str) -> None:
    """A small file, whole or not at all; several processes may write the same."""
    note.parent.mkdir(parents=True, exist_ok=True)
    staged = note.with_name(f"{note.name}.{uuid.uuid4().hex}")
    staged.write_text(text, encoding="utf-8")
    staged.replace(note)
