"""The file formats, by name and suffix."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

from dtl.config.schema.data_files import FILE_FORMAT_NAMES, FileOptions
from dtl.core.errors import DtlError
from dtl.data.sources.conll import ConllReader, looks_like_conll
from dtl.data.sources.data_file import DataFile
from dtl.data.sources.delimited_text import CsvReader, TsvReader
from dtl.data.sources.file_reader import FileReader
from dtl.data.sources.json_files import JsonLinesReader, open_json
from dtl.data.sources.plain_text import PlainTextReader
from dtl.data.sources.tables import ArrowReader, ParquetReader
from dtl.data.sources.text_encoding import SAMPLE_BYTES


@dataclass(frozen=True)
class FileFormat:
    """A file format: the suffixes of its files, and how one is opened."""

    suffixes: tuple[str, ...]
    open: Callable[[DataFile, FileOptions], FileReader]


def _open_text(file: DataFile, options: FileOptions) -> FileReader:
    """Return the reader of a text file: the one of JSON Lines or CoNLL if it has such lines."""
    reader = PlainTextReader(file, options)
    if options.file_format is not None or options.sample_by is not None:
        return reader
    text = reader.sample_text
    if looks_like_conll(text, is_complete=len(reader.sample) < SAMPLE_BYTES):
        return ConllReader(file, options)
    first = next((line for line in text.splitlines() if line.strip()), "")
    return JsonLinesReader(file, options) if _is_json_object(first) else reader


def _is_json_object(line: str) -> bool:
    if not line.lstrip().startswith("{"):
        return False
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


FILE_FORMATS = {
    "jsonl": FileFormat((".jsonl", ".ndjson"), open_json),
    "json": FileFormat((".json",), open_json),
    "csv": FileFormat((".csv",), CsvReader),
    "tsv": FileFormat((".tsv", ".tab"), TsvReader),
    "parquet": FileFormat((".parquet", ".pq"), ParquetReader),
    "arrow": FileFormat((".arrow",), ArrowReader),
    "text": FileFormat((".txt", ".text"), _open_text),
    "conll": FileFormat((".conll", ".conllu", ".iob", ".iob2", ".bio", ".bioes"), ConllReader),
}
assert set(FILE_FORMATS) == set(FILE_FORMAT_NAMES)
FORMAT_OF_SUFFIX = {suffix: name for name, each in FILE_FORMATS.items() for suffix in each.suffixes}
SUFFIXES = frozenset(FORMAT_OF_SUFFIX)
HINTS = dict.fromkeys((".xlsx", ".xls", ".ods"), "export the table as CSV") | {
    ".pkl": "a pickle can run code: write the rows as JSON Lines",
    ".tar": "unpack the archive, and name its folder",
}


def format_name(file: DataFile, options: FileOptions) -> str | None:
    """Return the name of a file's format; None for an unknown suffix."""
    return options.file_format or FORMAT_OF_SUFFIX.get(file.suffix)


def open_reader(file: DataFile, options: FileOptions) -> FileReader:
    """Return the reader of a file. Raises DtlError for an unknown suffix."""
    name = format_name(file, options)
    if name is None:
        raise DtlError.of(
            file.display_name,
            f"'{file.suffix}' files are not supported" if file.suffix else "the file has no suffix",
            HINTS.get(file.suffix)
            or f"convert the file to one of {', '.join(FORMAT_OF_SUFFIX)}, or name its format in "
            "data.format",
        )
    return FILE_FORMATS[name].open(file, options)
