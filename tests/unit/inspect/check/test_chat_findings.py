"""Findings on chats: what the template drops, columns that nobody reads, several examples a row."""

import shutil

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
