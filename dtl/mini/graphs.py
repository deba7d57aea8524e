"""Generates mini:graphs: docstrings of networkx, split by file; the target of mini:text."""

from typing import Any

from dtl.mini import docstrings

PACKAGE = "networkx"
PACKAGES = (PACKAGE,)
MAX_CHARACTERS, MIN_CHARACTERS = 600, 120  # of a row; about 4 per token
HELDOUT_ROWS = 101
HELDOUT_SHARE = 0.1  # of the files
SHINGLE_WORDS = 8  # words
MAX_SHARED_SHINGLES = 0.3  # share of a held-out row's shingles that training rows may contain


def generate() -> dict[str, list[dict[str, Any]]]:
    """Return the rows of each split, in an order that mixes the areas of the package."""
    files = _files_by_text()
    train: list[str] = []
    heldout: list[str] = []
    for text in sorted(files, key=docstrings.hash_to_unit_interval):
        split = heldout if docstrings.hash_to_unit_interval(files[text]) < HELDOUT_SHARE else train
        split.append(text)
    seen = {shingle for text in train for shingle in split_shingles(text)}
    new_texts = [text for text in heldout if _seen_share(text, seen) <= MAX_SHARED_SHINGLES]
    return {
        "train": [{"text": text} for text in train],
        "heldout": [{"text": text} for text in new_texts[:HELDOUT_ROWS]],
    }


def _files_by_text() -> dict[str, str]:
    """Return each distinct text with the first file that contains it."""
    folder = docstrings.package_folder(PACKAGE)
    files: dict[bytes, tuple[str, str]] = {}
    for docstring in docstrings.iterate_docstrings(folder, name=PACKAGE):
        blocks = docstrings.extract_paragraphs(docstring.text)
        for text in docstrings.pack_paragraphs(blocks, max_characters=MAX_CHARACTERS):
            if len(text) >= MIN_CHARACTERS:
                files.setdefault(docstrings.fingerprint(text), (text, docstring.file))
    return dict(files.values())


def split_shingles(text: str) -> set[str]:
    """Return all sequences of SHINGLE_WORDS consecutive words."""
    words = docstrings.WORD.findall(text.lower())
    return {
        " ".join(words[i : i + SHINGLE_WORDS])
        for i in range(max(1, len(words) - SHINGLE_WORDS + 1))
    }


def _seen_share(text: str, seen: set[str]) -> float:
    own = split_shingles(text)
    return len(own & seen) / len(own)
