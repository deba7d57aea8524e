"""Real runs, stopped from outside: while rows are read, through the launcher, by the clock, by a
rank that hangs."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from dtl.run.folder import RunFolder
from tests import tiny
from tests.distributed import launching
from tests.distributed.launching import losses, ranks_of, start, wait_for_step

STEPS = 100
CONFIG = f"""
model: {{path: base, dtype: fp32}}
task: {{name: causal_lm, max_length: 64}}
data: {{train: train.jsonl}}
strategy: lora
optim: {{learning_rate: 0.003}}
train: {{steps: {STEPS}, global_batch: 6, save_every: 10}}
layout: {{processes_per_node: 2, zero_stage: 0, micro_batch: 3}}
"""
ALONE = "layout.processes_per_node=1"


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("signals")
    tiny.decoder(folder / "base")
    tiny.write_texts(folder / "train.jsonl", 53)
    (folder / "config.yaml").write_text(CONFIG, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def full(workdir: Path) -> RunFolder:
    """The same run, undisturbed."""
    assert start(workdir, "full").wait(timeout=300) == 0
    return RunFolder(workdir / "runs" / "full")


def test_while_rows_are_encoded_a_signal_loses_nothing(workdir: Path) -> None:
    tiny.write_texts(workdir / "many.jsonl", 20_000)
    cache = workdir / "cache"
    more = ("data.train=many.jsonl", "train.steps=2", ALONE)
    process = start(workdir, "encoding", *more, DTL_CACHE=str(cache))
    limit = time.monotonic() + 60
    while not list(cache.glob("encoded/*.staged")):
        assert time.monotonic() < limit and process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=90) == 75
    output = (workdir / "encoding.txt").read_text()
    message = "before the first step. Fix: run the same command to continue"
    assert output.count(message) == 1, "printed once"
    assert not list(cache.glob("encoded/*")), "nothing half-written stays"
    assert not (workdir / "runs" / "encoding").exists()
    assert start(workdir, "encoding", *more, DTL_CACHE=str(cache)).wait(timeout=300) == 0


@pytest.mark.slow
def test_usr1_to_the_launcher_saves_and_ends_with_75(workdir: Path, full: RunFolder) -> None:
    run = RunFolder(workdir / "runs" / "launcher")
    process = start(workdir, "launcher")
    wait_for_step(process, run, 12)
    os.kill(psutil.Process(ranks_of(process)[0]).ppid(), signal.SIGUSR1)
    assert process.wait(timeout=120) == 75
    newest = sorted(run.checkpoints.glob("step-*"))[-1]
    assert json.loads((newest / "progress.json").read_text())["step"] == run.last_step
    assert start(workdir, "launcher").wait(timeout=300) == 0
    assert losses(run) == losses(full)


@pytest.mark.serial
def test_a_launch_ends_before_its_wall_time_and_the_next_one_resumes(workdir: Path) -> None:
    run, began = RunFolder(workdir / "runs" / "clock"), time.time()
    long = (ALONE, "train.steps=1000000", "optim.schedule=constant")
    assert start(workdir, "clock", *long, "train.wall_time=30s").wait(timeout=120) == 75
    assert time.time() - began < 30
    assert "the time limit of this launch is nearly reached" in (workdir / "clock.txt").read_text()
    reached = run.last_step
    assert reached > 0
    assert (run.checkpoints / f"step-{reached:08d}").is_dir()
    second = start(workdir, "clock", *long, "train.wall_time=1h")
    wait_for_step(second, run, reached + 5)
    second.send_signal(signal.SIGTERM)
    assert second.wait(timeout=120) == 75
    steps = [line["step"] for line in launching.train_lines(run.path)]
    assert steps == list(range(1, run.last_step + 1))


def test_a_hanging_rank_is_reported_and_the_run_restarts(workdir: Path, full: RunFolder) -> None:
    run = RunFolder(workdir / "runs" / "hanging")
    process = start(workdir, "hanging", "train.hang_seconds=4")
    wait_for_step(process, run, 12)
    os.kill(ranks_of(process)[1], signal.SIGSTOP)
    assert process.wait(timeout=180) == 0
    output = (workdir / "hanging.txt").read_text()
    assert "no sign of life from rank 1 on" in output
    assert "restarting in" in output
    stack = (run.logs / "rank-0.log").read_text()
    assert "most recent call first" in stack
    assert losses(run) == losses(full)
