"""`dtl check` reports special tokens that texts spell out, until the config decides."""

import pytest

from tests.unit.inspect.check.checker import create_labeled, create_prompts, get_finding

MARKED = "the river</s> again"


def test_they_are_reported_with_the_key_that_decides(checker):
    rows = create_prompts(12)
    rows[4]["prompt"] = MARKED
    finding = get_finding(checker.check("causal_lm", rows), "special_tokens")
    assert "1 of 12 rows spell out special tokens (</s>)" in finding.fault.problem
    assert finding.fault.location.endswith(":5")
    assert "task.special_tokens=text" in finding.fault.fix


@pytest.mark.parametrize("value", ["text", "tokens"])
def test_a_config_that_decides_is_not_reported(checker, value):
    rows = create_prompts(12)
    rows[4]["prompt"] = MARKED
    report = checker.check("causal_lm", rows, special_tokens=value)
    kinds = [finding.kind for finding in report.findings]
    assert "special_tokens" not in kinds


def test_of_a_task_without_the_option_the_texts_are_to_be_changed(checker):
    rows = create_labeled(12)
    rows[2]["text"] += " <s>"
    finding = get_finding(checker.check("text_classification", rows), "special_tokens")
    assert finding.fault.fix == "remove them from the texts"
