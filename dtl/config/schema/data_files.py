"""How the files of a data source are read: format, encoding, delimiter, quoting, column names."""

from __future__ import annotations

import codecs
from typing import Literal, get_args

from pydantic import Field, field_validator

from dtl.config.schema.base import ConfigFault, Record, raise_config_faults

FileFormatName = Literal["jsonl", "json", "csv", "tsv", "parquet", "arrow", "text", "conll"]
RowFormatName = Literal[
    "columns",
    "sharegpt",
    "alpaca",
    "openai",
    "openai_preference",
    "trl",
    "implicit_prompt",
    "hh_rlhf",
    "ultrafeedback",
    "kto",
]
FILE_FORMAT_NAMES: tuple[str, ...] = get_args(FileFormatName)
ROW_FORMAT_NAMES: tuple[str, ...] = get_args(RowFormatName)
TAB_NAMES = ("tab", "\\t")
# A line of these cannot be decoded alone, because its bytes depend on the lines before.
STATEFUL_ENCODINGS = ("utf-7", "hz", "iso2022", "punycode", "idna", "unicode_escape", "raw_unicode")


class FileOptions(Record):
    """How files are read. What is not set is detected, and the plan reports it."""

    format: FileFormatName | RowFormatName | None = Field(
        default=None,
        description="format of the files (jsonl, json, csv, tsv, parquet, arrow, text, conll) or "
        "of their rows (sharegpt, alpaca, ..., see the page on data; columns: the task's own "
        "columns); default: detected",
    )
    encoding: str | None = Field(
        default=None,
        min_length=1,
        description="encoding of text files, such as utf-16, latin-1 or cp1252; default: detected",
    )
    delimiter: str | None = Field(
        default=None,
        min_length=1,
        description="character between the values of CSV and TSV files, such as ';' or tab; "
        "default: detected",
    )
    quoting: Literal["double", "none"] | None = Field(
        default=None,
        description='whether " quotes values of CSV and TSV files (double), or is a character as '
        "any other (none); default: detected",
    )
    column_names: tuple[str, ...] | None = Field(
        default=None,
        min_length=1,
        description="names of the columns of CSV and TSV files without a header line, or of "
        "CoNLL files; default: those of the header line",
    )
    sample_by: Literal["line", "paragraph", "document"] | None = Field(
        default=None,
        description="what is one row of a plain text file: a line, a paragraph (blank lines "
        "between), or the document; default: line",
    )

    @field_validator("encoding")
    @classmethod
    def _check_encoding(cls, name: str | None) -> str | None:
        if name is None:
            return None
        try:
            codec = codecs.lookup(name)
        except (LookupError, ValueError):
            codec = None
        if codec is None or not codec._is_text_encoding:
            _refuse(
                f"{name!r} is no text encoding", "write utf-8, utf-16, latin-1, cp1252 or the like"
            )
        elif codec.name.startswith(STATEFUL_ENCODINGS):
            _refuse(f"{name} is not supported", "convert the file to UTF-8")
        return None if codec is None else codec.name

    @field_validator("delimiter")
    @classmethod
    def _check_delimiter(cls, text: str | None) -> str | None:
        if text is None:
            return None
        text = "\t" if text in TAB_NAMES else text
        if len(text) != 1 or text in '"\r\n':
            _refuse(
                f"{text!r} is not one character that can separate values",
                "write one character, such as ';', or tab",
            )
        return text

    @field_validator("column_names")
    @classmethod
    def _check_column_names(cls, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for name in names or ():
            if not name or (names or ()).count(name) > 1:
                _refuse(
                    f"the name {name!r} is empty or occurs twice", "give each column its own name"
                )
        return names

    @property
    def file_format(self) -> str | None:
        """The name of the file format, if `format` is one."""
        return self.format if self.format in FILE_FORMAT_NAMES else None

    @property
    def row_format(self) -> str | None:
        """The name of the row format, if `format` is one."""
        return self.format if self.format in ROW_FORMAT_NAMES else None

    @property
    def file_options(self) -> dict[str, object]:
        """The options that are set, by name."""
        values = {name: getattr(self, name) for name in FileOptions.model_fields}
        return {name: value for name, value in values.items() if value is not None}


def _refuse(problem: str, fix: str) -> None:
    raise_config_faults([ConfigFault(problem=problem, fix=fix)])
