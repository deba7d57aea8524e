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
def desk(tmp_path, request):
    return Desk(tmp_path, request.getfixturevalue)


class Desk:
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


def only(report, kind):
    """The one finding of the one kind that there is."""
    assert [finding.kind for finding in report.findings] == [kind], report.lines()
    return report.findings[0]


def one(report, kind):
    found = [finding for finding in report.findings if finding.kind == kind]
    assert len(found) == 1, report.lines()
    return found[0]


def at(finding, name, line):
    return finding.fault.location.split(" ")[0].endswith(f"{name}:{line}")


def texts(count, *, seed=1, longest=12):
    """All different."""
    draw = random.Random(seed)
    made = dict.fromkeys(tiny.sentence(draw, longest) for _ in range(3 * count + 20))
    return list(made)[:count]


def labelled(count, *, seed=1):
    return [
        {"text": text, "label": ("early", "late")[number % 2]}
        for number, text in enumerate(texts(count, seed=seed))
    ]


def prompted(count, *, seed=1):
    return [
        {"prompt": f"{text} ->", "completion": f" {text[::-1]}"}
        for text in texts(count, seed=seed, longest=5)
    ]


def chats(count):
    return [
        {
            "messages": [
                {"role": "user", "content": text},
                {"role": "assistant", "content": text.upper()},
            ]
        }
        for text in texts(count, longest=4)
    ]


def translated(count, *, seed=1):
    return [{"source": text, "target": text[:20]} for text in texts(count, seed=seed)]


def tagged(count, *, seed=1):
    return [tiny.tag(f"{text} stone river stone house") for text in texts(count, seed=seed)]


CLEAN = {
    "causal_lm": prompted,
    "text_classification": labelled,
    "seq2seq": translated,
    "token_classification": tagged,
    "dpo": lambda count, seed=1: tiny.pairs(count, seed=seed),
    "audio_classification": lambda count, seed=1: tiny_sound.tones(count, seed=seed),
    "image_classification": lambda count, seed=1: tiny_vision.pictures(count, seed=seed),
}


@pytest.mark.parametrize("task", CLEAN)
def test_nothing_is_found_in_clean_data(task, desk):
    report = desk.check(task, CLEAN[task](12), held_out=CLEAN[task](6, seed=2))
    assert report.findings == (), report.lines()
    assert report.exit_code == 0
    assert [(s.name, s.examples, s.rows) for s in report.sources] == [
        ("train", 12, 12),
        ("held out", 6, 6),
    ]
    assert report.lines()[-1] == "nothing is wrong with the data"


def test_nothing_is_found_in_clean_chats_and_texts(desk):
    report = desk.check("causal_lm", chats(8))
    assert report.findings == (), report.lines()
    assert report.sources[0].tokens.answers == 8
    assert desk.check("causal_lm", [{"text": text} for text in texts(8)]).findings == ()


def test_speech_to_write_is_clean_and_its_ends_are_learnt(desk, tmp_path, whisper):
    clips = tiny_whisper.write_clips(tmp_path / "clips", 6)
    path = desk.config("asr_seq2seq", [], data={"train": str(clips)}, language="en")
    report = dtl.check(dtl.load_config(path))
    assert report.findings == (), report.lines()
    sums = report.sources[0].tokens
    assert (sums.answers, sums.unended, sums.learnt) == (6, [], sums.all)
    assert report.to_dict()["sources"][0]["length_unit"] == "frames"


# Rows


def test_duplicate_rows(desk):
    rows = labelled(10)
    rows[6] = {**rows[2], "text": rows[2]["text"].upper() + "  "}
    found = only(desk.check("text_classification", rows), "duplicates")
    assert at(found, "train.jsonl", 7) and found.count == 1
    assert "remove them" in found.fault.fix


def test_held_out_row_that_is_learnt(desk):
    rows = prompted(10)
    held_out = [*prompted(3, seed=5), rows[4]]
    found = only(desk.check("causal_lm", rows, held_out=held_out), "leak")
    assert at(found, "held_out.jsonl", 4) and "train.jsonl:5" in found.fault.location
    assert "remove them from one of the two" in found.fault.fix
    assert not found.wastes
    all_of_them = desk.check("causal_lm", rows, held_out=rows[:4])
    assert only(all_of_them, "leak").wastes and all_of_them.exit_code == 2


def test_media_that_are_the_same(desk):
    rows = tiny_sound.tones(9)
    rows[5] = {"audio": rows[2]["audio"], "label": rows[2]["label"]}
    held_out = [*tiny_sound.tones(2, seed=3), rows[1]]
    report = desk.check("audio_classification", rows, held_out=held_out)
    assert at(one(report, "duplicates"), "train.jsonl", 6)
    assert at(one(report, "leak"), "held_out.jsonl", 3)


def test_conflicting_labels(desk):
    rows = labelled(10)
    rows[7] = {"text": rows[2]["text"], "label": "late"}
    found = only(desk.check("text_classification", rows), "conflicts")
    assert at(found, "train.jsonl", 3) and "train.jsonl:8" in found.fault.problem
    assert "keep the right one" in found.fault.fix and found.count == 2


# Classes


def test_single_class(desk):
    rows = [{**row, "label": "early"} for row in labelled(6)]
    found = only(desk.check("text_classification", rows, labels=["early", "late"]), "single class")
    assert at(found, "train.jsonl", 1) and found.wastes and "add other classes" in found.fault.fix
    with pytest.raises(DtlError, match="all rows have the label 'early'") as told:
        desk.check("text_classification", rows)
    assert told.value.exit_code == 2


def test_rare_class(desk):
    rows = [*labelled(10), {"text": "a new ship", "label": "never"}]
    found = only(desk.check("text_classification", rows), "rare class")
    assert at(found, "train.jsonl", 11) and "'never' has 1 of 11" in found.fault.problem
    assert "add rows of it" in found.fault.fix


def test_rare_tag(desk):
    rows = [*tagged(8), {"tokens": ["a", "lock"], "tags": ["O", "B-KEY"]}]
    found = only(desk.check("token_classification", rows), "rare class")
    assert at(found, "train.jsonl", 9) and "'B-KEY'" in found.fault.problem


def test_dominant_class(desk):
    rows = [
        {**row, "label": "late" if n in (3, 7) else "early"} for n, row in enumerate(labelled(60))
    ]
    found = only(desk.check("text_classification", rows), "imbalance")
    assert at(found, "train.jsonl", 1) and "'early' has 58 of 60" in found.fault.problem
    assert "add rows of the others" in found.fault.fix


def test_label_that_only_held_out_rows_have(desk):
    held_out = [*labelled(2, seed=4), {"text": "never again", "label": "soon"}]
    report = desk.check(
        "text_classification", labelled(8), held_out=held_out, labels=["early", "late", "soon"]
    )
    found = only(report, "unseen label")
    assert at(found, "held_out.jsonl", 3) and found.wastes and "add such rows" in found.fault.fix
    with pytest.raises(DtlError, match=r"held_out.jsonl:3: label 'soon' does not occur"):
        desk.check("text_classification", labelled(8), held_out=held_out)


# Answers and tokens


def test_empty_answers(desk):
    rows = prompted(10)
    rows[3] = {**rows[3], "completion": "  "}
    found = only(desk.check("causal_lm", rows), "empty answers")
    assert at(found, "train.jsonl", 4) and "fill them in" in found.fault.fix
    assert not found.wastes


def test_all_answers_empty_waste_a_run(desk):
    rows = [{**row, "completion": ""} for row in prompted(5)]
    assert one(desk.check("causal_lm", rows), "empty answers").wastes


def test_answers_that_are_cut(desk):
    rows = prompted(10)
    rows[8] = {"prompt": "the river ->", "completion": " old stone" * 18}
    report = desk.check("causal_lm", rows, max_length=90)
    needed = report.sources[0].tokens.lengths["max_length"][8]
    found = one(report, "answers cut")
    assert at(found, "train.jsonl", 9)
    assert f"set task.max_length={-(-needed // 8) * 8}" in found.fault.fix
    enough = desk.check("causal_lm", rows, max_length=-(-needed // 8) * 8)
    assert enough.findings == (), "the fix fixes it"


def test_targets_that_are_cut_name_their_own_limit(desk):
    rows = translated(10)
    rows[1]["target"] = "old stone " * 20
    found = one(desk.check("seq2seq", rows, max_target_length=32), "answers cut")
    assert at(found, "train.jsonl", 2) and "set task.max_target_length=" in found.fault.fix


def test_answers_that_are_gone(desk):
    rows = prompted(10)
    for number in (2, 5, 6):
        rows[number] = {"prompt": f"{number} old stone " * 12, "completion": " yes"}
    report = desk.check("causal_lm", rows, max_length=32)
    found = one(report, "answers gone")
    assert at(found, "train.jsonl", 3) and found.count == 3 and found.wastes
    assert "set task.max_length=" in found.fault.fix and "shorten the prompts" in found.fault.fix
    assert report.exit_code == 2


def test_preferences_that_are_cut(desk):
    rows = tiny.pairs(10, seed=1)
    rows[4]["rejected"] = " stone" * 60
    report = desk.check("dpo", rows, max_length=60)
    assert at(one(report, "cut"), "train.jsonl", 5)
    assert at(one(report, "answers cut"), "train.jsonl", 5)


def test_rows_that_are_cut(desk):
    rows = labelled(10)
    rows[2]["text"] = "river " * 36
    report = desk.check("text_classification", rows, max_length=64)
    found = only(report, "cut")
    assert at(found, "train.jsonl", 3) and "cut off at task.max_length" in found.fault.problem
    words = len(tiny.tokenizer()(rows[2]["text"])["input_ids"])
    assert f"set task.max_length={-(-words // 8) * 8}, or shorten" in found.fault.fix


def test_words_that_are_cut(desk):
    rows = tagged(10)
    rows[2] = tiny.tag("the river " * 40)
    report = desk.check("token_classification", rows, max_length=64)
    assert at(one(report, "cut"), "train.jsonl", 3)
    assert at(one(report, "answers cut"), "train.jsonl", 3)


@pytest.mark.parametrize(("asked", "fix"), [(256, "shorten"), (64, "set task.max_length=128, and")])
def test_what_the_model_cannot_read_is_no_matter_of_the_limit(desk, asked, fix):
    rows = prompted(10)
    rows[2]["completion"] = " river" * 150
    found = one(desk.check("causal_lm", rows, max_length=asked), "cut")
    assert found.fault.fix.startswith(fix)
    assert "take a model that reads" in found.fault.fix
    assert ("128 tokens that the model reads" in found.fault.problem) == (asked == 256)


def test_a_limit_of_the_tokenizer_counts_only_where_the_task_keeps_it(desk, tmp_path, encoder, t5):
    rows = labelled(10)
    rows[2]["text"] = "river " * 36
    bases = {}
    for base in (encoder, t5):
        bases[base] = shutil.copytree(base, tmp_path / base.name)
        made = tiny.closing_tokenizer() if base == t5 else tiny.tokenizer()
        made.model_max_length = 80
        made.save_pretrained(bases[base])
    found = only(desk.check("text_classification", rows, base=bases[encoder]), "cut")
    assert "80 tokens that the model reads" in found.fault.problem
    pairs = translated(10)
    pairs[2]["source"] = "river " * 36
    assert desk.check("seq2seq", pairs, base=bases[t5]).findings == ()
    found = only(desk.check("seq2seq", pairs, base=bases[t5], max_source_length=64), "cut")
    assert found.fault.fix.startswith("set task.max_source_length=1")


def test_plain_texts_that_are_cut_are_told_once(desk):
    rows = [{"text": text} for text in texts(10)]
    rows[3]["text"] = "old stone " * 18
    assert at(only(desk.check("causal_lm", rows, max_length=90), "cut"), "train.jsonl", 4)


def test_no_end_is_learnt(desk):
    found = only(desk.check("causal_lm", prompted(10), append_eos=False), "no end")
    assert at(found, "train.jsonl", 1) and found.count == 10
    assert "set task.append_eos=true" in found.fault.fix


def test_no_end_is_learnt_of_a_template_that_has_none(desk, tmp_path, decoder):
    base = shutil.copytree(decoder, tmp_path / "endless")
    made = tiny.tokenizer()
    made.chat_template = tiny.TEMPLATE.replace("{{ eos_token }}", "")
    made.save_pretrained(base)
    preferred = [
        {
            "chosen": row["messages"],
            "rejected": [row["messages"][0], {"role": "assistant", "content": "no"}],
        }
        for row in chats(10)
    ]
    for task, rows in {"causal_lm": chats(10), "dpo": preferred}.items():
        found = only(desk.check(task, rows, base=base), "no end")
        assert at(found, "train.jsonl", 1) and found.count == 10
        assert "end_token" not in found.fault.fix and "chat template" in found.fault.fix
    assert "no end" not in {finding.kind for finding in desk.check("dpo", preferred).findings}


def test_unknown_tokens(desk, tmp_path, encoder):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    base = shutil.copytree(encoder, tmp_path / "words")
    words = {word: number for number, word in enumerate(["[PAD]", "[UNK]", *tiny.WORDS])}
    inner = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(base)
    rows = labelled(10)
    assert desk.check("text_classification", rows, base=base).findings == ()
    rows[5]["text"] = "der alte Fluss the river"
    found = only(desk.check("text_classification", rows, base=base), "unknown tokens")
    assert at(found, "train.jsonl", 6) and "whose tokenizer knows" in found.fault.fix
    total = sum(len(row["text"].split()) for row in rows)
    assert f"{3 / total:.1%} of all tokens" in found.fault.problem


def test_rows_that_are_left_out(desk):
    rows = labelled(10)
    rows[9]["text"] = ""
    found = only(desk.check("text_classification", rows), "left out")
    assert at(found, "train.jsonl", 10) and "empty text" in found.fault.problem
    assert "fix or remove" in found.fault.fix


# Rows at fault


def test_rows_at_fault_are_all_told_and_stop_a_run(desk):
    rows = [*prompted(10), {"prompt": "one", "completion": 1}, {"prompt": 2, "completion": "two"}]
    rows[3] = rows[1]
    report = desk.check("causal_lm", rows)
    found = one(report, "at fault")
    assert at(found, "train.jsonl", 11) and "train.jsonl:12" in found.fault.problem
    assert found.wastes and "give a string" in found.fault.fix
    assert one(report, "duplicates"), "the others are looked at all the same"


def test_rows_that_are_skipped_are_listed(desk):
    rows = [*prompted(10), {"prompt": "one", "completion": 1}]
    skips = {"on_bad_row": "skip", "max_bad_fraction": 0.5}
    report = desk.check("causal_lm", rows, data=skips)
    found = only(report, "at fault")
    assert at(found, "train.jsonl", 11) and "skipped" in found.fault.problem and not found.wastes
    (told,) = report.to_dict()["sources"][0]["at_fault"]
    assert told["place"].endswith("train.jsonl:11") and "`completion` is int" in told["reason"]
    assert any("at fault: " in line and "train.jsonl:11" in line for line in report.lines())
    too_many = desk.check("causal_lm", rows, data={**skips, "max_bad_fraction": 0.01})
    assert too_many.exit_code == 2


def test_no_good_row_is_told_as_a_run_tells_it(desk):
    with pytest.raises(DtlError, match=r"train.jsonl:1: .*the task reads"):
        desk.check("causal_lm", [{"body": "one"}, {"body": "two"}])


# Sounds and pictures


def sounds(change=None, *, place=4, count=9):
    rows = tiny_sound.tones(count)
    if change is not None:
        rows[place]["audio"] = change
    return rows


def test_silence(desk):
    rows = sounds(tiny_sound.wav(np.zeros((8000, 1))))
    found = only(desk.check("audio_classification", rows), "silence")
    assert at(found, "train.jsonl", 5) and "remove" in found.fault.fix and not found.wastes


def test_clipping(desk):
    loud = np.clip(5 * tiny_sound.tone("deep", seed=9), -1, 1)
    found = only(desk.check("audio_classification", sounds(tiny_sound.wav(loud))), "clipping")
    assert at(found, "train.jsonl", 5) and "lower level" in found.fault.fix


def test_sample_rates(desk):
    slow = tiny_sound.wav(tiny_sound.tone("deep", seed=9, rate=8000), rate=8000)
    found = only(desk.check("audio_classification", sounds(slow)), "sample rates")
    assert at(found, "train.jsonl", 5) and "[8000, 16000]" in found.fault.problem
    assert "check their source" in found.fault.fix


def test_short_and_empty_clips_are_left_out_and_not_silent(desk):
    rows = sounds(tiny_sound.wav(tiny_sound.tone("deep", seed=9)[:100]))
    rows[7].update(offset=60.0, duration=1.0)
    report = desk.check("audio_classification", rows)
    found = only(report, "left out")
    assert at(found, "train.jsonl", 5) and "train.jsonl:8" in found.fault.problem
    assert "shorter than 0.05 s" in found.fault.problem


def test_tiny_picture(desk):
    rows = tiny_vision.pictures(9)
    rows[3]["image"] = tiny_vision.png(tiny_vision.pixels("blue", seed=4)[:4, :20])
    found = only(desk.check("image_classification", rows), "tiny pictures")
    assert at(found, "train.jsonl", 4) and "below 8 pixels" in found.fault.problem


def test_picture_of_one_colour(desk):
    rows = tiny_vision.pictures(9)
    rows[3]["image"] = tiny_vision.png(np.full((40, 40, 3), 7, dtype=np.uint8))
    found = only(desk.check("image_classification", rows), "blank pictures")
    assert at(found, "train.jsonl", 4) and "remove" in found.fault.fix


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("kind", ["image", "audio"])
def test_media_that_cannot_be_decoded_do_not_end_the_check(desk, kind, skip):
    """One whose header is broken, which may be skipped, and one that breaks off in the middle."""
    if kind == "image":
        rows, task = tiny_vision.pictures(12), "image_classification"
        rows[6]["image"] = rows[6]["image"][:400]
        rows[9]["image"] = tiny_vision.png(np.full((40, 40, 3), 7, dtype=np.uint8))
        other = "blank pictures"
    else:
        rows, task = tiny_sound.tones(12), "audio_classification"
        whole = tiny_sound.wav(tiny_sound.tone("deep", seed=9), kind="FLAC")
        rows[6]["audio"] = whole[: len(whole) // 2]
        rows[9]["audio"] = tiny_sound.wav(np.zeros((8000, 1)))
        other = "silence"
    rows[3][kind] = b"not at all"
    mode = {"on_bad_row": "skip" if skip else "fail", "max_bad_fraction": 0.5}
    report = desk.check(task, rows, data=mode)
    bad, broken = one(report, "at fault"), one(report, "undecodable")
    assert at(bad, "train.jsonl", 4) and bad.wastes == (not skip)
    assert at(broken, "train.jsonl", 7) and broken.wastes
    assert "cannot be decoded" in bad.fault.problem and "cannot be decoded" in broken.fault.problem
    assert "give " in bad.fault.fix and "give " in broken.fault.fix
    assert at(one(report, other), "train.jsonl", 10), "the others are looked at all the same"
    config = dtl.load_config(desk.folder / "run.yaml")
    with pytest.raises(DtlError, match="cannot be decoded"):
        dtl.plan(config)  # what is cached is not what the check has read


def test_media_of_which_none_can_be_decoded_are_one_fault(desk):
    whole = tiny_sound.wav(tiny_sound.tone("deep", seed=9), kind="FLAC")
    rows = [{"audio": whole[: len(whole) // 2], "label": label} for label in ("deep", "high")]
    with pytest.raises(DtlError, match=r"train.jsonl:1.*cannot be decoded") as told:
        desk.check("audio_classification", rows)
    assert told.value.exit_code == 2 and "fix the rows" in str(told.value)


# The command


def test_codes_and_json(desk, capsys):
    rows = labelled(10)
    rows[6] = dict(rows[2])
    path = str(desk.config("text_classification", rows))
    assert cli.main(["check", path]) == 0
    told = capsys.readouterr().out
    assert "\033" not in told and "⟦early⟧" in told
    assert cli.main(["check", path, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [finding["kind"] for finding in found["findings"]] == ["duplicates"]
    fault = found["findings"][0]["fault"]
    assert f"warning: {fault['place']}: {fault['problem']}; {fault['fix']}" in told.splitlines()
    assert found["sources"][0]["labels"] == {"early": 5, "late": 5}
    assert len(found["examples"]) == 5

    assert cli.main(["check", path, "task.max_length=2", "task.labels=[early,late,never]"]) == 0
    path = str(desk.config("causal_lm", [{**row, "completion": ""} for row in prompted(5)]))
    capsys.readouterr()
    assert cli.main(["check", path]) == 2
    assert "FAULT: " in capsys.readouterr().out


def test_json_of_sounds_is_a_summary(desk):
    told = desk.check("audio_classification", tiny_sound.tones(9)).to_dict()["sources"][0]
    assert told["sounds"]["looked_at"] == 9 and told["sounds"]["rates"] == {16000: 9}
    assert sum(count for *_, count in told["sounds"]["seconds"]) == 9
    assert "media" not in told and told["length_unit"] == "frames"


def test_bars_hold_every_value_once():
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


def test_colours_are_for_terminals_alone(desk, monkeypatch, capsys):
    path = str(desk.config("causal_lm", prompted(6)))
    cli.main(["check", path])
    assert "\033" not in capsys.readouterr().out
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    cli.main(["check", path])
    assert "\033[1;32m" in capsys.readouterr().out


def test_what_a_row_says_does_not_steer_the_terminal(desk):
    rows = prompted(5)
    rows[0]["completion"] = " a\033[2Jb\n"
    lines = desk.check("causal_lm", rows).lines()
    assert not any("\033" in line or "\n" in line for line in lines)


def test_thousands_of_rows_take_seconds(desk):
    path = desk.config("causal_lm", prompted(3000), max_length=32)
    start = perf_counter()
    report = dtl.check(dtl.load_config(path))
    assert perf_counter() - start < 20
    assert report.sources[0].rows == 3000
