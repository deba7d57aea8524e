"""`dtl check` finds planted faults, each at its row with its fix, and nothing in clean data."""

import json
import random
import shutil
from time import perf_counter

import numpy as np
import pytest
import yaml

import dtl
from dtl.cli import app as cli
from dtl.core.errors import DtlError
from dtl.inspect.check.render import compute_histogram
from tests import tiny, tiny_sound, tiny_vision, tiny_whisper

TASKS = {  # the base of each task
    "causal_lm": "decoder",
    "text_classification": "encoder",
    "seq2seq": "t5",
    "token_classification": "encoder",
    "dpo": "decoder",
    "audio_classification": "wav2vec2",
    "image_classification": "vit",
    "asr_seq2seq": "whisper",
}


@pytest.fixture(scope="module", autouse=True)
def shared_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DTL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def checker(tmp_path, request):
    return DataChecker(tmp_path, request.getfixturevalue)


class DataChecker:
    """Writes rows and a config that names them, and checks it."""

    def __init__(self, folder, base_of):
        self.folder = folder
        self._base_of = base_of

    def config(self, task, train, *, held_out=None, base=None, data=None, **options):
        self.write("train.jsonl", train)
        named = {"train": str(self.folder / "train.jsonl"), **(data or {})}
        if held_out is not None:
            self.write("held_out.jsonl", held_out)
            named["eval"] = str(self.folder / "held_out.jsonl")
        path = self.folder / "run.yaml"
        config = {
            "model": {"path": str(base or self._base_of(TASKS[task]))},
            "task": {"name": task, **options},
            "data": named,
            "strategy": "lora",
            "train": {"steps": 1},
        }
        path.write_text(yaml.safe_dump(config), encoding="utf-8")
        return path

    def write(self, name, rows):
        """Sounds and pictures go into files of their own."""
        told = []
        for number, row in enumerate(rows):
            row = dict(row)
            for column in ("audio", "image"):
                if isinstance(row.get(column), bytes):
                    file = self.folder / f"{name}-{number}.{column}"
                    file.write_bytes(row[column])
                    row[column] = file.name
            told.append(row)
        tiny.write_rows(self.folder / name, told)

    def check(self, *args, **kwargs):
        return dtl.check(dtl.load_config(self.config(*args, **kwargs)))


def get_only_finding(report, kind):
    """The one finding of the one kind that there is."""
    assert [finding.kind for finding in report.findings] == [kind], report.format_lines()
    return report.findings[0]


def get_finding(report, kind):
    found = [finding for finding in report.findings if finding.kind == kind]
    assert len(found) == 1, report.format_lines()
    return found[0]


def is_at(finding, name, line):
    return finding.fault.location.split(" ")[0].endswith(f"{name}:{line}")


def create_texts(count, *, seed=1, longest=12):
    """All different."""
    rng = random.Random(seed)
    made = dict.fromkeys(tiny.sentence(rng, longest) for _ in range(3 * count + 20))
    return list(made)[:count]


def create_labeled(count, *, seed=1):
    return [
        {"text": text, "label": ("early", "late")[number % 2]}
        for number, text in enumerate(create_texts(count, seed=seed))
    ]


def create_prompts(count, *, seed=1):
    return [
        {"prompt": f"{text} ->", "completion": f" {text[::-1]}"}
        for text in create_texts(count, seed=seed, longest=5)
    ]


def create_chats(count):
    return [
        {
            "messages": [
                {"role": "user", "content": text},
                {"role": "assistant", "content": text.upper()},
            ]
        }
        for text in create_texts(count, longest=4)
    ]


def create_translations(count, *, seed=1):
    return [{"source": text, "target": text[:20]} for text in create_texts(count, seed=seed)]


def create_tagged(count, *, seed=1):
    return [tiny.tag(f"{text} stone river stone house") for text in create_texts(count, seed=seed)]


CLEAN = {
    "causal_lm": create_prompts,
    "text_classification": create_labeled,
    "seq2seq": create_translations,
    "token_classification": create_tagged,
    "dpo": lambda count, seed=1: tiny.pairs(count, seed=seed),
    "audio_classification": lambda count, seed=1: tiny_sound.tones(count, seed=seed),
    "image_classification": lambda count, seed=1: tiny_vision.pictures(count, seed=seed),
}


@pytest.mark.parametrize("task", CLEAN)
def test_clean_data_has_no_findings(task, checker):
    report = checker.check(task, CLEAN[task](12), held_out=CLEAN[task](6, seed=2))
    assert report.findings == (), report.format_lines()
    assert report.exit_code == 0
    assert [(s.name, s.examples, s.rows) for s in report.sources] == [
        ("train", 12, 12),
        ("held-out", 6, 6),
    ]
    assert report.format_lines()[-1] == "no problems found"


def test_clean_chats_and_texts_have_no_findings(checker):
    report = checker.check("causal_lm", create_chats(8))
    assert report.findings == (), report.format_lines()
    assert report.sources[0].tokens.targets == 8
    assert checker.check("causal_lm", [{"text": text} for text in create_texts(8)]).findings == ()


def test_clean_speech_has_no_findings_and_supervises_eos(checker, tmp_path, whisper):
    clips = tiny_whisper.write_clips(tmp_path / "clips", 6)
    path = checker.config("asr_seq2seq", [], data={"train": str(clips)}, language="en")
    report = dtl.check(dtl.load_config(path))
    assert report.findings == (), report.format_lines()
    stats = report.sources[0].tokens
    assert (stats.targets, stats.missing_eos, stats.supervised) == (6, [], stats.total)
    assert report.to_dict()["sources"][0]["length_unit"] == "frames"


# Rows


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


# Classes


def test_single_class_is_fatal(checker):
    rows = [{**row, "label": "early"} for row in create_labeled(6)]
    found = get_only_finding(
        checker.check("text_classification", rows, labels=["early", "late"]), "single_class"
    )
    assert (
        is_at(found, "train.jsonl", 1) and found.is_fatal and "add other classes" in found.fault.fix
    )
    with pytest.raises(DtlError, match="all rows have the label 'early'") as told:
        checker.check("text_classification", rows)
    assert told.value.exit_code == 2


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


def test_unseen_label_of_held_out_rows_is_fatal(checker):
    held_out = [*create_labeled(2, seed=4), {"text": "never again", "label": "soon"}]
    report = checker.check(
        "text_classification",
        create_labeled(8),
        held_out=held_out,
        labels=["early", "late", "soon"],
    )
    found = get_only_finding(report, "unseen_label")
    assert (
        is_at(found, "held_out.jsonl", 3)
        and found.is_fatal
        and "add training rows" in found.fault.fix
    )
    with pytest.raises(DtlError, match=r"held_out.jsonl:3: the label 'soon' does not occur"):
        checker.check("text_classification", create_labeled(8), held_out=held_out)


# Targets and tokens


def test_empty_target_is_a_warning(checker):
    rows = create_prompts(10)
    rows[3] = {**rows[3], "completion": "  "}
    found = get_only_finding(checker.check("causal_lm", rows), "empty_targets")
    assert is_at(found, "train.jsonl", 4) and "add the target text" in found.fault.fix
    assert not found.is_fatal


def test_all_targets_empty_is_fatal(checker):
    rows = [{**row, "completion": ""} for row in create_prompts(5)]
    assert get_finding(checker.check("causal_lm", rows), "empty_targets").is_fatal


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


# Invalid rows


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
    (told,) = report.to_dict()["sources"][0]["invalid_rows"]
    assert told["location"].endswith("train.jsonl:11") and "`completion` is int" in told["reason"]
    assert any(
        "invalid row: " in line and "train.jsonl:11" in line for line in report.format_lines()
    )
    too_many = checker.check("causal_lm", rows, data={**skips, "max_bad_fraction": 0.01})
    assert too_many.exit_code == 2


def test_no_valid_row_raises_the_error_of_a_run(checker):
    with pytest.raises(DtlError, match=r"train.jsonl:1: .*the task reads"):
        checker.check("causal_lm", [{"body": "one"}, {"body": "two"}])


# Audio and images


def create_recordings(change=None, *, place=4, count=9):
    rows = tiny_sound.tones(count)
    if change is not None:
        rows[place]["audio"] = change
    return rows


def test_silent_audio_is_found(checker):
    rows = create_recordings(tiny_sound.wav(np.zeros((8000, 1))))
    found = get_only_finding(checker.check("audio_classification", rows), "silence")
    assert is_at(found, "train.jsonl", 5) and "remove" in found.fault.fix and not found.is_fatal


def test_clipped_audio_is_found(checker):
    loud = np.clip(5 * tiny_sound.tone("deep", seed=9), -1, 1)
    found = get_only_finding(
        checker.check("audio_classification", create_recordings(tiny_sound.wav(loud))), "clipping"
    )
    assert is_at(found, "train.jsonl", 5) and "lower level" in found.fault.fix


def test_mixed_sampling_rates_are_found(checker):
    slow = tiny_sound.wav(tiny_sound.tone("deep", seed=9, rate=8000), rate=8000)
    found = get_only_finding(
        checker.check("audio_classification", create_recordings(slow)), "mixed_sampling_rates"
    )
    assert is_at(found, "train.jsonl", 5) and "8000, 16000 Hz" in found.fault.problem
    assert "check their origin" in found.fault.fix


def test_short_and_empty_audio_is_skipped_and_not_silent(checker):
    rows = create_recordings(tiny_sound.wav(tiny_sound.tone("deep", seed=9)[:100]))
    rows[7].update(offset=60.0, duration=1.0)
    report = checker.check("audio_classification", rows)
    found = get_only_finding(report, "skipped_rows")
    assert is_at(found, "train.jsonl", 5) and "train.jsonl:8" in found.fault.problem
    assert "shorter than 0.05 s" in found.fault.problem


def test_small_image_is_found(checker):
    rows = tiny_vision.pictures(9)
    rows[3]["image"] = tiny_vision.png(tiny_vision.pixels("blue", seed=4)[:4, :20])
    found = get_only_finding(checker.check("image_classification", rows), "small_images")
    assert is_at(found, "train.jsonl", 4) and "below 8 pixels" in found.fault.problem


def test_blank_image_is_found(checker):
    rows = tiny_vision.pictures(9)
    rows[3]["image"] = tiny_vision.png(np.full((40, 40, 3), 7, dtype=np.uint8))
    found = get_only_finding(checker.check("image_classification", rows), "blank_images")
    assert is_at(found, "train.jsonl", 4) and "remove" in found.fault.fix


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("kind", ["image", "audio"])
def test_corrupted_media_do_not_stop_the_check(checker, kind, skip):
    """One file has a broken header and may be skipped; one is truncated in the middle."""
    if kind == "image":
        rows, task = tiny_vision.pictures(12), "image_classification"
        rows[6]["image"] = rows[6]["image"][:400]
        rows[9]["image"] = tiny_vision.png(np.full((40, 40, 3), 7, dtype=np.uint8))
        other = "blank_images"
    else:
        rows, task = tiny_sound.tones(12), "audio_classification"
        whole = tiny_sound.wav(tiny_sound.tone("deep", seed=9), kind="FLAC")
        rows[6]["audio"] = whole[: len(whole) // 2]
        rows[9]["audio"] = tiny_sound.wav(np.zeros((8000, 1)))
        other = "silence"
    rows[3][kind] = b"not at all"
    mode = {"on_bad_row": "skip" if skip else "fail", "max_bad_fraction": 0.5}
    report = checker.check(task, rows, data=mode)
    bad, broken = get_finding(report, "invalid_rows"), get_finding(report, "corrupted_media")
    assert is_at(bad, "train.jsonl", 4) and bad.is_fatal == (not skip)
    assert is_at(broken, "train.jsonl", 7) and broken.is_fatal
    assert "cannot be decoded" in bad.fault.problem and "cannot be decoded" in broken.fault.problem
    assert "convert it to " in bad.fault.fix and "convert it to " in broken.fault.fix
    assert is_at(get_finding(report, other), "train.jsonl", 10), "the other rows are checked too"
    config = dtl.load_config(checker.folder / "run.yaml")
    with pytest.raises(DtlError, match="cannot be decoded"):
        dtl.plan(config)  # the run does not read the cache of the check


def test_only_corrupted_media_raises_one_error(checker):
    whole = tiny_sound.wav(tiny_sound.tone("deep", seed=9), kind="FLAC")
    rows = [{"audio": whole[: len(whole) // 2], "label": label} for label in ("deep", "high")]
    with pytest.raises(DtlError, match=r"train.jsonl:1.*cannot be decoded") as told:
        checker.check("audio_classification", rows)
    assert told.value.exit_code == 2 and "fix the rows" in str(told.value)


# The command


def test_command_has_exit_codes_and_json(checker, capsys):
    rows = create_labeled(10)
    rows[6] = dict(rows[2])
    path = str(checker.config("text_classification", rows))
    assert cli.main(["check", path]) == 0
    told = capsys.readouterr().out
    assert "\033" not in told and "⟦early⟧" in told
    assert cli.main(["check", path, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [finding["kind"] for finding in found["findings"]] == ["duplicates"]
    fault = found["findings"][0]["fault"]
    assert (
        f"warning: {fault['location']}: {fault['problem']}. Fix: {fault['fix']}"
        in told.splitlines()
    )
    assert found["sources"][0]["labels"] == {"early": 5, "late": 5}
    assert len(found["examples"]) == 5

    assert cli.main(["check", path, "task.max_length=2", "task.labels=[early,late,never]"]) == 0
    path = str(
        checker.config("causal_lm", [{**row, "completion": ""} for row in create_prompts(5)])
    )
    capsys.readouterr()
    assert cli.main(["check", path]) == 2
    assert "error: " in capsys.readouterr().out


def test_json_of_audio_is_a_summary(checker):
    told = checker.check("audio_classification", tiny_sound.tones(9)).to_dict()["sources"][0]
    assert told["audio"]["sampled"] == 9 and told["audio"]["sampling_rates"] == {16000: 9}
    assert sum(count for *_, count in told["audio"]["seconds"]) == 9
    assert "media" not in told and told["length_unit"] == "frames"


def test_histogram_counts_every_value_once():
    assert compute_histogram([3, 4, 4, 20]) == [
        *[(3, 5, 3), (6, 8, 0), (9, 11, 0), (12, 14, 0)],
        *[(15, 17, 0), (18, 20, 1)],
    ]
    assert compute_histogram([7, 7]) == [(7, 7, 2)]
    assert compute_histogram([0.0, 0.8]) == [
        *[(0.0, 0.1, 1), (0.1, 0.2, 0), (0.2, 0.3, 0), (0.3, 0.4, 0)],
        *[(0.4, 0.5, 0), (0.5, 0.6, 0), (0.6, 0.7, 0), (0.7, 0.8, 1)],
    ]
    assert compute_histogram([0.5])[0][2] == 1


def test_colors_are_only_for_terminals(checker, monkeypatch, capsys):
    path = str(checker.config("causal_lm", create_prompts(6)))
    cli.main(["check", path])
    assert "\033" not in capsys.readouterr().out
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    cli.main(["check", path])
    assert "\033[1;32m" in capsys.readouterr().out


def test_control_characters_of_rows_are_not_printed(checker):
    rows = create_prompts(5)
    rows[0]["completion"] = " a\033[2Jb\n"
    lines = checker.check("causal_lm", rows).format_lines()
    assert not any("\033" in line or "\n" in line for line in lines)


def test_check_of_3000_rows_takes_less_than_20_seconds(checker):
    path = checker.config("causal_lm", create_prompts(3000), max_length=32)
    start = perf_counter()
    report = dtl.check(dtl.load_config(path))
    assert perf_counter() - start < 20
    assert report.sources[0].rows == 3000
