"""Data sources: every format gives the same rows, and every fault names its place and its fix."""

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
    {"text": 'He said "no",\nthen left.', "label": "negative"},
    {"text": "Größe: 北京 🙂", "label": "positive"},
    {"text": "plain", "label": "negative"},
    {"text": "", "label": "positive"},
]


def as_json_lines(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")


def as_json(path, rows):
    path.write_text(json.dumps(rows, indent=1), "utf-8")


def as_separated(separator):
    def write(path, rows):
        with path.open("w", encoding="utf-8", newline="") as file:
            table = csv.DictWriter(file, list(rows[0]), delimiter=separator)
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
    "data.csv": as_separated(","),
    "data.tsv": as_separated("\t"),
    "data.parquet": as_parquet,
    "data.arrow": as_arrow_file,
    "stream.arrow": as_arrow_stream,
    "UPPER.JSONL": as_json_lines,
}


@pytest.fixture(autouse=True)
def inside(tmp_path, monkeypatch):
    """Tests run in their own folder, so that paths are written as users write them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DTL_CACHE", str(tmp_path / "cache"))


def rows_of(path, columns=None, **keys):
    return list(open_rows(Source(path=str(path), **keys), columns or {}))


def fields_of(path, columns=None, **keys):
    return [row.fields for row in rows_of(path, columns, **keys)]


def refusal(path, columns=None, **keys):
    with pytest.raises(DtlError) as caught:
        rows_of(path, columns, **keys)
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
    assert fields_of(name, {"body": "text"}, limit=2) == [
        {"label": row["label"], "body": row["text"]} for row in ROWS[:2]
    ]


def test_places_are_those_of_the_file():
    Path("a.jsonl").write_text('{"text": "x"}\n\n  \n{"text": "y"}\r\n{"text": "z"}')
    assert [row.location for row in rows_of("a.jsonl")] == ["a.jsonl:1", "a.jsonl:4", "a.jsonl:5"]
    Path("a.csv").write_text('text,label\n"one\ntwo\nthree",a\n\nfour,b\n')
    assert [row.location for row in rows_of("a.csv")] == ["a.csv:2", "a.csv:6"]
    as_parquet(Path("a.parquet"), ROWS)
    assert [row.location for row in rows_of("a.parquet", limit=2)] == [
        "a.parquet: row 1",
        "a.parquet: row 2",
    ]
    as_json(Path("a.json"), ROWS)
    assert rows_of("a.json")[1] == Row(1, "a.json: item 2", ROWS[1])


def test_nested_values_survive():
    chat = [{"messages": [{"role": "user", "content": "Hi"}], "count": 3}]
    for name in ("data.jsonl", "data.json", "data.parquet", "data.arrow", "stream.arrow"):
        WRITERS[name](Path(name), chat)
        assert fields_of(name) == chat


def test_a_byte_order_mark_is_no_part_of_the_data():
    for name in ("data.jsonl", "data.json", "data.csv", "data.tsv"):
        WRITERS[name](Path(name), ROWS)
        Path(name).write_bytes(b"\xef\xbb\xbf" + Path(name).read_bytes())
        assert fields_of(name) == ROWS


def test_csv_values_stay_text_and_may_be_long():
    long = "x" * 200_000
    Path("a.csv").write_text(f"text,label\n{long},007\n")
    assert fields_of("a.csv") == [{"text": long, "label": "007"}]


def test_rows_can_be_read_again_and_in_part():
    as_json_lines(Path("a.jsonl"), ROWS)
    rows = open_rows(Source(path="a.jsonl"), {})
    assert next(iter(rows)).fields == ROWS[0]
    assert list(rows) == list(rows)


def test_a_home_folder_is_understood(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    as_json_lines(tmp_path / "a.jsonl", ROWS)
    assert fields_of("~/a.jsonl") == ROWS


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
    assert fields_of("a.jsonl", {"a": "b", "b": "a"}) == [{"c": 3, "a": 2, "b": 1}]
    assert fields_of("a.jsonl", {"x": "a", "y": "a"}) == [{"b": 2, "c": 3, "x": 1, "y": 1}]


def test_missing_columns_are_told_at_once_with_those_that_are_there():
    as_json_lines(Path("a.jsonl"), ROWS)
    assert str(refusal("a.jsonl", {"text": "txet", "label": "kind"})).splitlines() == [
        "data.columns.text: a.jsonl has no column 'txet'; did you mean 'text'?",
        "data.columns.label: a.jsonl has no column 'kind'; it has 'text', 'label'",
    ]


def test_a_column_missing_in_a_later_row_is_found_there():
    Path("a.jsonl").write_text('{"body": "x"}\n{"text": "y"}\n')
    assert str(refusal("a.jsonl", {"text": "body"})).startswith("a.jsonl:2: no column 'body'")


# --- fingerprints


def fingerprint(path, columns=None, **keys):
    return open_rows(Source(path=path, **keys), columns or {}).fingerprint


def test_a_fingerprint_changes_with_all_that_changes_the_rows():
    as_json_lines(Path("a.jsonl"), ROWS)
    first = fingerprint("a.jsonl")
    assert first == fingerprint("a.jsonl")
    assert len({first, fingerprint("a.jsonl", limit=2), fingerprint("a.jsonl", {"t": "text"})}) == 3
    as_json_lines(Path("b.jsonl"), ROWS)
    assert fingerprint("b.jsonl") == first  # the name is no part of it
    as_json_lines(Path("b.jsonl"), [*ROWS[:-1], {"text": "!", "label": "positive"}])
    assert fingerprint("b.jsonl") != first


def test_a_fingerprint_of_a_folder_sees_each_file_apart():
    Path("one").mkdir()
    as_json_lines(Path("one/a.jsonl"), ROWS[:2])
    as_json_lines(Path("one/b.jsonl"), ROWS[2:])
    before = fingerprint("one")
    as_json_lines(Path("one/b.jsonl"), ROWS[3:])
    assert fingerprint("one") != before
    assert len(before) == len(hashlib.sha256().hexdigest())


# --- folders


def test_a_folder_is_read_in_the_order_of_names():
    Path("shards").mkdir()
    as_json_lines(Path("shards/b.jsonl"), ROWS[2:])
    as_json_lines(Path("shards/a.jsonl"), ROWS[:2])
    Path("shards/README.md").write_text("no data")
    rows = rows_of("shards")
    assert [row.fields for row in rows] == ROWS
    assert [row.index for row in rows] == [0, 1, 2, 3]
    assert rows[2].location == "shards/b.jsonl:1"


def test_a_split_of_a_folder_is_a_folder_or_a_file_name():
    for name in ("by_folder/train", "by_folder/test", "by_name"):
        Path(name).mkdir(parents=True)
    as_parquet(Path("by_folder/train/x.parquet"), ROWS[:1])
    as_parquet(Path("by_folder/test/x.parquet"), ROWS[1:])
    as_parquet(Path("by_name/train-00000-of-00002.parquet"), ROWS[:1])
    as_parquet(Path("by_name/train-00001-of-00002.parquet"), ROWS[1:2])
    as_parquet(Path("by_name/test.parquet"), ROWS[2:])
    assert fields_of("by_folder", split="train") == ROWS[:1]
    assert fields_of("by_folder", split="test") == ROWS[1:]
    assert fields_of("by_name", split="train") == ROWS[:2]
    assert fields_of("by_name", split="test") == ROWS[2:]


def test_what_datasets_saved_is_read():
    import datasets

    datasets.Dataset.from_list(ROWS).save_to_disk("saved")
    assert fields_of("saved") == ROWS
    both = {"train": datasets.Dataset.from_list(ROWS[:1]), "test": datasets.Dataset.from_list(ROWS)}
    datasets.DatasetDict(both).save_to_disk("both")
    assert fields_of("both", split="train") == ROWS[:1]


# --- data that dtl makes


def test_mini_rows_come_with_places():
    rows = rows_of("mini:sentiment/train", {"body": "text"}, limit=3)
    assert [row.location for row in rows] == [f"mini:sentiment/train:{line}" for line in (1, 2, 3)]
    assert set(rows[0].fields) == {"label", "body"}
    assert fields_of("mini:sentiment", split="heldout") == fields_of("mini:sentiment/heldout")


# --- hub data sets


def test_a_hub_data_set_is_asked_for_by_its_name(monkeypatch):
    import datasets

    def load_dataset(path, name, split):
        assert (path, name, split) == ("owner/name", "en", "train")
        return datasets.Dataset.from_list(ROWS, split=datasets.Split.TRAIN)

    monkeypatch.setattr(hub, "_has_an_address", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    rows = rows_of("owner/name", name="en", split="train", limit=3)
    assert [row.fields for row in rows] == ROWS[:3]
    assert rows[0].location == "owner/name (train): row 1"


def test_a_hub_data_set_gives_names_of_classes_and_bytes_of_pictures(monkeypatch):
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
    monkeypatch.setattr(hub, "_has_an_address", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: table)
    first, second = rows_of("owner/name", split="train")
    assert (
        first.fields["label"] == "dog" and first.fields["tags"] == names and first.fields["n"] == 1
    )
    assert second.fields["label"] is None and second.fields["tags"] is None
    assert first.fields["image"]["bytes"] == picture


def test_a_hub_data_set_with_several_splits_needs_one(monkeypatch):
    import datasets

    splits = datasets.DatasetDict(
        {name: datasets.Dataset.from_list(ROWS) for name in ("train", "test")}
    )
    monkeypatch.setattr(hub, "_has_an_address", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: splits)
    assert str(refusal("owner/name")) == (
        "data.train.split: 'owner/name' has several splits; name 'train' or 'test'"
    )


def test_without_a_network_the_hub_is_not_waited_for(monkeypatch):
    import time

    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "_has_an_address", lambda: False)
    start = time.monotonic()
    said = str(refusal("owner/name-that-nobody-has"))
    assert time.monotonic() - start < 5
    assert said.startswith("data.train.path: 'owner/name-that-nobody-has' is no file here")
    assert "where there is a network" in said


# --- faults


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text": "y"\n', "a.jsonl:2: no valid JSON (Expecting"),
        ("a.jsonl", b'{"text": "x"}\n["y"]\n', "a.jsonl:2: the row is a list; write a JSON object"),
        ("a.jsonl", b"null\n", "a.jsonl:1: the row is null"),
        ("a.jsonl", b'{"text": "x"}\n{"text": "\xff"}\n', "a.jsonl:2: not UTF-8 text (byte 0xff)"),
        ("a.jsonl", b"", "data.train: a.jsonl has no rows"),
        ("a.jsonl", b"\n\n", "data.train: a.jsonl has no rows"),
        ("a.json", b"[]", "data.train: a.json has no rows"),
        ("a.json", b'[{"text": "x"},\n {"text" "y"}]', "a.json:2: no valid JSON"),
        ("a.json", b'[{"text": "x"}, 3]', "a.json: item 2: the row is a number"),
        ("a.json", b'[{"text": "\xff"}]', "a.json: not UTF-8 text (byte 0xff)"),
        ("a.csv", b"", "data.train: a.csv has no rows"),
        ("a.csv", b"text,label\n", "data.train: a.csv has no rows"),
        ("a.csv", b"text,label\nx,y\na,b,c\n", "a.csv:3: 3 values for 2 columns"),
        ("a.csv", b"text,label\nx\n", "a.csv:2: 1 values for 2 columns"),
        ("a.csv", b'text,label\nx,y\n"x,y\n', "a.csv:3: not readable ("),
        ("a.csv", b"text,text\nx,y\n", "a.csv:1: two columns are named 'text'"),
        ("a.csv", b"text,label\nx,y\n\xe4,y\n", "a.csv:3: not UTF-8 text (byte 0xe4)"),
        ("a.tsv", b"text\tlabel\nx\n", "a.tsv:2: 1 values for 2 columns"),
        ("a.parquet", b"PAR1 it is not", "a.parquet: no readable Parquet file ("),
        ("a.arrow", b"ARROW1 it is not", "a.arrow: no readable Arrow file ("),
        ("a.arrow", b"neither a file nor a stream", "a.arrow: no readable Arrow file ("),
        ("a.txt", b"words", "a.txt: dtl reads no '.txt' files; convert it to one of .jsonl,"),
        ("words", b"words", "words: the file has no suffix; convert it to one of .jsonl,"),
    ],
)
def test_a_fault_in_a_file(name, content, said):
    Path(name).write_bytes(content)
    error = refusal(name)
    assert str(error).startswith(said)
    assert len(error.faults) == 1
    assert error.faults[0].fix
    assert error.exit_code == 2


def test_several_bad_rows_are_told_at_once_but_not_hundreds():
    Path("a.jsonl").write_text('{"text": "x"}\n' + "bad\n" * 100 + '{"text": "y"}\n')
    assert [fault.location for fault in refusal("a.jsonl").faults] == [
        f"a.jsonl:{line}" for line in (2, 3, 4, 5, 6)
    ]


def test_rows_beyond_the_limit_are_not_judged():
    Path("a.jsonl").write_text('{"text": "x"}\nbad\n')
    assert fields_of("a.jsonl", limit=1) == [{"text": "x"}]


def test_a_first_row_at_fault_is_found_on_opening():
    Path("a.jsonl").write_text("bad\n")
    with pytest.raises(DtlError, match=r"a\.jsonl:1"):
        open_rows(Source(path="a.jsonl"), {})


@pytest.mark.parametrize(
    ("path", "keys", "said"),
    [
        ("data/trian.jsonl", {}, "data.train.path: no such file: data/trian.jsonl; did you mean"),
        ("data/zzz", {}, "data.train.path: no such file: data/zzz; the folder data has 'mixed', "),
        ("no/where.csv", {}, "data.train.path: no such file: no/where.csv; there is no folder no"),
        ("./nowhere", {}, "data.train.path: no such file: ./nowhere"),
        ("data/mixed", {}, "data.train.path: data/mixed holds files of several kinds (.csv, .js"),
        ("data/none", {}, "data.train.path: data/none holds no data files; it has nothing"),
        ("data/mixed", {"split": "dev"}, "data.train.path: data/mixed holds no data files of th"),
        ("data/train.jsonl", {"split": "dev"}, "data.train.split: data/train.jsonl is one file"),
        ("data/train.jsonl", {"name": "en"}, "data.train.name: only a hub data set has one"),
        ("mini:graphs", {}, "data.train.path: mini:graphs names no split; write mini:graphs/train"),
        ("mini:grahps/train", {}, "mini:grahps/train: no such mini data set: 'grahps'; did you"),
        ("mini:graphs/tran", {}, "mini:graphs/tran: no such mini split: 'tran'; did you mean"),
    ],
)
def test_a_path_at_fault(path, keys, said):
    for folder in ("data/mixed", "data/none"):
        Path(folder).mkdir(parents=True)
    as_json_lines(Path("data/train.jsonl"), ROWS)
    as_json_lines(Path("data/mixed/a.jsonl"), ROWS)
    as_separated(",")(Path("data/mixed/b.csv"), ROWS)
    error = refusal(path, **keys)
    assert str(error).startswith(said)
    assert "\n" not in str(error)


def test_the_key_at_fault_is_the_one_asked_for():
    with pytest.raises(DtlError, match=r"^data\.eval\.path: no such file"):
        open_rows(Source(path="a.jsonl"), {}, "data.eval")
