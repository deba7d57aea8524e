"""mini:prose contains the reviews and nothing of the target mini:graphs."""

import pytest

from dtl import mini
from tests.unit.mini.rows import all_sequences, texts


def test_source_has_the_reviews_and_nothing_of_the_target(small_source, generated):
    train, heldout = small_source["train"], small_source["heldout"]
    assert not set(texts(train)) & set(texts(heldout))
    assert not any("networkx" in text.lower() for text in texts(train))
    reviews = set(texts(generated["sentiment", "unlabeled"]))
    assert reviews <= set(texts(train + heldout))
    labeled = texts(generated["sentiment", "train"] + generated["sentiment", "heldout"])
    text = "\n".join(texts(train + heldout))
    assert not [sentence for sentence in labeled if sentence in text]
    assert len(all_sequences(generated["graphs", "heldout"]) & all_sequences(train)) <= 3


def test_source_repeats_no_paragraph(small_source):
    blocks = [
        block
        for text in texts(small_source["train"])
        for block in text.split("\n\n")
        if len(block) > 200
    ]
    assert len(blocks) - len(set(blocks)) <= 0.002 * len(blocks)  # equal ends of split paragraphs


@pytest.mark.slow
def test_full_source(generated, monkeypatch, tmp_path):
    monkeypatch.setenv("DTL_CACHE", str(tmp_path))
    train, heldout = mini.load_rows("prose", "train"), mini.load_rows("prose", "heldout")
    characters = sum(map(len, texts(train)))
    assert 12_000_000 < characters < 24_000_000  # about 3 to 6 M tokens
    assert len(heldout) >= 400
    assert not set(texts(train)) & set(texts(heldout))
    seen, target = all_sequences(train), all_sequences(generated["graphs", "heldout"])
    assert len(target & seen) / len(target) < 0.001
