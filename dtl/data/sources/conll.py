"""Reads CoNLL files: one word with its tags per line, blank lines between sentences."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cached_property

from dtl.core.errors import Fault
from dtl.data.sources.file_reader import TextFileReader
from dtl.data.sources.naming import format_names
from dtl.data.sources.results import FileFault, PositionedResults, ReadResult, RowPosition

WORDS, TAGS = "tokens", "tags"
DOCUMENT_START = "-DOCSTART-"
CONLLU_COLUMNS = ("id", WORDS, "lemma", TAGS, "xpos", "feats", "head", "deprel", "deps", "misc")
CONLLU_OTHER_ID = re.compile(r"\d+[-.]\d+")  # of a token of several words, or of an empty node
ENTITY_TAG = re.compile(r"O|[BIESLUM]-\S+")
MIN_TAG_LINES = 3


class ConllReader(TextFileReader):
    """Reads sentences, each with the columns `tokens` and `tags`, which are lists.

    The first value of a line is the word and the last one its tag, unless data.column_names names
    the columns. A CoNLL-U file has the universal part of speech as the tag.
    """

    label = "CoNLL"
    option_names = frozenset({"encoding", "column_names"})

    def read_positioned(self) -> PositionedResults:
        for position, lines in self.blocks():
            if (result := self._parse(lines, position)) is not None:
                yield position, result
                if isinstance(result, FileFault):
                    return

    def read_at(self, position: RowPosition) -> ReadResult:
        result = next(
            (self._parse(lines, at) for at, lines in self.blocks(position)),
            None,
        )
        location = f"{self.file.display_name}:{position.number}"
        return result or Fault(location, "there is no sentence", "restore the original file")

    def describe(self) -> Iterator[str]:
        if WORDS in self.names:
            yield f"{len(self.names)} columns, `{WORDS}` is number {self.names.index(WORDS) + 1}"
        yield from super().describe()

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The names of the columns; of those that are not named, their number from 1."""
        first = next(
            (
                values
                for line in self.sample_text.splitlines()
                if (values := split_conll_line(line)) is not None
            ),
            [WORDS, TAGS],
        )
        if self.options.column_names is not None:
            return self.options.column_names
        if len(first) == len(CONLLU_COLUMNS) and first[0].partition("-")[0].isdigit():
            return CONLLU_COLUMNS
        inner = [f"column_{number}" for number in range(2, len(first))]
        return (WORDS, *inner, TAGS)

    def _parse(self, lines: Sequence[bytes], position: RowPosition) -> ReadResult | None:
        """Return the sentence of some lines, or its fault; None for lines without words."""
        rows = []
        location = f"{self.file.display_name}:{position.number}"
        if WORDS not in self.names:
            return FileFault(
                "data.column_names",
                f"no column is named '{WORDS}' (named are {format_names(self.names)})",
                f"name the column of words '{WORDS}' and that of tags '{TAGS}'",
            )
        for number, line in enumerate(lines, start=position.number):
            try:
                values = split_conll_line(self.encoding.decode(line))
            except UnicodeDecodeError as error:
                return Fault(location, self.encoding.describe_error(error), self.encoding.fix)
            if values is None:
                continue
            if len(values) != len(self.names):
                return Fault(
                    f"{self.file.display_name}:{number}",
                    f"{len(values)} values for {len(self.names)} columns",
                    "give each word all columns, or name them in data.column_names",
                )
            rows.append(values)
        if not rows:
            return None
        columns = map(list, zip(*rows, strict=True))
        return location, dict(zip(self.names, columns, strict=True))


def split_conll_line(line: str) -> list[str] | None:
    """Return the values of a line; None for a comment, a document start, or no word."""
    line = line.strip("\r\n")
    values = line.split("\t") if "\t" in line else line.split()
    if not values or not line.strip() or values[0] == DOCUMENT_START:
        return None
    is_comment = line.startswith("# ") and ENTITY_TAG.fullmatch(values[-1]) is None
    is_conllu = len(values) == len(CONLLU_COLUMNS)
    is_other = is_conllu and CONLLU_OTHER_ID.fullmatch(values[0]) is not None
    return None if is_comment or is_other else values


def looks_like_conll(text: str, *, is_complete: bool) -> bool:
    """Return whether a plain text file has a word and an entity tag in each line."""
    lines = text.splitlines()
    rows = [split_conll_line(line) for line in (lines if is_complete else lines[:-1])]
    values = [row for row in rows if row is not None]
    return (
        len(values) >= MIN_TAG_LINES
        and len({len(row) for row in values}) == 1
        and len(values[0]) > 1
        and all(ENTITY_TAG.fullmatch(row[-1]) for row in values)
    )
