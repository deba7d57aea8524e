"""Invalid rows: found before the split, reported or skipped, listed with file and line."""

import json
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from dtl.assembly.parts import assemble
from dtl.config.load import load_config
from dtl.config.schema import Source
from dtl.core.errors import DtlError, Fault
from dtl.data.sources.rows import open_rows
from dtl.prepare.prepared_data import prepare_data
from tests import tiny

CONFIG = """
model: {path: base}
task: causal_lm
data: {train: rows.jsonl, on_bad_row: skip, max_bad_fraction: 0.5}
strategy: full
train: {steps: 1}
"""
GOOD = [f'{{"text": "{word} river"}}' for word in tiny.WORDS[:8]]


@pytest.fixture(autouse=True)
def inside(tmp_path, monkeypatch, decoder):
    """Tests run in their own folder, with a base model and a config beside their data."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DTL_CACHE", str(tmp_path / "cache"))
    Path("base").symlink_to(decoder)
    Path("run.yaml").write_text(CONFIG)


def only_text(row):
    """As a task says it."""
    if isinstance(row.fields.get("text"), str):
        return None
    return Fault(row.location, "`text` is no text", "fix it")


def opened(path, *, skips, columns=None, **keys):
    source = Source(path=str(path), **keys)
    return open_rows(source, columns or {}, check=only_text, skip_invalid=skips)


def prepared(*overrides):
    config = load_config("run.yaml", overrides)
    return prepare_data(config, assemble(config))


def write(*lines, name="rows.jsonl"):
    Path(name).write_bytes(
        b"".join((line if isinstance(line, bytes) else line.encode()) + b"\n" for line in lines)
    )


def parquet_with_bad_text(path):
    """Three texts of which the second is not UTF-8, as other programs can write them."""
    binary = pa.array([b"a", b"\xff", b"c"], pa.binary())
    texts = pa.StringArray.from_buffers(3, *binary.buffers()[1:])
    parquet.write_table(pa.table({"text": texts}), path)


# --- a fault of one row

ROW_FAULTS = [
    ("a.jsonl", b'{"text": "a"}\n{"text": "b\n{"text": "c"}\n', "a.jsonl:2", "invalid JSON"),
    ("a.jsonl", b'{"text": "a"}\n["b"]\n{"text": "c"}\n', "a.jsonl:2", "the row is a list"),
    ("a.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n{"text": "c"}\n', "a.jsonl:2", "not UTF-8"),
    (
        "a.jsonl",
        b'{"text": "a"}\n{"text": "\\ud83d"}\n{"text": "c"}',
        "a.jsonl:2",
        "unpaired surrogate",
    ),
    ("a.jsonl", b'{"text": "a"}\n' + b"[" * 99999 + b'\n{"text": "c"}', "a.jsonl:2", "too deep"),
    ("a.jsonl", b'{"text": "a"}\n' + b"9" * 9999 + b'\n{"text": "c"}', "a.jsonl:2", "too long"),
    ("a.jsonl", b'{"text": "a"}\n{"body": "b"}\n{"text": "c"}\n', "a.jsonl:2", "no text"),
    ("a.jsonl", b'{"text": "a"}\n{"text": 7}\n{"text": "c"}\n', "a.jsonl:2", "no text"),
    ("a.jsonl", b'{"text": "a"}\n\0\0\0\n{"text": "c"}\n', "a.jsonl:2", "invalid JSON"),
    ("a.jsonl", b'{"text": "a"}\n{"text": "c"}\n{"te', "a.jsonl:3", "invalid JSON"),
    ("a.json", b'[{"text": "a"}, 3, {"text": "c"}]', "a.json: item 2", "the row is a number"),
    (
        "a.json",
        b'[{"text": "a"}, {"text": "\\uD83D"}, {"text": "c"}]',
        "a.json: item 2",
        "unpaired surrogate",
    ),
    ("a.csv", b"text,n\na,1\nb\nc,3\n", "a.csv:3", "1 values for 2 columns"),
    ("a.csv", b"text,n\na,1\n\xe4,2\nc,3\n", "a.csv:3", "not UTF-8"),
    ("a.tsv", b"text\tn\na\t1\nb\t2\t3\nc\t3\n", "a.tsv:3", "3 values for 2 columns"),
    ("a.parquet", parquet_with_bad_text, "a.parquet: row 2", "not UTF-8"),
]


@pytest.mark.parametrize(("name", "content", "place", "said"), ROW_FAULTS)
def test_an_invalid_row_stops_the_run_or_is_skipped(name, content, place, said):
    if callable(content):
        content(Path(name))
    else:
        Path(name).write_bytes(content)
    with pytest.raises(DtlError) as caught:
        list(opened(name, skips=False))
    (fault,) = caught.value.faults
    assert fault.location == place
    assert said in fault.problem and fault.fix
    rows = opened(name, skips=True)
    assert [(row.index, row.fields["text"]) for row in rows] == [(0, "a"), (1, "c")]
    reading = rows.scan()
    assert (reading.valid_rows, reading.faults) == (2, (fault,))


def test_a_column_missing_in_one_row_is_a_fault_of_that_row():
    write('{"body": "a"}', '{"text": "b"}', '{"body": "c"}')
    rows = opened("rows.jsonl", skips=True, columns={"text": "body"})
    assert [row.fields["text"] for row in rows] == ["a", "c"]
    assert [fault.location for fault in rows.scan().faults] == ["rows.jsonl:2"]


def test_locations_of_valid_rows_are_those_in_the_file():
    write("bad", GOOD[0], "bad", GOOD[1])
    rows = list(opened("rows.jsonl", skips=True))
    assert [(row.index, row.location) for row in rows] == [(0, "rows.jsonl:2"), (1, "rows.jsonl:4")]


def test_the_limit_counts_valid_rows():
    write(GOOD[0], "bad", GOOD[1], "bad", GOOD[2])
    rows = opened("rows.jsonl", skips=True, limit=2)
    assert [row.location for row in rows] == ["rows.jsonl:1", "rows.jsonl:3"]
    assert [fault.location for fault in rows.scan().faults] == ["rows.jsonl:2"]


# --- a fault of a file


def truncated(path, *, keep):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])


def cut_parquet(path):
    parquet.write_table(pa.table({"text": [str(n) for n in range(5000)]}), path)
    truncated(path, keep=0.9)


def corrupted_parquet(path):
    parquet.write_table(pa.table({"text": [str(n) for n in range(5000)]}), path)
    content = bytearray(path.read_bytes())
    content[200:400] = b"\xff" * 200
    path.write_bytes(content)


def cut_arrow_stream(path):
    table = pa.table({"text": [str(n) for n in range(5000)]})
    with pa.ipc.new_stream(str(path), table.schema) as file:
        file.write_table(table, max_chunksize=500)
    truncated(path, keep=0.5)


def cut_arrow_file(path):
    table = pa.table({"text": [str(n) for n in range(5000)]})
    with pa.ipc.new_file(str(path), table.schema) as file:
        file.write_table(table)
    truncated(path, keep=0.9)


FILE_FAULTS = [
    ("a.parquet", cut_parquet, "a.parquet: not a readable Parquet file ("),
    ("a.parquet", corrupted_parquet, "a.parquet: the file cannot be read (Corrupt"),
    ("a.parquet", b"", "a.parquet: not a readable Parquet file ("),
    ("a.arrow", cut_arrow_stream, "a.arrow: the file cannot be read (Expected to be able to read"),
    ("a.arrow", cut_arrow_file, "a.arrow: not a readable Arrow file ("),
    ("a.json", b'[{"text": "a"}, {"text": "b"}', "a.json:1: invalid JSON"),
    ("a.json", b'[{"text": "\xff"}]', "a.json: not UTF-8 text"),
    (
        "a.csv",
        b'text,n\na,1\n"b,2\nc,3\n',
        "a.csv:3: the row cannot be parsed (unexpected end of data)",
    ),
    ("a.csv", b"text,text\na,1\n", "a.csv:1: two columns are named 'text'"),
    ("a.csv", b"text,\xe4\na,1\n", "a.csv:1: the header is not UTF-8 text"),
]


@pytest.mark.parametrize("skips", [False, True], ids=["fail", "skip"])
@pytest.mark.parametrize(("name", "content", "said"), FILE_FAULTS)
def test_an_unreadable_file_always_stops_the_run(name, content, said, skips):
    if callable(content):
        content(Path(name))
    else:
        Path(name).write_bytes(content)
    with pytest.raises(DtlError) as caught:
        list(opened(name, skips=skips))
    (message,) = str(caught.value).splitlines()
    assert message.startswith(said)
    assert caught.value.exit_code == 2


def test_an_unreadable_file_after_skipped_rows_is_the_only_fault():
    Path("shards").mkdir()
    write('{"text": "a"}', "bad", name="shards/a.json")
    write('[{"text": "b"}, ', name="shards/b.json")
    with pytest.raises(DtlError) as caught:
        list(opened("shards", skips=True))
    assert [fault.location for fault in caught.value.faults] == ["shards/b.json:2"]


# --- how many may be skipped, and where they are listed


def test_fail_is_the_default_and_lists_several_faults():
    write(GOOD[0], *["bad"] * 9)
    with pytest.raises(DtlError) as caught:
        prepared("data.on_bad_row=null", "data.max_bad_fraction=1")
    assert [fault.location for fault in caught.value.faults] == [
        f"rows.jsonl:{line}" for line in (2, 3, 4, 5, 6)
    ]


@pytest.mark.parametrize(("share", "fits"), [("0.29", True), ("0.28", False), ("0", False)])
def test_more_than_the_share_that_may_be_skipped_stops_the_run(share, fits):
    """29 of 100, a share that floating-point products miss by a little."""
    write(*(GOOD * 9)[:71], *["bad"] * 29)
    if fits:
        assert len(prepared(f"data.max_bad_fraction={share}").sources[0].faults) == 29
        return
    for _ in range(2):  # the second time from the cache
        with pytest.raises(DtlError) as caught:
            prepared(f"data.max_bad_fraction={share}")
        (fault,) = caught.value.faults
        assert fault.location == "data.max_bad_fraction"
        assert (
            "29 of 100 rows of rows.jsonl are invalid, and the share that may be skipped is "
            f"{share}: "
        ) in fault.problem
        assert "rows.jsonl:72 (invalid JSON" in fault.problem and fault.problem.endswith("...")


def test_one_percent_is_the_default_limit():
    write(*(GOOD * 13)[:99], "bad")
    assert prepared("data.max_bad_fraction=null").sources[0].faults[0].location == "rows.jsonl:100"
    write(*(GOOD * 13)[:98], "bad")
    with pytest.raises(DtlError, match=r"^data\.max_bad_fraction: 1 of 99 rows"):
        prepared("data.max_bad_fraction=null")


def test_no_valid_row_stops_the_run():
    write("bad", "worse")
    with pytest.raises(DtlError, match=r"2 of 2 rows of rows\.jsonl are invalid"):
        prepared("data.max_bad_fraction=1")


DIRTY = [
    GOOD[0],
    '{"text": "cut off',
    GOOD[1],
    '{"text": ""}',
    GOOD[2],
    b'{"text": "\xff"}',
    '{"text": 7}',
    *GOOD[3:],
]
AT_FAULT = [
    ("rows.jsonl:2", "invalid JSON (Invalid control character at column 18)"),
    ("rows.jsonl:6", "not UTF-8 text (byte 0xff)"),
    ("rows.jsonl:7", "`text` is int ('7'), not text"),
]


@pytest.mark.parametrize("more", [(), ("data.eval_fraction=0.3",)], ids=["all", "eval_fraction"])
def test_every_skipped_row_is_listed(more):
    write(*DIRTY)
    expected = [*AT_FAULT, ("rows.jsonl:4", "empty text")]
    for _ in range(2):  # the second time from the cache
        examples = prepared(*more)
        listed = list(examples.iter_skipped_rows())
        assert [(row["location"], row["reason"]) for row in listed] == expected
        assert {row["source"] for row in listed} == {"data.train"}
        assert examples.to_record()["skipped_rows"] == 3
        line = examples.format_lines()[0]
        assert line.startswith("data.train: 3 of 12 rows are invalid and skipped: rows.jsonl:2 (")
        assert "rows.jsonl:6 (not UTF-8 text (byte 0xff))" in line


def test_skipped_rows_of_both_sources_are_listed():
    write(*GOOD, "bad")
    write(GOOD[0], "bad", '{"text": ""}', name="eval.jsonl")
    listed = list(prepared("data.eval=eval.jsonl").iter_skipped_rows())
    assert [(row["source"], row["location"]) for row in listed] == [
        ("data.train", "rows.jsonl:9"),
        ("data.eval", "eval.jsonl:2"),
        ("data.eval", "eval.jsonl:3"),
    ]


def test_a_renamed_file_is_listed_with_its_new_name():
    """The cache knows its content already."""
    write(*DIRTY)
    first = prepared()
    Path("rows.jsonl").rename("renamed.jsonl")
    again = prepared("data.train=renamed.jsonl")
    assert again.train.key == first.train.key
    assert [row["location"] for row in again.iter_skipped_rows()] == [
        f"renamed.jsonl:{line}" for line in (2, 6, 7, 4)
    ]


@pytest.mark.parametrize("more", [(), ("data.eval_fraction=0.3",), ("data.train.limit=6",)])
def test_the_examples_are_those_of_the_valid_rows(more):
    """The same encoded examples in the same order, on either side of the split."""
    dirty = ["bad", *DIRTY]
    write(*dirty)
    found = prepared(*more)
    write(*(line for line in dirty if dirty.index(line) not in (0, 2, 6, 7)))
    expected = prepared("data.on_bad_row=fail", *more)
    for mine, theirs in ((found.train, expected.train), (found.held_out, expected.held_out)):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            assert mine.rows.tolist() == theirs.rows.tolist()
            assert [mine[n]["input_ids"].tolist() for n in range(len(mine))] == [
                theirs[n]["input_ids"].tolist() for n in range(len(theirs))
            ]


def test_invalid_labels_are_found_before_the_split(encoder):
    Path("encoder").symlink_to(encoder)
    rows = [{"text": "a", "label": label} for label in ("early", "late") * 4]
    rows[2:2] = [{"text": "b"}, {"text": "c", "label": ["late"]}, {"label": "late"}]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    examples = prepared("model.path=encoder", "task=text_classification", "data.eval_fraction=0.25")
    assert examples.dataset_stats == {"labels": ["early", "late"]}
    assert len(examples.train) + len(examples.held_out) == 8
    assert [fault.location for fault in examples.sources[0].faults] == [
        f"rows.jsonl:{line}" for line in (3, 4, 5)
    ]


# --- rows of absurd length


@pytest.mark.parametrize(
    "fields",
    [
        {"text": "x" * 50_000_000},
        {"prompt": "the river ", "completion": "stone " * 8_000_000},
        {"messages": [{"role": r, "content": "a stone"} for r in ("user", "assistant") * 200_000]},
    ],
    ids=["text", "completion", "chat"],
)
def test_a_row_of_many_megabytes_is_truncated_in_seconds(fields):
    import time

    write(*GOOD, json.dumps(fields))
    start = time.monotonic()
    examples = prepared()
    assert time.monotonic() - start < 90, "to locate each of its answers would take hours"
    assert examples.train.lengths.tolist()[-1] == 128, "what the model can read"


def test_truncated_text_does_not_change_the_rest():
    """The first tokens of a long text are those of the full text."""
    text = "the river turns quietly " * 60_000  # beyond a million characters
    write(json.dumps({"text": text}))
    (found,) = (prepared().train[0]["input_ids"].tolist(),)
    write(json.dumps({"text": text[:5000]}))
    assert found == prepared().train[0]["input_ids"].tolist()
