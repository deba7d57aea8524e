"""Start processes for the distributed tests."""

from __future__ import annotations

import atexit
import json
import os
import socket
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

import psutil

from dtl.run.folder import RunFolder

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


@cache
def fork_server() -> subprocess.Popen[str]:
    """Return the process whose forks are the ranks of `many.py`. It ends when this one does."""
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.distributed.fork_server"],
        cwd=HERE.parents[1],
        env=environment(JE_ARROW_MALLOC_CONF="background_thread:false"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    atexit.register(server.communicate)  # closes its input, and waits
    return server


def run_jobs(processes: int, jobs: list[dict[str, Any]], *, cwd: Path) -> None:
    """Run many jobs in one launch of so many processes. Fails with their output."""
    listing, log = cwd / f"jobs-{processes}.json", cwd / f"jobs-{processes}.log"
    listing.write_text(json.dumps(jobs), encoding="utf-8")
    log.write_text("", encoding="utf-8")
    request = {
        "processes": processes,
        "jobs": str(listing),
        "cwd": str(cwd),
        "log": str(log),
        "port": port(),
    }
    server = fork_server()
    assert server.stdin is not None and server.stdout is not None
    server.stdin.write(json.dumps(request) + "\n")
    server.stdin.flush()
    codes = json.loads(server.stdout.readline())
    assert codes == [0] * processes, f"{codes}\n{log.read_text(errors='replace')[-8000:]}"


def train_lines(run: Path) -> list[dict[str, Any]]:
    """The train lines of a run's metrics."""
    text = (run / "metrics.jsonl").read_text(encoding="utf-8")
    return [line for line in map(json.loads, text.splitlines()) if line["kind"] == "train"]


def start(workdir: Path, name: str, *overrides: str, **more: str) -> subprocess.Popen[bytes]:
    """`dtl train config.yaml` in a folder; what it tells is added to NAME.txt there."""
    argv = [sys.executable, "-m", "dtl", "train", "config.yaml", f"run.name={name}", *overrides]
    with (workdir / f"{name}.txt").open("ab") as output:
        return subprocess.Popen(
            argv, cwd=workdir, env=environment(**more), stdout=output, stderr=subprocess.STDOUT
        )


def wait_for_step(process: subprocess.Popen[bytes], run: RunFolder, step: int) -> None:
    limit = time.monotonic() + 180
    while time.monotonic() < limit and process.poll() is None:
        if run.state != "absent" and run.last_step >= step:
            return
        time.sleep(0.02)
    raise AssertionError(f"step {step} was not reached")


def ranks_of(process: subprocess.Popen[bytes]) -> dict[int, int]:
    """Rank -> process id, of the workers below this process."""
    found = {}
    for child in psutil.Process(process.pid).children(recursive=True):
        rank = child.environ().get("RANK")
        if rank is not None:
            found[int(rank)] = child.pid
    return found


def losses(run: RunFolder) -> list[float]:
    return [line["loss"] for line in run.read_metrics() if line["kind"] == "train"]
