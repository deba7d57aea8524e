"""The report of `dtl check`: clean data has no findings; JSON, colors and exit codes."""

import json
from time import perf_counter

import numpy as np
import pytest

import dtl
from dtl.cli import app as cli
from dtl.core.errors import DtlError
from dtl.inspect.check.render import compute_histogram
from dtl.prepare.prepared_run import prepare_run
from tests import tiny, tiny_sound, tiny_vision, tiny_whisper
from tests.unit.inspect.check.checker import (
    create_chats,
    create_labeled,
    create_prompts,
    create_tagged,
    create_texts,
    create_translations,
    get_finding,
    is_at,
)

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
        full = tiny_sound.wav(tiny_sound.tone("deep", seed=9), kind="FLAC")
        rows[6]["audio"] = full[: len(full) // 2]
        rows[9]["audio"] = tiny_sound.wav(np.zeros((8000, 1)))
        other = "silence"
    rows[3][kind] = b"not at all"
    mode = {"on_bad_row": "skip" if skip else "fail", "max_bad_fraction": 0.5}
    report = checker.check(task, rows, data=mode)
    bad, broken = get_finding(report, "invalid_rows"), get_finding(report, "corrupted_media")
    assert is_at(bad, "train.jsonl", 4) and bad.is_fatal == (not skip)
    assert is_at(broken, "train.jsonl", 7) and broken.is_fatal == (not skip)
    assert "cannot be decoded" in bad.fault.problem and "cannot be decoded" in broken.fault.problem
    assert "convert it to " in bad.fault.fix and "convert it to " in broken.fault.fix
    assert is_at(get_finding(report, other), "train.jsonl", 10), "the other rows are checked too"
    config = dtl.load_config(checker.folder / "run.yaml")
    if not skip:
        with pytest.raises(DtlError, match="cannot be decoded"):
            dtl.plan(config)  # the run does not read the cache of the check
        return
    (invalid,) = (
        each
        for each in prepare_run(config).data.iter_skipped_rows()
        if each["location"].endswith(":7")
    )
    assert invalid["reason"].startswith(f"invalid: `{kind}` cannot be decoded")
    strict = config.model_copy(
        update={"data": config.data.model_copy(update={"max_bad_fraction": 0.09})}
    )
    with pytest.raises(DtlError, match=r"1 of 11 rows .* are invalid.*cannot be decoded"):
        dtl.plan(strict)


def test_only_corrupted_media_raises_one_error(checker):
    full = tiny_sound.wav(tiny_sound.tone("deep", seed=9), kind="FLAC")
    rows = [{"audio": full[: len(full) // 2], "label": label} for label in ("deep", "high")]
    with pytest.raises(DtlError, match=r"train.jsonl:1.*cannot be decoded") as reported:
        checker.check("audio_classification", rows)
    assert reported.value.exit_code == 2 and "convert it to" in str(reported.value)


def test_command_has_exit_codes_and_json(checker, capsys):
    rows = create_labeled(10)
    rows[6] = dict(rows[2])
    path = str(checker.config("text_classification", rows))
    assert cli.main(["check", path]) == 0
    reported = capsys.readouterr().out
    assert "\033" not in reported and "⟦early⟧" in reported
    assert cli.main(["check", path, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [finding["kind"] for finding in found["findings"]] == ["duplicates"]
    fault = found["findings"][0]["fault"]
    assert (
        f"warning: {fault['location']}: {fault['problem']}. Fix: {fault['fix']}"
        in reported.splitlines()
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
    reported = checker.check("audio_classification", tiny_sound.tones(9)).to_dict()["sources"][0]
    assert reported["audio"]["sampled"] == 9 and reported["audio"]["sampling_rates"] == {16000: 9}
    assert sum(count for *_, count in reported["audio"]["seconds"]) == 9
    assert "media" not in reported and reported["length_unit"] == "frames"


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
