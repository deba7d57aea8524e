"""The same run gives the same loss on any layout, and the loss of plain PyTorch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests import tiny
from tests.distributed import launching, reference

STRATEGIES = {"full": [], "lora": ["strategy.rank=4", "strategy.alpha=8"], "frozen": []}
STAGES = (0, 1, 2, 3)
ACCUMULATION = (1, 2, 4)
STEPS, BATCH, RATE, CLIP = 20, 12, 0.01, 0.25  # 53 rows: the last batch of an epoch has 5
HELD_OUT = 101

CONFIG = f"""
model: {{path: base, dtype: fp32}}
task: {{name: causal_lm, max_length: 64}}
data: {{train: train.jsonl}}
strategy: full
optim: {{learning_rate: {RATE}, warmup: 0, gradient_clip: {CLIP}}}
train: {{steps: {STEPS}, global_batch: {BATCH}}}
"""
LABELLED = f"""
model: {{path: encoder, dtype: fp32}}
task: text_classification
data: {{train: labelled.jsonl, eval: held_out.jsonl}}
strategy: frozen
optim: {{learning_rate: {RATE}}}
train: {{steps: 3, global_batch: {BATCH}, evaluation_batch: 4}}
"""


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every layout of the matrix, run: one launch with one process, one with two, one with three."""
    folder = tmp_path_factory.mktemp("same-loss")
    tiny.decoder(folder / "base")
    tiny.encoder(folder / "encoder")
    tiny.write_texts(folder / "train.jsonl", 53)
    tiny.write_texts(folder / "eval.jsonl", HELD_OUT, seed=2)
    tiny.write_labelled(folder / "labelled.jsonl", 53)
    tiny.write_labelled(folder / "held_out.jsonl", HELD_OUT, seed=2)
    (folder / "config.yaml").write_text(CONFIG)
    (folder / "labelled.yaml").write_text(LABELLED)
    for ranks in (1, 2):
        jobs = [_job(ranks, *case) for case in _cases()] + _labelled(ranks)
        launching.run_jobs(ranks, jobs + _scored(ranks), cwd=folder)
    launching.run_jobs(3, _scored(3), cwd=folder)
    return folder


def _cases() -> list[tuple[str, int, int]]:
    return [(name, zero, turns) for name in STRATEGIES for zero in STAGES for turns in ACCUMULATION]


def _job(ranks: int, strategy: str, zero: int, turns: int) -> dict[str, Any]:
    overrides = [
        f"strategy={strategy}",
        *STRATEGIES[strategy],
        f"layout.zero={zero}",
        f"layout.micro_batch={-(-BATCH // ranks // turns)}",
        f"run.name={strategy}-{ranks}-{zero}-{turns}",
    ]
    return {"config": "config.yaml", "overrides": overrides, "bare": True}


def _labelled(ranks: int) -> list[dict[str, Any]]:
    """A head that the base does not bring, at each stage."""
    return [
        {
            "config": "labelled.yaml",
            "overrides": [f"layout.zero={zero}", f"run.name=head-{ranks}-{zero}"],
            "bare": True,
        }
        for zero in STAGES
    ]


def _scored(ranks: int) -> list[dict[str, Any]]:
    """Scores of the unadapted base, which no training has touched."""
    overrides = ["data.eval=eval.jsonl", "train.steps=1", "train.evaluation_batch=4"]
    overrides += [f"run.name=scored-{ranks}", "layout.zero=0"]
    return [{"config": "config.yaml", "overrides": overrides, "bare": True}]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_loss_equals_plain_pytorch_on_every_layout(bed: Path, strategy: str) -> None:
    lines = (bed / "train.jsonl").read_text().splitlines()
    losses, norms = reference.losses(
        bed / "base",
        [json.loads(line)["text"] for line in lines],
        strategy=strategy,
        steps=STEPS,
        batch=BATCH,
        rate=RATE,
        clip=CLIP,
    )
    assert losses[-1] < losses[0] - 0.05, "the reference does not learn: the bed proves nothing"
    assert max(norms) > CLIP, "clipping must matter"
    for ranks in (1, 2):
        for zero in STAGES:
            for turns in ACCUMULATION:
                run = bed / "runs" / f"{strategy}-{ranks}-{zero}-{turns}"
                found = launching.train_lines(run)
                assert [line["loss"] for line in found] == pytest.approx(losses, rel=1e-5), run.name
                assert [line["gradient_norm"] for line in found] == pytest.approx(norms, rel=1e-4)


def test_a_new_head_starts_and_learns_alike_at_every_stage(bed: Path) -> None:
    runs = [bed / "runs" / f"head-{ranks}-{zero}" for ranks in (1, 2) for zero in STAGES]
    first, *others = [[line["loss"] for line in launching.train_lines(run)] for run in runs]
    for other in others:
        assert other == pytest.approx(first, rel=1e-5)


def test_the_last_batch_of_an_epoch_is_short_and_counted(bed: Path) -> None:
    lines = launching.train_lines(bed / "runs" / "full-2-3-2")
    assert [line["examples"] for line in lines[:5]] == [12, 12, 12, 12, 5]
    rows = (bed / "train.jsonl").read_text().splitlines()
    assert sum(line["examples"] for line in lines[:5]) == len(rows)


def test_scores_are_identical_on_one_two_and_three_ranks(bed: Path) -> None:
    found = [_scores(bed / "runs" / f"scored-{ranks}", "unadapted") for ranks in (1, 2, 3)]
    assert found[0] == found[1] == found[2]
    rows = [
        [json.loads(line) for line in path.read_text().splitlines()]
        for ranks in (1, 2, 3)
        for path in [bed / "runs" / f"scored-{ranks}" / "evaluations" / "step-00000000.jsonl"]
    ]
    assert [row["row"] for row in rows[0]] == list(range(HELD_OUT))
    assert rows[0] == rows[1] == rows[2]


def test_counts_of_a_classifier_are_identical_at_every_stage(bed: Path) -> None:
    names = [f"head-{ranks}-{zero}" for ranks in (1, 2) for zero in STAGES]
    found = [_scores(bed / "runs" / name, "adapted") for name in names]
    counts = [{key: score[key] for key in score if key != "loss"} for score in found]
    assert all(count == counts[0] for count in counts)
    assert sum(v for key, v in counts[0].items() if key.startswith("confusion/")) == HELD_OUT


def _scores(run: Path, model: str) -> dict[str, Any]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    found = [line for line in lines if line["kind"] == "eval" and line["model"] == model]
    return {key: value for key, value in found[-1].items() if key != "kind"}
