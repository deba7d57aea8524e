"""Findings on truncation, EOS and unknown tokens, each at its row with its fix."""

import shutil

import pytest

from tests import tiny
from tests.unit.inspect.check.checker import (
    create_chats,
    create_labeled,
    create_prompts,
    create_tagged,
    create_texts,
    create_translations,
    get_finding,
    get_only_finding,
    is_at,
)


def test_truncated_target_names_a_limit_that_is_enough(checker):
    rows = create_prompts(10)
    rows[8] = {"prompt": "the river ->", "completion": " old stone" * 18}
    report = checker.check("causal_lm", rows, max_length=90)
    needed = report.sources[0].tokens.lengths["max_length"][8]
    found = get_finding(report, "truncated_targets")
    assert is_at(found, "train.jsonl", 9)
    assert f"set task.max_length={-(-needed // 8) * 8}" in found.fault.fix
    enough = checker.check("causal_lm", rows, max_length=-(-needed // 8) * 8)
    assert enough.findings == (), "the recommended limit is enough"


def test_truncated_target_names_its_own_option(checker):
    rows = create_translations(10)
    rows[1]["target"] = "old stone " * 20
    found = get_finding(checker.check("seq2seq", rows, max_target_length=32), "truncated_targets")
    assert is_at(found, "train.jsonl", 2) and "set task.max_target_length=" in found.fault.fix


def test_lost_targets_are_fatal_above_20_percent(checker):
    rows = create_prompts(10)
    for number in (2, 5, 6):
        rows[number] = {"prompt": f"{number} old stone " * 12, "completion": " yes"}
    report = checker.check("causal_lm", rows, max_length=32)
    found = get_finding(report, "lost_targets")
    assert is_at(found, "train.jsonl", 3) and found.count == 3 and found.is_fatal
    assert "set task.max_length=" in found.fault.fix and "shorten the prompts" in found.fault.fix
    assert report.exit_code == 2


def test_truncated_preferences_are_found(checker):
    rows = tiny.pairs(10, seed=1)
    rows[4]["rejected"] = " stone" * 60
    report = checker.check("dpo", rows, max_length=60)
    assert is_at(get_finding(report, "truncated"), "train.jsonl", 5)
    assert is_at(get_finding(report, "truncated_targets"), "train.jsonl", 5)


def test_truncated_rows_name_a_limit_that_is_enough(checker):
    rows = create_labeled(10)
    rows[2]["text"] = "river " * 36
    report = checker.check("text_classification", rows, max_length=64)
    found = get_only_finding(report, "truncated")
    assert is_at(found, "train.jsonl", 3) and "truncated at task.max_length" in found.fault.problem
    words = len(tiny.tokenizer()(rows[2]["text"])["input_ids"])
    assert f"set task.max_length={-(-words // 8) * 8}, or shorten" in found.fault.fix


def test_truncated_words_are_found(checker):
    rows = create_tagged(10)
    rows[2] = tiny.tag("the river " * 40)
    report = checker.check("token_classification", rows, max_length=64)
    assert is_at(get_finding(report, "truncated"), "train.jsonl", 3)
    assert is_at(get_finding(report, "truncated_targets"), "train.jsonl", 3)


@pytest.mark.parametrize(("asked", "fix"), [(256, "shorten"), (64, "set task.max_length=128, and")])
def test_truncation_by_the_model_names_its_limit(checker, asked, fix):
    rows = create_prompts(10)
    rows[2]["completion"] = " river" * 150
    found = get_finding(checker.check("causal_lm", rows, max_length=asked), "truncated")
    assert found.fault.fix.startswith(fix)
    assert "use a model that reads" in found.fault.fix
    assert ("the model's limit of 128 tokens" in found.fault.problem) == (asked == 256)


def test_tokenizer_limit_counts_only_if_the_task_uses_it(checker, tmp_path, encoder, t5):
    rows = create_labeled(10)
    rows[2]["text"] = "river " * 36
    bases = {}
    for base in (encoder, t5):
        bases[base] = shutil.copytree(base, tmp_path / base.name)
        made = tiny.closing_tokenizer() if base == t5 else tiny.tokenizer()
        made.model_max_length = 80
        made.save_pretrained(bases[base])
    found = get_only_finding(
        checker.check("text_classification", rows, base=bases[encoder]), "truncated"
    )
    assert "the model's limit of 80 tokens" in found.fault.problem
    pairs = create_translations(10)
    pairs[2]["source"] = "river " * 36
    assert checker.check("seq2seq", pairs, base=bases[t5]).findings == ()
    found = get_only_finding(
        checker.check("seq2seq", pairs, base=bases[t5], max_source_length=64), "truncated"
    )
    assert found.fault.fix.startswith("set task.max_source_length=1")


def test_truncated_plain_text_has_one_finding(checker):
    rows = [{"text": text} for text in create_texts(10)]
    rows[3]["text"] = "old stone " * 18
    assert is_at(
        get_only_finding(checker.check("causal_lm", rows, max_length=90), "truncated"),
        "train.jsonl",
        4,
    )


def test_no_eos_without_append_eos(checker):
    found = get_only_finding(
        checker.check("causal_lm", create_prompts(10), append_eos=False), "no_eos"
    )
    assert is_at(found, "train.jsonl", 1) and found.count == 10
    assert "set task.append_eos=true" in found.fault.fix


def test_no_eos_of_a_chat_template_without_eos(checker, tmp_path, decoder):
    base = shutil.copytree(decoder, tmp_path / "endless")
    made = tiny.tokenizer()
    made.chat_template = tiny.TEMPLATE.replace("{{ eos_token }}", "")
    made.save_pretrained(base)
    preferred = [
        {
            "chosen": row["messages"],
            "rejected": [row["messages"][0], {"role": "assistant", "content": "no"}],
        }
        for row in create_chats(10)
    ]
    for task, rows in {"causal_lm": create_chats(10), "dpo": preferred}.items():
        found = get_only_finding(checker.check(task, rows, base=base), "no_eos")
        assert is_at(found, "train.jsonl", 1) and found.count == 10
        assert "append_eos" not in found.fault.fix and "chat template" in found.fault.fix
    assert "no_eos" not in {finding.kind for finding in checker.check("dpo", preferred).findings}


def test_unknown_tokens_are_counted(checker, tmp_path, encoder):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    base = shutil.copytree(encoder, tmp_path / "words")
    words = {word: number for number, word in enumerate(["[PAD]", "[UNK]", *tiny.WORDS])}
    inner = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(base)
    rows = create_labeled(10)
    assert checker.check("text_classification", rows, base=base).findings == ()
    rows[5]["text"] = "der alte Fluss the river"
    found = get_only_finding(
        checker.check("text_classification", rows, base=base), "unknown_tokens"
    )
    assert is_at(found, "train.jsonl", 6) and "whose tokenizer supports" in found.fault.fix
    total = sum(len(row["text"].split()) for row in rows)
    assert f"{3 / total:.1%} of all tokens" in found.fault.problem


def test_skipped_rows_are_found_by_reason(checker):
    rows = create_labeled(10)
    rows[9]["text"] = ""
    found = get_only_finding(checker.check("text_classification", rows), "skipped_rows")
    assert is_at(found, "train.jsonl", 10) and "empty text" in found.fault.problem
    assert "fix or remove" in found.fault.fix
