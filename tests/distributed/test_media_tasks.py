"""Sounds and pictures: one loss on every layout, the same scores, one set of buffers in a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dtl.core.json_lines import read_lines
from tests import tiny_sound, tiny_speech, tiny_vision, tiny_whisper
from tests.distributed.bases import Case, layer_normed_hubert, spoken, write_cases
from tests.distributed.covering import covering
from tests.distributed.layouts import zero
from tests.distributed.runs import Run, needs

STAGES = (3, 0, 2)  # of two ranks; one rank is the measure
ROWS, HELD_OUT, STEPS = 13, 7, 3  # an odd number: with two ranks, one has no row at the end
PLAIN = {"full": [], "lora": ["strategy.rank=4"], "frozen": []}
CONVOLUTIONS = {**PLAIN, "lora": ["strategy.rank=4", "strategy.target_modules=[convolution]"]}
TIED = {"full": [], "lora": ["strategy.rank=4"]}  # there is no head of its own
# Untrained models write no end token, and at ZeRO 3 each token costs an all-gather of layers.
WRITES = "name: asr_seq2seq, max_new_tokens: 8"


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
STRATEGIES_OF = {
    **dict.fromkeys(CASES, PLAIN),
    "resnet": CONVOLUTIONS,
    "whisper": TIED,
    "speech-to-text": TIED,
}


def stages(base: str, strategy: str) -> list[int]:
    """Return the stages at which a run is compared with that of one process, as in a Latin square:
    each base and each strategy meets every stage. A base of two strategies takes two with each."""
    strategies = list(STRATEGIES_OF[base])
    first = list(CASES).index(base) + strategies.index(strategy)
    offsets = (first, first + 2) if strategies == ["full", "lora"] else (first,)
    return [STAGES[offset % 3] for offset in offsets]


SQUARE = [
    (base, strategy, stage)
    for base, strategies in STRATEGIES_OF.items()
    for strategy in strategies
    for stage in stages(base, strategy)
]
# Every base, and every strategy at every stage; `make test-all` runs the complete square.
QUICK = covering(
    tuple(CASES),
    [(strategy, stage) for strategy in PLAIN for stage in STAGES],
    strength=1,
    valid=lambda case: (case[0], *case[1]) in SQUARE,
)
COMPARED = [
    pytest.param(
        base,
        strategy,
        stage,
        marks=[pytest.mark.slow] * ((base, (strategy, stage)) not in QUICK),
    )
    for base, strategy, stage in SQUARE
]


def media_run(base: str, strategy: str, processes: int, stage: int) -> Run:
    """Return the run of a base; at stage 3 it exports."""
    return Run(
        f"{base}-{strategy}-{processes}-{stage}",
        processes,
        (f"strategy={strategy}", *STRATEGIES_OF[base][strategy], zero(stage)),
        f"{base}.yaml",
        bare=(processes, stage) != (2, 3),
    )


def compared(base: str, strategy: str, stage: int) -> list[Run]:
    """Return the run on one process and that on two."""
    return [media_run(base, strategy, 1, 0), media_run(base, strategy, 2, stage)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the bases and their rows."""
    folder = tmp_path_factory.mktemp("bases")
    write_cases(folder, CASES, steps=STEPS, rows=ROWS, held_out=HELD_OUT)
    return folder


def test_every_base_and_every_strategy_meets_every_stage() -> None:
    for position, known in ((0, CASES), (1, PLAIN)):
        for one in known:
            assert {case[2] for case in SQUARE if case[position] == one} == set(STAGES), one


def eval_records(run: Path) -> list[dict[str, Any]]:
    return read_lines(run / "evaluations" / f"step-{STEPS:08d}.jsonl")


@pytest.mark.parametrize(("base", "strategy", "stage"), COMPARED)
@needs(compared)
def test_loss_is_one_on_every_layout(bed: Path, base: str, strategy: str, stage: int) -> None:
    expected, found = (run.losses(bed) for run in compared(base, strategy, stage))
    assert len(expected) == STEPS and expected[-1] != expected[0]
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("base", "strategy", "stage"), COMPARED)
@needs(compared)
def test_every_held_out_row_is_scored_alike_on_every_layout(
    bed: Path, base: str, strategy: str, stage: int
) -> None:
    expected, found = (eval_records(run.path(bed)) for run in compared(base, strategy, stage))
    assert [record["row"] for record in expected] == list(range(HELD_OUT))
    for one, two in zip(expected, found, strict=True):
        assert two.pop("loss") == pytest.approx(one["loss"], rel=1e-4)
        assert two == {key: value for key, value in one.items() if key != "loss"}


@needs(media_run("resnet", "frozen", 2, 3))
def test_an_export_of_a_frozen_base_holds_it_complete_and_unchanged(bed: Path) -> None:
    """The statistics of its batch normalization too."""
    export = media_run("resnet", "frozen", 2, 3).path(bed) / "export"
    from safetensors.torch import load_file

    base, trained = (
        load_file(bed / "resnet" / "model.safetensors"),
        load_file(export / "model.safetensors"),
    )
    same = {name for name in base if name in trained or f"resnet.{name}" in trained}
    assert len(same) == len(base), "an export holds the complete base, statistics included"
    for name in same:
        found = trained.get(name, trained.get(f"resnet.{name}"))
        assert found is not None and found.equal(base[name]), f"{name} of a frozen base changed"
