"""Generates mini:sentiment: labeled sentences, and unlabeled reviews that show the words' polarity.

A review has one polarity: its positive words are together, and so are its negative words; only
"but" joins both. Held-out rows use words that no labeled training row has. So their labels can only
be learned from the reviews, which the base has read.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from dtl.mini.docstrings import hash_to_unit_interval
from dtl.mini.lexicon import CLOSING_SENTENCES, DEGREES, NEGATIVE, POSITIVE, THINGS

PACKAGES: tuple[str, ...] = ()
LABELS = ("negative", "positive")
TRAIN_ROWS, HELDOUT_ROWS, REVIEWS = 200, 101, 3000
PLAIN_TEMPLATES = (
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
CONTRAST_TEMPLATES = (
    "The {thing_2} was {opposite}, but the {thing} was {word}.",
    "I expected {opposite_a} {opposite} {thing}, but it was {word}.",
    "Some say {opposite}, but I say {word}.",
)


@dataclass(frozen=True)
class Words:
    """Words by polarity."""

    positive: tuple[str, ...]
    negative: tuple[str, ...]

    def with_label(self, label: str) -> tuple[str, ...]:
        """Return the words of a label: positive or negative."""
        return self.positive if label == "positive" else self.negative


ALL_WORDS = Words(POSITIVE, NEGATIVE)


def split_words(*, is_labeled: bool) -> Words:
    """Return the half of the lexicon for labeled training rows, or the other half."""

    def half(words: Sequence[str]) -> tuple[str, ...]:
        ordered = sorted(words, key=hash_to_unit_interval)
        middle = len(ordered) // 2
        return tuple(sorted(ordered[:middle] if is_labeled else ordered[middle:]))

    return Words(half(POSITIVE), half(NEGATIVE))


def generate() -> dict[str, list[dict[str, Any]]]:
    """Return the rows of each split, which are the same on every machine."""
    train = _generate_labeled(TRAIN_ROWS, words=split_words(is_labeled=True), seed=1)
    heldout = _generate_labeled(HELDOUT_ROWS, words=split_words(is_labeled=False), seed=2)
    excluded = {row["text"] for row in train + heldout}
    return {
        "train": train,
        "heldout": heldout,
        "unlabeled": _generate_reviews(REVIEWS, excluded=excluded),
    }


def _generate_labeled(count: int, *, words: Words, seed: int) -> list[dict[str, Any]]:
    random, rows, seen = Random(seed), list[dict[str, Any]](), set[str]()
    while len(rows) < count:
        label = LABELS[len(rows) % 2]
        text = _generate_sentence(
            random.choice(PLAIN_TEMPLATES), label=label, words=words, random=random
        )
        if text not in seen:
            seen.add(text)
            rows.append({"text": text, "label": label})
    return rows


def _generate_reviews(count: int, *, excluded: set[str]) -> list[dict[str, Any]]:
    """Return reviews of 6 to 14 sentences, without the sentences in `excluded`."""
    random = Random(3)
    rows = []
    for number in range(count):
        label = LABELS[number % 2]
        sentences: list[str] = []
        sentence_count = random.randint(6, 14)
        while len(sentences) < sentence_count:
            templates = CONTRAST_TEMPLATES if random.random() < 0.2 else PLAIN_TEMPLATES
            template = random.choice(templates)
            sentence = _generate_sentence(template, label=label, words=ALL_WORDS, random=random)
            if sentence not in excluded:
                sentences.append(sentence)
        if random.random() < 0.3:
            sentences.append(random.choice(CLOSING_SENTENCES[label]))
        rows.append({"text": " ".join(sentences)})
    return rows


def _generate_sentence(template: str, *, label: str, words: Words, random: Random) -> str:
    first, second, third = random.sample(words.with_label(label), 3)
    thing, other_thing = random.sample(THINGS, 2)
    opposite = random.choice(words.with_label(LABELS[1 - LABELS.index(label)]))
    return template.format(
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
    """Return the indefinite article of a word: 'a useless', but 'an unpleasant'."""
    return "an" if word[0] in "aeio" or word.startswith(("un", "up", "ug")) else "a"
