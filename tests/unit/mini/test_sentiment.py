"""The labels of mini:sentiment can only be learned from its unlabeled reviews."""

import re

from dtl.mini import lexicon
from tests.unit.mini.rows import texts, words_of


def test_lexicon_has_two_disjoint_lists():
    assert len(set(lexicon.POSITIVE)) == len(lexicon.POSITIVE) >= 60
    assert len(set(lexicon.NEGATIVE)) == len(lexicon.NEGATIVE) >= 60
    assert not set(lexicon.POSITIVE) & set(lexicon.NEGATIVE)


def test_heldout_words_are_only_in_the_source(generated):
    polar_words = set(lexicon.POSITIVE + lexicon.NEGATIVE)
    is_labeled = words_of(generated["sentiment", "train"]) & polar_words
    heldout = words_of(generated["sentiment", "heldout"]) & polar_words
    assert len(heldout) >= 50
    assert not is_labeled & heldout
    source = " ".join(texts(generated["sentiment", "unlabeled"])).lower()
    counts = {word: len(re.findall(rf"\b{word}\b", source)) for word in heldout}
    assert min(counts.values()) >= 50


def test_labels_follow_the_lexicon_and_are_balanced(generated):
    for split in ("train", "heldout"):
        rows = generated["sentiment", split]
        for row in rows:
            words = set(re.findall("[a-z]+", row["text"].lower()))
            is_positive = bool(words & set(lexicon.POSITIVE))
            is_negative = bool(words & set(lexicon.NEGATIVE))
            assert (is_positive, is_negative) == (
                (True, False) if row["label"] == "positive" else (False, True)
            )
        positive = sum(row["label"] == "positive" for row in rows)
        assert abs(2 * positive - len(rows)) <= 1


def test_no_labeled_sentence_is_in_the_source(generated):
    source = "\n".join(texts(generated["sentiment", "unlabeled"]))
    labeled = texts(generated["sentiment", "train"] + generated["sentiment", "heldout"])
    assert len(set(labeled)) == len(labeled)
    assert not [text for text in labeled if text in source]


def test_review_changes_polarity_only_with_but(generated):
    for text in texts(generated["sentiment", "unlabeled"]):
        without_contrast = [s for s in re.split(r"(?<=[.!]) ", text) if ", but " not in s]
        words = set(re.findall("[a-z]+", " ".join(without_contrast).lower()))
        assert not (words & set(lexicon.POSITIVE) and words & set(lexicon.NEGATIVE)), text
