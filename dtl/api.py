"""The Python API: what the commands do, from a notebook or a script."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dtl.config.load import load_config
from dtl.config.schema import RunConfig
from dtl.core.errors import DtlError
from dtl.core.tables import terminal_width
from dtl.launch.launched_task import refuse_many_tasks
from dtl.launch.supervisor import Supervisor
from dtl.plan.records import Plan
from dtl.run.folder import RunFolder
from dtl.run.submission import Submission

if TYPE_CHECKING:
    from dtl.cluster.status import Status
    from dtl.inspect.check.report import DataReport
    from dtl.launch.torchrun import Rendezvous

__all__ = [
    "RunResult",
    "cancel",
    "check",
    "evaluate",
    "export",
    "launch",
    "load_config",
    "load_run",
    "plan",
    "predict",
    "push",
    "resume",
    "status",
    "submit",
    "train",
]


@dataclass(frozen=True)
class RunResult:
    """How a run ended: exit code 0 finished, 1 failed, 75 stopped early and resumable."""

    exit_code: int
    run: RunFolder


@dataclass(frozen=True)
class ResumeOptions:
    """Options of `resume`.

    `allow_change`: config keys that may change although they change the result. For a submitted
    run: `here` continues it on this machine instead of the queue, `nodes` and `time` (as 4h) change
    the number of machines and the time limit of its job.
    """

    allow_change: Iterable[str] = ()
    here: bool = False
    nodes: int | None = None
    time: str | None = None


def plan(config: RunConfig) -> Plan:
    """Return what `train` would launch, and why. Reads the data; starts nothing."""
    from dtl.prepare.prepared_run import prepare_run

    return prepare_run(config).plan


def check(config: RunConfig) -> DataReport:
    """Return a report on the data, with the problems that would waste a run. Reads no weights."""
    from dtl.assembly.parts import assemble
    from dtl.inspect.check.report import check_data

    return check_data(config, assemble(config))


def load_run(path: str | Path) -> RunFolder:
    """Return a run folder: its config, plan, metrics and result. Raises DtlError if it is none."""
    return RunFolder.open(path)


def train(
    config: RunConfig,
    *,
    print_line: Callable[[str], None] = print,
    can_fork: bool = False,
    quiet: bool = False,
) -> RunResult:
    """Validate, plan, launch on this machine, train, evaluate and export.

    A finished run of the same config is not changed; an interrupted one is resumed. `can_fork`: a
    single process may be a fork of this one, which saves seconds; not where torch has computed
    before, because its threads do not survive a fork. `quiet`: the output of the run's processes
    goes to its logs only. Raises DtlError for faults of the user.
    """
    refuse_many_tasks(os.environ)
    with Supervisor(print_line, can_fork=can_fork, quiet=quiet) as supervisor:
        return _train(config, supervisor)


def _train(config: RunConfig, supervisor: Supervisor) -> RunResult:
    from dtl.prepare import prepared_run

    # 1. Resume a run of the same config.
    folder = RunFolder.from_config(config)
    if prepared_run.has_same_run(folder, config):
        return _resume(folder, supervisor, config=None if config == folder.config else config)
    # 2. Check that the run can start here.
    prepared_run.check_unused(folder, config)
    if config.layout.nodes > 1:
        raise DtlError.of(
            "layout.nodes",
            f"`dtl train` starts processes on this machine only, not on {config.layout.nodes}",
            "run `dtl launch CONFIG --node-rank R --master HOST` on each machine, R from 0",
        )
    # 3. Prepare data, plan and folder; then launch.
    prepared = prepared_run.prepare_run(config)
    plan_lines = prepared.plan.format_lines(width=terminal_width(sys.stdout))
    for line in (*plan_lines, *prepared.data.format_lines()):
        supervisor.print_line(line)
    prepared_run.write_run(folder, prepared)
    return RunResult(supervisor.launch(folder, prepared), folder)


def resume(
    path: str | Path,
    overrides: Sequence[str] = (),
    *,
    print_line: Callable[[str], None] = print,
    can_fork: bool = False,
    **options: Any,
) -> RunResult:
    """Resume an interrupted run from its newest intact checkpoint; do not change a finished one.

    A submitted run is put into its queue again. Another layout (`layout.processes_per_node=4`)
    gives the same result. `options`: fields of ResumeOptions. Raises DtlError, also for overrides
    that change the result and are not in `allow_change`.
    """
    from dtl.prepare.prepared_run import load_changed_config

    chosen = ResumeOptions(**options)
    folder, allow_change = RunFolder.open(path), frozenset(chosen.allow_change)
    job = Submission.load(folder.path)
    if job is not None and folder.state != "finished":
        from dtl.cluster.submit import check_not_queued, resubmit

        config = load_changed_config(folder, overrides, allow_change=allow_change)
        if not chosen.here:
            resubmit(
                folder,
                job,
                config,
                nodes=chosen.nodes,
                time_limit=chosen.time,
                print_line=print_line,
            )
            return RunResult(0, folder)
        check_not_queued(folder)
    if chosen.nodes is not None or chosen.time is not None:
        raise DtlError.of(
            str(path), "this run is not resumed in a queue", "leave out --nodes and --time"
        )
    refuse_many_tasks(os.environ)
    with Supervisor(print_line, can_fork=can_fork) as supervisor:
        if folder.state == "finished" or not (overrides or job is not None):
            return _resume(folder, supervisor, config=None)
        changed = load_changed_config(folder, overrides, allow_change=allow_change)
        return _resume(folder, supervisor, config=changed)


def _resume(folder: RunFolder, supervisor: Supervisor, *, config: RunConfig | None) -> RunResult:
    """Resume on this machine. `config`: of the same result; a plan is made for it."""
    from dtl.prepare import prepared_run

    if folder.state == "finished":
        supervisor.print_line(f"{folder.path} is finished; nothing to do")
        return RunResult(0, folder)
    supervisor.print_line(f"{folder.path} was interrupted; resuming")
    prepared = None
    if config is not None:
        prepared = prepared_run.prepare_run(config)
        prepared_run.check_data_unchanged(folder, prepared)
        prepared_run.write_run(folder, prepared)
        for line in prepared.plan.format_lines():
            supervisor.print_line(line)
    return RunResult(supervisor.launch(folder, prepared), folder)


def launch(
    path: str | Path,
    overrides: Sequence[str] = (),
    *,
    rendezvous: Rendezvous,
    print_line: Callable[[str], None] = print,
) -> RunResult:
    """Start this machine's processes of a run over `layout.nodes` machines.

    The machines share the run folder. The same command on each of them starts the run, or resumes
    it. Each starts `layout.processes_per_node` processes, or one for each device. Raises DtlError.
    """
    from dtl.launch.torchrun import build_node_command
    from dtl.plan.hardware import detect_hardware

    config = load_config(path, overrides)
    hardware = detect_hardware()
    devices = hardware.device_count if hardware.device == "cuda" else 1
    processes = config.layout.processes_per_node or devices
    folder = RunFolder.from_config(config)
    if folder.state == "finished":
        print_line(f"{folder.path} is finished; nothing to do")
        return RunResult(0, folder)
    command = build_node_command(
        rendezvous, Path(path), overrides, processes=processes, device=hardware.device
    )
    print_line(
        f"machine {rendezvous.node_rank} of {rendezvous.nnodes}: {processes} processes connect to "
        f"{rendezvous.master_addr}, port {rendezvous.master_port}"
    )
    with Supervisor(print_line, can_fork=False) as supervisor:
        return RunResult(supervisor.launch(folder, None, command), folder)


def submit(
    config: str | Path,
    overrides: Sequence[str] = (),
    *,
    cluster: str,
    print_line: Callable[[str], None] = print,
    dry_run: bool = False,
    **options: Any,
) -> list[RunFolder]:
    """Plan a run for a cluster and put it into the queue; return the run folders.

    A grid has one run for each combination. `cluster`: a site's name or file. `dry_run`: print the
    job script only. `options`: fields of dtl.cluster.submit.SubmitRequest. Raises DtlError.
    """
    from dtl.cluster.submit import SubmitRequest, render_job_script, submit_runs

    request = SubmitRequest(cluster, **options)
    if dry_run:
        print_line(render_job_script(Path(config), overrides, request))
        return []
    return submit_runs(Path(config), overrides, request, print_line)


def status(path: str | Path = "runs") -> list[Status]:
    """Return the state of a run, or of each run below a folder."""
    from dtl.cluster.status import query_runs

    return query_runs(Path(path))


def cancel(path: str | Path, *, print_line: Callable[[str], None] = print) -> None:
    """Request a run, or each run below a folder, to save and stop; return when they have."""
    from dtl.cluster.cancel import cancel_runs

    cancel_runs(Path(path), print_line=print_line)


def evaluate(
    path: str | Path,
    data: str | None = None,
    overrides: Sequence[str] = (),
    *,
    out: str | Path | None = None,
    print_line: Callable[[str], None] = print,
) -> dict[str, float]:
    """Return scores, computed on this machine.

    Of a finished run: those of its export on `data`. Of a config: those of its unadapted base on
    its held-out rows, or on `data`. Writes evaluation.json and evaluation.jsonl into `out`; None:
    into the run folder, and for a config nowhere. Raises DtlError.
    """
    from dtl.config.schema import Source
    from dtl.jobs.evaluate import score_base, score_run

    folder = None if out is None else Path(out)
    if is_config(path):
        replaced = [] if data is None else [f"data.eval={data}", "data.eval_fraction=null"]
        config = load_config(path, [*overrides, *replaced])
        return score_base(config, out=folder, print_line=print_line).scores
    run = RunFolder.open(path)
    if data is None:
        raise DtlError.of("--data", "the rows to score the run on are missing", "add --data ROWS")
    source = Source(path=data)
    return score_run(run, source, list(overrides), out=folder, print_line=print_line).scores


def is_config(path: str | Path) -> bool:
    """Return whether a path names a config, not a run folder."""
    return Path(path).is_file() or Path(path).suffix in (".yaml", ".yml")


def export(path: str | Path, *, print_line: Callable[[str], None] = print, **options: Any) -> Path:
    """Write the trained model in another format; return the new folder.

    A fresh process compares it with the trained model. `options`: fields of
    dtl.export.plan.ExportRequest, such as merge=True. Raises DtlError.
    """
    from dtl.export.plan import ExportRequest
    from dtl.jobs.export import export_run

    paths = {key: Path(options[key]) for key in ("target", "converter") if options.get(key)}
    request = ExportRequest(**{**options, **paths})
    return export_run(RunFolder.open(path), request, print_line=print_line).path


def push(
    path: str | Path, repository: str, *, private: bool = False, revision: str | None = None
) -> str:
    """Upload an export, or that of a run, to the Hugging Face hub; return its address there.

    The token is that of `hf auth login` or HF_TOKEN. Raises DtlError.
    """
    from dtl.jobs.push import push_export

    return push_export(Path(path), repository, private=private, revision=revision)


def predict(
    path: str | Path,
    inputs: Iterable[str | Path],
    *,
    batch: int = 16,
    max_new_tokens: int | None = None,
    truncate_prompts: bool = False,
) -> Iterator[dict[str, Any]]:
    """Yield the prediction of an export, or that of a run, for each input in order.

    `inputs`: texts, files of rows or lines, audio files, images. `truncate_prompts`: cut the
    beginning of a prompt that is too long, which has no prediction otherwise. Raises DtlError for
    an invalid input.
    """
    from dtl.export.load_export import load_export
    from dtl.jobs.predict import check_inputs_exist, predict_rows, read_input_rows

    names = [str(each) for each in inputs]
    check_inputs_exist(names)
    exported = load_export(Path(path))
    rows = read_input_rows(names, exported)
    return predict_rows(
        rows,
        exported,
        batch_size=batch,
        max_new_tokens=max_new_tokens,
        truncate_prompts=truncate_prompts,
    )
