"""Findings on chats: what the template drops, columns that nobody reads, several examples a row."""

import json
import shutil

import numpy as np
import pytest

import dtl
from dtl.assembly.parts import assemble
from dtl.core.errors import DtlError
from dtl.prepare.prepared_data import prepare_data
from tests import tiny, tiny_chat
from tests.unit.inspect.check.checker import create_chats, get_only_finding, is_at


def with_tools(place):
    rows = create_chats(10)
    rows[place]["tools"] = tiny_chat.TOOLS
    return rows


def prepare(path):
    config = dtl.load_config(path)
    return prepare_data(config, assemble(config))


def test_dropped_tools_stop_a_run_unless_they_are_allowed(checker):
    report = checker.check("causal_lm", with_tools(3))
    found = get_only_finding(report, "dropped")
    assert is_at(found, "train.jsonl", 4) and found.is_fatal and report.exit_code == 2
    assert "does not render the tools" in found.fault.problem
    assert "set data.allow_dropped=[tools]" in found.fault.fix
    with pytest.raises(DtlError, match=r"train\.jsonl:4: .*does not render the tools"):
        prepare(checker.config("causal_lm", with_tools(3)))
    allowed = {"allow_dropped": ["tools"]}
    prepare(checker.config("causal_lm", with_tools(3), data=allowed))
    report = checker.check("causal_lm", with_tools(3), data=allowed)
    assert report.findings == ()
    assert "  the chat template does not render: tools (1 rows)" in report.format_lines()


def test_columns_that_the_task_does_not_read_are_named(checker):
    rows = [{**row, "id": number, "text": "old"} for number, row in enumerate(create_chats(10))]
    report = checker.check("causal_lm", rows)
    assert report.findings == ()
    assert report.sources[0].unread_columns == ("id", "text")
    assert "  columns that the task does not read: id, text" in report.format_lines()
    assert checker.check("causal_lm", create_chats(10)).sources[0].unread_columns == ()


# An answer is not rendered any more once another message follows.
REWRITING = (
    "{% for m in messages %}{% if m.role == 'assistant' and not loop.last %}(answered)"
    "{% else %}{{ m.content }}{% endif %}\n{% endfor %}"
)


@pytest.fixture
def rewriting_base(decoder, tmp_path):
    made = tiny.tokenizer()
    made.chat_template = REWRITING
    base = shutil.copytree(decoder, tmp_path / "rewriting")
    made.save_pretrained(base)
    return base


def two_answers():
    more = [{"role": "user", "content": "old"}, {"role": "assistant", "content": "new"}]
    return [{"messages": [*row["messages"], *more]} for row in create_chats(6)]


def test_rows_that_are_several_examples_are_counted(checker, rewriting_base):
    config = checker.config("causal_lm", two_answers(), base=rewriting_base)
    data = prepare(config).train
    assert len(data) == 12 and data.summary.rows == data.summary.expanded == 6
    assert data.rows.tolist() == [row for row in range(6) for _ in range(2)]
    assert "6 chats are several examples each" in data.format_summary("train")
    report = checker.check("causal_lm", two_answers(), base=rewriting_base)
    assert {finding.kind for finding in report.findings} <= {"no_eos"}
    assert report.sources[0].expanded == 6


def test_streamed_chat_that_is_several_examples_is_an_error(checker, rewriting_base):
    data = {"train": {"path": str(checker.folder / "train.jsonl"), "streaming": True}}
    config = checker.config("causal_lm", two_answers(), base=rewriting_base, data=data)
    with pytest.raises(DtlError, match="the chat is 2 examples"):
        prepare(config).train.sample(1)


# Messages of one role in a row, as in the templates of Mistral and Gemma, are refused.
ALTERNATING = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{{ m.role }}{{ ' ' + m.name if m.name else '' }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
SKIP = {"on_bad_row": "skip", "max_bad_fraction": 0.2}


@pytest.fixture
def alternating_base(decoder, tmp_path):
    made = tiny.tokenizer()
    made.chat_template = ALTERNATING
    base = shutil.copytree(decoder, tmp_path / "alternating")
    made.save_pretrained(base)
    return base


def with_two_questions(*places, count=10):
    rows = create_chats(count)
    for place in places:
        rows[place]["messages"].insert(0, {"role": "user", "content": "stone"})
    return rows


def test_a_chat_that_the_template_refuses_is_an_invalid_row(checker, alternating_base):
    rows, base = with_two_questions(3), alternating_base
    found = get_only_finding(checker.check("causal_lm", rows, base=base), "invalid_rows")
    assert is_at(found, "train.jsonl", 4) and found.is_fatal
    assert "roles must alternate" in found.fault.problem
    with pytest.raises(DtlError, match=r"train\.jsonl:4: .*\(roles must alternate\)"):
        prepare(checker.config("causal_lm", rows, base=base))
    report = checker.check("causal_lm", rows, base=base, data=SKIP)
    found = get_only_finding(report, "invalid_rows")
    assert not found.is_fatal and found.count == 1
    assert report.sources[0].rows == 10 and report.sources[0].examples == 9
    prepared = prepare(checker.config("causal_lm", rows, base=base, data=SKIP))
    assert prepared.train.summary.examples == 9
    (skipped,) = prepared.iter_skipped_rows()
    assert skipped["location"].endswith("train.jsonl:4") and "alternate" in skipped["reason"]


def test_refused_chats_that_check_has_encoded_stop_a_run(checker, alternating_base):
    rows = with_two_questions(1, 5, count=11)
    path = checker.config("causal_lm", rows, base=alternating_base)
    assert dtl.check(dtl.load_config(path)).exit_code == 2
    with pytest.raises(DtlError, match=r"train\.jsonl:2: [^\n]*\n[^\n]*train\.jsonl:6: "):
        prepare(path)


def test_more_refused_chats_than_may_be_skipped_stop_a_run(checker, alternating_base):
    rows, base = with_two_questions(1, 2, 5), alternating_base
    found = checker.check("causal_lm", rows, base=base, data=SKIP).findings[0]
    assert found.kind == "invalid_rows" and found.is_fatal
    with pytest.raises(DtlError, match=r"3 of 10 rows of data\.train are invalid"):
        prepare(checker.config("causal_lm", rows, base=base, data=SKIP))


def test_a_refused_chat_of_held_out_rows_is_reported(checker, alternating_base):
    rows, held_out = create_chats(6), with_two_questions(9)[6:]
    report = checker.check("causal_lm", rows, held_out=held_out, base=alternating_base)
    assert is_at(get_only_finding(report, "invalid_rows"), "held_out.jsonl", 4)
    split = {"eval_fraction": 0.5}
    report = checker.check("causal_lm", with_two_questions(3), base=alternating_base, data=split)
    found = get_only_finding(report, "invalid_rows")
    assert is_at(found, "train.jsonl", 4) and found.is_fatal


def test_a_streamed_chat_that_the_template_refuses_is_skipped(checker, alternating_base):
    rows = with_two_questions(3)
    path = checker.config("causal_lm", rows, base=alternating_base, data=SKIP)
    streamed = {"path": str(checker.folder / "train.jsonl"), "streaming": True}
    config = dtl.load_config(path, [f"data.train={json.dumps(streamed)}"])
    read = prepare_data(config, assemble(config)).train.read_examples(np.arange(10))
    assert [each.location.endswith("train.jsonl:4") for each in read.skipped_rows] == [True]
    assert sorted(read.ids.tolist()) == [0, 1, 2, 4, 5, 6, 7, 8, 9]


def test_message_keys_that_the_template_does_not_read_are_named(checker, alternating_base):
    rows = create_chats(10)
    rows[2]["messages"][0] |= {"name": "Ann", "foo": 3}
    rows[4]["messages"][1] |= {"foo": {"a": "b"}, "refusal": None, "annotations": []}
    line = "message keys that the chat template does not read: foo (2 rows)"
    report = checker.check("causal_lm", rows, base=alternating_base)
    assert report.findings == () and f"  {line}" in report.format_lines()
    prepared = prepare(checker.config("causal_lm", rows, base=alternating_base))
    assert f"data.train: {line}" in prepared.format_lines()
    text = checker.check("causal_lm", rows).format_lines()
    assert (
        "  message keys that the chat template does not read: name (1 rows), foo (2 rows)" in text
    )


def test_message_keys_of_preferences_are_named(checker):
    rows = [
        {"prompt": [{**turn, "name": "Ann"}], "chosen": answer["content"], "rejected": "none"}
        for turn, answer in (row["messages"] for row in create_chats(10))
    ]
    lines = checker.check("dpo", rows).format_lines()
    assert "  message keys that the chat template does not read: name (10 rows)" in lines
