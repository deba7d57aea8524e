"""Each template's examples with their mask, as `dtl check` shows them.

`python -m tests.unit.data.chat.test_golden` writes the files again; read the difference before you
commit it.
"""

from __future__ import annotations

import pytest

from dtl.core.errors import DtlError
from dtl.data.example import Skip
from dtl.data.sources.rows import Row
from dtl.inspect.check.preview import preview_example
from dtl.inspect.check.render import format_preview
from tests import tiny_chat
from tests.task_bench import make_task

GOLDEN = tiny_chat.FOLDER / "golden"
FEATURES = ("system", "calls", "reasoning_twice", "first_only", "blanks")


def show(name: str) -> str:
    tokenizer = tiny_chat.tokenizer(name)
    task = make_task("causal_lm", max_length=4000)
    encode = task.encoder(tokenizer, {}, None)
    lines = []
    for feature in FEATURES:
        row = Row(0, feature, tiny_chat.FEATURES[feature])
        try:
            for each in task.expand_row(row, processor=tokenizer):
                example = encode(each)
                assert not isinstance(example, Skip)
                preview = preview_example(each, example.values, task, tokenizer)
                lines.append(format_preview(preview, color=False))
                if example.dropped:
                    lines.append(f"  dropped: {', '.join(example.dropped)}")
                lines += [f"  {note}" for note in example.notes]
        except DtlError as error:
            lines.append(str(error))
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("name", tiny_chat.NAMES)
def test_examples_are_those_of_the_golden_file(name):
    assert show(name) == (GOLDEN / f"{name}.txt").read_text(encoding="utf-8")


def test_each_golden_file_has_a_template():
    assert sorted(path.stem for path in GOLDEN.glob("*.txt")) == tiny_chat.NAMES


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for template in tiny_chat.NAMES:
        (GOLDEN / f"{template}.txt").write_text(show(template), encoding="utf-8")
