"""Held-out rows of mini:graphs are not in its training rows, and the first rows are a sample."""

from dtl.mini import docstrings
from tests.unit.mini.rows import all_sequences, eight_word_sequences, texts


def test_heldout_graph_texts_are_not_in_training_rows(generated):
    train, heldout = generated["graphs", "train"], generated["graphs", "heldout"]
    assert len({text.lower() for text in texts(train)}) == len(train)
    assert not set(texts(train)) & set(texts(heldout))
    seen = all_sequences(train)
    shares = [
        len(own & seen) / len(own) for own in map(eight_word_sequences, texts(heldout)) if own
    ]
    assert max(shares) < 0.3
    assert sum(shares) / len(shares) < 0.05


def test_first_two_hundred_rows_cover_all_areas(generated):
    """`limit: 200` must not select a single file."""
    folder = docstrings.package_folder("networkx")
    areas = {"algorithms", "generators", "classes", "readwrite"}
    by_area = {
        area: "".join(p.read_text() for p in (folder / area).rglob("*.py")) for area in areas
    }
    first_lines = [text.splitlines()[0] for text in texts(generated["graphs", "train"][:200])]
    covered = {area for area in areas if any(line in by_area[area] for line in first_lines)}
    assert covered == areas
