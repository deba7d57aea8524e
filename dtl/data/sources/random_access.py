"""Random access to the rows of one local file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dtl.core.errors import DtlError
from dtl.data.sources.file_reader import FileReader
from dtl.data.sources.results import (
    FileFault,
    PositionedResults,
    ReadResult,
    RowPosition,
    first_error_line,
    os_error_fault,
)
from dtl.data.sources.table_cache import FileVersion

RESTORE_FIX = "restore the original file, and resume"


@dataclass(frozen=True)
class RandomAccessReader:
    """Reads single rows of one version of a file."""

    reader: FileReader
    version: FileVersion

    @property
    def display_name(self) -> str:
        """The start of each location."""
        return self.reader.file.display_name

    def iter_rows(self) -> PositionedResults:
        """Iterate over the rows in order, each with its position."""
        return self.reader.iter_positioned()

    def read_row(self, position: RowPosition) -> ReadResult:
        """Return the row at a position, or a fault if the file has changed or cannot be read."""
        try:
            if FileVersion.from_path(self.version.path) != self.version:
                return FileFault(
                    self.display_name,
                    "the file has changed since the run was started",
                    RESTORE_FIX,
                )
            return self.reader.read_at(position)
        except OSError as error:
            return os_error_fault(self.display_name, error)
        except (ValueError, LookupError) as error:  # of pyarrow
            problem = f"the row cannot be read ({first_error_line(error)})"
            return FileFault(self.display_name, problem, RESTORE_FIX)


def open_random_access_readers(
    readers: Sequence[FileReader], *, location: str
) -> tuple[RandomAccessReader, ...]:
    """Return random access to each file. `location`: the config key that names them. Raises
    DtlError if the rows of a file cannot be read singly."""
    for reader in readers:
        if (fault := reader.find_streaming_fault(location)) is not None:
            raise DtlError(fault)
    return tuple(
        RandomAccessReader(reader, FileVersion.from_path(reader.file.path)) for reader in readers
    )
