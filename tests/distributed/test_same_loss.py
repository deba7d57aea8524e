"""The same run gives the same loss on any layout, and the loss of plain PyTorch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dtl.inspect.audit import audit
from dtl.run.folder import RunFolder
from tests.distributed import launching, reference
from tests.distributed.matrix import (
    ACCUMULATION,
    BATCH,
    BATCHING_LAYOUTS,
    CLIP,
    HELD_OUT,
    OPTIMIZERS,
    PARTS,
    PARTS_LAYOUTS,
    PHASED_STAGES,
    PHASES,
    RATE,
    STAGES,
    STEPS,
    STRATEGIES,
    TOKEN_STEPS,
    TOKENS,
    UPDATED,
)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_loss_equals_plain_pytorch_on_every_layout(bed: Path, strategy: str) -> None:
    losses, norms = _of_plain_pytorch(bed, [(strategy, STEPS)])
    assert losses[-1] < losses[0] - 0.05, "the reference does not learn: the bed proves nothing"
    assert max(norms) > CLIP, "clipping must matter"
    for ranks in (1, 2):
        for zero in STAGES:
            for turns in ACCUMULATION:
                run = bed / "runs" / f"{strategy}-{ranks}-{zero}-{turns}"
                found = launching.train_lines(run)
                assert [line["loss"] for line in found] == pytest.approx(losses, rel=1e-5), run.name
                assert [line["gradient_norm"] for line in found] == pytest.approx(norms, rel=1e-4)


def _of_plain_pytorch(
    bed: Path,
    phases: list[tuple[str, int]],
    *,
    rate: float = RATE,
    by: reference.Optimized = reference.ADAMW,
    tokens: int | None = None,
) -> tuple[list[float], list[float]]:
    lines = (bed / "train.jsonl").read_text().splitlines()
    return reference.losses(
        bed / "base",
        [json.loads(line)["text"] for line in lines],
        phases=phases,
        batch=BATCH,
        rate=rate,
        clip=CLIP,
        longest=64,
        by=by,
        tokens=tokens,
    )


@pytest.mark.parametrize("name", PHASES)
def test_phases_equal_the_same_phases_in_plain_pytorch(bed: Path, name: str) -> None:
    losses, norms = _of_plain_pytorch(bed, PHASES[name])
    for zero in PHASED_STAGES:
        found = launching.train_lines(bed / "runs" / f"whole-{name}-{zero}")
        assert [line["loss"] for line in found] == pytest.approx(losses, rel=1e-5), zero
        assert [line["gradient_norm"] for line in found] == pytest.approx(norms, rel=1e-4)


@pytest.mark.parametrize("strategy", PARTS)
def test_parts_of_the_base_learn_alike_at_every_stage(bed: Path, strategy: str) -> None:
    layouts = [f"{ranks}-{zero}" for ranks, zero in PARTS_LAYOUTS] + ["2-recomputed"]
    found = [launching.train_lines(bed / "runs" / f"{strategy}-{layout}") for layout in layouts]
    first, *others = [[line["loss"] for line in lines] for lines in found]
    assert first[-1] != first[0]
    if strategy == "partial":
        others.append(_of_plain_pytorch(bed, [(strategy, STEPS)])[0])
    for other in others:
        assert other == pytest.approx(first, rel=1e-5)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_way_to_update_is_that_of_plain_pytorch(bed: Path, name: str) -> None:
    losses, norms = _of_plain_pytorch(
        bed,
        [("full", STEPS)],
        rate=0.001 if name == "lion" else RATE,
        by=reference.OPTIMIZED[name],
    )
    assert losses[-1] < losses[0] - 0.05
    # Muon orthogonalises in bf16, which makes more of what the order of sums leaves.
    near = 1e-4 if name == "muon" else 2e-6
    for ranks, zero in UPDATED[name]:
        found = launching.train_lines(bed / "runs" / f"updated-{name}-{ranks}-{zero}")
        assert [line["loss"] for line in found] == pytest.approx(losses, rel=near), (ranks, zero)
        assert [line["gradient_norm"] for line in found] == pytest.approx(norms, rel=1e-2), zero


def test_loss_of_batches_of_tokens_equals_plain_pytorch_on_every_layout(bed: Path) -> None:
    losses, norms = _of_plain_pytorch(bed, [("full", TOKEN_STEPS)], tokens=TOKENS)
    runs = [bed / "runs" / f"batches-tokens-{r}-{z}-{m}" for r, z, m in BATCHING_LAYOUTS]
    for run in runs:
        found = launching.train_lines(run)
        assert [line["loss"] for line in found] == pytest.approx(losses, rel=1e-5), run.name
        assert [line["gradient_norm"] for line in found] == pytest.approx(norms, rel=1e-4)
        assert len({line["examples"] for line in found}) > 2, "batches of tokens differ in examples"
        assert {line["epoch"] for line in found} >= {0, 1}
        assert audit(RunFolder(run)).fault is None
    turns = {RunFolder(run).plan.layout.accumulation for run in runs}
    assert len(turns) > 1


@pytest.mark.parametrize("name", ["grouped", "both"])
def test_loss_of_grouped_batches_is_the_same_on_every_layout(bed: Path, name: str) -> None:
    runs = [bed / "runs" / f"batches-{name}-{r}-{z}-{m}" for r, z, m in BATCHING_LAYOUTS]
    first = launching.train_lines(runs[0])
    for run in runs:
        found = launching.train_lines(run)
        for key, close in (("loss", 1e-5), ("gradient_norm", 1e-4)):
            expected = [line[key] for line in first]
            assert [line[key] for line in found] == pytest.approx(expected, rel=close), run.name
        assert [line["digest"] for line in found] == [line["digest"] for line in first]
        assert audit(RunFolder(run)).fault is None
    plain = launching.train_lines(bed / "runs" / "batches-tokens-1-0-1")
    assert first[0]["digest"] != plain[0]["digest"]


def test_memory_savers_change_no_loss(bed: Path) -> None:
    names = {"lora": [f"recomputed-{zero}" for zero in STAGES], "full": ["offloaded"]}
    for strategy, runs in names.items():
        plain = launching.train_lines(bed / "runs" / f"{strategy}-1-0-1")
        for name in runs:
            found = launching.train_lines(bed / "runs" / f"varied-{name}")
            assert [line["loss"] for line in found] == pytest.approx(
                [line["loss"] for line in plain], rel=1e-5
            ), name


def test_half_precision_is_near_at_every_stage(bed: Path) -> None:
    plain = [line["loss"] for line in launching.train_lines(bed / "runs" / "lora-1-0-1")]
    for zero in STAGES:
        found = launching.train_lines(bed / "runs" / f"varied-half-{zero}")
        losses = [line["loss"] for line in found]
        assert losses == pytest.approx(plain, rel=2e-3), zero
        assert losses != plain, "bf16 was not used"


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
