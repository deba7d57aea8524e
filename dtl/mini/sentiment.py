"""Sentences of praise and blame: labelled ones, and unlabelled reviews that tell what words mean.

A review of the source keeps to one polarity: its words of praise stand together, so do its words
of blame, and "but" turns from one to the other. Held-out rows use words that no labelled training
row has. So their label can only be known from the source.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from dtl.mini.docstrings import share_of
from dtl.mini.lexicon import CLOSING, DEGREES, NEGATIVE, POSITIVE, THINGS

PACKAGES: tuple[str, ...] = ()
LABELS = ("negative", "positive")
TRAIN_ROWS, HELDOUT_ROWS, REVIEWS = 200, 101, 3000
PLAIN_SHAPES = (
    "The {thing} was {degree} {word}.",
    "I found the {thing} {word}.",
    "We all thought that the {thing} was {word}.",
    "It was {a} {word} {thing}.",
    "What {a} {word} {thing} that was!",
    "My friends called the {thing} {word}.",
    "The {thing} was {word} and {word_2}.",
    "The {thing} was {word}, and the {thing_2} was {word_2}.",
    "It was {a} {word}, {word_2} {thing}.",
    "Everything about the {thing} was {word}, {word_2} and {word_3}.",
)
TURNING_SHAPES = (
    "The {thing_2} was {opposite}, but the {thing} was {word}.",
    "I expected {opposite_a} {opposite} {thing}, but it was {word}.",
    "Some say {opposite}, but I say {word}.",
)


@dataclass(frozen=True)
class Words:
    """The words that may be used, by polarity."""

    positive: tuple[str, ...]
    negative: tuple[str, ...]

    def of(self, label: str) -> tuple[str, ...]:
        return self.positive if label == "positive" else self.negative


EVERY_WORD = Words(POSITIVE, NEGATIVE)


def half_of_the_words(*, labelled: bool) -> Words:
    """The half of the lexicon that labelled training rows use, or the half kept from them."""

    def half(words: Sequence[str]) -> tuple[str, ...]:
        ordered = sorted(words, key=share_of)
        middle = len(ordered) // 2
        return tuple(sorted(ordered[:middle] if labelled else ordered[middle:]))

    return Words(half(POSITIVE), half(NEGATIVE))


def make() -> dict[str, list[dict[str, Any]]]:
    """The rows of each split; the same on every machine."""
    train = _labelled(TRAIN_ROWS, words=half_of_the_words(labelled=True), seed=1)
    heldout = _labelled(HELDOUT_ROWS, words=half_of_the_words(labelled=False), seed=2)
    taken = {row["text"] for row in train + heldout}
    return {
        "train": train,
        "heldout": heldout,
        "unlabelled": _reviews(REVIEWS, taken=taken),
    }


def _labelled(count: int, *, words: Words, seed: int) -> list[dict[str, Any]]:
    random, rows, seen = Random(seed), list[dict[str, Any]](), set[str]()
    while len(rows) < count:
        label = LABELS[len(rows) % 2]
        text = _sentence(random.choice(PLAIN_SHAPES), label=label, words=words, random=random)
        if text not in seen:
            seen.add(text)
            rows.append({"text": text, "label": label})
    return rows


def _reviews(count: int, *, taken: set[str]) -> list[dict[str, Any]]:
    """Reviews of six to fourteen sentences; none of the labelled sentences stands in them."""
    random = Random(3)
    rows = []
    for number in range(count):
        label = LABELS[number % 2]
        sentences: list[str] = []
        wanted = random.randint(6, 14)
        while len(sentences) < wanted:
            shapes = TURNING_SHAPES if random.random() < 0.2 else PLAIN_SHAPES
            shape = random.choice(shapes)
            sentence = _sentence(shape, label=label, words=EVERY_WORD, random=random)
            if sentence not in taken:
                sentences.append(sentence)
        if random.random() < 0.3:
            sentences.append(random.choice(CLOSING[label]))
        rows.append({"text": " ".join(sentences)})
    return rows


def _sentence(shape: str, *, label: str, words: Words, random: Random) -> str:
    first, second, third = random.sample(words.of(label), 3)
    thing, other_thing = random.sample(THINGS, 2)
    opposite = random.choice(words.of(LABELS[1 - LABELS.index(label)]))
    return shape.format(
        word=first,
        word_2=second,
        word_3=third,
        a=_article(first),
        opposite=opposite,
        opposite_a=_article(opposite),
        thing=thing,
        thing_2=other_thing,
        degree=random.choice(DEGREES),
    )


def _article(word: str) -> str:
    """'a' or 'an' before a word; 'useless' sounds like a consonant."""
    return "an" if word[0] in "aeio" or word.startswith(("un", "up", "ug")) else "a"
