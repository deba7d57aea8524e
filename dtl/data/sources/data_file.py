"""One file of a data source, which may be compressed or be a member of a ZIP archive."""

from __future__ import annotations

import io
import lzma
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, cast
from zipfile import BadZipFile, ZipFile, is_zipfile

from dtl.core.errors import DtlError
from dtl.data.sources.naming import format_names
from dtl.data.sources.results import FileFault, first_error_line

# The suffix and the first bytes of each compression.
COMPRESSION_SUFFIXES = {
    ".gz": "gzip",
    ".zst": "zstd",
    ".xz": "xz",
    ".bz2": "bz2",
    ".zip": "zip",
}
MAGIC = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\xfd7zXZ\x00": "xz",
    b"BZh": "bz2",
    b"PK\x03\x04": "zip",
}
# Formats of other programs, whose files are ZIP archives.
ZIP_CONTAINERS = frozenset({".pt", ".pth", ".bin", ".ckpt", ".npz", ".xlsx", ".ods", ".docx"})
# What a stream of corrupted compressed data raises.
DECOMPRESSION_ERRORS = (EOFError, lzma.LZMAError, zlib.error, BadZipFile, NotImplementedError)


@dataclass(frozen=True)
class DataFile:
    """A file with rows.

    `display_name`: the start of each row's location. `compression`: gzip, zstd, xz, bz2, zip or
    None. `member`: the name inside the ZIP archive.
    """

    path: Path
    display_name: str
    compression: str | None = None
    member: str | None = None

    @property
    def suffix(self) -> str:
        """The suffix that names the format, in lower case, such as .csv of rows.csv.gz."""
        return data_suffix(Path(self.member or self.path.name))

    def open(self, offset: int = 0) -> BinaryIO:
        """Open the decompressed bytes from an offset."""
        stream = self._open()
        if offset:
            stream.seek(offset)
        return stream

    def _open(self) -> BinaryIO:
        if self.compression is None:
            return self.path.open("rb")
        if self.compression == "zip":
            archive = ZipFile(self.path)
            return cast(BinaryIO, archive.open(str(self.member)))
        return cast(BinaryIO, _DECOMPRESSORS[self.compression](self.path))

    def read_sample(self, size: int) -> bytes:
        """Return up to `size` bytes from the start; less only where the file ends before."""
        with self.open() as stream:
            return stream.read(size)


def data_suffix(path: Path) -> str:
    """Return the suffix of a file name without that of a compression, in lower case."""
    if path.suffix.lower() in COMPRESSION_SUFFIXES:
        path = path.with_suffix("")
    return path.suffix.lower()


def open_data_files(path: Path, display_name: str, *, suffixes: frozenset[str]) -> list[DataFile]:
    """Return the data files in a file: itself, or the members of a ZIP archive with `suffixes`.

    Raises DtlError for an archive without data files.
    """
    if path.suffix.lower() in ZIP_CONTAINERS:
        return [DataFile(path, display_name)]
    compression = detect_compression(path)
    if compression != "zip":
        return [DataFile(path, display_name, compression)]
    try:
        with ZipFile(path) as archive:
            names = [entry.filename for entry in archive.infolist() if not entry.is_dir()]
            is_encrypted = any(entry.flag_bits & 1 for entry in archive.infolist())
    except BadZipFile as error:
        raise DtlError(corrupted_file_fault(display_name, "zip", error)) from error
    if is_encrypted:
        raise DtlError.of(display_name, "the archive is encrypted", "unpack it")
    visible = [name for name in sorted(names) if not _is_hidden(name)]
    members = [name for name in visible if data_suffix(Path(name)) in suffixes]
    members = members or visible[: len(visible) == 1]
    if not members:
        raise DtlError.of(
            display_name,
            "the archive has no data files",
            f"use an archive with {', '.join(sorted(suffixes))} files (this one has "
            f"{format_names(visible)})",
        )
    alone = len(members) == 1
    return [
        DataFile(path, display_name if alone else f"{display_name}/{name}", "zip", name)
        for name in members
    ]


def detect_compression(path: Path) -> str | None:
    """Return the compression of a file by its first bytes, or None."""
    try:
        with path.open("rb") as file:
            start = file.read(8)
    except OSError:
        return None  # the reader reports the fault
    compression = next((name for magic, name in MAGIC.items() if start.startswith(magic)), None)
    return None if compression == "zip" and not is_zipfile(path) else compression


def _is_hidden(name: str) -> bool:
    return any(step.startswith((".", "__MACOSX")) for step in Path(name).parts)


def corrupted_file_fault(display_name: str, compression: str | None, error: Exception) -> FileFault:
    """Return the fault of a file that cannot be decompressed."""
    return FileFault(
        display_name,
        f"the file cannot be decompressed as {compression} ({first_error_line(error)})",
        "compress or download the file again",
    )


def _open_gzip(path: Path) -> IO[bytes]:
    import gzip

    return cast(IO[bytes], gzip.open(path))


def _open_bz2(path: Path) -> IO[bytes]:
    import bz2

    return bz2.open(path)


def _open_zstd(path: Path) -> IO[bytes]:
    import pyarrow as pa

    return io.BufferedReader(pa.input_stream(str(path), compression="zstd"))


_DECOMPRESSORS: dict[str, Callable[[Path], Any]] = {
    "gzip": _open_gzip,
    "bz2": _open_bz2,
    "xz": lzma.open,
    "zstd": _open_zstd,
}
