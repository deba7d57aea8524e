"""Every way to start a run, started for real: each file of launch/, torchrun, `dtl train`."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dtl.run.folder import RunFolder
from tests import tiny
from tests.distributed import launching, reference

FILES = Path(__file__).parents[2] / "launch"
STEPS, BATCH, RATE, CLIP = 2, 12, 0.01, 1.0
LONG = 30  # steps of a run that is interrupted
# What the external launcher says must win over `layout` here.
CONFIG = f"""
model: {{path: base, dtype: fp32}}
task: {{name: causal_lm, max_length: 128}}
data: {{train: train.jsonl}}
strategy: full
optim: {{learning_rate: {RATE}, warmup: 0, gradient_clip: {CLIP}}}
train: {{steps: {STEPS}, global_batch: {BATCH}}}
layout: {{processes_per_node: 3, zero_stage: 1}}
"""
# Ranks, ZeRO stage and offload that each file of launch/ fixes.
ONE_NODE = {
    "cpu": (1, 0, "none"),
    "ddp": (2, 0, "none"),
    "zero1": (2, 1, "none"),
    "zero2": (2, 2, "none"),
    "zero3": (2, 3, "none"),
    "zero3_offload": (2, 3, "optimizer"),
}


@dataclass(frozen=True)
class CommandResult:
    """A command that has completed."""

    code: int
    output: str
    errors: str


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, data and a config; every run of this file lies in its runs/."""
    folder = tmp_path_factory.mktemp("launch")
    tiny.decoder(folder / "base")
    tiny.write_texts(folder / "train.jsonl", 53)
    tiny.write_texts(folder / "eval.jsonl", 11, seed=2)
    (folder / "config.yaml").write_text(CONFIG, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def expected(workdir: Path) -> list[float]:
    """The losses of plain PyTorch."""
    rows = (workdir / "train.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(row)["text"] for row in rows]
    losses, _ = reference.losses(
        workdir / "base", texts, phases=[("full", STEPS)], batch=BATCH, rate=RATE, clip=CLIP
    )
    return losses


def test_every_launch_file_is_tested() -> None:
    assert {path.stem for path in FILES.glob("*.yaml")} == {*ONE_NODE, "multi_node"}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name in ("ddp", "zero1", "zero2", "zero3")))
        for name in ONE_NODE
    ],
)
def test_launch_file(workdir: Path, expected: list[float], name: str) -> None:
    completed = _end(_accelerate(workdir, name, f"run.name={name}"))
    ranks, zero, offload = ONE_NODE[name]
    _assert_layout(workdir / "runs" / name, completed, "accelerate launch", ranks, zero, offload)
    _assert_losses(workdir / "runs" / name, expected)


def test_multi_node(workdir: Path, expected: list[float]) -> None:
    """Two launchers on one machine, each with its own rank, as on two machines."""
    port = str(launching.port())
    nodes = [
        _accelerate(
            workdir,
            "multi_node",
            "run.name=two-nodes",
            options=("--machine_rank", str(rank), "--main_process_port", port),
        )
        for rank in (0, 1)
    ]
    first, second = [_end(node) for node in nodes]
    run = workdir / "runs" / "two-nodes"
    _assert_layout(run, first, "accelerate launch", 2, 3, "none")
    assert (RunFolder(run).plan.layout.nodes, RunFolder(run).plan.layout.processes_per_node) == (
        2,
        1,
    )
    assert second.code == 0, second.errors
    assert "layout" not in second.output and "step" not in second.output, "the user reads it once"
    _assert_losses(run, expected)


@pytest.mark.slow
def test_tasks_of_mpirun_are_the_ranks_of_one_run(workdir: Path, expected: list[float]) -> None:
    """The variables that Open MPI sets, without Open MPI."""
    prefix, port = "OMPI_COMM_WORLD", str(launching.port())
    tasks = [
        _start(
            workdir,
            *("-m", "dtl.launch.worker", "train", "config.yaml", "run.name=by-mpirun"),
            environment={
                **{f"{prefix}_SIZE": "2", f"{prefix}_LOCAL_SIZE": "2", "MASTER_PORT": port},
                **{f"{prefix}_RANK": str(rank), f"{prefix}_LOCAL_RANK": str(rank)},
            },
        )
        for rank in (0, 1)
    ]
    first, second = [_end(task) for task in tasks]
    run = workdir / "runs" / "by-mpirun"
    _assert_layout(run, first, "mpirun", 2, 1, "none")
    assert second.code == 0 and "layout" not in second.output, second.errors
    _assert_losses(run, expected)


@pytest.mark.slow
def test_deepspeeds_launcher_with_a_hostfile(workdir: Path, expected: list[float]) -> None:
    argv = ["-m", "deepspeed.launcher.runner", "--hostfile", str(FILES / "hostfile"), "--no_ssh"]
    argv += ["--node_rank", "0", "--master_addr", "127.0.0.1", "--no_local_rank", "--module"]
    argv += ["--master_port", str(launching.port()), "dtl.launch.worker", "train", "config.yaml"]
    completed = _end(_start(workdir, *argv, "run.name=by-deepspeed"))
    _assert_layout(
        workdir / "runs" / "by-deepspeed", completed, "the external launcher", 2, 1, "none"
    )
    _assert_losses(workdir / "runs" / "by-deepspeed", expected)


def test_two_machines_start_their_parts_and_stop_and_resume_together(
    workdir: Path, expected: list[float]
) -> None:
    command = [
        "launch",
        "config.yaml",
        "layout.nodes=2",
        "layout.processes_per_node=1",
        "run.name=parts",
    ]
    command += ["--master", f"127.0.0.1:{launching.port()}", "--node-rank"]
    run = workdir / "runs" / "parts"
    first, second = [_dtl(workdir, *command, str(number)) for number in (0, 1)]
    _wait_for_steps(run, 2, first)
    second.send_signal(signal.SIGTERM)
    ends = _end(first), _end(second)
    if RunFolder(run).state != "finished":  # the signal may have come in the last step
        assert [end.code for end in ends] == [75, 75], ends
        ends = tuple(_end(_) for _ in [_dtl(workdir, *command, str(number)) for number in (0, 1)])
    assert [end.code for end in ends] == [0, 0], ends
    assert "machine 1 of 2: 1 processes connect to 127.0.0.1" in ends[1].output
    assert (RunFolder(run).plan.layout.nodes, RunFolder(run).plan.layout.processes_per_node) == (
        2,
        1,
    )
    _assert_losses(run, expected)


@pytest.mark.parametrize(
    ("arguments", "output"),
    [
        ([], "layout.nodes: is 1"),
        (
            ["layout.nodes=2", "--node-rank", "2", "--master", "h"],
            "--node-rank: there is no node 2",
        ),
        (
            ["layout.nodes=2", "--master", "127.0.0.1:x"],
            "--master: '127.0.0.1:x' is not HOST",
        ),
        (["layout.nodes=2", "--master", "no.such.host.invalid"], "--master: no.such.host.invalid"),
    ],
)
def test_invalid_launch_options_are_reported(
    workdir: Path, arguments: list[str], output: str
) -> None:
    completed = _end(_dtl(workdir, "launch", "config.yaml", *arguments))
    assert completed.code == 2 and completed.errors.startswith(output), completed.errors


def test_torchrun_fixes_the_ranks_and_leaves_the_stage(
    workdir: Path, expected: list[float]
) -> None:
    output = launching.torchrun(
        2, "-m", "dtl.launch.worker", "train", "config.yaml", "run.name=torchrun", cwd=workdir
    )
    completed = CommandResult(0, output, "")
    _assert_layout(workdir / "runs" / "torchrun", completed, "the external launcher", 2, 1, "none")
    _assert_losses(workdir / "runs" / "torchrun", expected)


@pytest.fixture(scope="module", params=[(1, 0), (2, 2)], ids=["one process", "two ZeRO-2 ranks"])
def trained(request: pytest.FixtureRequest, workdir: Path) -> tuple[list[str], CommandResult]:
    """An undisturbed `dtl train`: its command line, and how it completed."""
    processes, zero = request.param
    command = ["train", "config.yaml", "data.eval=eval.jsonl", f"train.steps={LONG}"]
    command += [
        f"layout.processes_per_node={processes}",
        f"layout.zero_stage={zero}",
        "layout.micro_batch=1",
    ]
    command += [f"run.dir=runs-{processes}", "run.name=whole"]
    return command, _end(_dtl(workdir, *command))


def test_train_tells_plan_scores_and_export(
    workdir: Path, trained: tuple[list[str], CommandResult]
) -> None:
    command, completed = trained
    assert completed.code == 0, completed.output + completed.errors
    run = _run_of(workdir, command)
    layout = run.plan.layout
    assert [
        f"layout.processes_per_node={layout.world_size}",
        f"layout.zero_stage={layout.zero_stage}",
    ] == command[4:6]
    output = {line.split("  ")[0].strip(): line for line in completed.output.splitlines()}
    assert (
        f" {layout.world_size} " in output["processes"]
        and "layout.processes_per_node" in output["processes"]
    )
    assert (
        f" {layout.zero_stage} " in output["ZeRO stage"]
        and "layout.zero_stage" in output["ZeRO stage"]
    )
    for model in ("unadapted:", "adapted:"):
        perplexity = run.result["scores"][model.rstrip(":")]["perplexity"]
        assert f"perplexity {perplexity:.4g}" in _line(completed.output, model)
    assert workdir / _line(completed.output, "export:").split(": ")[1] == run.export
    assert (run.export / "model.safetensors").is_file()
    assert len(launching.train_lines(run.path)) == LONG


def test_a_finished_run_is_left_alone(
    workdir: Path, trained: tuple[list[str], CommandResult]
) -> None:
    command, _ = trained
    run = _run_of(workdir, command)
    before = _content(run.path)
    again = _end(_dtl(workdir, *command))
    assert again.code == 0, again.errors
    assert "is finished" in again.output
    other = _end(_dtl(workdir, *command, "train.seed=1"))
    assert other.code == 2
    assert len(other.errors.splitlines()) == 1, "one clear message"
    assert "contains a finished run" in other.errors and "run.name" in other.errors
    assert _content(run.path) == before


def test_stopped_by_a_signal_and_resumed_is_as_undisturbed(
    workdir: Path, trained: tuple[list[str], CommandResult]
) -> None:
    command, _ = trained
    full = _run_of(workdir, command)
    command = [*command[:-1], "run.name=stopped"]
    run = _run_of(workdir, command)
    process = _dtl(workdir, *command)
    _wait_for_steps(run.path, 3, process)
    process.send_signal(signal.SIGTERM)
    stopped = _end(process)
    assert stopped.code == 75, stopped.output + stopped.errors
    assert "dtl resume" in stopped.output
    done = launching.train_lines(run.path)[-1]["step"]
    assert 3 <= done < LONG
    saved = run.checkpoints / f"step-{done:08d}"
    assert json.loads((saved / "progress.json").read_text(encoding="utf-8"))["step"] == done
    resumed = _end(_dtl(workdir, "resume", str(run.path.relative_to(workdir))))
    assert resumed.code == 0, resumed.output + resumed.errors
    assert _trainable(run.path) == _trainable(full.path), "bitwise"
    assert run.result["scores"] == full.result["scores"]


def _accelerate(
    workdir: Path, name: str, *overrides: str, options: tuple[str, ...] = ()
) -> subprocess.Popen[str]:
    """The command that the launch file names, with a port of its own unless one is given."""
    argv = ["-m", "accelerate.commands.launch", "--config_file", str(FILES / f"{name}.yaml")]
    argv += options or ("--main_process_port", str(launching.port()))
    return _start(workdir, *argv, "-m", "dtl.launch.worker", "train", "config.yaml", *overrides)


def _dtl(workdir: Path, *arguments: str) -> subprocess.Popen[str]:
    return _start(workdir, "-m", "dtl", *arguments)


def _start(
    workdir: Path, *arguments: str, environment: dict[str, str] | None = None
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=workdir,
        env={**launching.environment(), **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _end(process: subprocess.Popen[str]) -> CommandResult:
    try:
        output, errors = process.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        process.terminate()
        output, errors = process.communicate(timeout=60)
        pytest.fail(f"no end within 300 s\n{output}\n{errors[-6000:]}")
    return CommandResult(process.returncode, output, errors)


def _assert_layout(
    run: Path, completed: CommandResult, launcher: str, ranks: int, zero: int, offload: str
) -> None:
    """The launcher's layout is the plan's, and one line on standard output says so."""
    assert completed.code == 0, completed.output + completed.errors[-6000:]
    layout = RunFolder(run).plan.layout
    assert (layout.world_size, layout.zero_stage, layout.offload) == (ranks, zero, offload)
    lines = [line for line in completed.output.splitlines() if "layout set by" in line]
    assert len(lines) == 1, completed.output
    assert lines[0].startswith(f"layout set by {launcher}: {ranks} rank")
    assert f"ZeRO {zero}" in lines[0]
    assert RunFolder(run).state == "finished"
    assert len(list((run / "logs").glob("rank-*.log"))) == ranks


def _assert_losses(run: Path, expected: list[float]) -> None:
    losses = [line["loss"] for line in launching.train_lines(run)]
    assert losses == pytest.approx(expected, rel=1e-5)


def _run_of(workdir: Path, command: list[str]) -> RunFolder:
    given = dict(part.split("=") for part in command[2:])
    return RunFolder(workdir / given["run.dir"] / given["run.name"])


def _line(output: str, start: str) -> str:
    """The last line that begins so."""
    return [line for line in output.splitlines() if line.strip().startswith(start)][-1]


def _content(folder: Path) -> dict[str, tuple[int, str]]:
    """Time of change and hash of every file."""
    return {
        str(path): (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _wait_for_steps(run: Path, steps: int, process: subprocess.Popen[str]) -> None:
    """Until so many steps are logged; metrics are written line by line."""
    metrics = run / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not metrics.exists() or metrics.read_bytes().count(b'"kind": "train"') < steps:
        assert process.poll() is None, _end(process)
        assert time.monotonic() < deadline, "no steps within 120 s"
        time.sleep(0.005)


def _trainable(run: Path) -> list[dict[str, Any]]:
    """What the train lines say of learning, not of time and memory."""
    names = ("step", "epoch", "loss", "targets", "examples", "learning_rate", "gradient_norm")
    return [{name: line[name] for name in names} for line in launching.train_lines(run)]
