"""Generates mini:prose: Python's documentation, docstrings, unlabeled reviews; source of mini:text.

Excluded: networkx, which is the target, and every paragraph that mentions it.
"""

import ast
from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter
from typing import Any

from dtl.mini import docstrings, graphs, sentiment

PACKAGES = (  # dependencies of dtl, direct and indirect
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
    "transformers": ("models",),  # repeats the same sentences for each model
}
MAX_CHARACTERS, MIN_CHARACTERS = 600, 80  # of a row; about 4 per token
HELDOUT_ROWS, HELDOUT_REVIEWS = 400, 50
HELDOUT_SHARE = 0.02  # of the files


def generate() -> dict[str, list[dict[str, Any]]]:
    """Return the rows of each split in a random order, so that the first rows are a sample."""
    train: list[str] = []
    heldout: list[str] = []
    for file, text in _iterate_texts():
        (heldout if docstrings.hash_to_unit_interval(file) < HELDOUT_SHARE else train).append(text)
    reviews = [row["text"] for row in sentiment.generate()["unlabeled"]]
    new_texts = set(heldout) - set(train)
    heldout = sorted(new_texts, key=docstrings.hash_to_unit_interval)[:HELDOUT_ROWS]
    return {
        "train": _shuffle_texts(train + reviews[HELDOUT_REVIEWS:]),
        "heldout": _shuffle_texts(heldout + reviews[:HELDOUT_REVIEWS]),
    }


def _shuffle_texts(texts: list[str]) -> list[dict[str, Any]]:
    return [{"text": text} for text in sorted(texts, key=docstrings.hash_to_unit_interval)]


def _iterate_texts() -> Iterator[tuple[str, str]]:
    """Yield (file, text) of every row; short docstrings of one file share a row."""
    for file, blocks in groupby(_iterate_paragraphs(), key=itemgetter(0)):
        for text in docstrings.pack_paragraphs(
            (block for _, block in blocks), max_characters=MAX_CHARACTERS
        ):
            if len(text) >= MIN_CHARACTERS:
                yield file, text


def _iterate_paragraphs() -> Iterator[tuple[str, str]]:
    """Yield (file, paragraph) without paragraphs that differ from an earlier one only in names."""
    seen: set[bytes] = set()
    for docstring in _iterate_docstrings():
        for block in docstrings.extract_paragraphs(docstring.text):
            key = docstrings.fingerprint(block)
            if key not in seen and graphs.PACKAGE not in block.lower():
                seen.add(key)
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
    """Yield the topics of `pydoc_data`, which `help()` shows."""
    path = docstrings.standard_library() / "pydoc_data" / "topics.py"
    for statement in ast.parse(path.read_bytes()).body:
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Dict):
            for topic, text in ast.literal_eval(statement.value).items():
                yield docstrings.Docstring(f"topics/{topic}", text)
