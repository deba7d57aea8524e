"""The encoding of text files: from the config, from a byte order mark, or guessed; their lines."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import BinaryIO, Literal

SAMPLE_BYTES = 2**20  # of a file, from which encoding and dialect are detected
CHUNK_BYTES = 2**16
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
# The codec of these decides the order of the bytes by the mark, which only the first line has.
ORDERED = {"utf-16": "utf-16-le", "utf-32": "utf-32-le", "utf-8-sig": "utf-8"}
MIN_ZERO_FRACTION = 0.3  # of the high or low bytes of UTF-16 text without a mark
# Bytes that cp1252 does not define.
UNDEFINED_CP1252 = re.compile(rb"[\x81\x8d\x8f\x90\x9d]")
WORDS_WITH_HIGH_BYTES = re.compile(rb"[A-Za-z]*[\xc0-\xff][A-Za-z\xc0-\xff]*")
MIN_ASCII_FRACTION = 0.5  # of the characters of words with high bytes, as in café
# UTF-8 of accented characters or quotation marks, decoded as cp1252.
UTF8_AS_CP1252 = re.compile(
    "\u00c3[\u0080-\u00bf\u0152\u0153\u0178\u02c6\u2013-\u2122]|\u00e2\u20ac."
)
MIN_WRONG_CHARACTERS = 2
# Quotation marks and dashes of cp1252 in a text that was read as Latin-1.
LATIN1 = ("latin-1", "iso8859-1")
LATIN1_CONTROLS = re.compile("[\u0080-\u0084\u0086-\u009f]")
HIGH_BYTES = re.compile(rb"[\x80-\xff]")
MULTIBYTE_UTF8 = re.compile(rb"[\xc2-\xf4][\x80-\xbf]")


@dataclass(frozen=True)
class TextEncoding:
    """How the bytes of a text file are decoded.

    `codec`: the Python codec of a line. `mark_bytes`: the length of the byte order mark.
    `origin`: set in the config, the default UTF-8, seen from a mark or zero bytes, or guessed.
    """

    codec: str
    mark_bytes: int = 0
    origin: Literal["set", "default", "detected", "guessed"] = "default"

    @cached_property
    def newline(self) -> bytes:
        """The bytes that end a line."""
        return "\n".encode(self.codec)

    @property
    def name(self) -> str:
        """The name for messages, such as UTF-8."""
        return self.codec.upper() if self.codec.startswith("utf") else self.codec

    def describe(self) -> str | None:
        """Return the encoding in words; None for plain UTF-8."""
        if self.codec == "utf-8":
            return "UTF-8 with a byte order mark" if self.mark_bytes else None
        return f"encoding {self.name}" + (", guessed" if self.origin == "guessed" else "")

    def decode(self, line: bytes) -> str:
        """Decode a line. Raises UnicodeDecodeError."""
        return line.decode(self.codec)

    def decode_valid(self, content: bytes) -> str:
        """Decode the bytes that can be decoded."""
        return content[self.mark_bytes :].decode(self.codec, "ignore")

    def encode(self, text: str, errors: str) -> bytes:
        """Return the bytes of a text."""
        return text.encode(self.codec, errors)

    def is_blank(self, line: bytes) -> bool:
        """Return whether a line has only whitespace."""
        if self.newline == b"\n":
            return not line.strip()
        return not line.decode(self.codec, "replace").strip()

    def describe_error(self, error: UnicodeDecodeError) -> str:
        """Return the problem of bytes that are not in this encoding."""
        return f"not {self.name} text (byte 0x{error.object[error.start]:02x})"

    @property
    def fix(self) -> str:
        """What to do about bytes that are not in this encoding."""
        if self.codec == "utf-8":
            return "save the file as UTF-8, or set data.encoding, such as cp1252"
        return "save the file as UTF-8, or correct data.encoding"


def find_encoding(sample: bytes, *, named: str | None) -> TextEncoding:
    """Return the encoding of a file that starts with these bytes. `named`: that of the config."""
    mark = next((mark for mark in BYTE_ORDER_MARKS if sample.startswith(mark)), None)
    if named is not None:
        codec = ORDERED.get(named, named)
        if mark is not None and _family(BYTE_ORDER_MARKS[mark]) == _family(codec):
            return TextEncoding(BYTE_ORDER_MARKS[mark], len(mark), "set")
        return TextEncoding(codec, 0, "set")
    if mark is not None:
        return TextEncoding(BYTE_ORDER_MARKS[mark], len(mark), "detected")
    if (codec_by_zeros := _find_utf16(sample)) is not None:
        return TextEncoding(codec_by_zeros, 0, "detected")
    return TextEncoding("cp1252", 0, "guessed") if _is_western(sample) else TextEncoding("utf-8")


def _family(codec: str) -> str:
    """Return the codec without its order of bytes."""
    return codec.removesuffix("-le").removesuffix("-be")


def _find_utf16(sample: bytes) -> str | None:
    """Return UTF-16 where every other byte is often zero, as of Latin characters."""
    half = len(sample) // 2
    if not half:
        return None
    even, odd = sample[0 : 2 * half : 2].count(0) / half, sample[1::2].count(0) / half
    if max(even, odd) < MIN_ZERO_FRACTION or min(even, odd) > MIN_ZERO_FRACTION / 3:
        return None
    return "utf-16-be" if even > odd else "utf-16-le"


def _is_western(sample: bytes) -> bool:
    """Return whether bytes that are not UTF-8 are text of a Western European language in cp1252.

    There, single accented characters stand in words of ASCII. Text that has valid UTF-8 beside
    invalid bytes is not guessed, nor another script.
    """
    try:
        sample.decode()
    except UnicodeDecodeError as error:
        if error.end == len(sample) == SAMPLE_BYTES or error.reason == "unexpected end of data":
            return False  # the sample ends inside a character
    else:
        return False
    if UNDEFINED_CP1252.search(sample) or MULTIBYTE_UTF8.search(sample):
        return False
    characters = b"".join(WORDS_WITH_HIGH_BYTES.findall(sample))
    accented = len(HIGH_BYTES.findall(characters))
    symbols = len(HIGH_BYTES.findall(sample)) - accented
    is_mostly_ascii = len(characters) - accented >= MIN_ASCII_FRACTION * len(characters)
    return bool(characters) and is_mostly_ascii and symbols <= accented


def is_multibyte_utf8(sample: bytes, encoding: TextEncoding) -> bool:
    """Return whether bytes that are read in another encoding are UTF-8 beyond ASCII."""
    if encoding.codec.startswith("utf") or not MULTIBYTE_UTF8.search(sample):
        return False
    try:
        sample.decode()
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data"  # the sample ends inside a character
    return True


def find_wrong_decoding(text: str) -> str | None:
    """Return the sign of UTF-8 that was decoded wrongly before it was written, or None."""
    if "\ufffd" in text:
        return "replacement characters (U+FFFD)"
    if control := LATIN1_CONTROLS.search(text):
        return f"control characters (U+{ord(control.group()):04X})"
    found = UTF8_AS_CP1252.findall(text)
    return f"{found[0]!r}" if len(found) >= MIN_WRONG_CHARACTERS else None


def iter_lines(stream: BinaryIO, encoding: TextEncoding) -> Iterator[bytes]:
    """Yield the lines of a stream as bytes, each with its newline."""
    if encoding.newline == b"\n":
        yield from stream
        return
    newline, width = encoding.newline, len(encoding.newline)
    rest = b""
    while chunk := stream.read(CHUNK_BYTES):
        start, at = 0, max(0, len(rest) - width)
        rest += chunk
        while (at := rest.find(newline, at)) >= 0:
            if at % width:  # the last byte of one character and the first of the next
                at += 1
                continue
            yield rest[start : at + width]
            start = at = at + width
        rest = rest[start:]
    if rest:
        yield rest
