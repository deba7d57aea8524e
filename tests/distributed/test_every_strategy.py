"""Every strategy on every kind of model, on two ranks: the same steps at every ZeRO stage."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from dtl.config import registry
from dtl.models.peft.compatibility import COMPATIBILITY, TEXT_KINDS
from tests import tiny, tiny_speech, tiny_vision, tiny_whisper
from tests.distributed.bases import Case, layer_normed_hubert, spoken, write_cases
from tests.distributed.covering import cases
from tests.distributed.layouts import zero
from tests.distributed.runs import Run, needs

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
FASTER = "optim.learning_rate=0.1"  # for what changes little at the rate of the others
TOKENS = ("strategy.num_virtual_tokens=4",)
OPTIONS = {
    **dict.fromkeys(("lora", "loha", "lokr"), ("strategy.rank=4",)),
    "adalora": ("strategy.alpha=64", FASTER),
    "partial": ("strategy.top=1",),
    "norm": (FASTER,),
    "ia3": ("strategy.target_modules=all-linear", FASTER),
    "oft": ("strategy.block_size=8",),
    "vera": ("strategy.rank=8", FASTER),
    **dict.fromkeys(("prompt_tuning", "p_tuning"), TOKENS),
    "prefix_tuning": (*TOKENS, FASTER),
}
# Combinations that are not supported; they raise (tests/contracts).
ABSENT = {
    ("bitfit", "decoder"),
    ("frozen", "whisper"),
    *((way, "resnet") for way in ("oft", "vera")),
    *(
        (way, name)
        for way in COMPATIBILITY
        if COMPATIBILITY[way].kinds[: len(TEXT_KINDS)] == TEXT_KINDS
        for name in ("hubert", "whisper", "resnet")
    ),
}


def stages(strategy: str) -> tuple[int, ...]:
    """Return the ZeRO stages that a strategy supports."""
    compatibility = COMPATIBILITY.get(strategy)
    return tuple(
        stage for stage in STAGES if compatibility is None or stage <= compatibility.max_zero_stage
    )


def strategy_run(strategy: str, base: str, stage: int) -> Run:
    """Return the run of a strategy on a base."""
    convolutions = base == "resnet" and strategy in COMPATIBILITY
    return Run(
        f"{strategy}-{base}-{stage}",
        2,
        (
            *(f"strategy={strategy}", *OPTIONS.get(strategy, ())),
            *["strategy.target_modules=[convolution]"] * convolutions,
            *(zero(stage), "layout.micro_batch=3", "data.eval=null"),
        ),
        f"{base}.yaml",
    )


# Every strategy at every stage on some base; `make test-all` runs each on every base.
STAGED = [
    (strategy, stage)
    for strategy in registry.list_names("strategies")
    for stage in (stages(strategy)[1:] or (0,))
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the bases and their rows."""
    folder = tmp_path_factory.mktemp("bases")
    write_cases(folder, CASES, steps=STEPS, rows=ROWS, held_out=ROWS)
    return folder


def compared(staged: tuple[str, int], base: str) -> list[Run]:
    """Return the run at stage 0 and that at another one."""
    strategy, stage = staged
    return [strategy_run(strategy, base, 0), strategy_run(strategy, base, stage)]


@pytest.mark.parametrize(
    ("staged", "base"),
    cases(
        STAGED,
        tuple(CASES),
        strength=1,
        valid=lambda case: (case[0][0], case[1]) not in ABSENT,
    ),
)
@needs(compared)
def test_the_steps_are_the_same_at_every_stage(
    bed: Path, staged: tuple[str, int], base: str
) -> None:
    expected, found = (run.lines(bed) for run in compared(staged, base))
    before, after = (line["loss"] for line in expected)
    assert after < before * (1 - 1e-3), "a step that changes little proves nothing"
    for one, two in zip(expected, found, strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert two["gradient_norm"] == pytest.approx(one["gradient_norm"], rel=1e-3)
