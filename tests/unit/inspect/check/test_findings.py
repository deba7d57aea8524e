"""Findings on rows and classes, each at its row with its fix."""

import pytest

from dtl.core.errors import DtlError
from tests import tiny_sound
from tests.unit.inspect.check.checker import (
    create_labeled,
    create_prompts,
    create_tagged,
    get_finding,
    get_only_finding,
    is_at,
)


def test_duplicates_ignore_case_and_whitespace(checker):
    rows = create_labeled(10)
    rows[6] = {**rows[2], "text": rows[2]["text"].upper() + "  "}
    found = get_only_finding(checker.check("text_classification", rows), "duplicates")
    assert is_at(found, "train.jsonl", 7) and found.count == 1
    assert "remove the duplicates" in found.fault.fix


def test_leakage_is_fatal_if_all_held_out_rows_are_training_rows(checker):
    rows = create_prompts(10)
    held_out = [*create_prompts(3, seed=5), rows[4]]
    found = get_only_finding(checker.check("causal_lm", rows, held_out=held_out), "leakage")
    assert is_at(found, "held_out.jsonl", 4) and "train.jsonl:5" in found.fault.location
    assert "remove them from one of the two" in found.fault.fix
    assert not found.is_fatal
    all_of_them = checker.check("causal_lm", rows, held_out=rows[:4])
    assert get_only_finding(all_of_them, "leakage").is_fatal and all_of_them.exit_code == 2


def test_duplicates_and_leakage_compare_media_bytes(checker):
    rows = tiny_sound.tones(9)
    rows[5] = {"audio": rows[2]["audio"], "label": rows[2]["label"]}
    held_out = [*tiny_sound.tones(2, seed=3), rows[1]]
    report = checker.check("audio_classification", rows, held_out=held_out)
    assert is_at(get_finding(report, "duplicates"), "train.jsonl", 6)
    assert is_at(get_finding(report, "leakage"), "held_out.jsonl", 3)


def test_conflicting_labels_lists_both_rows(checker):
    rows = create_labeled(10)
    rows[7] = {"text": rows[2]["text"], "label": "late"}
    found = get_only_finding(checker.check("text_classification", rows), "conflicting_labels")
    assert is_at(found, "train.jsonl", 3) and "train.jsonl:8" in found.fault.problem
    assert "keep only the row with the correct label" in found.fault.fix and found.count == 2


def test_single_class_is_fatal(checker):
    rows = [{**row, "label": "early"} for row in create_labeled(6)]
    found = get_only_finding(
        checker.check("text_classification", rows, labels=["early", "late"]), "single_class"
    )
    assert (
        is_at(found, "train.jsonl", 1) and found.is_fatal and "add other classes" in found.fault.fix
    )
    with pytest.raises(DtlError, match="all rows have the label 'early'") as reported:
        checker.check("text_classification", rows)
    assert reported.value.exit_code == 2


def test_rare_class_is_found_at_its_first_row(checker):
    rows = [*create_labeled(10), {"text": "a new ship", "label": "never"}]
    found = get_only_finding(checker.check("text_classification", rows), "rare_class")
    assert is_at(found, "train.jsonl", 11) and "'never' has 1 of 11" in found.fault.problem
    assert "add rows of this class" in found.fault.fix


def test_rare_tag_is_a_rare_class(checker):
    rows = [*create_tagged(8), {"tokens": ["a", "lock"], "tags": ["O", "B-KEY"]}]
    found = get_only_finding(checker.check("token_classification", rows), "rare_class")
    assert is_at(found, "train.jsonl", 9) and "'B-KEY'" in found.fault.problem


def test_dominant_class_is_imbalance(checker):
    rows = [
        {**row, "label": "late" if n in (3, 7) else "early"}
        for n, row in enumerate(create_labeled(60))
    ]
    found = get_only_finding(checker.check("text_classification", rows), "imbalance")
    assert is_at(found, "train.jsonl", 1) and "'early' has 58 of 60" in found.fault.problem
    assert "add rows of the other classes" in found.fault.fix


def test_unknown_label_of_held_out_rows_is_fatal(checker):
    held_out = [*create_labeled(2, seed=4), {"text": "never again", "label": "soon"}]
    report = checker.check(
        "text_classification",
        create_labeled(8),
        held_out=held_out,
        labels=["early", "late", "soon"],
    )
    found = get_only_finding(report, "unknown_label")
    assert (
        is_at(found, "held_out.jsonl", 3)
        and found.is_fatal
        and "add training rows" in found.fault.fix
    )
    with pytest.raises(DtlError, match=r"held_out.jsonl:3: the label 'soon' does not occur"):
        checker.check("text_classification", create_labeled(8), held_out=held_out)


def test_invalid_rows_are_all_listed_and_fatal(checker):
    rows = [
        *create_prompts(10),
        {"prompt": "one", "completion": 1},
        {"prompt": 2, "completion": "two"},
    ]
    rows[3] = rows[1]
    report = checker.check("causal_lm", rows)
    found = get_finding(report, "invalid_rows")
    assert is_at(found, "train.jsonl", 11) and "train.jsonl:12" in found.fault.problem
    assert found.is_fatal and "give a string" in found.fault.fix
    assert get_finding(report, "duplicates"), "the other rows are checked too"


def test_skipped_invalid_rows_are_listed(checker):
    rows = [*create_prompts(10), {"prompt": "one", "completion": 1}]
    skips = {"on_bad_row": "skip", "max_bad_fraction": 0.5}
    report = checker.check("causal_lm", rows, data=skips)
    found = get_only_finding(report, "invalid_rows")
    assert (
        is_at(found, "train.jsonl", 11) and "skipped" in found.fault.problem and not found.is_fatal
    )
    (reported,) = report.to_dict()["sources"][0]["invalid_rows"]
    assert (
        reported["location"].endswith("train.jsonl:11")
        and "`completion` is int" in reported["reason"]
    )
    assert any(
        "invalid row: " in line and "train.jsonl:11" in line for line in report.format_lines()
    )
    too_many = checker.check("causal_lm", rows, data={**skips, "max_bad_fraction": 0.01})
    assert too_many.exit_code == 2


def test_no_valid_row_raises_the_error_of_a_run(checker):
    with pytest.raises(DtlError, match=r"train.jsonl:1: .*the task reads"):
        checker.check("causal_lm", [{"body": "one"}, {"body": "two"}])


def test_empty_target_is_a_warning(checker):
    rows = create_prompts(10)
    rows[3] = {**rows[3], "completion": "  "}
    found = get_only_finding(checker.check("causal_lm", rows), "empty_targets")
    assert is_at(found, "train.jsonl", 4) and "add the target text" in found.fault.fix
    assert not found.is_fatal


def test_all_targets_empty_is_fatal(checker):
    rows = [{**row, "completion": ""} for row in create_prompts(5)]
    assert get_finding(checker.check("causal_lm", rows), "empty_targets").is_fatal
