"""Reads docstrings of installed packages as clean paragraphs, with `ast` and without import."""

import ast
import hashlib
import inspect
import re
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import util
from pathlib import Path

from dtl.core.errors import DtlError

DOCUMENTING_CALL = re.compile(r"doc", re.IGNORECASE)  # add_docstr(...), add_newdoc(...)
PROMPT = re.compile(r"^\s*(>>>|\.\.\. |In \[\d+\]:)")
FENCED = re.compile(r"^\s*```.*?^\s*```\s*$", re.MULTILINE | re.DOTALL)
POINTER = re.compile(r"\s*(\.\. \[|(references|see also):?\s*\n)", re.IGNORECASE)
UNDERLINE = re.compile(r"^\s*([-=~^*#`_]{3,}|[+|].*[+|])\s*$")
WORD = re.compile(r"[A-Za-z]{2,}")
PLAIN_WORD = re.compile(r"\b[a-z]{2,}\b")
ENTRY_START = re.compile(r"(?<=\n)(?=\S)")
SENTENCE_END = re.compile(r"(?<=[.!?:;] )(?=\S)")
TO_ASCII = {  # quotes, dashes, ellipsis, no-break space
    0x201C: '"',
    0x201D: '"',
    0x2018: "'",
    0x2019: "'",
    0x2013: "-",
    0x2014: "-",
    0x2026: "...",
    0x00A0: " ",
}
EXCLUDED_FOLDERS = ("tests", "test", "testing", "site-packages", "dist-packages")


@dataclass(frozen=True)
class Docstring:
    """A docstring: its raw text and its file, relative to the folder of its package."""

    file: str
    text: str


def package_folder(name: str) -> Path:
    """Return the folder of an installed package. Raises DtlError if it is not installed."""
    spec = util.find_spec(name)
    if spec is None or spec.origin is None:
        raise DtlError.of(f"package {name}", "is not installed", f"run pip install {name}")
    return Path(spec.origin).parent


def standard_library() -> Path:
    """Return the folder of Python's standard library."""
    return Path(sysconfig.get_paths()["stdlib"])


def iterate_docstrings(
    folder: Path, *, name: str, exclude: Iterable[str] = ()
) -> Iterator[Docstring]:
    """Yield every docstring below `folder`, ordered by file and line. `exclude`: folder names."""
    for path in _iterate_source_files(folder, exclude=exclude):
        code = path.read_bytes()
        if b'"""' not in code:
            continue
        for text in _iterate_docstring_texts(code):
            yield Docstring(f"{name}/{path.relative_to(folder).as_posix()}", text)


def _iterate_source_files(folder: Path, *, exclude: Iterable[str]) -> Iterator[Path]:
    excluded = {*EXCLUDED_FOLDERS, *exclude}
    for path in sorted(folder.rglob("*.py"), key=lambda path: path.as_posix()):
        parts = path.relative_to(folder).parts
        if excluded.isdisjoint(parts) and not parts[-1].startswith("test_"):
            yield path


def _iterate_docstring_texts(code: bytes) -> Iterator[str]:
    """Yield the docstrings of a module, its classes and their methods; not of nested functions."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escape sequences
        try:
            tree = ast.parse(code)
        except (SyntaxError, ValueError):  # templates, and files for other Python versions
            return
    stack: list[ast.AST] = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node, clean=False)
            if text:
                yield text
            stack.extend(reversed(node.body))
        elif isinstance(node, ast.If | ast.Try):
            stack.extend(reversed(node.body))
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            yield from _iterate_call_docstrings(node.value)


def _iterate_call_docstrings(call: ast.Call) -> Iterator[str]:
    """Yield the texts of calls that set a docstring, which compiled modules use."""
    if not DOCUMENTING_CALL.search(ast.unparse(call.func)):
        return
    for part in ast.walk(call):
        if isinstance(part, ast.Constant) and isinstance(part.value, str) and "\n" in part.value:
            yield part.value


def extract_paragraphs(text: str) -> list[str]:
    """Return the prose paragraphs of a docstring, without examples, code, tables and references."""
    text = FENCED.sub("\n", inspect.cleandoc(text.translate(TO_ASCII)))
    blocks = (
        "\n".join(line.rstrip() for line in block.strip("\n").splitlines())
        for block in re.split(r"\n\s*\n", text)
    )
    return [block for block in blocks if _is_prose(block)]


def _is_prose(block: str) -> bool:
    lines = block.splitlines()
    if POINTER.match(block) or any(PROMPT.match(line) for line in lines) or not block.isascii():
        return False
    body = "\n".join(line for line in lines if not UNDERLINE.match(line))
    plain = sum(character.isalpha() or character.isspace() for character in body)
    return len(WORD.findall(body)) >= 4 and plain >= 0.75 * len(body)


def fingerprint(text: str) -> bytes:
    """Return a hash that is equal for texts that differ only in names, numbers and punctuation."""
    return hashlib.sha256(" ".join(PLAIN_WORD.findall(text)).encode()).digest()[:16]


def hash_to_unit_interval(name: str) -> float:
    """Return a number in [0, 1) that depends only on the text. It splits and orders the rows."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64


def pack_paragraphs(blocks: Iterable[str], *, max_characters: int) -> Iterator[str]:
    """Yield texts of at most `max_characters` characters, joined from consecutive paragraphs."""
    pending: list[str] = []
    for block in blocks:
        for part in _split_paragraph(block, max_characters=max_characters):
            if pending and sum(map(len, pending)) + 2 * len(pending) + len(part) > max_characters:
                yield _join_paragraphs(pending)
                pending = []
            pending.append(part)
    if pending:
        yield _join_paragraphs(pending)


def _join_paragraphs(parts: list[str]) -> str:
    return inspect.cleandoc("\n\n".join(parts))


def _split_paragraph(block: str, *, max_characters: int) -> Iterator[str]:
    """Yield a paragraph, split if it is too long: at entries, else lines, else sentences.

    The end of a sentence that is too long is dropped.
    """
    pending = ""
    for part in _smallest_segments(block, max_characters=max_characters):
        if pending.strip() and len(pending) + len(part) > max_characters:
            yield pending.rstrip()
            pending = ""
        pending += part
    if pending.strip():
        yield pending.rstrip()


def _smallest_segments(block: str, *, max_characters: int) -> Iterator[str]:
    for entry in ENTRY_START.split(block):
        for line in entry.splitlines(keepends=True) if len(entry) > max_characters else [entry]:
            for part in SENTENCE_END.split(line) if len(line) > max_characters else [line]:
                yield part[:max_characters]
