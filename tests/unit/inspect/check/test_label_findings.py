"""Planted faults of labels: each is found at its row with its fix; clean labels have no finding."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.inspect.check.checker import (
    create_labeled,
    create_texts,
    get_finding,
    is_at,
)

MULTI = {"problem_type": "multi_label_classification"}
NUMBERS = {"problem_type": "regression"}
COUNT = 24


def with_labels(labels: list[Any]) -> list[dict[str, Any]]:
    texts = create_texts(len(labels))
    return [{"text": text, "label": label} for text, label in zip(texts, labels, strict=True)]


def planted(place: int, value: Any, usual: tuple[Any, ...] = ("spam", "ham")) -> list[Any]:
    """Return labels in turn, one of them replaced."""
    labels = [usual[number % len(usual)] for number in range(COUNT)]
    labels[place] = value
    return labels


CASES: dict[str, tuple[list[Any], dict[str, Any], str, str]] = {
    # what is planted in row 7: its labels, options, the kind of finding, words of the fault
    "null": (planted(6, None), {}, "invalid_rows", "label is missing"),
    "empty": (planted(6, ""), {}, "invalid_rows", "label is missing"),
    "nan text": (planted(6, "nan"), {}, "invalid_rows", "label is missing"),
    "NA": (planted(6, "N/A"), {}, "invalid_rows", "label is missing"),
    "None text": (planted(6, "None"), {}, "invalid_rows", "label is missing"),
    "unlabeled": (planted(6, -1, (0, 1)), {}, "invalid_rows", "label is missing"),
    "list": (planted(6, ["spam", "ham"]), {}, "invalid_rows", "multi_label_classification"),
    "blanks": (planted(6, " spam "), {}, "label_forms", "' spam ' is read as 'spam'"),
    "float": (planted(6, 1.0, (0, 1)), {}, "label_forms", "1.0 is read as '1'"),
    "digit text": (planted(6, "0.0", ("0", "1")), {}, "label_forms", "'0.0' is read as '0'"),
    "boolean": (planted(6, True, (0, 1)), {}, "mixed_label_types", "booleans"),
    "case": (planted(6, "Spam"), {}, "similar_labels", "'Spam' and 'spam'"),
    "hyphen": (
        planted(6, "not-spam", ("not spam", "spam")),
        {},
        "similar_labels",
        "almost named",
    ),
    "joined": (planted(6, "spam|ham"), {}, "combined_labels", "label_separator='|'"),
    "question mark": (planted(6, "?"), {}, "placeholder_labels", "'?'"),
    "hyphen alone": (planted(6, "-"), {}, "placeholder_labels", "missing"),
    "error of a sheet": (planted(6, "#REF!"), {}, "placeholder_labels", "#REF!"),
    "null in capitals": (planted(6, "Null"), {}, "placeholder_labels", "'Null'"),
    "typo": (planted(6, "spma"), {"labels": ["spam", "ham"]}, "invalid_rows", "'spam'?"),
    "no name": (planted(6, 2, (0, 1)), {"labels": ["ham", "spam"]}, "invalid_rows", "no name"),
    "rare": (planted(6, "eggs"), {}, "rare_class", "'eggs' has 1 of 24"),
    "label set null": (planted(6, None, (["a"], ["b"])), MULTI, "invalid_rows", "missing"),
    "label set nan": (planted(6, ["a", "nan"], (["a"], ["b"])), MULTI, "invalid_rows", "missing"),
    "label twice": (planted(6, ["a", "a"], (["a"], ["b"])), MULTI, "invalid_rows", "repeated"),
    "flags": (planted(6, [1.0, 0.0], (["a"], ["b"])), MULTI, "invalid_rows", "no names"),
    "set in a text": (planted(6, "a;b", (["a"], ["b"])), MULTI, "combined_labels", "';'"),
    "number null": (planted(6, None, (0.5, 1.5)), NUMBERS, "invalid_rows", "is missing"),
    "number NaN": (planted(6, "NaN", (0.5, 1.5)), NUMBERS, "invalid_rows", "is missing"),
    "comma": (planted(6, "3,5", (0.5, 1.5)), NUMBERS, "invalid_rows", "decimal point"),
    "number text": (planted(6, "high", (0.5, 1.5)), NUMBERS, "invalid_rows", "not a number"),
}


@pytest.mark.parametrize("name", CASES)
def test_planted_fault_is_found_at_its_row(checker, name):
    labels, options, kind, words = CASES[name]
    report = checker.check("text_classification", with_labels(labels), **options)
    found = get_finding(report, kind)
    assert is_at(found, "train.jsonl", 7), found
    assert words in str(found.fault) and found.fault.fix


@pytest.mark.parametrize(
    ("labels", "options", "kind", "words"),
    [
        ([f"text {n}" for n in range(COUNT)], {}, "unique_labels", "data.columns"),
        ([n + 0.25 for n in range(COUNT)], {}, "unique_labels", "problem_type=regression"),
        (["sun, sea", "sea, sand", "sun, sand"] * 8, {}, "combined_labels", "separator=','"),
        ([0.5] * COUNT, NUMBERS, "constant_numbers", "is 0.5 in all 24 rows"),
        ([1000 * n for n in range(COUNT)], NUMBERS, "large_numbers", "scale the numbers"),
    ],
    ids=["texts", "numbers", "joined", "constant", "large"],
)
def test_a_column_that_is_not_what_the_task_learns_is_found(checker, labels, options, kind, words):
    report = checker.check("text_classification", with_labels(labels), **options)
    assert words in str(get_finding(report, kind).fault)
    assert len(report.findings) <= 2, "many rare classes are one finding"


CLEAN: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "texts": (["spam", "ham"] * 12, {}),
    "integers": ([0, 1, 2] * 8, {}),
    "floats": ([0.0, 1.0] * 12, {}),
    "booleans": ([True, False] * 12, {}),
    "half stars": ([0.5, 1.0, 1.5] * 8, {}),
    "letters": (["a", "A", "b"] * 8, {}),
    "none is a class": (["none", "hate"] * 12, {}),
    "listed marks": (["NA", "EU"] * 12, {"labels": ["NA", "EU"]}),
    "signs": ([-1, 0, 1] * 8, {"labels": ["-1", "0", "1"]}),
    "class numbers": ([0, 1] * 12, {"labels": ["ham", "spam"]}),
    "plus and minus": (["+", "-"] * 12, {}),
    "slashes": (["Sci/Tech", "World/News"] * 12, {}),
    "common words": (["home, garden", "home, office", "sports"] * 8, {}),
    "commas": (["yes, fully", "no, never"] * 12, {}),
    "label sets": ([["a"], [], ["a", "b"], ["b"]] * 6, MULTI),
    "flags": ([[1, 0, 0], [0, 1, 1]] * 12, {**MULTI, "labels": ["a", "b", "c"]}),
    "numbers": ([0.1 * n for n in range(COUNT)], NUMBERS),
    "pairs": ([[0.1 * n, 1.0 - n] for n in range(COUNT)], NUMBERS),
}


@pytest.mark.parametrize("name", CLEAN)
def test_clean_labels_have_no_finding(checker, name):
    labels, options = CLEAN[name]
    report = checker.check("text_classification", with_labels(labels), **options)
    assert not report.findings, report.format_lines()


def test_unlabeled_test_set_stops_with_its_first_row(checker):
    held_out = [{**row, "label": -1} for row in create_labeled(4, seed=3)]
    with pytest.raises(Exception, match=r"held_out\.jsonl:1.*the label is missing.*-1"):
        checker.check("text_classification", create_labeled(10), held_out=held_out)


def test_label_columns_are_read(checker):
    rows = [
        {"text": text, "toxic": number % 2, "insult": number % 3 == 0, "label": "old"}
        for number, text in enumerate(create_texts(12))
    ]
    options = {**MULTI, "label_columns": ["toxic", "insult"]}
    report = checker.check("text_classification", rows, **options)
    assert report.findings == () and report.sources[0].unread_columns == ("label",)


@pytest.mark.parametrize("text", ["nan", "NaN", " <NA> "])
def test_text_that_a_program_wrote_for_no_text_is_found(checker, text):
    rows = [{**row, "text_pair": "stone"} for row in with_labels(planted(0, "ham"))]
    rows[6]["text_pair"] = text
    found = get_finding(checker.check("text_classification", rows), "missing_texts")
    assert is_at(found, "train.jsonl", 7) and "`text_pair`" in found.fault.problem
