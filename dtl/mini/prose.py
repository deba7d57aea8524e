"""The source of `mini:text`: Python's own documentation, docstrings, and unlabelled reviews.

Left out: everything of networkx, which is the target, and everything that speaks of it.
"""

import ast
from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter
from typing import Any

from dtl.mini import docstrings, graphs, sentiment

PACKAGES = (  # what dtl always installs, itself or through its dependencies
    "accelerate",
    "datasets",
    "deepspeed",
    "fsspec",
    "huggingface_hub",
    "jinja2",
    "mpmath",
    "numpy",
    "pandas",
    "peft",
    "pyarrow",
    "pydantic",
    "rich",
    "sympy",
    "torch",
    "transformers",
)
LEFT_OUT = {
    "python": ("ensurepip", "idlelib", "lib2to3", "pydoc_data"),
    "transformers": ("models",),  # the same sentences once a model
}
LONGEST, SHORTEST = 600, 80  # characters of a row; about 4 a token
HELDOUT_ROWS, HELDOUT_REVIEWS = 400, 50
HELDOUT_SHARE = 0.02  # of the files


def make() -> dict[str, list[dict[str, Any]]]:
    """The rows of each split, mixed: any first part of them is a fair sample."""
    train: list[str] = []
    heldout: list[str] = []
    for file, text in _texts():
        (heldout if docstrings.share_of(file) < HELDOUT_SHARE else train).append(text)
    reviews = [row["text"] for row in sentiment.make()["unlabelled"]]
    unseen = set(heldout) - set(train)
    heldout = sorted(unseen, key=docstrings.share_of)[:HELDOUT_ROWS]
    return {
        "train": _mixed(train + reviews[HELDOUT_REVIEWS:]),
        "heldout": _mixed(heldout + reviews[:HELDOUT_REVIEWS]),
    }


def _mixed(texts: list[str]) -> list[dict[str, Any]]:
    return [{"text": text} for text in sorted(texts, key=docstrings.share_of)]


def _texts() -> Iterator[tuple[str, str]]:
    """(file, text) of every row; short docstrings of one file share a row."""
    for file, blocks in groupby(_blocks(), key=itemgetter(0)):
        for text in docstrings.pieces((block for _, block in blocks), longest=LONGEST):
            if len(text) >= SHORTEST:
                yield file, text


def _blocks() -> Iterator[tuple[str, str]]:
    """(file, paragraph); one that came before with other names in it is left out."""
    seen: set[bytes] = set()
    for docstring in _documents():
        for block in docstrings.paragraphs(docstring.text):
            mark = docstrings.fingerprint(block)
            if mark not in seen and graphs.PACKAGE not in block.lower():
                seen.add(mark)
                yield docstring.file, block


def _documents() -> Iterator[docstrings.Docstring]:
    yield from _topics()
    folders = {"python": docstrings.standard_library()}
    folders |= {package: docstrings.package_folder(package) for package in PACKAGES}
    for name, folder in folders.items():
        yield from docstrings.docstrings(folder, name=name, leave_out=LEFT_OUT.get(name, ()))


def _topics() -> Iterator[docstrings.Docstring]:
    """The language reference as `help()` shows it: the topics of `pydoc_data`."""
    path = docstrings.standard_library() / "pydoc_data" / "topics.py"
    for statement in ast.parse(path.read_bytes()).body:
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Dict):
            for topic, text in ast.literal_eval(statement.value).items():
                yield docstrings.Docstring(f"topics/{topic}", text)
