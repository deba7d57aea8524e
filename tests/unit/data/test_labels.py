"""Labels as people and carriers write them: never a class by accident."""

from __future__ import annotations

import csv
import json
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dtl.config.schema import Source
from dtl.core.errors import DtlError
from dtl.data.label_sets import read_label_columns, read_label_set
from dtl.data.label_values import is_missing, label_text, sort_labels
from dtl.data.labels import find_label_fault, get_label_index, order_labels, to_label
from dtl.data.sources.rows import Row, open_rows
from tests.task_bench import make_task

MISSING: list[Any] = [
    *(None, "", " ", "\t", "\u200b", "\ufeff", float("nan"), float("inf"), Decimal("NaN")),
    *("nan", "NaN", "NA", "N/A", "n/a", "null", "NULL", "None", " None ", "<NA>", "#N/A", "NaT"),
    *(-1, -1.0, "-1", "-1.0"),
]


def row(label: Any) -> Row:
    return Row(4, "rows.csv:5", {"text": "x", "label": label})


@pytest.mark.parametrize("label", MISSING, ids=repr)
def test_missing_label_is_an_invalid_row_unless_it_is_listed(label: Any) -> None:
    assert is_missing(label)
    fault = find_label_fault(row(label), None)
    assert fault is not None and fault.location == "rows.csv:5"
    assert "the label is missing" in fault.problem and "task.labels" in fault.fix
    text = label_text(label)
    if text:
        assert find_label_fault(row(label), ["good", text]) is None
        assert to_label(label, ["good", text]) == text


@pytest.mark.parametrize("label", ["none", "unknown", "0", 0, False, "na", "-", "-2", -2, "Nan"])
def test_a_class_that_only_looks_missing_is_a_class(label: Any) -> None:
    assert find_label_fault(row(label), None) is None


def test_missing_texts_are_those_of_pandas() -> None:
    """Read back through pandas' own reader where it is there; its documented list otherwise."""
    pandas = pytest.importorskip("pandas")
    from pandas._libs.parsers import STR_NA_VALUES

    assert pandas.__version__
    assert [text for text in STR_NA_VALUES if not is_missing(text)] == []


@pytest.mark.parametrize(
    ("values", "label"),
    [
        ([1, 1.0, "1", "1.0", " 1 ", "1.", Decimal("1.00"), np.float64(1)], "1"),
        (["spam", " spam ", "spam\t", "\ufeffspam", "spam\u200b"], "spam"),
        (["caf\u00e9", "cafe\u0301"], "caf\u00e9"),
        ([True, "True"], "True"),
        ([0.5, "0.5"], "0.5"),
    ],
)
def test_one_label_has_one_class_in_every_form(values: list[Any], label: str) -> None:
    assert {to_label(value, None) for value in values} == {label}


@pytest.mark.parametrize(
    "values", [["1.10", "1.1"], ["007", "7"], ["a", "A"], ["0.1", "0.10"], [True, 1], ["+1", "1"]]
)
def test_other_labels_are_other_classes(values: list[Any]) -> None:
    assert len({to_label(value, None) for value in values}) == 2


def write_carriers(folder: Path, labels: list[Any]) -> dict[str, Path]:
    """Write the rows as JSON Lines, CSV, Parquet and Arrow."""
    import pyarrow as pa
    from pyarrow import parquet

    rows = [{"text": "x", "label": label} for label in labels]
    paths = {kind: folder / f"rows.{kind}" for kind in ("jsonl", "csv", "parquet", "arrow")}
    paths["jsonl"].write_text("".join(json.dumps(one) + "\n" for one in rows))
    with paths["csv"].open("w", newline="") as file:
        writer = csv.DictWriter(file, ["text", "label"])
        writer.writeheader()
        writer.writerows(rows)
    table = pa.table({"text": ["x"] * len(rows), "label": labels})
    parquet.write_table(table, paths["parquet"])
    with pa.OSFile(str(paths["arrow"]), "wb") as out, pa.ipc.new_file(out, table.schema) as arrow:
        arrow.write_table(table)
    return paths


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["b", " a ", "b", None], ["b", "a", "b", None]),
        ([2, 10, None, 1], ["2", "10", None, "1"]),
        ([2.0, 10.0, float("nan"), 1.0], ["2", "10", None, "1"]),
        ([True, False, None, True], ["True", "False", None, "True"]),
        ([0, 1, -1, 1], ["0", "1", None, "1"]),
    ],
    ids=["texts", "integers", "floats", "booleans", "unlabeled"],
)
def test_every_carrier_gives_the_same_classes(
    tmp_path: Path, labels: list[Any], expected: list[str | None]
) -> None:
    for kind, path in write_carriers(tmp_path, labels).items():
        found = [
            None if find_label_fault(one, None) else to_label(one.fields["label"], None)
            for one in open_rows(Source(path=str(path)), {})
        ]
        assert found == expected, kind


def test_numbers_are_ordered_by_value() -> None:
    assert sort_labels(["10", "2", "0.5", "-3"]) == ["-3", "0.5", "2", "10"]
    assert sort_labels(["10", "2", "x"]) == ["10", "2", "x"]
    task = make_task("text_classification")
    rows = [row(label) for label in (10, 9, "2", 2.0)]
    assert task.collect_dataset_stats(rows, None)["labels"] == ["2", "9", "10"]


def test_class_numbers_are_those_of_the_listed_names() -> None:
    names = ["no", "yes"]
    for value in (1, 1.0, "1", " yes "):
        assert find_label_fault(row(value), names) is None
        assert to_label(value, names) == "yes"
    fault = find_label_fault(row(2), names)
    assert fault is not None and "the class number 2 has no name" in fault.problem
    digits = ["3", "1", "0"]
    assert to_label(1, digits) == "1", "a name that is a number is meant by its name"
    assert find_label_fault(row(2), digits) is not None


def test_order_is_that_of_the_base_for_the_same_labels() -> None:
    base = SimpleNamespace(id2label={1: "b", 0: "c", 2: "a"})
    assert order_labels({"a", "b", "c"}, base, None) == ["c", "b", "a"]
    assert order_labels({"a", "b"}, base, None) == ["a", "b"]
    assert order_labels({"a"}, base, ("b", "a")) == ["b", "a"]


def test_a_label_of_no_training_row_is_named() -> None:
    with pytest.raises(DtlError, match=r"rows\.csv:5: the label 'spm' .*did you mean 'spam'"):
        get_label_index(row("spm"), "spm", {"spam": 0, "ham": 1})


# Several labels -----------------------------------------------------------------------------------

NAMES = ["a", "b", "c"]


@pytest.mark.parametrize(
    ("value", "labels"),
    [
        (["a", " b "], ("a", "b")),
        ('["a", "b"]', ("a", "b")),
        ("['a', 'b']", ("a", "b")),
        ("a|b", ("a", "b")),
        ("a | b|", ("a", "b")),
        ("a", ("a",)),
        ([], ()),
        ("[]", ()),
        ([2, 0], ("c", "a")),
        ("[2, 0]", ("c", "a")),
        (2, ("c",)),
        ([0, 1, 1], ("b", "c")),
        ([0.0, 1.0, 0.0], ("b",)),
        ([False, True, True], ("b", "c")),
        ([1], ("b",)),
    ],
    ids=repr,
)
def test_label_sets_are_read_in_every_form(value: Any, labels: tuple[str, ...]) -> None:
    found = read_label_set(value, NAMES, separator="|")
    assert (found.problem, found.labels) == (None, labels)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "missing"),
        ("", "missing"),
        (float("nan"), "missing"),
        (-1, "missing"),
        (["a", None], "missing"),
        (["a", ""], "missing"),
        (["a", float("nan")], "missing"),
        (["a", "a"], "repeated"),
        (["a", "d"], "not in task.labels"),
        ([["a"]], "is a list"),
        ({"a": 1}, "is a dict"),
        ([1.0, 0.0], "2 flags of 0 and 1 have 3 names"),
        ([3], "has no name"),
    ],
    ids=repr,
)
def test_label_sets_at_fault_are_refused(value: Any, message: str) -> None:
    found = read_label_set(value, NAMES, separator="|")
    assert found.problem is not None and message in found.problem and found.fix


def test_flags_that_may_be_class_numbers_are_refused() -> None:
    for value in ([0, 1], [1, 0]):
        found = read_label_set(value, ["a", "b"])
        assert found.problem is not None and "flags or class numbers" in found.problem
    assert read_label_set([1, 1], ["a", "b"]).labels == ("a", "b")
    found = read_label_set([0, 1, 0], None)
    assert found.problem is not None and "no names in task.labels" in found.problem


def test_label_columns_hold_flags_in_every_form() -> None:
    fields = {"toxic": 1, "rude": "0", "threat": True, "insult": "1.0", "hate": 0.0}
    names = list(fields)
    assert read_label_columns(fields, names, names).labels == ("toxic", "threat", "insult")
    for value in (None, "", -1, float("nan"), 0.3, 2, "x"):
        found = read_label_columns({**fields, "rude": value}, names, names)
        assert found.problem is not None and "`rude`" in found.problem
