"""CoNLL files: columns, comments, document starts, CoNLL-U, and single sentences by position."""

from pathlib import Path

import pytest

from dtl.config.schema import Source
from dtl.data.sources.rows import open_rows
from tests.unit.data.sources.source_files import get_error, read_fields, read_rows

CONLL_2003 = """-DOCSTART- -X- -X- O

EU NNP B-NP B-ORG
rejects VBZ B-VP O
German JJ B-NP B-MISC

Peter NNP B-NP B-PER
Blackburn NNP I-NP I-PER

"""
CONLLU = """# sent_id = 1
# text = Zum Haus
1-2\tZum\t_\t_\t_\t_\t_\t_\t_\t_
1\tzu\tzu\tADP\tAPPR\t_\t3\tcase\t_\t_
2\tdem\tder\tDET\tART\t_\t3\tdet\t_\t_
2.1\tleer\t_\t_\t_\t_\t_\t_\t_\t_
3\tHaus\tHaus\tNOUN\tNN\t_\t0\troot\t_\t_
"""


def read_singly(path, **keys):
    rows = open_rows(Source(path=path, **keys), {})
    (reader,) = rows.open_readers("data.train")
    return [reader.read_row(position)[1] for position, _ in reader.iter_rows()]


def test_word_is_the_first_column_and_tag_the_last_one():
    Path("a.conll").write_text(CONLL_2003)
    rows = read_rows("a.conll")
    assert [row.location for row in rows] == ["a.conll:3", "a.conll:7"]
    assert rows[0].fields == {
        "tokens": ["EU", "rejects", "German"],
        "column_2": ["NNP", "VBZ", "JJ"],
        "column_3": ["B-NP", "B-VP", "B-NP"],
        "tags": ["B-ORG", "O", "B-MISC"],
    }
    assert read_singly("a.conll") == [row.fields for row in rows]


def test_columns_can_be_named():
    Path("a.conll").write_text(CONLL_2003)
    names = ("tokens", "tags", "chunk", "ner")
    (first, _) = read_fields("a.conll", column_names=names)
    assert (first["tags"], first["ner"]) == (["NNP", "VBZ", "JJ"], ["B-ORG", "O", "B-MISC"])
    error = get_error("a.conll", column_names=("word", "tags", "chunk", "ner"))
    assert str(error).startswith("data.column_names: no column is named 'tokens'")


def test_conllu_has_the_words_of_the_syntax_and_their_parts_of_speech():
    Path("a.conllu").write_text(CONLLU)
    (fields,) = read_fields("a.conllu")
    assert (fields["tokens"], fields["tags"]) == (["zu", "dem", "Haus"], ["ADP", "DET", "NOUN"])
    assert fields["head"] == ["3", "3", "0"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_text_files_with_tags_are_conll(encoding, ending):
    Path("train.txt").write_bytes(CONLL_2003.replace("\n", ending).encode(encoding))
    assert read_fields("train.txt")[1]["tags"] == ["B-PER", "I-PER"]
    assert read_singly("train.txt") == read_fields("train.txt")
    assert read_fields("train.txt", format="text")[1] == {"text": "EU NNP B-NP B-ORG"}


def test_prose_is_not_conll():
    Path("a.txt").write_text("the river O\na stone\nthe night O\nlight O\n")
    assert len(read_fields("a.txt")) == 4


def test_line_with_other_columns_is_a_fault_at_its_line():
    Path("a.conll").write_text("EU B-ORG\nrejects\n\nok O\n")
    assert str(get_error("a.conll")).startswith("a.conll:2: 1 values for 2 columns")


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.txt", "a.conll"])
def test_utf16_with_half_a_character_is_a_fault(name):
    text = {
        "a.csv": "text,label\nx,y\n",
        "a.jsonl": '{"text": "x"}\n',
        "a.txt": "the river\n",
        "a.conll": "EU B-ORG\n",
    }[name]
    Path(name).write_bytes(text.encode("utf-16") + b"x")
    error = get_error(name)
    assert "not UTF-16-LE text" in error.faults[0].problem
    assert "data.encoding" in error.faults[0].fix
