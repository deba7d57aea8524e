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
EXCLUDED_FOLDERS = {
    "python": ("ensurepip", "idlelib", "lib2to3", "pydoc_data"),
    "transformers": ("models",),  # the same sentences once a model
}
MAX_CHARACTERS, MIN_CHARACTERS = 600, 80  # characters of a row; about 4 a token
HELDOUT_ROWS, HELDOUT_REVIEWS = 400, 50
HELDOUT_SHARE = 0.02  # of the files


def generate() -> dict[str, list[dict[str, Any]]]:
    """The rows of each split, mixed: any first part of them is a fair sample."""
    train: list[str] = []
    heldout: list[str] = []
    for file, text in _iterate_texts():
        (heldout if docstrings.hash_to_unit_interval(file) < HELDOUT_SHARE else train).append(text)
    reviews = [row["text"] for row in sentiment.generate()["unlabelled"]]
    unseen = set(heldout) - set(train)
    heldout = sorted(unseen, key=docstrings.hash_to_unit_interval)[:HELDOUT_ROWS]
    return {
        "train": _shuffle_texts(train + reviews[HELDOUT_REVIEWS:]),
        "heldout": _shuffle_texts(heldout + reviews[:HELDOUT_REVIEWS]),
    }


def _shuffle_texts(texts: list[str]) -> list[dict[str, Any]]:
    return [{"text": text} for text in sorted(texts, key=docstrings.hash_to_unit_interval)]


def _iterate_texts() -> Iterator[tuple[str, str]]:
    """(file, text) of every row; short docstrings of one file share a row."""
    for file, blocks in groupby(_iterate_paragraphs(), key=itemgetter(0)):
        for text in docstrings.pack_paragraphs(
            (block for _, block in blocks), max_characters=MAX_CHARACTERS
        ):
            if len(text) >= MIN_CHARACTERS:
                yield file, text


def _iterate_paragraphs() -> Iterator[tuple[str, str]]:
    """(file, paragraph); one that came before with other names in it is left out."""
    seen: set[bytes] = set()
    for docstring in _iterate_docstrings():
        for block in docstrings.extract_paragraphs(docstring.text):
            mark = docstrings.fingerprint(block)
            if mark not in seen and graphs.PACKAGE not in block.lower():
                seen.add(mark)
                yield docstring.file, block


def _iterate_docstrings() -> Iterator[docstrings.Docstring]:
    yield from _iterate_topics()
    folders = {"python": docstrings.standard_library()}
    folders |= {package: docstrings.package_folder(package) for package in PACKAGES}
    for name, folder in folders.items():
        yield from docstrings.iterate_docstrings(
            folder, name=name, exclude=EXCLUDED_FOLDERS.get(name, ())
        )


def _iterate_topics() -> Iterator[docstrings.Docstring]:
    """The language reference as `help()` shows it: the topics of `pydoc_data`."""
    path = docstrings.standard_library() / "pydoc_data" / "topics.py"
    for statement in ast.parse(path.read_bytes()).body:
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Dict):
            for topic, text in ast.literal_eval(statement.value).items():
                yield docstrings.Docstring(f"topics/{topic}", text)
