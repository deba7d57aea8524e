"""`dtl check` finds faults of files and formats, and says nothing of clean ones."""

import gzip
import json

import pytest
import yaml

import dtl
from dtl.core.errors import DtlError
from tests.unit.data.row_formats.same_content import ASK, BAD, GOOD, said
from tests.unit.inspect.check.checker import create_labeled, create_texts

TEXTS = create_texts(24, longest=6)
WORDS = ["Größe", "für", "schön", "Straße"]


def lines(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def table(rows, *, delimiter=",", quote="", header=True):
    cells = [["text", "label"]] * header + [[row["text"], row["label"]] for row in rows]
    return "".join(
        delimiter.join(f"{quote}{cell}{quote}" for cell in row) + "\n" for row in cells
    ).encode()


def conll(scheme, count=8):
    """Sentences of three words; the middle ones are one entity or two words of it."""
    single = {"BIOES": "S", "BILOU": "U"}.get(scheme, "B" if scheme == "IOB2" else "I")
    first, last = {"BIOES": "BE", "BILOU": "BL", "IOB2": "BI"}.get(scheme, "II")
    rows = []
    for number, text in enumerate(TEXTS[:count]):
        word = text.split()[0]
        one = [f"{word} {single}-X", f"{number} O", "stone O"]
        two = [f"{word} {first}-X", f"{number} {last}-X", "stone O"]
        rows.append("\n".join(two if number % 2 else one))
    return ("\n\n".join(rows) + "\n").encode()


def sharegpt(count=6):
    return [
        {"conversations": said({"role": "user", "content": text}, GOOD)} for text in TEXTS[:count]
    ]


def alpaca(count=6):
    return [{"instruction": text, "input": "", "output": text[::-1]} for text in TEXTS[:count]]


def hh(count=6):
    return [
        {
            name: f"\n\nHuman: {text}\n\nAssistant: {answer}"
            for name, answer in (("chosen", "yes"), ("rejected", "no"))
        }
        for text in TEXTS[:count]
    ]


def ultrafeedback(count=6):
    return [
        {
            "instruction": text,
            "completions": [
                {"response": "yes", "overall_score": 7},
                {"response": "no", "overall_score": 2},
            ],
        }
        for text in TEXTS[:count]
    ]


def preferences(count=6):
    return [
        {
            "input": {"messages": [{"role": "user", "content": text}]},
            "preferred_output": [GOOD],
            "non_preferred_output": [BAD],
        }
        for text in TEXTS[:count]
    ]


LABELED = create_labeled(12)
WESTERN = [{**row, "text": f"{row['text']} {WORDS[n % 4]}"} for n, row in enumerate(LABELED)]
COMMAS = [{**row, "text": f"{row['text']}, so"} for row in LABELED]

# Task, file name, content, options of data.train.
CLEAN = {
    "jsonl": ("text_classification", "a.jsonl", lines(WESTERN), {}),
    "gzip": ("text_classification", "a.jsonl.gz", gzip.compress(lines(WESTERN)), {}),
    "json list": ("text_classification", "a.json", json.dumps(LABELED).encode(), {}),
    "csv": ("text_classification", "a.csv", table(COMMAS, quote='"'), {}),
    "csv of line breaks": (
        "text_classification",
        "a.csv",
        table([{**row, "text": row["text"] + ",\nthen so"} for row in LABELED], quote='"'),
        {},
    ),
    "semicolons": ("text_classification", "a.csv", table(COMMAS, delimiter=";"), {}),
    "no header": (
        "text_classification",
        "a.csv",
        table(LABELED, header=False),
        {"column_names": ["text", "label"]},
    ),
    "utf-16": (
        "text_classification",
        "a.tsv",
        table(WESTERN, delimiter="\t").decode().encode("utf-16"),
        {},
    ),
    "latin-1": (
        "text_classification",
        "a.csv",
        table(WESTERN).decode().encode("latin-1"),
        {"encoding": "latin-1"},
    ),
    "lone quotes": (
        "text_classification",
        "a.tsv",
        table(
            [{**r, "text": '"' * (n % 3 == 0) + r["text"]} for n, r in enumerate(LABELED)],
            delimiter="\t",
        ),
        {},
    ),
    "plain text": ("causal_lm", "a.txt", "\n".join(TEXTS).encode(), {}),
    "sharegpt": ("causal_lm", "a.jsonl", lines(sharegpt()), {}),
    "alpaca": ("causal_lm", "a.json", json.dumps(alpaca()).encode(), {}),
    "hh-rlhf": ("dpo", "a.jsonl", lines(hh()), {}),
    "ultrafeedback": ("dpo", "a.jsonl", lines(ultrafeedback()), {}),
    "openai preference": ("dpo", "a.jsonl", lines(preferences()), {}),
    "conll": ("token_classification", "a.conll", conll("IOB2"), {}),
    "conll text": ("token_classification", "a.txt", conll("BIOES"), {}),
    "bilou": ("token_classification", "a.bio", conll("BILOU"), {}),
    "iob1": ("token_classification", "a.iob", conll("IOB1"), {}),
}

CSV = table(LABELED)
QUOTED = table(COMMAS, quote='"')
TAGGED = conll("IOB2").decode()

# Task, file name, content, options of data.train, what the report has.
PLANTED = {
    "joined rows": (
        "text_classification",
        "a.csv",
        QUOTED + b'"lost,early\nfine,late\nthe end",early\n',
        {},
        "a lone quote",
    ),
    "open quote": ("text_classification", "a.csv", QUOTED + b'"lost, so,early\n', {}, "quoting"),
    "repeated header": ("text_classification", "a.csv", CSV + b"text,label\n", {}, "repeats the"),
    "too many values": ("text_classification", "a.csv", CSV + b"a,b,c\n", {}, "3 values for 2"),
    "no header": (
        "text_classification",
        "a.csv",
        table(LABELED, header=False),
        {},
        "data.column_names",
    ),
    "wrong delimiter": (
        "text_classification",
        "a.csv",
        table(LABELED, delimiter=";"),
        {"delimiter": ","},
        "data.delimiter",
    ),
    "guessed encoding": (
        "text_classification",
        "a.csv",
        table(WESTERN).decode().encode("cp1252"),
        {},
        "data.train.encoding=cp1252",
    ),
    "wrong encoding": (
        "text_classification",
        "a.csv",
        table(WESTERN),
        {"encoding": "latin-1"},
        "it is valid UTF-8",
    ),
    "decoded twice": (
        "text_classification",
        "a.csv",
        table(WESTERN).decode("cp1252").encode(),
        {},
        "decoded wrongly",
    ),
    "lost characters": (
        "text_classification",
        "a.csv",
        table(WESTERN).decode("ascii", "replace").encode(),
        {},
        "U+FFFD",
    ),
    "latin-1 for cp1252": (
        "text_classification",
        "a.csv",
        table([{**row, "text": f"“{row['text']}”"} for row in LABELED]).decode().encode("cp1252"),
        {"encoding": "latin-1"},
        "data.train.encoding=cp1252",
    ),
    "one byte": ("text_classification", "a.csv", CSV + b"a \xff b,early\n", {}, "data.encoding"),
    "half a file": (
        "text_classification",
        "a.jsonl.gz",
        gzip.compress(lines(WESTERN * 50))[:-40],
        {},
        "cannot be decompressed",
    ),
    "option without a meaning": (
        "text_classification",
        "a.jsonl",
        lines(LABELED),
        {"delimiter": ";"},
        "no such option",
    ),
    "unknown speaker": (
        "causal_lm",
        "a.jsonl",
        lines([*sharegpt(), {"conversations": [{"from": "robot", "value": "x"}]}]),
        {},
        "a message is from 'robot'",
    ),
    "no function call": (
        "causal_lm",
        "a.jsonl",
        lines(
            [*sharegpt(), {"conversations": [*said(ASK), {"from": "function_call", "value": "x"}]}]
        ),
        {},
        "a function call is 'x'",
    ),
    "tools as prose": (
        "causal_lm",
        "a.jsonl",
        lines([*sharegpt(), {"conversations": said(ASK, GOOD), "tools": "find things"}]),
        {},
        "`tools` is str",
    ),
    "no output": (
        "causal_lm",
        "a.jsonl",
        lines([*alpaca(), {"instruction": "x", "input": "", "output": None}]),
        {},
        "`output` is missing",
    ),
    "broken history": (
        "causal_lm",
        "a.jsonl",
        lines([*alpaca(), {"instruction": "x", "output": "y", "history": ["z"]}]),
        {},
        "`history` has",
    ),
    "other format": (
        "causal_lm",
        "a.jsonl",
        lines([*sharegpt(), *alpaca(1)]),
        {},
        "`conversations` is missing (the rows are read as ShareGPT)",
    ),
    "no speaker": (
        "dpo",
        "a.jsonl",
        lines([*hh(), {"chosen": "yes", "rejected": "no"}]),
        {},
        "not with a speaker",
    ),
    "equal scores": (
        "dpo",
        "a.jsonl",
        lines(
            [
                *ultrafeedback(),
                {"instruction": "x", "completions": [{"response": "y", "overall_score": 1}] * 2},
            ]
        ),
        {},
        "all completions have the same score",
    ),
    "word without tag": (
        "token_classification",
        "a.conll",
        f"{TAGGED}\nstone\n".encode(),
        {},
        "1 values for 2 columns",
    ),
    "entity without B": (
        "token_classification",
        "a.conll",
        f"{TAGGED}\nstone O\nriver I-X\n".encode(),
        {},
        "1 entities begin with I-",
    ),
}


def check(case, tmp_path, request):
    task, name, content, options = case
    (tmp_path / name).write_bytes(content)
    base = {"causal_lm": "decoder", "dpo": "decoder"}.get(task, "encoder")
    config = {
        "model": {"path": str(request.getfixturevalue(base))},
        "task": task,
        "data": {"train": {"path": str(tmp_path / name), **options}},
        "strategy": "lora",
        "train": {"steps": 1},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return dtl.check(dtl.load_config(tmp_path / "run.yaml"))


@pytest.mark.parametrize("case", CLEAN)
def test_clean_files_have_no_findings(case, tmp_path, request, cache):
    report = check(CLEAN[case], tmp_path, request)
    assert report.findings == (), report.format_lines()
    assert report.format_lines()[0].startswith("data.train: ")


@pytest.mark.parametrize("case", PLANTED)
def test_planted_fault_is_found(case, tmp_path, request, cache):
    *given, expected = PLANTED[case]
    try:
        report = check(given, tmp_path, request)
    except DtlError as error:
        assert expected in str(error)
    else:
        found = [str(finding.fault) for finding in report.findings]
        assert any(expected in text for text in found), report.format_lines()
        assert len(found) == 1, report.format_lines()


def test_invalid_rows_of_a_mixed_source_are_found(tmp_path, request, cache):
    (tmp_path / "a.jsonl").write_bytes(lines(LABELED))
    (tmp_path / "b.jsonl").write_bytes(lines(LABELED) + b"{\n")
    config = {
        "model": {"path": str(request.getfixturevalue("encoder"))},
        "task": "text_classification",
        "data": {"train": str(tmp_path / "a.jsonl"), "mix": [str(tmp_path / "b.jsonl")]},
        "strategy": "lora",
        "train": {"steps": 1},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    report = dtl.check(dtl.load_config(tmp_path / "run.yaml"))
    finding = next(each for each in report.findings if each.kind == "invalid_rows")
    assert finding.is_fatal and "rows of data.mix[0] are invalid" in finding.fault.problem


def test_schemes_of_tags_are_reported(tmp_path, request, cache):
    report = check(CLEAN["bilou"], tmp_path, request)
    assert "tags are BILOU, converted to IOB2 (B-, I-, O)" in report.format_lines()


def test_tags_of_each_scheme_give_the_same_examples(tmp_path, request, cache):
    from dtl.assembly.parts import assemble
    from dtl.prepare.prepared_data import prepare_data

    examples = {}
    for scheme in ("IOB2", "IOB1", "BIOES", "BILOU"):
        check(("token_classification", "a.conll", conll(scheme), {}), tmp_path, request)
        config = dtl.load_config(tmp_path / "run.yaml")
        prepared = prepare_data(config, assemble(config))
        examples[scheme] = (
            prepared.dataset_stats["labels"],
            [
                {name: list(values) for name, values in prepared.train[n].items()}
                for n in range(len(prepared.train))
            ],
        )
    assert all(each == examples["IOB2"] for each in examples.values())
