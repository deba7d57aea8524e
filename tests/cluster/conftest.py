"""A real Slurm of four nodes on this machine, and all runs of the cluster tests at once."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from dtl import api
from dtl.cluster.status import Status
from dtl.run.folder import RunFolder
from dtl.run.submission import Submission
from tests import tiny
from tests.distributed import launching

REPOSITORY = Path(__file__).parents[2]
LAB = Path(__file__).parent / "cluster.sh"
NEEDED = ("slurmctld", "slurmd", "sbatch", "munged", "ip", "nsenter", "unshare")
NODE_PRIVATE = (
    Path(tempfile.gettempdir()) / f"dtl-own-{os.getpid()}"
)  # a different folder on each node
STEPS = 150
DISTURBED_STEP = 12  # the step at which a run is disturbed
CONFIG = f"""
model: {{path: base, dtype: fp32}}
task: {{name: causal_lm, max_length: 64}}
data: {{train: train.jsonl}}
strategy: lora
optim: {{learning_rate: 0.003}}
train: {{steps: {STEPS}, global_batch: 6, save_every: 50}}
layout: {{zero_stage: 0, micro_batch: 3}}
"""
SITE = """
description: the lab
gpu_memory: 16
max_time: 10:00
environment: {DTL_LAB: "of $HOME"}
node_local: /dev/shm
offline: true
sbatch: ["--exclude=%s"]
"""
SMALL = "64k"  # less than the base


@pytest.fixture(scope="session")
def lab() -> Iterator[Callable[..., str]]:
    """Return a function that runs cluster.sh; Slurm's commands then find the cluster."""
    os.environ["PATH"] += f"{os.pathsep}/usr/sbin{os.pathsep}/sbin"
    absent = [name for name in NEEDED if shutil.which(name) is None]
    if absent:
        pytest.skip(f"no Slurm on this machine ({', '.join(absent)}): see tests/cluster/cluster.sh")
    if os.getuid() != 0:
        pytest.skip("a Slurm in namespaces needs root")
    number = os.getpid() % 200
    settings = {
        # munge needs a folder that all users can read
        "SLURMLAB_DIR": f"{tempfile.gettempdir()}/dtl-slurm-{os.getpid()}",
        "SLURMLAB_NAME": f"dtl{number}",
        "SLURMLAB_NET": f"10.213.{20 + number}",
        "SLURMLAB_NODES": "4",
        "SLURMLAB_CPUS": "16",
        "SLURMLAB_GPUS": "0",
        "SLURMLAB_EXTRA": "EnforcePartLimits=ALL",
        "SLURMLAB_PRIVATE": str(NODE_PRIVATE),
    }
    NODE_PRIVATE.mkdir()

    def call(*words: str) -> str:
        done = subprocess.run(
            ["bash", str(LAB), *words],
            env={**os.environ, **settings},
            capture_output=True,
            text=True,
            timeout=180,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    try:
        call("start")
    except AssertionError as failure:
        words = " ".join(str(failure).partition("\nassert ")[0].split())
        pytest.skip(f"Slurm does not start on this machine: {words}")
    os.environ["SLURM_CONF"] = f"{settings['SLURMLAB_DIR']}/slurm.conf"
    try:
        yield call
    finally:
        del os.environ["SLURM_CONF"]
        call("stop")
        shutil.rmtree(settings["SLURMLAB_DIR"])
        shutil.rmtree(NODE_PRIVATE)
        Path(f"{settings['SLURMLAB_DIR']}.lock").unlink()


@dataclass
class ClusterRuns:
    """A folder with a run for each case, all ended. `observed`: what was recorded on the way."""

    folder: Path
    lab: Callable[..., str]
    observed: dict[str, str] = field(default_factory=dict)

    def run(self, name: str) -> RunFolder:
        return RunFolder(self.folder / "runs" / name)

    def weights(self, name: str) -> bytes:
        return (self.run(name).export / "adapter_model.safetensors").read_bytes()

    def losses(self, name: str) -> list[float]:
        return launching.losses(self.run(name))

    def job_log(self, name: str) -> str:
        return (self.run(name).logs / "job.log").read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def cluster_runs(
    lab: Callable[..., str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ClusterRuns]:
    folder = tmp_path_factory.mktemp("workdir")
    tiny.decoder(folder / "base")
    tiny.write_texts(folder / "train.jsonl", 53)
    (folder / "config.yaml").write_text(CONFIG, encoding="utf-8")
    (folder / "site.yaml").write_text(SITE % "node[2-3]", encoding="utf-8")
    (folder / "other.yaml").write_text(SITE % "node[0-1]", encoding="utf-8")
    (folder / "third.yaml").write_text(SITE % "node0", encoding="utf-8")
    shutil.copytree(
        folder / "base", NODE_PRIVATE / "base"
    )  # seen by the submitting process and node0, not by node1
    lab("exec", "node0", "cp", "-r", str(folder / "base"), str(NODE_PRIVATE))
    lab("exec", "node1", "mount", "-t", "tmpfs", "-o", f"size={SMALL}", "tmpfs", str(NODE_PRIVATE))
    runs, cwd = ClusterRuns(folder, lab), Path.cwd()
    os.environ["PYTHONPATH"] = str(REPOSITORY)
    os.chdir(folder)
    try:
        _submit_all(runs)
        with ThreadPoolExecutor(len(DISTURBANCES) + 1) as pool:
            for case in [pool.submit(drive, runs) for drive in (*DISTURBANCES, _follow_all)]:
                case.result()
        yield runs
    finally:
        os.chdir(cwd)


def _submit_all(cluster_runs: ClusterRuns) -> None:
    """Submit all runs; the undisturbed one through the command line."""
    argv = [sys.executable, "-m", "dtl", "submit", "config.yaml", "run.name=plain $x"]
    argv += ["--cluster", "site.yaml", "--nodes", "2", "--time", "9min"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    cluster_runs.observed["submit"] = done.stdout
    for name in ("usr1", "term", "requeued", "cancelled"):
        _submit(name, nodes=2)
    _submit("lost", nodes=2, cluster="other.yaml")
    _submit("chain", nodes=2, chain=4)
    _submit("blind", f"model.path={NODE_PRIVATE / 'base'}", nodes=2)
    _submit(
        "staged",
        f"model.staging_dir={NODE_PRIVATE}",
        "train.steps=8",
        nodes=2,
        cluster="third.yaml",
    )
    _submit("grid", "train.steps=8", grid=("train.seed=0,1", "strategy.rank=4"))


def _submit(name: str, *overrides: str, cluster: str = "site.yaml", **options: object) -> None:
    every = [f"run.name={name}", *overrides]
    api.submit("config.yaml", every, cluster=cluster, print_line=lambda _: None, **options)


def job_of(run: RunFolder) -> str:
    job = Submission.load(run.path)
    assert job is not None
    return job.job_ids[0]


def slurm(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def until(condition: Callable[[], object], what: str, *, seconds: float = 240.0) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, f"timed out waiting for {what}"
        time.sleep(0.05)


def wait_for_step(cluster_runs: ClusterRuns, name: str, step: int) -> RunFolder:
    run = cluster_runs.run(name)
    until(lambda: run.last_step >= step, f"step {step} of {name}: {run.path}")
    return run


def _by_usr1(cluster_runs: ClusterRuns) -> None:
    run = wait_for_step(cluster_runs, "usr1", DISTURBED_STEP)
    slurm("scancel", "--batch", "--signal=USR1", job_of(run))


def _by_term(cluster_runs: ClusterRuns) -> None:
    run = wait_for_step(cluster_runs, "term", DISTURBED_STEP)
    slurm("scancel", "--signal=TERM", job_of(run))


def _by_requeue(cluster_runs: ClusterRuns) -> None:
    run = wait_for_step(cluster_runs, "requeued", DISTURBED_STEP)
    slurm("scontrol", "requeue", job_of(run))


def _by_a_lost_node(cluster_runs: ClusterRuns) -> None:
    run = wait_for_step(cluster_runs, "lost", 60)  # after a checkpoint
    cluster_runs.lab("crash", "node2")
    until(lambda: _state(job_of(run)) != "RUNNING", "Slurm to see that the node is lost")
    cluster_runs.lab("boot", "node2")


def _by_links(cluster_runs: ClusterRuns) -> None:
    job = Submission.load(cluster_runs.run("chain").path)
    assert job is not None
    for number, step in zip(job.job_ids[:3], (DISTURBED_STEP, 40, 70), strict=True):
        wait_for_step(cluster_runs, "chain", step)
        until(lambda number=number: _state(number) == "RUNNING", f"job {number}")
        slurm("scancel", "--batch", "--signal=USR1", number)
        until(lambda number=number: _state(number) not in ("RUNNING", "COMPLETING"), "its end")


def _by_cancel(cluster_runs: ClusterRuns) -> None:
    run = wait_for_step(cluster_runs, "cancelled", DISTURBED_STEP)
    lines: list[str] = []
    api.cancel(run.path, print_line=lines.append)
    cluster_runs.observed["cancel"] = "\n".join(lines)
    cluster_runs.observed["stopped at"] = str(run.last_step)
    cluster_runs.observed["status"] = api.status(run.path)[0].state
    newest = sorted(run.checkpoints.glob("step-*"))[-1]
    cluster_runs.observed["newest"] = newest.name
    api.resume(run.path, nodes=1, time="4min", print_line=lines.append)


def _follow_all(cluster_runs: ClusterRuns) -> None:
    """Run two local processes meanwhile, and wait until all runs have ended."""
    process = launching.start(cluster_runs.folder, "local", "layout.processes_per_node=2")
    argv = [sys.executable, "-m", "dtl", "logs", "runs/plain $x", "--follow"]
    following = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=240)
    cluster_runs.observed["logs"] = following.stdout
    assert process.wait(timeout=240) == 0

    def going() -> list[Status]:
        return [one for one in api.status("runs") if one.state not in ("finished", "failed")]

    try:
        until(lambda: not going(), "the end of all runs")
    except AssertionError as late:
        lines = [f"{one}\n{(one.run / 'logs' / 'job.log').read_text()[-1500:]}" for one in going()]
        raise AssertionError("\n".join(lines)) from late


def _state(number: str) -> str:
    listed = slurm("squeue", "--noheader", "--states=all", "--format=%A %T")
    found = re.search(rf"^{number} (\w+)", listed, re.MULTILINE)
    return found[1] if found else "absent"


DISTURBANCES = (_by_usr1, _by_term, _by_requeue, _by_a_lost_node, _by_links, _by_cancel)
