"""Tags of each scheme are detected, and are the same entities in IOB2."""

import random

import pytest
from seqeval.metrics.sequence_labeling import get_entities
from seqeval.scheme import BILOU, IOB1, IOB2, IOBES, Entities

from dtl.data.tag_schemes import SchemeDetector, TagScheme, convert_tags, scheme_of_stats

SCHEMES = {"IOB1": IOB1, "BIOES": IOBES, "BILOU": BILOU}
FIRST_MIDDLE_LAST_SINGLE = {"BIOES": "BIES", "BILOU": "BILU", "BMES": "BMES"}


def entities_of(draw, length):
    """Spans of words with their names; some are adjacent, of one name or of two."""
    spans, at = [], 0
    while at < length:
        if draw.random() < 0.5:
            end = min(length, at + draw.randint(1, 4))
            spans.append((draw.choice(["PER", "LOC-X"]), at, end))
            at = end
        else:
            at += 1
    return spans


def write_tags(spans, length, scheme):
    tags, previous = ["O"] * length, (None, None)
    for name, start, end in spans:
        for at in range(start, end):
            if scheme in ("IOB1", "IOB2"):
                is_first = at == start and (scheme == "IOB2" or previous == (name, start))
                tags[at] = f"{'B' if is_first else 'I'}-{name}"
            else:
                first, middle, last, single = FIRST_MIDDLE_LAST_SINGLE[scheme]
                prefix = first if at == start else last if at == end - 1 else middle
                tags[at] = f"{single if end - start == 1 else prefix}-{name}"
        previous = (name, end)
    return tags


def sentences(seed=5, count=60):
    draw = random.Random(seed)
    lengths = [draw.randint(1, 12) for _ in range(count)]
    return [(entities_of(draw, length), length) for length in lengths]


def detect(rows):
    detector = SchemeDetector()
    for number, tags in enumerate(rows, start=1):
        detector.add(tags, f"a.conll:{number}")
    return detector.find()


@pytest.mark.parametrize("name", ["IOB1", "IOB2", "BIOES", "BILOU", "BMES"])
def test_scheme_is_detected_and_converted_to_the_same_entities(name):
    rows = [write_tags(spans, length, name) for spans, length in sentences()]
    expected = [write_tags(spans, length, "IOB2") for spans, length in sentences()]
    scheme = detect(rows)
    assert scheme == (None if name == "IOB2" else TagScheme(name))
    assert [convert_tags(tags, scheme) for tags in rows] == expected


@pytest.mark.parametrize("name", SCHEMES)
def test_entities_are_those_that_seqeval_reads(name):
    rows = [write_tags(spans, length, name) for spans, length in sentences(seed=6)]
    converted = [convert_tags(tags, detect(rows)) for tags in rows]
    theirs, ours = Entities(rows, SCHEMES[name]), Entities(converted, IOB2)
    assert [[entity.to_tuple()[1:] for entity in sentence] for sentence in theirs.entities] == [
        [entity.to_tuple()[1:] for entity in sentence] for sentence in ours.entities
    ]


def test_single_inside_tags_among_others_are_counted_with_their_rows():
    rows = [["B-PER", "I-PER", "O"], ["O", "I-LOC", "I-LOC", "I-PER"]]
    scheme = detect(rows)
    assert scheme == TagScheme("IOB2 with some IOB1", 2, ("a.conll:2",))
    converted = convert_tags(rows[1], scheme)
    assert converted == ["O", "B-LOC", "I-LOC", "B-PER"]
    assert get_entities(converted) == get_entities(rows[1])
    assert scheme_of_stats({"tag_scheme": scheme.to_stats()}) == scheme


@pytest.mark.parametrize("rows", [[["NN", "VB"]], [["O", "O"]], [["B-PER", "other"]], []])
def test_other_tags_are_not_converted(rows):
    assert detect(rows) is None
    assert convert_tags(["NN", "E-x"], None) == ["NN", "E-x"]
