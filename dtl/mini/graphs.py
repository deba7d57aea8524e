"""The target of the quickstart: what networkx says of its functions, split by file."""

from typing import Any

from dtl.mini import docstrings

PACKAGE = "networkx"
PACKAGES = (PACKAGE,)
LONGEST, SHORTEST = 600, 120  # characters of a row; about 4 a token
HELDOUT_ROWS = 101
HELDOUT_SHARE = 0.1  # of the files
SHINGLE = 8  # words
SHARED_AT_MOST = 0.3  # of a held-out row's shingles may stand in the training rows


def make() -> dict[str, list[dict[str, Any]]]:
    """The rows of each split, in an order that mixes the areas of the package."""
    files = _files()
    train: list[str] = []
    heldout: list[str] = []
    for text in sorted(files, key=docstrings.share_of):
        split = heldout if docstrings.share_of(files[text]) < HELDOUT_SHARE else train
        split.append(text)
    seen = {shingle for text in train for shingle in shingles(text)}
    fresh = [text for text in heldout if _share_seen(text, seen) <= SHARED_AT_MOST]
    return {
        "train": [{"text": text} for text in train],
        "heldout": [{"text": text} for text in fresh[:HELDOUT_ROWS]],
    }


def _files() -> dict[str, str]:
    """Each text once -> the file where it stands first."""
    folder = docstrings.package_folder(PACKAGE)
    found: dict[bytes, tuple[str, str]] = {}
    for docstring in docstrings.docstrings(folder, name=PACKAGE):
        blocks = docstrings.paragraphs(docstring.text)
        for text in docstrings.pieces(blocks, longest=LONGEST):
            if len(text) >= SHORTEST:
                found.setdefault(docstrings.fingerprint(text), (text, docstring.file))
    return dict(found.values())


def shingles(text: str) -> set[str]:
    """Every run of eight neighbouring words."""
    words = docstrings.WORD.findall(text.lower())
    return {" ".join(words[i : i + SHINGLE]) for i in range(max(1, len(words) - SHINGLE + 1))}


def _share_seen(text: str, seen: set[str]) -> float:
    own = shingles(text)
    return len(own & seen) / len(own)
