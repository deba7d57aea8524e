"""Reads plain text files: each line, paragraph or document is the column `text` of a row."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dtl.core.errors import Fault
from dtl.data.sources.file_reader import TextFileReader
from dtl.data.sources.results import PositionedResults, ReadResult, RowPosition

LINE_ENDS = "\r\n"


class PlainTextReader(TextFileReader):
    """Reads plain text; rows without characters besides whitespace are left out."""

    label = "plain text"
    option_names = frozenset({"encoding", "sample_by"})

    def read_positioned(self) -> PositionedResults:
        yield from self._read(None)

    def read_at(self, position: RowPosition) -> ReadResult:
        return next(self._read(position))[1]

    def describe(self) -> Iterator[str]:
        yield f"one row per {self._unit}"
        yield from super().describe()

    @property
    def _unit(self) -> str:
        return self.options.sample_by or "line"

    def _read(self, start: RowPosition | None) -> PositionedResults:
        for position, lines in getattr(self, f"_iter_{self._unit}s")(start):
            yield position, self._parse(b"".join(lines), position)

    def _iter_lines(self, start: RowPosition | None) -> Iterator[tuple[RowPosition, list[bytes]]]:
        first = None if start is None else start.offset
        number = 1 if start is None else start.number
        for offset, line in self.iter_lines(first):
            if not self.encoding.is_blank(line):
                yield RowPosition(offset, number), [line]
            number += 1

    def _iter_paragraphs(self, start: RowPosition | None) -> Any:
        return self.blocks(start)

    def _iter_documents(
        self, start: RowPosition | None
    ) -> Iterator[tuple[RowPosition, list[bytes]]]:
        lines = [line for _, line in self.iter_lines()]
        if not all(map(self.encoding.is_blank, lines)):
            yield RowPosition(self.encoding.mark_bytes, 1), lines

    def _parse(self, content: bytes, position: RowPosition) -> ReadResult:
        location = f"{self.file.display_name}:{position.number}"
        try:
            text = self.encoding.decode(content)
        except UnicodeDecodeError as error:
            return Fault(location, self.encoding.describe_error(error), self.encoding.fix)
        return location, {"text": text.rstrip(LINE_ENDS).replace("\r\n", "\n")}
