"""Data sources: every format gives the same rows, and every fault has its location and fix."""

import csv
import hashlib
import json
import os
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from dtl.config.schema import Source
from dtl.core.errors import DtlError
from dtl.data.sources import hub
from dtl.data.sources.rows import Row, open_rows
from tests import tiny_vision

ROWS = [
    {"text": 'He message "no",\nthen left.', "label": "negative"},
    {"text": "Größe: 北京 🙂", "label": "positive"},
    {"text": "plain", "label": "negative"},
    {"text": "", "label": "positive"},
]


def as_json_lines(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")


def as_json(path, rows):
    path.write_text(json.dumps(rows, indent=1), "utf-8")


def as_delimited(delimiter):
    def write(path, rows):
        with path.open("w", encoding="utf-8", newline="") as file:
            table = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
            table.writeheader()
            table.writerows(rows)

    return write


def as_parquet(path, rows):
    parquet.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)


def as_arrow_file(path, rows):
    table = pa.Table.from_pylist(rows)
    with pa.ipc.new_file(str(path), table.schema) as file:
        file.write_table(table, max_chunksize=3)


def as_arrow_stream(path, rows):
    table = pa.Table.from_pylist(rows)
    with pa.ipc.new_stream(str(path), table.schema) as file:
        file.write_table(table, max_chunksize=3)


WRITERS = {
    "data.jsonl": as_json_lines,
    "lines.json": as_json_lines,
    "data.json": as_json,
    "data.csv": as_delimited(","),
    "data.tsv": as_delimited("\t"),
    "data.parquet": as_parquet,
    "data.arrow": as_arrow_file,
    "stream.arrow": as_arrow_stream,
    "UPPER.JSONL": as_json_lines,
}


@pytest.fixture(autouse=True)
def _temporary_folder(tmp_path, monkeypatch):
    """Tests run in their own folder, so that paths are written as users write them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DTL_CACHE", str(tmp_path / "cache"))


def read_rows(path, columns=None, **keys):
    return list(open_rows(Source(path=str(path), **keys), columns or {}))


def read_fields(path, columns=None, **keys):
    return [row.fields for row in read_rows(path, columns, **keys)]


def get_error(path, columns=None, **keys):
    with pytest.raises(DtlError) as caught:
        read_rows(path, columns, **keys)
    return caught.value


# --- every format


@pytest.mark.parametrize("name", WRITERS)
def test_each_format_reads_the_same_rows(name):
    WRITERS[name](Path(name), ROWS)
    rows = open_rows(Source(path=name), {})
    assert [row.fields for row in rows] == ROWS
    assert [row.index for row in rows] == [0, 1, 2, 3]
    assert rows.columns == ("text", "label")
    assert rows.name == name


@pytest.mark.parametrize("name", WRITERS)
def test_limit_and_columns_mean_the_same_in_each_format(name):
    WRITERS[name](Path(name), ROWS)
    assert read_fields(name, {"body": "text"}, limit=2) == [
        {"label": row["label"], "body": row["text"]} for row in ROWS[:2]
    ]


def test_locations_are_lines_or_rows_of_the_file():
    Path("a.jsonl").write_text('{"text": "x"}\n\n  \n{"text": "y"}\r\n{"text": "z"}')
    assert [row.location for row in read_rows("a.jsonl")] == ["a.jsonl:1", "a.jsonl:4", "a.jsonl:5"]
    Path("a.csv").write_text('text,label\n"one\ntwo\nthree",a\n\nfour,b\n')
    assert [row.location for row in read_rows("a.csv")] == ["a.csv:2", "a.csv:6"]
    as_parquet(Path("a.parquet"), ROWS)
    assert [row.location for row in read_rows("a.parquet", limit=2)] == [
        "a.parquet: row 1",
        "a.parquet: row 2",
    ]
    as_json(Path("a.json"), ROWS)
    assert read_rows("a.json")[1] == Row(1, "a.json: item 2", ROWS[1])


def test_nested_values_are_kept():
    chat = [{"messages": [{"role": "user", "content": "Hi"}], "count": 3}]
    for name in ("data.jsonl", "data.json", "data.parquet", "data.arrow", "stream.arrow"):
        WRITERS[name](Path(name), chat)
        assert read_fields(name) == chat


def test_byte_order_mark_is_ignored():
    for name in ("data.jsonl", "data.json", "data.csv", "data.tsv"):
        WRITERS[name](Path(name), ROWS)
        Path(name).write_bytes(b"\xef\xbb\xbf" + Path(name).read_bytes())
        assert read_fields(name) == ROWS


def test_csv_values_stay_text_and_may_be_long():
    long = "x" * 200_000
    Path("a.csv").write_text(f"text,label\n{long},007\n")
    assert read_fields("a.csv") == [{"text": long, "label": "007"}]


def test_rows_can_be_read_again():
    as_json_lines(Path("a.jsonl"), ROWS)
    rows = open_rows(Source(path="a.jsonl"), {})
    assert next(iter(rows)).fields == ROWS[0]
    assert list(rows) == list(rows)


def test_home_folder_is_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    as_json_lines(tmp_path / "a.jsonl", ROWS)
    assert read_fields("~/a.jsonl") == ROWS


@pytest.mark.parametrize("name", ["data.jsonl", "data.csv", "data.parquet", "data.arrow"])
def test_a_large_file_is_not_held_in_memory(name):
    rows = [{"text": os.urandom(1000).hex()} for _ in range(20_000)]  # 40 MB
    if name.endswith("parquet"):
        parquet.write_table(pa.Table.from_pylist(rows), name, row_group_size=1000)
    else:
        WRITERS[name](Path(name), rows)
    tracemalloc.start()
    count = sum(1 for _ in open_rows(Source(path=name), {}))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 20_000
    assert peak < 12_000_000


# --- columns


def test_columns_can_be_swapped_and_one_can_serve_twice():
    Path("a.jsonl").write_text('{"a": 1, "b": 2, "c": 3}\n')
    assert read_fields("a.jsonl", {"a": "b", "b": "a"}) == [{"c": 3, "a": 2, "b": 1}]
    assert read_fields("a.jsonl", {"x": "a", "y": "a"}) == [{"b": 2, "c": 3, "x": 1, "y": 1}]


def test_missing_columns_are_all_listed():
    as_json_lines(Path("a.jsonl"), ROWS)
    assert str(get_error("a.jsonl", {"text": "txet", "label": "kind"})).splitlines() == [
        "data.columns.text: a.jsonl has no column 'txet'. Fix: did you mean 'text'?",
        "data.columns.label: a.jsonl has no column 'kind'. "
        "Fix: name one of its columns: 'text', 'label'",
    ]


def test_column_missing_in_a_later_row_has_its_location():
    Path("a.jsonl").write_text('{"body": "x"}\n{"text": "y"}\n')
    assert str(get_error("a.jsonl", {"text": "body"})).startswith("a.jsonl:2: the column 'body'")


# --- fingerprints


def fingerprint(path, columns=None, **keys):
    return open_rows(Source(path=path, **keys), columns or {}).fingerprint


def test_fingerprint_changes_with_everything_that_changes_the_rows():
    as_json_lines(Path("a.jsonl"), ROWS)
    first = fingerprint("a.jsonl")
    assert first == fingerprint("a.jsonl")
    assert len({first, fingerprint("a.jsonl", limit=2), fingerprint("a.jsonl", {"t": "text"})}) == 3
    as_json_lines(Path("b.jsonl"), ROWS)
    assert fingerprint("b.jsonl") == first  # the name is no part of it
    as_json_lines(Path("b.jsonl"), [*ROWS[:-1], {"text": "!", "label": "positive"}])
    assert fingerprint("b.jsonl") != first


def test_fingerprint_of_a_folder_covers_each_file():
    Path("one").mkdir()
    as_json_lines(Path("one/a.jsonl"), ROWS[:2])
    as_json_lines(Path("one/b.jsonl"), ROWS[2:])
    before = fingerprint("one")
    as_json_lines(Path("one/b.jsonl"), ROWS[3:])
    assert fingerprint("one") != before
    assert len(before) == len(hashlib.sha256().hexdigest())


# --- folders


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


# --- built-in data


def test_builtin_data_has_locations():
    rows = read_rows("mini:sentiment/train", {"body": "text"}, limit=3)
    assert [row.location for row in rows] == [f"mini:sentiment/train:{line}" for line in (1, 2, 3)]
    assert set(rows[0].fields) == {"label", "body"}
    assert read_fields("mini:sentiment", split="heldout") == read_fields("mini:sentiment/heldout")


# --- hub datasets


def test_hub_dataset_is_loaded_by_name(monkeypatch):
    import datasets

    def load_dataset(path, name, split):
        assert (path, name, split) == ("owner/name", "en", "train")
        return datasets.Dataset.from_list(ROWS, split=datasets.Split.TRAIN)

    monkeypatch.setattr(hub, "_hub_is_reachable", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    rows = read_rows("owner/name", name="en", split="train", limit=3)
    assert [row.fields for row in rows] == ROWS[:3]
    assert rows[0].location == "owner/name (train): row 1"


def test_hub_dataset_has_class_names_and_encoded_images(monkeypatch):
    import datasets
    from datasets import ClassLabel, Features, Image, List, Value

    names = ["cat", "dog"]
    features = Features(
        image=Image(),
        label=ClassLabel(names=names),
        tags=List(ClassLabel(names=names)),
        n=Value("int64"),
    )
    picture = tiny_vision.png(tiny_vision.pixels("red", seed=1))
    rows = [
        {"image": {"bytes": picture, "path": None}, "label": 1, "tags": [0, 1], "n": 1},
        {"image": {"bytes": picture, "path": None}, "label": None, "tags": None, "n": 1},
    ]
    table = datasets.Dataset.from_list(rows, features=features, split=datasets.Split.TRAIN)
    monkeypatch.setattr(hub, "_hub_is_reachable", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: table)
    first, second = read_rows("owner/name", split="train")
    assert (
        first.fields["label"] == "dog" and first.fields["tags"] == names and first.fields["n"] == 1
    )
    assert second.fields["label"] is None and second.fields["tags"] is None
    assert first.fields["image"]["bytes"] == picture


def test_hub_dataset_with_several_splits_needs_one(monkeypatch):
    import datasets

    splits = datasets.DatasetDict(
        {name: datasets.Dataset.from_list(ROWS) for name in ("train", "test")}
    )
    monkeypatch.setattr(hub, "_hub_is_reachable", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: splits)
    assert str(get_error("owner/name")) == (
        "data.train.split: 'owner/name' has several splits. Fix: set it to 'train' or 'test'"
    )


def test_hub_without_network_fails_at_once(monkeypatch):
    import time

    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "_hub_is_reachable", lambda: False)
    start = time.monotonic()
    message = str(get_error("owner/name-that-nobody-has"))
    assert time.monotonic() - start < 5
    assert message.startswith("data.train.path: 'owner/name-that-nobody-has' is not a local file")
    assert "with network access" in message


# --- faults


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text": "y"\n', "a.jsonl:2: invalid JSON (Expecting"),
        ("a.jsonl", b'{"text": "x"}\n["y"]\n', "a.jsonl:2: the row is a list, not a JSON object"),
        ("a.jsonl", b"null\n", "a.jsonl:1: the row is null"),
        ("a.jsonl", b'{"text": "x"}\n{"text": "\xff"}\n', "a.jsonl:2: not UTF-8 text (byte 0xff)"),
        ("a.jsonl", b"", "data.train: a.jsonl has no rows"),
        ("a.jsonl", b"\n\n", "data.train: a.jsonl has no rows"),
        ("a.json", b"[]", "data.train: a.json has no rows"),
        ("a.json", b'[{"text": "x"},\n {"text" "y"}]', "a.json:2: invalid JSON"),
        ("a.json", b'[{"text": "x"}, 3]', "a.json: item 2: the row is a number"),
        ("a.json", b'[{"text": "\xff"}]', "a.json: not UTF-8 text (byte 0xff)"),
        ("a.csv", b"", "data.train: a.csv has no rows"),
        ("a.csv", b"text,label\n", "data.train: a.csv has no rows"),
        ("a.csv", b"text,label\nx,y\na,b,c\n", "a.csv:3: 3 values for 2 columns"),
        ("a.csv", b"text,label\nx\n", "a.csv:2: 1 values for 2 columns"),
        ("a.csv", b'text,label\nx,y\n"x,y\n', "a.csv:3: the row cannot be parsed ("),
        ("a.csv", b"text,text\nx,y\n", "a.csv:1: two columns are named 'text'"),
        ("a.csv", b"text,label\nx,y\n\xe4,y\n", "a.csv:3: not UTF-8 text (byte 0xe4)"),
        ("a.tsv", b"text\tlabel\nx\n", "a.tsv:2: 1 values for 2 columns"),
        ("a.parquet", b"PAR1 it is not", "a.parquet: not a readable Parquet file ("),
        ("a.arrow", b"ARROW1 it is not", "a.arrow: not a readable Arrow file ("),
        ("a.arrow", b"neither a file nor a stream", "a.arrow: not a readable Arrow file ("),
        (
            "a.txt",
            b"words",
            "a.txt: '.txt' files are not supported. Fix: convert the file to one of .jsonl,",
        ),
        (
            "words",
            b"words",
            "words: the file has no suffix. Fix: convert the file to one of .jsonl,",
        ),
    ],
)
def test_file_fault_has_its_location(name, content, message):
    Path(name).write_bytes(content)
    error = get_error(name)
    assert str(error).startswith(message)
    assert len(error.faults) == 1
    assert error.faults[0].fix
    assert error.exit_code == 2


def test_five_invalid_rows_are_listed_at_once():
    Path("a.jsonl").write_text('{"text": "x"}\n' + "bad\n" * 100 + '{"text": "y"}\n')
    assert [fault.location for fault in get_error("a.jsonl").faults] == [
        f"a.jsonl:{line}" for line in (2, 3, 4, 5, 6)
    ]


def test_rows_beyond_the_limit_are_not_validated():
    Path("a.jsonl").write_text('{"text": "x"}\nbad\n')
    assert read_fields("a.jsonl", limit=1) == [{"text": "x"}]


def test_invalid_first_row_is_found_on_opening():
    Path("a.jsonl").write_text("bad\n")
    with pytest.raises(DtlError, match=r"a\.jsonl:1"):
        open_rows(Source(path="a.jsonl"), {})


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
        ("data/mixed", {}, "data.train.path: data/mixed has files of several formats (.cs"),
        ("data/none", {}, "data.train.path: data/none has no data files. Fix: name a"),
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
