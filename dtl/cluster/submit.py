"""From a config, or a grid of them, to jobs in a cluster's queue."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from dtl.backends.base import Job
from dtl.backends.slurm import Options, Plugin, read_site
from dtl.config.load import load_config
from dtl.config.schema import RunConfig
from dtl.core.errors import DtlError
from dtl.core.process_env import surroundings
from dtl.core.units import parse_seconds
from dtl.plan.hardware import node_hardware
from dtl.plan.records import OuterLaunch
from dtl.prepare import preparation
from dtl.run.folder import RunFolder
from dtl.run.submission import Submitted

SAVES = 3  # so many saves must fit between the warning and the time limit
SPARE_SECONDS = 60.0


@dataclass(frozen=True)
class Asked:
    """What a submission is told beside the config; None: as the site or the config has it."""

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
class Begun:
    """A run that is about to be submitted, with its folder made or found."""

    folder: RunFolder
    prepared: preparation.Prepared
    new: bool


def script(path: Path, overrides: Sequence[str], asked: Asked) -> str:
    """The job script, and nothing is changed."""
    configs = _configs(path, overrides, asked.grid)
    placed = _place(configs[0], asked)
    begun = [_prepare(config, placed) for config in configs]
    return Plugin(placed.site).render(_job(begun, placed))


def submit(
    path: Path, overrides: Sequence[str], asked: Asked, say: Callable[[str], None]
) -> list[RunFolder]:
    """Put a run, or each cell of a grid, into the queue; the run folders. What is finished already
    is left out. Raises DtlError in Slurm's own words where it refuses."""
    configs = _configs(path, overrides, asked.grid)
    placed = _place(configs[0], asked)
    begun = []
    for config in configs:
        folder = RunFolder.of(config)
        if preparation.holds(folder, config) and folder.state == "finished":
            say(f"{folder.path} is finished; nothing to do")
            continue
        refuse_live(folder)
        begun.append(_prepare(config, placed))
    if not begun:
        return []
    for line in begun[0].prepared.plan.format_lines():
        say(line)
    _send(begun, placed, say)
    return [run.folder for run in begun]


def resubmit(
    folder: RunFolder,
    before: Submitted,
    config: RunConfig,
    *,
    nodes: int | None,
    time: str | None,
    say: Callable[[str], None],
) -> None:
    """A submitted run goes on as it was submitted, perhaps on other nodes. Raises DtlError."""
    refuse_live(folder)
    site = Options.model_validate(before.options)
    seconds = parse_time(time, site) if time is not None else before.seconds
    placed = _Placed(
        site,
        nodes or before.nodes,
        before.processes,
        seconds,
        before.links,
        None,
        Path(before.folder),
        grid=False,
    )
    prepared = _plan(config, placed)
    preparation.refuse_other_data(folder, prepared.examples)
    _send([Begun(folder, prepared, new=False)], placed, say)


def refuse_live(folder: RunFolder) -> None:
    """A run that waits or runs already is not submitted twice. Raises DtlError."""
    before = Submitted.of(folder.path)
    if before is None or not before.ids:
        return
    for number, state in before.open().query_states(before.ids).items():
        if state.phase != "ended":
            raise DtlError.of(
                str(folder.path),
                f"is {state.phase} as job {number}",
                f"wait for it, or end it: dtl cancel {folder.path}",
            )


def parse_time(text: str | None, site: Options) -> float | None:
    """Seconds; left out, the longest that the site has. Raises DtlError."""
    longest = parse_seconds(site.max_time) if site.max_time is not None else None
    if text is None:
        return longest
    try:
        seconds = parse_seconds(text)
    except ValueError as fault:
        raise DtlError.of("--time", str(fault), "write it as 45min, 4h or 1-12:00:00") from None
    if longest is not None and seconds > longest:
        raise DtlError.of(
            "--time",
            f"{text} is longer than the {site.max_time} that this site allows",
            "ask for less, and add --chain to follow on",
        )
    return seconds


@dataclass(frozen=True)
class _Placed:
    """Where all runs of a submission go. `processes`: on each node."""

    site: Options
    nodes: int
    processes: int
    seconds: float | None
    links: int
    after: str | None
    folder: Path
    grid: bool


def _place(config: RunConfig, asked: Asked) -> _Placed:
    site, layout = read_site(asked.cluster), config.layout
    gpus = site.gpus_per_node
    if asked.gpus_per_node is not None:
        gpus = asked.gpus_per_node
    elif gpus and layout.processes_per_node is not None:
        gpus = layout.processes_per_node
    changes: dict[str, object] = {"gpus_per_node": gpus}
    changes |= {"account": asked.account} if asked.account is not None else {}
    changes |= {"partition": asked.partition} if asked.partition is not None else {}
    if asked.grid and asked.chain > 1:
        raise DtlError.of("--chain", "does not go with --grid", "leave one of them out")
    site = site.model_copy(update=changes)
    return _Placed(
        site,
        asked.nodes or layout.nodes,
        gpus or layout.processes_per_node or 1,
        parse_time(asked.time, site),
        asked.chain,
        asked.after,
        Path.cwd(),
        grid=bool(asked.grid),
    )


def _configs(path: Path, overrides: Sequence[str], grid: Sequence[str]) -> list[RunConfig]:
    """One config; of a grid one for each cell, in a folder named after the config."""
    config = load_config(path, overrides)
    if not grid:
        return [config]
    inside = config.run.model_copy(update={"dir": str(RunFolder.of(config).path)})
    made = []
    for cell in product(*map(_values, grid)):
        name = ",".join(re.sub(r"[/\\\0]", "-", value) for value in cell)
        found = load_config(path, [*overrides, *cell])
        run = inside.model_copy(update={"name": name})
        made.append(found.model_copy(update={"run": run}))
    return made


def _values(axis: str) -> list[str]:
    """strategy.rank=4,16 -> an override each; commas in brackets do not part."""
    key, equals, listed = axis.partition("=")
    values = [value.strip() for value in re.split(r",(?![^\[{]*[\]}])", listed)]
    if not equals or not key or not all(values):
        raise DtlError.of(
            f"--grid {axis}", "no values are listed", "write key=VALUE,VALUE, as train.seed=0,1,2"
        )
    if len(set(values)) < len(values):
        raise DtlError.of(f"--grid {axis}", "a value is listed twice", "list each once")
    return [f"{key}={value}" for value in values]


def _prepare(config: RunConfig, placed: _Placed) -> Begun:
    folder = RunFolder.of(config)
    begun = preparation.holds(folder, config)
    if not begun:
        preparation.refuse_used(folder, config)
    prepared = _plan(config, placed)
    if begun and folder.state != "finished":
        preparation.refuse_other_data(folder, prepared.examples)
    return Begun(folder, prepared, new=not begun)


def _plan(config: RunConfig, placed: _Placed) -> preparation.Prepared:
    site, ranks = placed.site, placed.nodes * placed.processes
    outer = OuterLaunch("dtl submit", ranks, placed.processes, zero_stage=None, offload=None)
    hardware = node_hardware(
        gpus=site.gpus_per_node, gpu_gib=site.gpu_memory, supports_bf16=site.bf16
    )
    return preparation.prepare_run(config, outer=outer, hardware=hardware)


def _send(begun: list[Begun], placed: _Placed, say: Callable[[str], None]) -> None:
    backend, job = Plugin(placed.site), _job(begun, placed)
    backend.check(job)
    logs = backend.logs(job)
    told = []
    for run, log in zip(begun, logs, strict=True):
        if run.new:
            preparation.create(run.folder, run.prepared)
        else:
            run.folder.lay_out_anew(run.prepared.config, run.prepared.plan)
        told.append(_submitted(placed, log))
        told[-1].begin(run.folder.path)
    ids = backend.submit(job)
    for number, (run, submitted) in enumerate(zip(begun, told, strict=True)):
        own = (ids[number],) if job.cells else ids
        submitted.note(run.folder.path, own)
        say(f"job {' '.join(own)}: {run.folder.path}")


def _submitted(placed: _Placed, log: Path) -> Submitted:
    return Submitted(
        backend="slurm",
        options=placed.site.model_dump(mode="json"),
        nodes=placed.nodes,
        processes=placed.processes,
        seconds=placed.seconds,
        links=placed.links,
        folder=str(placed.folder),
        log=str(log),
    )


def _job(begun: list[Begun], placed: _Placed) -> Job:
    folders = [(placed.folder / run.folder.path).absolute() for run in begun]
    run = folders[0].parent if placed.grid else folders[0]
    return Job(
        run,
        (sys.executable, "-m", "dtl.launch.worker", "run", str(run)),
        surroundings(begun[0].prepared.plan.layout.device),
        name=f"dtl-{run.name}",
        folder=placed.folder,
        nodes=placed.nodes,
        processes=placed.processes,
        seconds=placed.seconds,
        lead_seconds=_lead(one.folder for one in begun),
        links=placed.links,
        after=placed.after,
        cells=tuple(folders) if placed.grid else (),
    )


def _lead(folders: Iterable[RunFolder]) -> float:
    """Seconds that saving wants, as far as it was measured."""
    saves = [
        line["seconds"]
        for folder in folders
        if folder.state != "absent"
        for line in folder.metrics()
        if line["kind"] == "save"
    ]
    return SPARE_SECONDS + SAVES * max(saves) if saves else 0.0
