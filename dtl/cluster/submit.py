"""Submit a run, or a grid of runs, to a cluster's queue."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dtl.backends.base import Job, SiteOptions
from dtl.cluster.grid import load_configs
from dtl.cluster.sites import open_backend, read_site
from dtl.config.schema import RunConfig
from dtl.core.errors import DtlError, control_characters
from dtl.core.process_env import launcher_environment
from dtl.core.units import parse_seconds
from dtl.plan.hardware import node_hardware
from dtl.plan.records import ExternalLaunch
from dtl.prepare import prepared_run
from dtl.prepare.prepared_run import PreparedRun
from dtl.run.folder import RunFolder
from dtl.run.submission import Submission

SAVES_BEFORE_LIMIT = 3  # saves that must fit between the warning and the time limit
SPARE_SECONDS = 60.0


@dataclass(frozen=True)
class SubmitRequest:
    """The options of a submission; None: as the site or the config has it.

    `time`: the time limit, as 45min or 4h. `chain`: number of jobs that follow one another.
    `after`: id of a job that must succeed first. `grid`: axes such as `train.seed=0,1,2`.
    """

    cluster: str
    nodes: int | None = None
    gpus_per_node: int | None = None
    time: str | None = None
    chain: int = 1
    after: str | None = None
    account: str | None = None
    partition: str | None = None
    grid: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Allocation:
    """Where and how long all runs of a submission run."""

    site: SiteOptions
    nodes: int
    processes_per_node: int
    time_limit_seconds: float | None
    chain_length: int
    working_dir: Path
    dependency: str | None = None
    is_array: bool = False


@dataclass(frozen=True)
class _RunToSubmit:
    """A run that is about to be submitted."""

    folder: RunFolder
    prepared: PreparedRun


def render_job_script(path: Path, overrides: Sequence[str], request: SubmitRequest) -> str:
    """Return the job script; change nothing."""
    configs = load_configs(path, overrides, request.grid)
    allocation = _allocate(configs[0], request)
    runs = [_prepare(config, allocation) for config in configs]
    return open_backend(allocation.site).render(_build_job(runs, allocation))


def submit_runs(
    path: Path,
    overrides: Sequence[str],
    request: SubmitRequest,
    print_line: Callable[[str], None],
) -> list[RunFolder]:
    """Submit a run, or each unfinished run of a grid, and return the run folders.

    Raises DtlError, in the queue's own words where it rejects the job.
    """
    # 1. Configs and allocation.
    configs = load_configs(path, overrides, request.grid)
    allocation = _allocate(configs[0], request)
    # 2. Plans of the runs that are not finished.
    runs = []
    for config in configs:
        folder = RunFolder.from_config(config)
        if prepared_run.has_same_run(folder, config) and folder.state == "finished":
            print_line(f"{folder.path} is finished; nothing to do")
            continue
        check_not_queued(folder)
        runs.append(_prepare(config, allocation))
    if not runs:
        return []
    for line in runs[0].prepared.plan.format_lines():
        print_line(line)
    # 3. Run folders and the job.
    _submit(runs, allocation, print_line)
    return [run.folder for run in runs]


def resubmit(
    folder: RunFolder,
    previous: Submission,
    config: RunConfig,
    *,
    nodes: int | None,
    time_limit: str | None,
    print_line: Callable[[str], None],
) -> None:
    """Submit an interrupted run again, as before or with other nodes or time. Raises DtlError."""
    check_not_queued(folder)
    site = previous.load_options()
    allocation = _Allocation(
        site=site,
        nodes=nodes or previous.nodes,
        processes_per_node=previous.processes_per_node,
        time_limit_seconds=(
            previous.time_limit_seconds
            if time_limit is None
            else parse_time_limit(time_limit, site)
        ),
        chain_length=previous.chain_length,
        working_dir=Path(previous.working_dir),
    )
    prepared = _plan(config, allocation)
    prepared_run.check_data_unchanged(folder, prepared)
    _submit([_RunToSubmit(folder, prepared)], allocation, print_line)


def check_not_queued(folder: RunFolder) -> None:
    """Raise DtlError where a job of the run is queued or running."""
    previous = Submission.load(folder.path)
    if previous is None or not previous.job_ids:
        return
    for number, state in previous.open_backend().query_states(previous.job_ids).items():
        if state.state != "ended":
            raise DtlError.of(
                str(folder.path),
                f"is {state.state} as job {number}",
                f"wait for it, or cancel it: dtl cancel {folder.path}",
            )


def parse_time_limit(text: str | None, site: SiteOptions) -> float | None:
    """Return seconds; without a text the longest time of the site. Raises DtlError."""
    longest = parse_seconds(site.max_time) if site.max_time is not None else None
    if text is None:
        return longest
    try:
        seconds = parse_seconds(text)
    except ValueError as error:
        raise DtlError.of("--time", str(error), "write it as 45min, 4h or 1-12:00:00") from None
    if longest is not None and seconds > longest:
        raise DtlError.of(
            "--time",
            f"{text} is longer than the {site.max_time} that this site allows",
            "request less time, or use --chain to continue in dependent jobs",
        )
    return seconds


def _allocate(config: RunConfig, request: SubmitRequest) -> _Allocation:
    site, layout = read_site(request.cluster), config.layout
    gpus = site.gpus_per_node
    if request.gpus_per_node is not None:
        gpus = request.gpus_per_node
    elif gpus and layout.processes_per_node is not None:
        gpus = layout.processes_per_node
    if gpus and site.gpu_memory is None:
        raise DtlError.of(
            "--gpus-per-node",
            f"{request.cluster} has no gpu_memory, and the plan depends on it",
            "use a site file with GPUs, or set gpu_memory in a copy of this one",
        )
    changes: dict[str, object] = {"gpus_per_node": gpus}
    changes |= {"account": request.account} if request.account is not None else {}
    changes |= {"partition": request.partition} if request.partition is not None else {}
    for option, value in {**changes, "after": request.after}.items():
        if control_characters(str(value)):
            raise DtlError.of(f"--{option}", f"{value!r} has a control character", "remove it")
    if request.grid and request.chain > 1:
        raise DtlError.of("--chain", "cannot be combined with --grid", "remove one of them")
    site = site.model_copy(update=changes)
    return _Allocation(
        site=site,
        nodes=request.nodes or layout.nodes,
        processes_per_node=gpus or layout.processes_per_node or 1,
        time_limit_seconds=parse_time_limit(request.time, site),
        chain_length=request.chain,
        working_dir=Path.cwd(),
        dependency=request.after,
        is_array=bool(request.grid),
    )


def _prepare(config: RunConfig, allocation: _Allocation) -> _RunToSubmit:
    folder = RunFolder.from_config(config)
    exists = prepared_run.has_same_run(folder, config)
    if not exists:
        prepared_run.check_unused(folder, config)
    prepared = _plan(config, allocation)
    if exists and folder.state != "finished":
        prepared_run.check_data_unchanged(folder, prepared)
    return _RunToSubmit(folder, prepared)


def _plan(config: RunConfig, allocation: _Allocation) -> PreparedRun:
    site = allocation.site
    external = ExternalLaunch(
        "dtl submit",
        world_size=allocation.nodes * allocation.processes_per_node,
        local_world_size=allocation.processes_per_node,
        zero_stage=None,
        offload=None,
    )
    hardware = node_hardware(
        gpus=site.gpus_per_node,
        gpu_gib=site.gpu_memory,
        supports_bf16=site.bf16,
        host_bytes=site.host_memory_bytes,
    )
    return prepared_run.prepare_run(config, external=external, hardware=hardware)


def _submit(
    runs: list[_RunToSubmit], allocation: _Allocation, print_line: Callable[[str], None]
) -> None:
    backend, job = open_backend(allocation.site), _build_job(runs, allocation)
    for warning in backend.check(job):
        print_line(f"warning: {warning}")
    for run in runs:
        run.folder.retain_damaged_result()
    submissions = []
    for run, log in zip(runs, backend.log_files(job), strict=True):
        prepared_run.write_run(run.folder, run.prepared)
        submissions.append(_build_submission(allocation, log))
        submissions[-1].record_start(run.folder.path)
    ids = backend.submit(job)
    for number, (run, submission) in enumerate(zip(runs, submissions, strict=True)):
        own = (ids[number],) if job.array_runs else ids
        submission.record_job_ids(run.folder.path, own)
        print_line(f"job {' '.join(own)}: {run.folder.path}")


def _build_submission(allocation: _Allocation, log: Path) -> Submission:
    return Submission(
        backend=allocation.site.backend,
        options=allocation.site.model_dump(mode="json"),
        nodes=allocation.nodes,
        processes_per_node=allocation.processes_per_node,
        time_limit_seconds=allocation.time_limit_seconds,
        chain_length=allocation.chain_length,
        working_dir=str(allocation.working_dir),
        log=str(log),
    )


def _build_job(runs: list[_RunToSubmit], allocation: _Allocation) -> Job:
    folders = [(allocation.working_dir / run.folder.path).absolute() for run in runs]
    run_folder = folders[0].parent if allocation.is_array else folders[0]
    return Job(
        run_folder,
        (sys.executable, "-m", "dtl.launch.worker", "run", str(run_folder)),
        launcher_environment(runs[0].prepared.plan.layout.device),
        name=f"dtl-{run_folder.name}",
        working_dir=allocation.working_dir,
        nodes=allocation.nodes,
        processes_per_node=allocation.processes_per_node,
        time_limit_seconds=allocation.time_limit_seconds,
        lead_seconds=_estimate_lead_seconds(run.folder for run in runs),
        chain_length=allocation.chain_length,
        dependency=allocation.dependency,
        array_runs=tuple(folders) if allocation.is_array else (),
    )


def _estimate_lead_seconds(folders: Iterable[RunFolder]) -> float:
    """Return how long before the time limit to save, by the saves measured so far; 0 without."""
    saves = [
        line["seconds"]
        for folder in folders
        if folder.state != "absent"
        for line in folder.read_metrics()
        if line["kind"] == "save"
    ]
    return SPARE_SECONDS + SAVES_BEFORE_LIMIT * max(saves) if saves else 0.0
