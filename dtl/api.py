"""The same as the command line, from a notebook or a script."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dtl.config.load import load_config
from dtl.config.schema import RunConfig
from dtl.core.errors import DtlError
from dtl.launch.supervisor import Supervisor
from dtl.plan.records import Plan
from dtl.run.folder import RunFolder
from dtl.run.submission import Submission

if TYPE_CHECKING:
    from dtl.cluster.status import Status
    from dtl.inspect.check.report import DataReport
    from dtl.launch.torchrun import Rendezvous

__all__ = [
    "Outcome",
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
class Outcome:
    """How a command ended: 0 done, 1 the run failed, 75 stopped early and resumable."""

    exit_code: int
    run: RunFolder


def plan(config: RunConfig) -> Plan:
    """What `train` would launch, and why. Reads the data; starts nothing."""
    from dtl.prepare.preparation import prepare_run

    return prepare_run(config).plan


def check(config: RunConfig) -> DataReport:
    """What the data looks like, and what in it would waste a run. Reads no weights."""
    from dtl.assembly.parts import assemble
    from dtl.inspect.check.report import check_data

    return check_data(config, assemble(config))


def load_run(path: str | Path) -> RunFolder:
    """A run folder: its config, plan, metrics and result."""
    return RunFolder.open(path)


def train(
    config: RunConfig,
    *,
    say: Callable[[str], None] = print,
    fork: bool = False,
    quiet: bool = False,
) -> Outcome:
    """Validate, plan, launch on this machine, train, score, export.

    A finished run of the same config is left as it is; an interrupted one goes on. `fork`: a single
    process may be a copy of this one, which saves seconds; never where torch has computed before,
    since its threads do not live on in a copy. `quiet`: what the run's processes tell goes to its
    logs. Raises DtlError for the user's faults.
    """
    with Supervisor(say, can_fork=fork, quiet=quiet) as supervisor:
        return _train(config, supervisor)


def _train(config: RunConfig, supervisor: Supervisor) -> Outcome:
    from dtl.prepare import preparation

    folder, say = RunFolder.from_config(config), supervisor.print_line
    if preparation.has_same_run(folder, config):
        return _resume(folder, _layout_of(config, folder), frozenset(), supervisor)
    preparation.check_unused(folder, config)
    if config.layout.nodes > 1:
        raise DtlError.of(
            "layout.nodes",
            f"`dtl train` starts this machine alone, not {config.layout.nodes}",
            "give `dtl launch CONFIG --node-rank R --master HOST` on each of them, R from 0",
        )
    prepared = preparation.prepare_run(config)
    for line in prepared.plan.format_lines():
        say(line)
    for line in prepared.data.format_lines():
        say(line)
    preparation.write_run(folder, prepared)
    return Outcome(supervisor.launch(folder, prepared), folder)


def resume(
    path: str | Path,
    overrides: Sequence[str] = (),
    *,
    allow_change: Iterable[str] = (),
    here: bool = False,
    nodes: int | None = None,
    time: str | None = None,
    say: Callable[[str], None] = print,
    fork: bool = False,
) -> Outcome:
    """Continue an interrupted run from its newest whole checkpoint; leave a finished one alone.

    A submitted run goes into its queue again, perhaps on other `nodes` or for another `time`,
    unless it is to go on `here`.

    Another layout (`layout.processes_per_node=4`) gives the same result. Keys that would change it are
    refused, unless they are named in `allow_change`. Raises DtlError.
    """
    folder, allowed = RunFolder.open(path), frozenset(allow_change)
    if (job := Submission.load(folder.path)) is not None and folder.state != "finished":
        from dtl.cluster.submit import check_not_queued, resubmit
        from dtl.prepare import preparation

        config = preparation.load_changed_config(folder, overrides, allow_change=allowed)
        if not here:
            resubmit(folder, job, config, nodes=nodes, time_limit=time, print_line=say)
            return Outcome(0, folder)
        check_not_queued(folder)
    if nodes is not None or time is not None:
        raise DtlError.of(
            str(path), "this run does not wait in a queue", "leave out --nodes and --time"
        )
    with Supervisor(say, can_fork=fork) as supervisor:
        return _resume(folder, overrides, allowed, supervisor, anew=job is not None)


def submit(
    config: str | Path,
    overrides: Sequence[str] = (),
    *,
    cluster: str,
    say: Callable[[str], None] = print,
    dry_run: bool = False,
    **options: Any,
) -> list[RunFolder]:
    """Plan a run for a cluster and put it into the queue there; the run folders, of a grid one for
    each cell. `cluster`: a site's name or file; `options`: fields of dtl.cluster.submit.SubmitRequest. `dry_run`:
    only say the script. Raises DtlError.
    """
    from dtl.cluster.submit import SubmitRequest, render_job_script, submit_runs

    request = SubmitRequest(cluster, **options)
    if dry_run:
        say(render_job_script(Path(config), overrides, request))
        return []
    return submit_runs(Path(config), overrides, request, say)


def status(path: str | Path = "runs") -> list[Status]:
    """Where a run is, or each run below a folder."""
    from dtl.cluster.status import query_runs

    return query_runs(Path(path))


def cancel(path: str | Path, *, say: Callable[[str], None] = print) -> None:
    """Ask a run, or each run below a folder, to save and end; return when it has."""
    from dtl.cluster.cancel import cancel_runs

    cancel_runs(Path(path), print_line=say)


def _resume(
    folder: RunFolder,
    overrides: Sequence[str],
    allow_change: frozenset[str],
    supervisor: Supervisor,
    *,
    anew: bool = False,
) -> Outcome:
    """`anew`: it was laid out for another machine."""
    from dtl.prepare import preparation

    say = supervisor.print_line
    if folder.state == "finished":
        say(f"{folder.path} is finished; nothing to do")
        return Outcome(0, folder)
    say(f"{folder.path} was interrupted; it goes on")
    prepared = None
    if overrides or anew:
        config = preparation.load_changed_config(folder, overrides, allow_change=allow_change)
        prepared = preparation.prepare_run(config)
        preparation.check_data_unchanged(folder, prepared.data)
        preparation.write_run(folder, prepared)
        for line in prepared.plan.format_lines():
            say(line)
    return Outcome(supervisor.launch(folder, prepared), folder)


def launch(
    path: str | Path,
    overrides: Sequence[str] = (),
    *,
    rendezvous: Rendezvous,
    say: Callable[[str], None] = print,
) -> Outcome:
    """This machine's part of a run over `layout.nodes` machines that share the run folder; the
    same command on each of them starts the run, and goes on with it.

    Each starts `layout.processes_per_node`, or one a device. Raises DtlError.
    """
    from dtl.launch.torchrun import build_node_command
    from dtl.plan.hardware import detect_hardware

    config = load_config(path, overrides)
    hardware = detect_hardware()
    ranks = config.layout.processes_per_node or (
        hardware.device_count if hardware.device == "cuda" else 1
    )
    folder = RunFolder.from_config(config)
    if folder.state == "finished":
        say(f"{folder.path} is finished; nothing to do")
        return Outcome(0, folder)
    started = build_node_command(
        rendezvous, Path(path), overrides, processes=ranks, device=hardware.device
    )
    say(
        f"machine {rendezvous.node_rank} of {rendezvous.nnodes}: {ranks} processes meet those of the "
        f"others at {rendezvous.master_addr}, port {rendezvous.master_port}"
    )
    with Supervisor(say, can_fork=False) as supervisor:
        return Outcome(supervisor.launch(folder, None, started), folder)


def evaluate(
    path: str | Path,
    data: str | None = None,
    overrides: Sequence[str] = (),
    *,
    out: str | Path | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, float]:
    """Scores on this machine: of a finished run's export on other data, or, of a config, those of
    its unadapted base on its held-out rows, or on `data`.

    Writes evaluation.json and evaluation.jsonl into `out`; left out, into the run folder, and for a
    config nowhere. Raises DtlError.
    """
    from dtl.config.schema import Source
    from dtl.jobs.evaluate import score_base, score_run

    folder = None if out is None else Path(out)
    if is_config(path):
        given = [] if data is None else [f"data.eval={data}", "data.eval_fraction=null"]
        return score_base(
            load_config(path, [*overrides, *given]), out=folder, print_line=say
        ).scores
    run = RunFolder.open(path)
    if data is None:
        raise DtlError.of("--data", "nothing to score the run on is named", "give --data ROWS")
    return score_run(run, Source(path=data), list(overrides), out=folder, print_line=say).scores


def is_config(path: str | Path) -> bool:
    """Whether it names a config, and no run folder."""
    return Path(path).is_file() or Path(path).suffix in (".yaml", ".yml")


def export(
    path: str | Path,
    *,
    merge: bool = False,
    dtype: Literal["fp32", "bf16", "fp16"] | None = None,
    shard_size: str = "5GB",
    to: str | Path | None = None,
    quantize: Literal["int8", "nf4"] | None = None,
    form: Literal["safetensors", "onnx", "gguf"] = "safetensors",
    converter: str | Path | None = None,
    say: Callable[[str], None] = print,
) -> Path:
    """Write what a run has learnt in another form, held to the trained model in a fresh process.

    Returns the new folder, in the run's or `to`. Raises DtlError.
    """
    from dtl.jobs.export import ExportRequest, export_run

    wanted = ExportRequest(
        merge=merge,
        dtype=dtype,
        shard_size=shard_size,
        target=None if to is None else Path(to),
        quantize=quantize,
        format=form,
        converter=None if converter is None else Path(converter),
    )
    return export_run(RunFolder.open(path), wanted, say=say).path


def push(
    path: str | Path, repository: str, *, private: bool = False, revision: str | None = None
) -> str:
    """Upload the export of a run, or an export, to the hub; returns its address there.

    The token is that of `hf auth login` or HF_TOKEN. Raises DtlError.
    """
    from dtl.jobs.push import push as upload

    return upload(Path(path), repository, private=private, revision=revision)


def predict(
    path: str | Path,
    inputs: Iterable[str | Path],
    *,
    batch: int = 16,
    max_new_tokens: int | None = None,
) -> Iterator[dict[str, Any]]:
    """What an export, or that of a run, says of each text, sound, picture or row, in order.

    Raises DtlError for an input at fault.
    """
    from dtl.export.opened import load_export
    from dtl.jobs.predict import predict_rows, read_input_rows, check_inputs_exist

    given = [str(one) for one in inputs]
    check_inputs_exist(given)
    exported = load_export(Path(path))
    rows = read_input_rows(given, exported)
    return predict_rows(rows, exported, batch=batch, longest=max_new_tokens)


def _layout_of(config: RunConfig, folder: RunFolder) -> list[str]:
    """Overrides that give a begun run the layout that the config now asks for."""
    if folder.state == "finished" or folder.config.layout == config.layout:
        return []
    asked = config.layout.model_dump(mode="json")
    return [f"layout.{key}={'null' if value is None else value}" for key, value in asked.items()]
