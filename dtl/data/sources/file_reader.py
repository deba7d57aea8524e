"""The base of all readers of data files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from dtl.config.schema.data_files import FileOptions
from dtl.core.errors import DtlError, Fault
from dtl.data.sources.data_file import DECOMPRESSION_ERRORS, DataFile, corrupted_file_fault
from dtl.data.sources.results import (
    FileFault,
    PositionedResults,
    ReadResult,
    RowPosition,
    os_error_fault,
)
from dtl.data.sources.text_encoding import (
    LATIN1,
    LATIN1_CONTROLS,
    SAMPLE_BYTES,
    TextEncoding,
    find_encoding,
    find_wrong_decoding,
    is_multibyte_utf8,
    iter_lines,
)


@dataclass(frozen=True)
class FileReader(ABC):
    """Reads the rows of one file. `options`: what the config sets; the rest is detected."""

    file: DataFile
    options: FileOptions

    # The format in words, and the file options that have a meaning for it.
    label: ClassVar[str]
    option_names: ClassVar[frozenset[str]] = frozenset()

    @abstractmethod
    def read_positioned(self) -> PositionedResults:
        """Yield each row with its position, without handling errors of the file system."""

    @abstractmethod
    def read_at(self, position: RowPosition) -> ReadResult:
        """Return the row at a position."""

    @abstractmethod
    def describe(self) -> Iterator[str]:
        """Yield what was detected in the file, in words; not the format."""

    def find_suspicions(self, location: str) -> Iterable[Fault]:
        """Return what may be wrong about how the file is read. `location`: the config key."""
        return ()

    def find_hint(self) -> str | None:
        """Return what to do if the columns of the first row are not those of the task, or None."""
        return None

    def find_streaming_fault(self, location: str) -> Fault | None:
        """Return why single rows cannot be read, or None. `location`: the config key."""
        if self.file.compression is None:
            return None
        return Fault(
            f"{location}.streaming",
            f"{self.file.display_name} is compressed, and single rows of it cannot be read",
            "unpack it, or remove streaming",
        )

    def iter_positioned(self) -> PositionedResults:
        """Yield each row with its position; the last result may be the fault of the file."""
        try:
            yield from self.read_positioned()
        except DECOMPRESSION_ERRORS as error:
            yield RowPosition(0, 0), self._corrupted(error)
        except OSError as error:
            is_corrupted = self.file.compression is not None and error.errno is None
            fault = (
                self._corrupted(error)
                if is_corrupted
                else os_error_fault(self.file.display_name, error)
            )
            yield RowPosition(0, 0), fault

    def _corrupted(self, error: Exception) -> FileFault:
        return corrupted_file_fault(self.file.display_name, self.file.compression, error)

    def iter_rows(self) -> Iterator[ReadResult]:
        """Yield each row."""
        return (result for _, result in self.iter_positioned())


class TextFileReader(FileReader):
    """Reads a text file."""

    @cached_property
    def sample(self) -> bytes:
        """The first bytes of the file; empty if it cannot be read, which the reading reports."""
        try:
            return self.file.read_sample(SAMPLE_BYTES)
        except (OSError, *DECOMPRESSION_ERRORS):
            return b""

    @cached_property
    def encoding(self) -> TextEncoding:
        """The encoding of the file."""
        return find_encoding(self.sample, named=self.options.encoding)

    @cached_property
    def sample_text(self) -> str:
        """The first characters of the file, with escapes for bytes that cannot be decoded."""
        encoding = self.encoding
        return self.sample[encoding.mark_bytes :].decode(encoding.codec, "replace")

    def iter_lines(self, start: int | None = None) -> Iterator[tuple[int, bytes]]:
        """Yield each line with its offset. `start`: the offset of the first one."""
        offset = self.encoding.mark_bytes if start is None else start
        with self.file.open(offset) as stream:
            for line in iter_lines(stream, self.encoding):
                yield offset, line
                offset += len(line)

    def describe(self) -> Iterator[str]:
        """Yield encoding and compression."""
        if (encoding := self.encoding.describe()) is not None:
            yield encoding
        if self.file.compression is not None:
            yield self.file.compression

    def find_suspicions(self, location: str) -> Iterator[Fault]:
        """Yield the guess of the encoding, and signs of a wrong one."""
        name, encoding = self.file.display_name, self.encoding
        if encoding.origin == "guessed":
            yield Fault(
                name,
                f"the file is not UTF-8 and is read as {encoding.name}, which is a guess",
                f"set {location}.encoding={encoding.codec}, or the right encoding",
            )
        elif encoding.origin == "set" and is_multibyte_utf8(self.sample, encoding):
            yield Fault(
                name,
                f"the file is read as {encoding.name}, but it is valid UTF-8",
                f"remove {location}.encoding",
            )
        elif encoding.codec in LATIN1 and LATIN1_CONTROLS.search(
            encoding.decode_valid(self.sample)
        ):
            yield Fault(
                name,
                f"the file is read as {encoding.name}, but has bytes that are quotation marks or "
                "dashes in cp1252, and control characters in Latin-1",
                f"set {location}.encoding=cp1252",
            )
        elif (sign := find_wrong_decoding(encoding.decode_valid(self.sample))) is not None:
            yield Fault(
                name,
                f"the file has {sign}, as of a text that was once decoded wrongly",
                "write the file again from its source",
            )

    def blocks(self, start: RowPosition | None = None) -> Iterator[tuple[RowPosition, list[bytes]]]:
        """Yield the lines between blank lines, with the position of the first one."""
        block: list[bytes] = []
        position = RowPosition(0, 0)
        number = 1 if start is None else start.number
        for offset, line in self.iter_lines(None if start is None else start.offset):
            if not self.encoding.is_blank(line):
                if not block:
                    position = RowPosition(offset, number)
                block.append(line)
            elif block:
                yield position, block
                block = []
            number += 1
        if block:
            yield position, block


def check_options(reader: FileReader, location: str) -> None:
    """Raise DtlError for options that have no meaning for the format of the file."""
    names = [
        name
        for name in reader.options.file_options
        if name != "format" and name not in reader.option_names
    ]
    if names:
        raise DtlError(
            *(
                Fault(
                    f"{location}.{name}",
                    f"{reader.file.display_name} is {reader.label}, which has no such option",
                    "remove the key, or set it at the source that needs it",
                )
                for name in names
            )
        )


ReaderFactory = Callable[[DataFile, FileOptions], FileReader]
