"""Compression, encodings, delimiters, quoting, plain text: detected, named, and described."""

import bz2
import csv
import gzip
import io
import json
import lzma
import zipfile
from pathlib import Path

import pyarrow as pa
import pytest

from dtl.config.schema import Source
from dtl.core.errors import DtlError
from dtl.data.sources.rows import open_rows
from tests.unit.data.sources.source_files import WRITERS, get_error, read_fields, read_rows

ROWS = [
    {"text": 'Die Größe, "ganz" klein;\nund neu', "label": "für"},
    {"text": "Señor: ça va?\tça va", "label": "für"},
    {"text": "été", "label": "straße"},
    {"text": "plain", "label": "für"},
]


def zstd(content):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


def zipped(content, name="inner.jsonl"):
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
        archive.writestr("__MACOSX/._inner.jsonl", "resource fork")
    return target.getvalue()


COMPRESS = {
    ".gz": gzip.compress,
    ".zst": zstd,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
}
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".xz": "xz", ".bz2": "bz2"}
TEXT_FORMATS = ["data.jsonl", "data.json", "data.csv", "data.tsv"]


def description(path, **keys):
    return str(open_rows(Source(path=path, **keys), {}).description)


def read_singly(path, **keys):
    """Read each row at its position, the last one first."""
    rows = open_rows(Source(path=path, **keys), {})
    (reader,) = rows.open_readers("data.train")
    positions = [position for position, _ in reader.iter_rows()]
    return [reader.read_row(position)[1] for position in reversed(positions)][::-1]


@pytest.mark.parametrize("name", TEXT_FORMATS)
@pytest.mark.parametrize("suffix", COMPRESS)
def test_compressed_files_have_the_same_rows(name, suffix):
    WRITERS[name](Path(name), ROWS)
    compressed = Path(name + suffix)
    compressed.write_bytes(COMPRESS[suffix](Path(name).read_bytes()))
    assert read_fields(compressed) == ROWS
    assert read_rows(compressed)[0].location.startswith(compressed.name)
    assert COMPRESSIONS[suffix] in description(compressed.name)


@pytest.mark.parametrize("name", TEXT_FORMATS)
def test_members_of_a_zip_archive_are_files(name):
    WRITERS[name](Path(name), ROWS)
    Path("one.zip").write_bytes(zipped(Path(name).read_bytes(), f"folder/{name}"))
    assert read_fields("one.zip") == ROWS
    with zipfile.ZipFile("two.zip", "w") as archive:
        archive.write(name, f"b-{name}")
        archive.write(name, f"a-{name}")
        archive.writestr("README.md", "about")
    rows = read_rows("two.zip")
    assert [row.fields for row in rows] == ROWS * 2
    assert rows[0].location.startswith(f"two.zip/a-{name}:")


def test_compression_is_known_by_its_bytes_not_by_its_suffix():
    WRITERS["data.jsonl"](Path("data.jsonl"), ROWS)
    Path("wrong.jsonl").write_bytes(gzip.compress(Path("data.jsonl").read_bytes()))
    assert read_fields("wrong.jsonl") == ROWS
    Path("plain.jsonl.gz").write_bytes(Path("data.jsonl").read_bytes())
    assert read_fields("plain.jsonl.gz") == ROWS


@pytest.mark.parametrize("suffix", COMPRESS)
def test_truncated_compressed_file_is_a_fault(suffix):
    content = "".join(json.dumps({"text": f"{number}"}) + "\n" for number in range(20_000))
    compressed = COMPRESS[suffix](content.encode())
    Path(f"a.jsonl{suffix}").write_bytes(compressed[: len(compressed) // 2])
    error = get_error(f"a.jsonl{suffix}")
    assert error.faults[0].location == f"a.jsonl{suffix}"
    assert "cannot be decompressed" in error.faults[0].problem


def test_archives_without_data_and_encrypted_ones_are_faults():
    Path("a.zip").write_bytes(zipped(b"about", "notes.md"))
    assert "'.md' files are not supported" in str(get_error("a.zip"))
    with zipfile.ZipFile("b.zip", "w") as archive:
        archive.writestr("notes.md", "about")
        archive.writestr("more.md", "about")
    assert "the archive has no data files" in str(get_error("b.zip"))
    with zipfile.ZipFile("c.zip", "w") as archive:
        archive.writestr("rows.jsonl", "{}")
    content = bytearray(Path("c.zip").read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1  # the flag of encryption
    Path("c.zip").write_bytes(content)
    assert "encrypted" in str(get_error("c.zip"))


@pytest.mark.parametrize("name", TEXT_FORMATS)
@pytest.mark.parametrize(
    ("codec", "named"),
    [
        ("utf-8-sig", None),
        ("utf-16", None),
        ("utf-32", None),
        ("utf-16-le", None),
        ("utf-16-be", None),
        ("cp1252", None),
        ("utf-16-le", "utf-16"),
        ("utf-16", "utf-16"),
        ("latin-1", "latin-1"),
        ("cp1252", "cp1252"),
        ("cp500", "cp500"),
    ],
)
def test_text_in_each_encoding_has_the_same_rows(name, codec, named):
    WRITERS[name](Path(name), ROWS)
    text = Path(name).read_bytes().decode()
    Path(name).write_bytes(text.encode(codec))
    assert read_fields(name, encoding=named) == ROWS
    if not name.endswith(".json"):
        assert read_singly(name, encoding=named) == ROWS


@pytest.mark.parametrize("codec", ["utf-16", "utf-32", "cp1252", "utf-8-sig"])
def test_detected_encoding_is_described_and_only_a_guess_is_reported(codec):
    WRITERS["data.csv"](Path("a.csv"), ROWS)
    Path("a.csv").write_bytes(Path("a.csv").read_bytes().decode().encode(codec))
    rows = open_rows(Source(path="a.csv"), {})
    name = {"utf-8-sig": "UTF-8 with", "cp1252": "cp1252, guessed"}.get(codec, codec.upper())
    assert name in str(rows.description)
    guesses = rows.find_suspicions("data.train")
    assert len(guesses) == (codec == "cp1252")
    assert all("data.train.encoding=cp1252" in guess.fix for guess in guesses)


@pytest.mark.parametrize(
    "content",
    [
        # cp1251
        bytes.fromhex("cff0e8e2e5f22c20ece8f00ae5f9b80a"),
        "日本語のテキスト\n".encode("shift_jis"),
        b"Gr\xc3\xb6\xc3\x9fe und Gr\xf6\xdfe\n",
        b"a \xe4 b\n",
    ],
)
def test_an_encoding_that_cannot_be_known_is_a_fault_that_names_the_key(content):
    Path("a.txt").write_bytes(content)
    error = get_error("a.txt")
    assert error.faults[0].location.startswith("a.txt:1")
    assert "not UTF-8 text" in error.faults[0].problem
    assert "data.encoding" in error.faults[0].fix


def test_wrong_named_encoding_is_a_fault():
    Path("a.jsonl").write_bytes('{"text": "ä"}\n'.encode())
    assert "not ascii text (byte 0xc3)" in str(get_error("a.jsonl", encoding="ascii"))


@pytest.mark.parametrize("encoding", ["utf-9", "rot13", "base64", "utf-7", "iso2022_jp"])
def test_encoding_that_is_no_text_encoding_of_lines_is_refused(encoding):
    with pytest.raises(ValueError, match=r"no text encoding|not supported"):
        Source(path="a.csv", encoding=encoding)


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_delimiter_is_detected_or_named(suffix, delimiter):
    with Path(f"a{suffix}").open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, ["text", "label"], delimiter=delimiter)
        table.writeheader()
        table.writerows(ROWS)
    assert read_fields(f"a{suffix}") == ROWS
    assert read_fields(f"a{suffix}", delimiter=delimiter) == ROWS
    shown = "tab" if delimiter == "\t" else repr(delimiter)
    assert f"delimiter {shown}" in description(f"a{suffix}")


def test_named_delimiter_may_be_any_character():
    Path("a.csv").write_text("text^label\na,b^c\n")
    assert read_fields("a.csv", delimiter="^") == [{"text": "a,b", "label": "c"}]
    assert Source(path="a", delimiter="tab").delimiter == "\t"
    with pytest.raises(ValueError, match="not one character"):
        Source(path="a", delimiter="||")


def test_separator_line_of_excel_is_read():
    Path("a.csv").write_text("sep=;\ntext;label\na,b;c\n")
    assert read_fields("a.csv") == [{"text": "a,b", "label": "c"}]
    assert read_rows("a.csv")[0].location == "a.csv:3"
    assert read_singly("a.csv") == [{"text": "a,b", "label": "c"}]


def test_old_mac_line_ends_are_read():
    Path("a.csv").write_bytes(b'text,label\ra,x\r"b\rc",y\r')
    rows = [{"text": "a", "label": "x"}, {"text": "b\rc", "label": "y"}]
    assert read_fields("a.csv") == rows
    assert read_singly("a.csv") == rows


def test_columns_of_a_file_without_header_line_are_named():
    Path("a.csv").write_text("good,pos\nbad,neg\n")
    names = ("text", "label")
    rows = [{"text": "good", "label": "pos"}, {"text": "bad", "label": "neg"}]
    assert read_fields("a.csv", column_names=names) == rows
    assert read_singly("a.csv", column_names=names) == rows
    assert "no header line" in description("a.csv", column_names=names)


def test_row_that_repeats_the_header_is_a_fault():
    Path("a.csv").write_text("text,label\na,b\ntext,label\n")
    assert "a.csv:3: the row repeats the header" in str(get_error("a.csv"))


UNQUOTED = 'text\tlabel\n"Hello he said\tpos\nfine\tneg\nthe end"\tpos\n5" screen\tneg\n'


def test_lone_quotes_of_unquoted_text_are_detected():
    Path("a.tsv").write_text(UNQUOTED)
    texts = ['"Hello he said', "fine", 'the end"', '5" screen']
    assert [row["text"] for row in read_fields("a.tsv")] == texts
    assert [row["text"] for row in read_singly("a.tsv")] == texts
    assert "no quoting" in description("a.tsv")
    Path("a.csv").write_text(UNQUOTED.replace("\t", ",") + "good,pos\n")
    assert [row["text"] for row in read_fields("a.csv")] == [*texts, "good"]


def test_quoting_that_ends_inside_a_value_is_no_quoting():
    Path("a.tsv").write_text('text\tlabel\n"Hello" he said\tpos\nfine\tneg\n')
    assert read_fields("a.tsv")[0] == {"text": '"Hello" he said', "label": "pos"}


def test_rows_that_a_lone_quote_joins_are_found_far_from_the_start():
    """Where most rows need quoting, so that it is not switched off."""
    proper = "".join(f'"text, {number}",{"pos" if number % 2 else "neg"}\n' for number in range(9))
    Path("a.csv").write_text(f'text,label\n{proper}"lost,pos\nfine,neg\nthe end",pos\nlast,neg\n')
    error = get_error("a.csv")
    assert str(error).startswith('a.csv:11: a lone quote (") joins the rows of 3 lines, up to line')
    assert "data.quoting" in error.faults[0].fix
    assert len(read_fields("a.csv", quoting="double")) == 11


def test_quoted_values_with_line_breaks_are_not_taken_for_joined_rows():
    rows = [
        {"text": "one, two\nthree, four", "label": "pos"},
        {"text": "one\nthree, four", "label": "neg"},
        {"text": "a, b\nc, d\ne, f", "label": "pos"},
    ]
    WRITERS["data.csv"](Path("a.csv"), rows)
    assert read_fields("a.csv") == rows
    swapped = [{"label": row["label"], "text": row["text"]} for row in rows]
    WRITERS["data.csv"](Path("b.csv"), swapped)
    assert read_fields("b.csv") == swapped
    WRITERS["data.tsv"](Path("b.tsv"), rows)
    assert read_fields("b.tsv") == rows


def test_plain_text_has_a_row_per_line_paragraph_or_document():
    Path("a.txt").write_bytes(b"\xef\xbb\xbf one \r\ntwo\r\n\r\n\t\r\nthree\n")
    assert read_fields("a.txt") == [{"text": " one "}, {"text": "two"}, {"text": "three"}]
    assert [row.location for row in read_rows("a.txt")] == ["a.txt:1", "a.txt:2", "a.txt:5"]
    paragraphs = [{"text": " one \ntwo"}, {"text": "three"}]
    assert read_fields("a.txt", sample_by="paragraph") == paragraphs
    document = [{"text": " one \ntwo\n\n\t\nthree"}]
    assert read_fields("a.txt", sample_by="document") == document
    for unit in ("line", "paragraph", "document"):
        assert read_singly("a.txt", sample_by=unit) == read_fields("a.txt", sample_by=unit)
        assert f"one row per {unit}" in description("a.txt", sample_by=unit)


def test_json_lines_in_a_text_file_and_a_list_in_json_lines_are_detected():
    Path("a.txt").write_text('{"text": "x"}\n{"text": "y"}\n')
    assert read_fields("a.txt") == [{"text": "x"}, {"text": "y"}]
    assert description("a.txt").startswith("JSON Lines")
    Path("a.jsonl").write_text('[{"text": "x"},\n{"text": "y"}]\n')
    assert read_fields("a.jsonl") == [{"text": "x"}, {"text": "y"}]
    assert description("a.jsonl") == "JSON list"


def test_list_in_an_object_is_read():
    rows = [{"text": "x"}, {"text": "y"}]
    Path("a.json").write_text(json.dumps({"version": 1, "names": ["x"], "data": rows}, indent=1))
    assert read_fields("a.json") == rows
    Path("b.json").write_text(json.dumps({"train": rows, "test": rows}, indent=1))
    assert "b.json: the file is one JSON object" in str(get_error("b.json"))


def test_format_of_a_file_without_a_known_suffix_is_named():
    Path("rows.data").write_text("text\tlabel\na\tb\n")
    assert "data.format" in get_error("rows.data").faults[0].fix
    assert read_fields("rows.data", format="tsv") == [{"text": "a", "label": "b"}]
    Path("shards").mkdir()
    Path("shards/0001").write_text('{"text": "x"}\n')
    assert read_fields("shards", format="jsonl") == [{"text": "x"}]


def test_readme_beside_the_data_is_no_data():
    Path("data").mkdir()
    Path("data/train.jsonl.gz").write_bytes(gzip.compress(b'{"text": "x"}\n'))
    Path("data/README.txt").write_text("about\n")
    assert read_fields("data") == [{"text": "x"}]
    assert read_fields("data", split="train") == [{"text": "x"}]
    Path("texts").mkdir()
    Path("texts/book.txt").write_text("line\n")
    Path("texts/LICENSE.txt").write_text("terms\n")
    assert read_fields("texts") == [{"text": "line"}]


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("data.jsonl", {"delimiter": ";"}),
        ("data.parquet", {"encoding": "cp1252"}),
        ("data.csv", {"sample_by": "line"}),
        ("data.arrow", {"column_names": ("a", "b")}),
    ],
)
def test_option_without_a_meaning_for_the_file_is_refused(name, option):
    WRITERS[name](Path(name), ROWS)
    with pytest.raises(DtlError, match=rf"data\.train\.{next(iter(option))}: .*no such option"):
        open_rows(Source(path=name, **option), {})


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_compressed_files_cannot_be_streamed(suffix):
    WRITERS["data.jsonl"](Path("a.jsonl"), ROWS)
    Path(f"a.jsonl{suffix}").write_bytes(COMPRESS[suffix](Path("a.jsonl").read_bytes()))
    rows = open_rows(Source(path=f"a.jsonl{suffix}"), {})
    with pytest.raises(DtlError, match=r"data\.train\.streaming: .*is compressed.*unpack it"):
        rows.open_readers("data.train")


def test_options_of_the_section_are_those_of_each_source_that_sets_none():
    from dtl.config.schema import Data

    data = Data(train="a.csv", eval={"path": "b.csv", "delimiter": ","}, delimiter=";")
    assert data.with_file_options(data.train).delimiter == ";"
    assert data.with_file_options(data.eval).delimiter == ","


@pytest.mark.parametrize("saved", ["folder", "parquet"])
def test_class_names_of_saved_data_are_read(saved):
    import datasets

    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["neg", "pos"]),
            "tags": datasets.List(datasets.ClassLabel(names=["O", "B-X"])),
        }
    )
    rows = {"text": ["a", "b"], "label": [1, 0], "tags": [[0, 1], [1]]}
    data = datasets.Dataset.from_dict(rows, features=features)
    if saved == "folder":
        data.save_to_disk("saved")
    else:
        data.to_parquet("saved.parquet")
    path = "saved" if saved == "folder" else "saved.parquet"
    named = [
        {"text": "a", "label": "pos", "tags": ["O", "B-X"]},
        {"text": "b", "label": "neg", "tags": ["B-X"]},
    ]
    assert read_fields(path) == named
    assert read_singly(path) == named
    assert "class names of 'label', 'tags'" in description(path)


def test_saved_splits_are_named_in_the_message():
    import datasets

    one = datasets.Dataset.from_list(ROWS[:1])
    datasets.DatasetDict({"train": one, "test": one}).save_to_disk("both")
    error = get_error("both")
    assert str(error).startswith(
        "data.train.split: both has several splits or folders (test, train)"
    )
