"""CSV files: no cell is a formula, and what is no text is JSON."""

import csv

import pandas
import pytest

from dtl.core.csv_files import write_csv, write_csv_rows


def test_no_cell_is_a_formula_of_a_spreadsheet(tmp_path):
    header, rows = ["=cmd()", "step"], [["@SUM(A1)", -1.5], ["-2+3", 2], ["plain", "+1"]]
    write_csv(tmp_path / "chart.csv", header, rows)
    with (tmp_path / "chart.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["'=cmd()", "step"]
    assert rows == [["'@SUM(A1)", "-1.5"], ["'-2+3", "2"], ["plain", "'+1"]]


def test_rows_with_other_keys_are_one_table_that_pandas_reads(tmp_path):
    rows = [
        {"text": 'one; two, "three"\nfour', "predicted": "=1+1", "probabilities": {"a": 0.5}},
        {"text": "x", "predicted": None, "reason": "too long"},
    ]
    write_csv_rows(tmp_path / "out.csv", iter(rows))
    table = pandas.read_csv(tmp_path / "out.csv", keep_default_na=False)
    assert list(table) == ["text", "predicted", "probabilities", "reason"]
    assert list(table.loc[0]) == [rows[0]["text"], "'=1+1", '{"a": 0.5}', ""]
    assert list(table.loc[1]) == ["x", "", "", "too long"]


def test_an_error_while_rows_are_made_leaves_no_file(tmp_path):
    def rows():
        yield {"a": 1}
        raise ValueError

    with pytest.raises(ValueError):
        write_csv_rows(tmp_path / "out.csv", rows())
    assert not list(tmp_path.iterdir())
