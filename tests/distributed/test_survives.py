"""Killed anywhere, a run comes back by itself and ends as if nothing had happened."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from dtl.inspect.audit import audit_run
from dtl.run.folder import RunFolder
from tests import tiny
from tests.distributed.launching import losses, ranks_of, start, wait_for_step

STEPS = 120
CONFIG = f"""
model: {{path: base, dtype: fp32}}
task: {{name: causal_lm, max_length: 64}}
data: {{train: train.jsonl}}
strategy: [{{name: frozen, length: 48}}, full]
optim: {{learning_rate: 0.003}}
train: {{steps: {STEPS}, global_batch: 6, save_every: 4}}
layout: {{processes_per_node: 2, zero_stage: 2, micro_batch: 3}}
"""


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("survives")
    tiny.decoder(folder / "base")
    tiny.write_texts(folder / "train.jsonl", 53)
    (folder / "config.yaml").write_text(CONFIG, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def full(workdir: Path) -> RunFolder:
    """The same run, undisturbed."""
    assert start(workdir, "full").wait(timeout=300) == 0
    return RunFolder(workdir / "runs" / "full")


def hashes(run: RunFolder) -> dict[str, str]:
    newest = run.checkpoints / f"step-{STEPS:08d}"
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in newest.iterdir()}


def test_killed_ranks_launcher_and_parent_change_no_result(workdir: Path, full: RunFolder) -> None:
    """Rank 0 and rank 1 are killed in the first phase; the launcher, then its parent process, in
    the second."""
    killed = RunFolder(workdir / "runs" / "killed")
    process = start(workdir, "killed")
    wait_for_step(process, killed, 10)
    os.kill(ranks_of(process)[0], signal.SIGKILL)
    wait_for_step(process, killed, 35)
    os.kill(ranks_of(process)[1], signal.SIGKILL)
    wait_for_step(process, killed, 60)
    ranks = ranks_of(process)
    launcher = psutil.Process(ranks[0]).ppid()
    os.kill(launcher, signal.SIGKILL)
    wait_for_step(process, killed, 85)
    ranks = ranks_of(process)
    process.kill()
    process.wait()
    limit = time.monotonic() + 60
    while any(psutil.pid_exists(pid) for pid in ranks.values()):
        assert time.monotonic() < limit, "orphans train on"
        time.sleep(0.05)
    assert killed.state == "interrupted"
    assert start(workdir, "killed").wait(timeout=300) == 0
    assert losses(killed) == losses(full)
    assert hashes(killed) == hashes(full)
    assert audit_run(killed).fault is None
    output = (workdir / "killed.txt").read_text()
    assert output.count("restarting in") == 3
    assert "was interrupted; resuming" in output
    before = {p: p.read_bytes() for p in killed.path.rglob("*") if p.is_file()}
    assert start(workdir, "killed").wait(timeout=60) == 0, "a finished run is not changed"
    assert {p: p.read_bytes() for p in killed.path.rglob("*") if p.is_file()} == before


@pytest.mark.slow
def test_a_damaged_checkpoint_is_renamed_and_an_older_one_resumed(
    workdir: Path, full: RunFolder
) -> None:
    """Interrupted, its newest checkpoint damaged: the older one is taken, and the run says so."""
    run = RunFolder(workdir / "runs" / "torn")
    process = start(workdir, "torn")
    wait_for_step(process, run, 20)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) == 75
    newest = sorted(run.checkpoints.glob("step-*"))[-1]
    assert json.loads((newest / "progress.json").read_text())["step"] == run.last_step
    part = newest / "part-00001.safetensors"
    data = bytearray(part.read_bytes())
    data[-1] ^= 1
    part.write_bytes(data)
    assert start(workdir, "torn").wait(timeout=300) == 0
    assert "part-00001.safetensors has the wrong SHA-256" in (workdir / "torn.txt").read_text()
    assert losses(run) == losses(full)
