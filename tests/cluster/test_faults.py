"""Batch scripts of users, starts without progress, chains, drained nodes and a lost controller."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dtl import api
from dtl.backends.base import CANCELLED
from dtl.core.errors import DtlError
from dtl.run.folder import RunFolder
from dtl.run.submission import Submission, count_starts
from tests import tiny
from tests.cluster.conftest import REPOSITORY, slurm, until
from tests.distributed import launching

CONFIG = """
model: {path: base, dtype: fp32}
task: {name: causal_lm, max_length: 64}
data: {train: train.jsonl}
strategy: lora
optim: {learning_rate: 0.003}
train: {steps: 6, global_batch: 8}
layout: {zero_stage: 0}
"""
SITE = "description: the lab\nmax_time: 10:00\noffline: true\nnode_local: /dev/shm\n"
BATCH = """#!/bin/bash
#SBATCH --nodes=2 --ntasks-per-node={tasks} --cpus-per-task=2 --output={name}.log
export OMP_NUM_THREADS=1 ACCELERATE_USE_CPU=true DS_ACCELERATOR=cpu
export PATH={python}:$PATH MASTER=$(scontrol show hostnames | head -n 1)
{command}
"""
WORKER = "dtl.launch.worker train config.yaml run.name="
COMMANDS = {  # tasks on each node, and what starts the ranks
    "srun": (2, f"srun --kill-on-bad-exit=1 python -m {WORKER}srun"),
    "torchrun": (
        1,
        "srun bash -c 'torchrun --nnodes=2 --node-rank=$SLURM_NODEID --nproc-per-node=2 "
        f"--master-addr=$MASTER --master-port=29511 -m {WORKER}torchrun'",
    ),
    "accelerate": (
        1,
        "srun bash -c 'accelerate launch --num_machines 2 --num_processes 4 --multi_gpu "
        "--machine_rank $SLURM_NODEID --main_process_ip $MASTER --main_process_port 29512 "
        f"--mixed_precision no --dynamo_backend no -m {WORKER}accelerate'",
    ),
}


@pytest.fixture(scope="module")
def folder(lab: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working directory, which all nodes see."""
    made, cwd = tmp_path_factory.mktemp("faults"), Path.cwd()
    tiny.decoder(made / "base")
    tiny.write_texts(made / "train.jsonl", 20)
    (made / "config.yaml").write_text(CONFIG, encoding="utf-8")
    (made / "site.yaml").write_text(SITE, encoding="utf-8")
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(REPOSITORY)
    os.chdir(made)
    yield made
    os.chdir(cwd)
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before


@pytest.fixture(autouse=True)
def clean(lab: Callable[..., str]) -> Iterator[None]:
    yield
    lab("reset")


def submit(name: str, *overrides: str, **options: object) -> tuple[RunFolder, list[str]]:
    lines: list[str] = []
    chosen = {"cluster": "site.yaml", "nodes": 1, "print_line": lines.append, **options}
    (run,) = api.submit("config.yaml", [f"run.name={name}", *overrides], **chosen)  # type: ignore[arg-type]
    return run, lines


def job_ids(run: RunFolder) -> tuple[str, ...]:
    job = Submission.load(run.path)
    assert job is not None
    return job.job_ids


def state_of(job: str) -> str:
    return slurm("squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T").strip()


def log_of(run: RunFolder) -> str:
    file = run.logs / "job.log"
    return file.read_text(encoding="utf-8") if file.is_file() else ""


def wait_until_finished(run: RunFolder) -> None:
    until(lambda: run.state == "finished", f"the end of {run.path}: {log_of(run)[-2000:]}")


@pytest.mark.parametrize(
    "launcher",
    ["srun", *(pytest.param(name, marks=pytest.mark.slow) for name in ("torchrun", "accelerate"))],
)
def test_batch_script_of_a_user_starts_one_run_over_its_nodes(folder: Path, launcher: str) -> None:
    tasks, command = COMMANDS[launcher]
    script, python = folder / f"{launcher}.sbatch", Path(sys.executable).parent
    text = BATCH.format(tasks=tasks, name=launcher, python=python, command=command)
    script.write_text(text, encoding="utf-8")
    slurm("sbatch", "--wait", str(script))
    output = (folder / f"{launcher}.log").read_text(encoding="utf-8")
    run = RunFolder(folder / "runs" / launcher)
    layout = run.plan.layout
    assert run.state == "finished", output
    assert (layout.nodes, layout.processes_per_node) == (2, 2), output
    assert output.count("layout set by") == 1, "one run"
    assert len(launching.losses(run)) == 6
    slurm("sbatch", "--wait", str(script))
    again = (folder / f"{launcher}.log").read_text(encoding="utf-8")
    assert "is finished; nothing to do" in again and "step 1" not in again
    shutil.rmtree(run.path)


@pytest.mark.slow
def test_job_whose_starts_make_no_step_ends_with_the_time_that_would_do(folder: Path) -> None:
    (folder / "slow.yaml").write_text(SITE + 'setup: ["sleep 3"]\n', encoding="utf-8")
    run, _ = submit("idle", cluster="slow.yaml")
    (job,) = job_ids(run)
    for start in (1, 2, 3):
        until(lambda start=start: count_starts(run.path) == start, f"start {start}")
        slurm("scancel", "--batch", "--signal=USR1", job)
        until(lambda: state_of(job) != "RUNNING", "its end")
    until(lambda: "stopped 3 times in a row without a new step" in log_of(run), log_of(run))
    assert "--time 6min" in log_of(run), "twice the start of 3 s, and lead_seconds"
    until(lambda: state_of(job) not in ("PENDING", "RUNNING", "COMPLETING"), "its end")
    api.resume(run.path, time="9min", print_line=print)
    wait_until_finished(run)


@pytest.mark.slow
@pytest.mark.parametrize("cancelled", [0, 1, 2])
def test_chain_whose_links_are_cancelled_in_turn(folder: Path, cancelled: int) -> None:
    run, _ = submit(f"chain-{cancelled}", "train.steps=300", chain=3)
    links = job_ids(run)
    until(lambda: run.last_step >= 1, "a step")
    slurm("scancel", links[cancelled])
    if cancelled:
        assert state_of(links[3 - cancelled]) == "PENDING", "it waits for the first link"
    wait_until_finished(run)
    assert "is writing the folder" not in log_of(run)


@pytest.mark.slow
def test_job_on_a_drained_cluster_waits_and_one_warning_says_why(
    folder: Path, lab: Callable[..., str]
) -> None:
    slurm("scontrol", "update", "nodename=ALL", "state=drain", "reason=repair")
    run, lines = submit("drained")
    (warning,) = [line for line in lines if line.startswith("warning: sbatch --test-only: ")]
    assert "of 4 nodes 4 drained" in warning and "sinfo --list-reasons" in warning
    with pytest.raises(DtlError, match="fewer"):
        submit("impossible", nodes=5)
    assert state_of(job_ids(run)[0]) == "PENDING"
    slurm("scontrol", "update", "nodename=ALL", "state=resume")
    wait_until_finished(run)


@pytest.mark.slow
def test_controller_that_is_down_at_submit_and_at_cancel(
    folder: Path, lab: Callable[..., str]
) -> None:
    run, _ = submit("cancelled", "train.steps=20000")
    until(lambda: run.last_step >= 1, "a step")
    lab("crash", "ctl")
    try:
        with pytest.raises(DtlError, match=r"scontrol ping"):
            submit("refused")
        assert not (folder / "runs" / "refused").exists()
        with pytest.raises(DtlError, match=r"marked as cancelled.*`dtl cancel"):
            api.cancel(run.path, print_line=print)
        assert (run.path / CANCELLED).exists()
    finally:
        lab("boot", "ctl")
    api.cancel(run.path, print_line=print)
    assert run.exit_code == 75 and "cancelled; to continue" in log_of(run)
