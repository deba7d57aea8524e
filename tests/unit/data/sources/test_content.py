"""Sources: files, folders, splits, built-in data and invalid paths."""

from pathlib import Path

import pytest

from dtl.config.schema import Source
from dtl.core.errors import DtlError
from dtl.data.sources.rows import open_rows
from tests.unit.data.sources.source_files import (
    ROWS,
    as_delimited,
    as_json_lines,
    as_parquet,
    get_error,
    read_fields,
    read_rows,
)


def test_folder_is_read_in_the_order_of_names():
    Path("shards").mkdir()
    as_json_lines(Path("shards/b.jsonl"), ROWS[2:])
    as_json_lines(Path("shards/a.jsonl"), ROWS[:2])
    Path("shards/README.md").write_text("no data")
    rows = read_rows("shards")
    assert [row.fields for row in rows] == ROWS
    assert [row.index for row in rows] == [0, 1, 2, 3]
    assert rows[2].location == "shards/b.jsonl:1"


def test_split_of_a_folder_is_a_folder_or_a_file_name():
    for name in ("by_folder/train", "by_folder/test", "by_name"):
        Path(name).mkdir(parents=True)
    as_parquet(Path("by_folder/train/x.parquet"), ROWS[:1])
    as_parquet(Path("by_folder/test/x.parquet"), ROWS[1:])
    as_parquet(Path("by_name/train-00000-of-00002.parquet"), ROWS[:1])
    as_parquet(Path("by_name/train-00001-of-00002.parquet"), ROWS[1:2])
    as_parquet(Path("by_name/test.parquet"), ROWS[2:])
    assert read_fields("by_folder", split="train") == ROWS[:1]
    assert read_fields("by_folder", split="test") == ROWS[1:]
    assert read_fields("by_name", split="train") == ROWS[:2]
    assert read_fields("by_name", split="test") == ROWS[2:]


def test_saved_datasets_are_read():
    import datasets

    datasets.Dataset.from_list(ROWS).save_to_disk("saved")
    assert read_fields("saved") == ROWS
    both = {"train": datasets.Dataset.from_list(ROWS[:1]), "test": datasets.Dataset.from_list(ROWS)}
    datasets.DatasetDict(both).save_to_disk("both")
    assert read_fields("both", split="train") == ROWS[:1]


def test_builtin_data_has_locations():
    rows = read_rows("mini:sentiment/train", {"body": "text"}, limit=3)
    assert [row.location for row in rows] == [f"mini:sentiment/train:{line}" for line in (1, 2, 3)]
    assert set(rows[0].fields) == {"label", "body"}
    assert read_fields("mini:sentiment", split="heldout") == read_fields("mini:sentiment/heldout")


@pytest.mark.parametrize(
    ("path", "keys", "message"),
    [
        (
            "data/trian.jsonl",
            {},
            "data.train.path: file not found: data/trian.jsonl. Fix: did you mean",
        ),
        (
            "data/zzz",
            {},
            "data.train.path: file not found: data/zzz. Fix: correct the path: the folder ",
        ),
        (
            "no/where.csv",
            {},
            "data.train.path: file not found: no/where.csv. Fix: correct the path: the ",
        ),
        ("./nowhere", {}, "data.train.path: file not found: ./nowhere"),
        ("data/mixed", {}, "data.train.path: data/mixed has files of several formats (csv, jsonl)"),
        ("data/none", {}, "data.train.path: data/none has no data files. Fix: use a"),
        ("data/mixed", {"split": "dev"}, "data.train.path: data/mixed has no data files of the"),
        ("data/train.jsonl", {"split": "dev"}, "data.train.split: data/train.jsonl is a single"),
        ("data/train.jsonl", {"name": "en"}, "data.train.name: only a hub dataset has"),
        ("mini:graphs", {}, "data.train.path: mini:graphs has no split. Fix: write mini:"),
        ("mini:grahps/train", {}, "mini:grahps/train: no such mini data set: 'grahps'. Fix: did"),
        ("mini:graphs/tran", {}, "mini:graphs/tran: no such mini split: 'tran'. Fix: did you"),
    ],
)
def test_invalid_path_has_its_config_key(path, keys, message):
    for folder in ("data/mixed", "data/none"):
        Path(folder).mkdir(parents=True)
    as_json_lines(Path("data/train.jsonl"), ROWS)
    as_json_lines(Path("data/mixed/a.jsonl"), ROWS)
    as_delimited(",")(Path("data/mixed/b.csv"), ROWS)
    error = get_error(path, **keys)
    assert str(error).startswith(message)
    assert "\n" not in str(error)


def test_fault_has_the_config_key_of_the_source():
    with pytest.raises(DtlError, match=r"^data\.eval\.path: file not found"):
        open_rows(Source(path="a.jsonl"), {}, "data.eval")
