"""Sounds and pictures: one loss on every layout, the same scores, one set of buffers on a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests import tiny_sound, tiny_speech, tiny_vision, tiny_whisper
from tests.distributed import launching
from tests.distributed.bases import Case, lay_out, layer_normed_hubert, spoken

STAGES = (3, 0, 2)  # of two ranks; one rank is the measure
ROWS, HELD_OUT, STEPS = 13, 7, 3  # an odd number: with two ranks, one waits at the end
PLAIN = {"full": [], "lora": ["strategy.rank=4"], "frozen": []}
CONVOLUTIONS = {**PLAIN, "lora": ["strategy.rank=4", "strategy.target=[convolution]"]}
TIED = {"full": [], "lora": ["strategy.rank=4"]}  # there is no head of its own
# Untaught models never end by themselves, and at ZeRO 3 a token costs a gathering of every layer.
WRITES = "name: asr_seq2seq, generate_length: 8"


CASES = {
    "vit": Case("image_classification", tiny_vision.vit, tiny_vision.pictures),
    "resnet": Case("image_classification", tiny_vision.resnet, tiny_vision.pictures),
    "wav2vec2": Case("audio_classification", tiny_sound.wav2vec2, tiny_sound.tones),
    "spectrogram": Case("audio_classification", tiny_sound.spectrogram, tiny_sound.tones),
    "writing": Case("asr_ctc", tiny_sound.wav2vec2, tiny_speech.transcribed),
    "hubert": Case(
        "asr_ctc",
        layer_normed_hubert,
        tiny_speech.transcribed,
        batches="global_batch: 5 seconds, group_by_length: true",
    ),
    "whisper": Case(f"{{{WRITES}, language: en}}", tiny_whisper.whisper, spoken),
    "speech-to-text": Case(f"{{{WRITES}}}", tiny_whisper.speech_to_text, spoken),
}
WAYS = {
    **dict.fromkeys(CASES, PLAIN),
    "resnet": CONVOLUTIONS,
    "whisper": TIED,
    "speech-to-text": TIED,
}
RUNS = [(name, strategy) for name, ways in WAYS.items() for strategy in ways]


def stages(name: str, strategy: str) -> list[int]:
    """At which a run is held to the one of one rank, as in a Latin square: each base and each
    strategy meets every stage. A base of two strategies takes two stages with each."""
    strategies = list(WAYS[name])
    first = list(CASES).index(name) + strategies.index(strategy)
    turns = (first, first + 2) if strategies == ["full", "lora"] else (first,)
    return [STAGES[turn % 3] for turn in turns]


def run_name(name: str, strategy: str, ranks: int, zero: int) -> str:
    return f"{name}-{strategy}-{ranks}-{zero}"


def job(ranks: int, zero: int, name: str, strategy: str) -> dict[str, Any]:
    overrides = [f"strategy={strategy}", *WAYS[name][strategy], f"layout.zero={zero}"]
    overrides.append(f"run.name={run_name(name, strategy, ranks, zero)}")
    return {"config": f"{name}.yaml", "overrides": overrides, "bare": (ranks, zero) != (2, 3)}


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("media")
    lay_out(folder, CASES, steps=STEPS, rows=ROWS, held_out=HELD_OUT)
    alone = [job(1, 0, *run) for run in RUNS]
    launching.run_jobs(1, alone, cwd=folder)
    pair = [job(2, zero, *run) for run in RUNS for zero in stages(*run)]
    launching.run_jobs(2, pair, cwd=folder)
    return folder


def runs(bed: Path, name: str, strategy: str) -> list[Path]:
    """That of one rank, and those of two."""
    layouts = [(1, 0), *((2, zero) for zero in stages(name, strategy))]
    return [bed / "runs" / run_name(name, strategy, *layout) for layout in layouts]


def test_every_base_and_every_strategy_meets_every_stage() -> None:
    for place, known in ((0, CASES), (1, PLAIN)):
        for one in known:
            met = {zero for run in RUNS if run[place] == one for zero in stages(*run)}
            assert met == set(STAGES), one


def outcomes(run: Path) -> list[dict[str, Any]]:
    text = (run / "evaluations" / f"step-{STEPS:08d}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize(("name", "strategy"), RUNS)
def test_loss_is_one_on_every_layout(bed: Path, name: str, strategy: str) -> None:
    first, *others = [
        [line["loss"] for line in launching.train_lines(run)] for run in runs(bed, name, strategy)
    ]
    assert len(first) == STEPS and first[-1] != first[0]
    for zero, other in zip(stages(name, strategy), others, strict=True):
        assert other == pytest.approx(first, rel=1e-5), zero


@pytest.mark.parametrize(("name", "strategy"), RUNS)
def test_every_held_out_row_is_scored_alike_on_every_layout(
    bed: Path, name: str, strategy: str
) -> None:
    first, *others = [outcomes(run) for run in runs(bed, name, strategy)]
    assert [outcome["row"] for outcome in first] == list(range(HELD_OUT))
    for other in others:
        for one, two in zip(first, other, strict=True):
            assert two.pop("loss") == pytest.approx(one["loss"], rel=1e-4)
            assert two == {key: value for key, value in one.items() if key != "loss"}


def test_an_export_of_a_frozen_base_holds_it_whole_and_unmoved(bed: Path) -> None:
    """The statistics of its batch normalisation too."""
    export = bed / "runs" / "resnet-frozen-2-3" / "export"
    from safetensors.torch import load_file

    base, trained = (
        load_file(bed / "resnet" / "model.safetensors"),
        load_file(export / "model.safetensors"),
    )
    same = {name for name in base if name in trained or f"resnet.{name}" in trained}
    assert len(same) == len(base), "an export holds the whole base, statistics included"
    for name in same:
        found = trained.get(name, trained.get(f"resnet.{name}"))
        assert found is not None and found.equal(base[name]), f"{name} of a frozen base moved"
