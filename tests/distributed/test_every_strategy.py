"""Every strategy on every kind of model, on two ranks: the same steps at every ZeRO stage."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from dtl.config import registry
from dtl.models.peft.adapters import COMPATIBILITY, READING
from tests import tiny, tiny_speech, tiny_vision, tiny_whisper
from tests.distributed import launching
from tests.distributed.bases import Case, lay_out, layer_normed_hubert, spoken

STEPS = 2
ROWS = 5  # all in each batch, so that the loss falls; one rank has more of them
STAGES = (0, 2, 3)


def texts(count: int, *, seed: int) -> list[dict[str, Any]]:
    draw = random.Random(seed)
    return [{"text": tiny.sentence(draw, 16)} for _ in range(count)]


def labelled(count: int, *, seed: int) -> list[dict[str, Any]]:
    return [
        {**row, "label": ["even", "odd"][n % 2]} for n, row in enumerate(texts(count, seed=seed))
    ]


def case(task: str, base: Any, rows: Any) -> Case:
    return Case(task, base, rows, rate=0.01, batches=f"global_batch: {ROWS}")


CASES = {
    "decoder": case("{name: causal_lm, max_length: 32}", tiny.decoder, texts),
    "encoder": case("text_classification", tiny.encoder, labelled),
    "hubert": case("asr_ctc", layer_normed_hubert, tiny_speech.transcribed),
    "whisper": case("{name: asr_seq2seq, language: en}", tiny_whisper.whisper, spoken),
    "resnet": case("image_classification", tiny_vision.resnet, tiny_vision.pictures),
}
FASTER = "optim.learning_rate=0.1"  # what moves little by the rate of the others
TOKENS = ("strategy.tokens=4",)
OPTIONS = {
    **dict.fromkeys(("lora", "loha", "lokr"), ("strategy.rank=4",)),
    "adalora": ("strategy.alpha=64", FASTER),
    "partial": ("strategy.top=1",),
    "norm": (FASTER,),
    "ia3": ("strategy.target=all-linear", FASTER),
    "oft": ("strategy.block=8",),
    "vera": ("strategy.rank=8", FASTER),
    **dict.fromkeys(("prompt_tuning", "p_tuning"), TOKENS),
    "prefix_tuning": (*TOKENS, FASTER),
}
# What does not go together; it is refused (tests/contracts).
ABSENT = {
    ("bitfit", "decoder"),
    ("frozen", "whisper"),
    *((way, "resnet") for way in ("oft", "vera")),
    *(
        (way, name)
        for way in COMPATIBILITY
        if COMPATIBILITY[way].kinds[: len(READING)] == READING
        for name in ("hubert", "whisper", "resnet")
    ),
}
RUNS = [
    (way, name)
    for name in CASES
    for way in registry.names("strategies")
    if (way, name) not in ABSENT
]


def stages(way: str) -> tuple[int, ...]:
    return tuple(
        zero for zero in STAGES if way not in COMPATIBILITY or zero <= COMPATIBILITY[way].zero
    )


def job(way: str, name: str, zero: int) -> dict[str, Any]:
    of_kernels = (
        ["strategy.target=[convolution]"] if name == "resnet" and way in COMPATIBILITY else []
    )
    return {
        "config": f"{name}.yaml",
        "overrides": [
            *(f"strategy={way}", *OPTIONS.get(way, ()), *of_kernels),
            *(f"layout.zero={zero}", "layout.micro_batch=3", "data.eval=null"),
            f"run.name={way}-{name}-{zero}",
        ],
        "bare": True,
    }


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("every")
    lay_out(folder, CASES, steps=STEPS, rows=ROWS, held_out=ROWS)
    launching.run_jobs(2, [job(*run, zero) for run in RUNS for zero in stages(run[0])], cwd=folder)
    return folder


@pytest.mark.parametrize(("way", "name"), RUNS)
def test_the_steps_are_the_same_at_every_stage(bed: Path, way: str, name: str) -> None:
    whole, *others = [
        launching.train_lines(bed / "runs" / f"{way}-{name}-{zero}") for zero in stages(way)
    ]
    before, after = (line["loss"] for line in whole)
    assert after < before * (1 - 1e-3), "a step that changes little proves nothing"
    for zero, lines in zip(stages(way)[1:], others, strict=True):
        for line, first in zip(lines, whole, strict=True):
            assert line["loss"] == pytest.approx(first["loss"], rel=1e-5), zero
            assert line["gradient_norm"] == pytest.approx(first["gradient_norm"], rel=1e-3), zero
