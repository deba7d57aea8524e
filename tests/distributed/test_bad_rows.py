"""A run that skips rows at fault is, to the last bit, the run on a file without them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from dtl.run.folder import RunFolder
from tests import tiny
from tests.distributed import launching

CONFIG = """
model: {path: base, dtype: fp32}
task: {name: causal_lm, max_length: 64}
data: {train: clean.jsonl}
strategy: full
optim: {learning_rate: 0.003}
train: {steps: 12, global_batch: 6, evaluation_batch: 4}
layout: {zero_stage: 0, micro_batch: 3}
"""
SKIPPING = ["data.train=dirty.jsonl", "data.on_bad_row=skip", "data.max_bad_fraction=0.2"]
HELD_OUT = {"all": [], "eval_fraction": ["data.eval_fraction=0.2"]}
# Number of the good row before which each stands, and what is written there.
BAD = {
    0: b'{"text": "cut off',
    1: b'["no", "object"]',
    17: b'{"text": "\xff\xfe"}',
    18: b'{"text": 7}',
    19: b'{"body": "another column"}',
    30: b"\x00\x00\x00\x00",
    39: b'{"text": "half a character \\ud83d"}',
}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same rows clean and with others strewn in; a run of each, with and without a split."""
    folder = tmp_path_factory.mktemp("bad-rows")
    tiny.decoder(folder / "base")
    clean = tiny.write_texts(folder / "clean.jsonl", 40).read_bytes().splitlines()
    dirty = [line for n, good in enumerate(clean) for line in (BAD.get(n), good) if line]
    (folder / "dirty.jsonl").write_bytes(b"\n".join(dirty) + b"\n")
    (folder / "config.yaml").write_text(CONFIG, encoding="utf-8")
    jobs: list[dict[str, Any]] = [
        {"config": "config.yaml", "overrides": [*data, *split, f"run.name={rows}-{name}"]}
        for rows, data in (("clean", []), ("dirty", SKIPPING))
        for name, split in HELD_OUT.items()
    ]
    launching.run_jobs(1, jobs, cwd=folder)
    return folder


@pytest.mark.parametrize("split", HELD_OUT)
def test_losses_scores_and_weights_are_those_of_the_clean_subset(workdir: Path, split: str) -> None:
    clean, dirty = (RunFolder(workdir / "runs" / f"{rows}-{split}") for rows in ("clean", "dirty"))
    assert [line["loss"] for line in launching.train_lines(dirty.path)] == [
        line["loss"] for line in launching.train_lines(clean.path)
    ]
    assert dirty.result["scores"] == clean.result["scores"]
    assert (split == "eval_fraction") == bool(dirty.result["scores"])
    assert (dirty.data["skipped_rows"], clean.data["skipped_rows"]) == (len(BAD), 0)
    mine, theirs = (_tensors(run) for run in (dirty, clean))
    assert mine.keys() == theirs.keys()
    assert all((mine[name].numpy() == theirs[name].numpy()).all() for name in theirs)


def test_the_run_lists_and_reports_the_rows_that_it_skips(workdir: Path) -> None:
    completed = _train(workdir, *SKIPPING, "run.name=listed", "train.steps=1")
    assert completed.returncode == 0, completed.stdout + completed.stderr
    (line,) = (line for line in completed.stdout.splitlines() if line.startswith("data.train:"))
    assert line.startswith("data.train: 7 of 47 rows are invalid and skipped: dirty.jsonl:1 (")
    text = (workdir / "runs" / "listed" / "skipped_rows.jsonl").read_text(encoding="utf-8")
    listed = [json.loads(line) for line in text.splitlines()]
    numbers = [number + index for index, number in enumerate(BAD, start=1)]
    assert [row["location"] for row in listed] == [f"dirty.jsonl:{number}" for number in numbers]
    assert all(row["source"] == "data.train" and row["reason"] for row in listed)


@pytest.mark.parametrize(
    ("overrides", "output"),
    [
        (SKIPPING[:2], "config.yaml:4: data.max_bad_fraction: 7 of 47 rows"),
        (SKIPPING[:1], "dirty.jsonl:1: invalid JSON ("),
    ],
    ids=["too many", "none may be"],
)
def test_too_many_invalid_rows_stop_the_run_before_it_starts(
    workdir: Path, overrides: list[str], output: str
) -> None:
    completed = _train(workdir, *overrides, "run.name=rejected")
    assert completed.returncode == 2
    assert completed.stderr.startswith(output)
    assert not (workdir / "runs" / "rejected").exists()


def _train(workdir: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "dtl", "train", "config.yaml", *overrides]
    return subprocess.run(
        argv, cwd=workdir, env=launching.environment(), capture_output=True, text=True, timeout=120
    )


def _tensors(run: RunFolder) -> dict[str, Any]:
    """Weights and moments of the last checkpoint."""
    (checkpoint,) = run.checkpoints.glob("step-00000012")
    return {
        name: tensor
        for part in checkpoint.glob("part-*.safetensors")
        for name, tensor in load_file(part).items()
    }
