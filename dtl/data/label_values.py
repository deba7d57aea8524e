"""One written value of a label: whether it is missing, and its text as the name of a class."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from decimal import Decimal

from dtl.data.nested_text import parse_text

# What pandas reads as a missing value.
MISSING_TEXTS = frozenset(
    {
        "#N/A",
        "#N/A N/A",
        "#NA",
        "-1.#IND",
        "-1.#QNAN",
        "-NaN",
        "-nan",
        "1.#IND",
        "1.#QNAN",
        "<NA>",
        "N/A",
        "NA",
        "NULL",
        "NaN",
        "NaT",
        "None",
        "n/a",
        "nan",
        "null",
    }
)
# Of these, what nobody writes as a text, but programs do where there is none.
NO_TEXTS = frozenset({"nan", "NaN", "-nan", "-NaN", "<NA>", "NaT", "#N/A"})
UNLABELED = "-1"  # of rows without a label, as in the test sets of GLUE and in scikit-learn
BLANKS = r"[\s\u200b\u200c\u200d\u2060\ufeff]"  # white space and characters without width
SURROUNDING_BLANKS = re.compile(f"^{BLANKS}+|{BLANKS}+$")
INTEGER_TEXT = re.compile(r"([+-]?\d+)\.0*")
CLASS_NUMBER = re.compile(r"\d+")


def label_text(value: object) -> str:
    """Return a label as the name of a class: without blanks around it, in the NFC form of Unicode;
    a number without a fraction as an integer, whether it is written 1, 1.0 or "1.0"."""
    if isinstance(value, float | Decimal) and math.isfinite(value) and value == int(value):
        return str(int(value))
    text = unicodedata.normalize("NFC", SURROUNDING_BLANKS.sub("", str(value)))
    integer = INTEGER_TEXT.fullmatch(text)
    return integer[1] if integer else text


def is_missing(value: object) -> bool:
    """Return whether a value means that there is no label, by any convention: null, an empty text,
    NaN, infinity, the texts that pandas reads as missing, and -1."""
    if value is None or (isinstance(value, float | Decimal) and not math.isfinite(value)):
        return True
    text = label_text(value)
    return text in ("", UNLABELED) or text in MISSING_TEXTS


def parse_number(value: object) -> float | None:
    """Return a finite number, or the number that a text is; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal | str):
        return None
    if isinstance(value, str) and "_" in value:  # float() accepts 1_000
        return None
    try:
        number = float(SURROUNDING_BLANKS.sub("", value) if isinstance(value, str) else value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def parse_list(value: object) -> object:
    """Return the list that a text is, as JSON or as Python writes it, because a CSV file has only
    texts; anything else is unchanged."""
    parsed = parse_text(value)
    return parsed if isinstance(parsed, list) else value


def sort_labels(labels: Iterable[str]) -> list[str]:
    """Return labels in order: by value where all are numbers, else as texts."""
    distinct = set(labels)
    if all(parse_number(label) is not None for label in distinct):
        return sorted(distinct, key=lambda label: (parse_number(label) or 0.0, label))
    return sorted(distinct)


def are_class_numbers(names: Sequence[str]) -> bool:
    """Return whether a number in the data may be the place of a name in this list: no name is a
    number itself."""
    return not any(parse_number(name) is not None for name in names)
