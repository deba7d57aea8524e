"""Sections that start `dtl train` as a user does."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

from benchmarks.gpu.runs import read_losses, start_command, write_config
from benchmarks.gpu.setup import Setup

SETTINGS: dict[str, Any] = {
    "strategy": {"name": "lora", "rank": 4},
    "train": {"save_every": 1, "evaluate_every": 4},
}


def first_run(setup: Setup) -> str:
    """`dtl train` on one process: planned, trained, evaluated, exported."""
    config = write_config(setup, "first", _sections(setup))
    start = time.monotonic()
    process = start_command(setup, "train", str(config))
    output, _ = process.communicate(timeout=setup.wait_seconds)
    assert process.returncode == 0, output[-2000:]
    losses = read_losses(setup, "first")
    assert len(losses) == setup.sizes.steps and losses[-1] < losses[0], losses
    export = setup.folder / "runs" / "first" / "export"
    assert (export / "adapter_model.safetensors").is_file(), "nothing was exported"
    return f"{time.monotonic() - start:.0f} s, loss {losses[0]:.3f} to {losses[-1]:.3f}"


def killed_run(setup: Setup) -> str:
    """A run whose worker is killed restarts by itself, and ends with the losses of the first."""
    config = write_config(setup, "killed", _sections(setup))
    process = start_command(setup, "train", str(config))
    try:
        killed = _kill_worker(setup, process.pid)
        output, _ = process.communicate(timeout=2 * setup.wait_seconds)
    finally:
        process.kill()
    assert process.returncode == 0, output[-2000:]
    assert "restarting" in output, f"process {killed} was killed, and the run did not restart"
    expected, found = read_losses(setup, "first"), read_losses(setup, "killed")
    assert found == expected, f"{found} instead of {expected}"
    return f"killed after a checkpoint; {len(found)} losses bit-equal"


def _sections(setup: Setup) -> dict[str, Any]:
    rows = str(setup.folder / "short.jsonl")
    steps = setup.sizes.steps
    return {
        **SETTINGS,
        "data": {"eval": rows, "train": rows},
        "train": {**SETTINGS["train"], "steps": steps},
    }


def _kill_worker(setup: Setup, supervisor: int) -> int:
    """Kill the process that holds the run after its first checkpoint; return its id."""
    import psutil

    run = setup.folder / "runs" / "killed"
    end = time.monotonic() + setup.wait_seconds
    while time.monotonic() < end:
        if any((run / "checkpoints").glob("step-*")):
            workers = psutil.Process(supervisor).children(recursive=True)
            assert workers, "the run has ended before it could be killed"
            os.kill(workers[-1].pid, signal.SIGKILL)
            return workers[-1].pid
        time.sleep(0.01)
    raise AssertionError("no checkpoint was written")
