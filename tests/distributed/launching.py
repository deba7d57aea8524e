"""Start processes for the distributed tests."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def environment(**more: str) -> dict[str, str]:
    """Ours, on the CPU, with one thread a process."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", **more}


def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def torchrun(processes: int, *arguments: str, cwd: Path, timeout: int = 600) -> str:
    """Run under torchrun on loopback; what it printed. Fails with its output."""
    argv = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    argv += ["--master-addr", "127.0.0.1", "--master-port", str(port()), *arguments]
    done = subprocess.run(
        argv, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=timeout
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    return done.stdout


def run_jobs(processes: int, jobs: list[dict[str, Any]], *, cwd: Path) -> str:
    """Many jobs in one launch of so many processes."""
    listing = cwd / f"jobs-{processes}.json"
    listing.write_text(json.dumps(jobs), encoding="utf-8")
    return torchrun(processes, str(HERE / "many.py"), str(listing), cwd=cwd)


def train_lines(run: Path) -> list[dict[str, Any]]:
    """The train lines of a run's metrics."""
    text = (run / "metrics.jsonl").read_text(encoding="utf-8")
    return [line for line in map(json.loads, text.splitlines()) if line["kind"] == "train"]
