"""A Slurm cluster: a job script made of a template and the site's file, submitted by sbatch."""

from __future__ import annotations

import getpass
import re
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, ValidationError, model_validator

from dtl.backends.base import CANCELLED, UNFIT, UNFIT_NODES, Backend, Job, JobState
from dtl.config.fault_messages import describe_faults
from dtl.config.schema.base import ConfigFault, Record, raise_config_faults
from dtl.config.yaml_document import read_yaml
from dtl.core.errors import DtlError, RunFailed, near
from dtl.core.package_files import find_package_folder
from dtl.core.signals import HANDED_ON, STOPPED
from dtl.core.units import parse_seconds

SCRIPT = "job.sbatch"
PORTS = range(12_000, 32_000)  # below those that systems give away by themselves
LONGEST_LEAD = 65_535.0  # seconds: more than sbatch takes
ANSWER_SECONDS = 60.0
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "WANDB_MODE": "offline",
}
# A word in Slurm's refusal, and what fixes it.
FIXES = {
    "account": "name yours by --account; `sacctmgr show associations user=$USER` lists them",
    "partition": "name another by --partition; `sinfo -s` lists them",
    "qos": "set qos in the site file to one that is yours",
    "time limit": "ask for less by --time",
    "dependency": "name by --after a job that is in the queue",
    "configuration": "ask for fewer nodes or GPUs, or another partition; `sinfo -N -l` lists them",
    "node count": "ask for fewer by --nodes; `sinfo -s` lists them",
    "not available": "ask for fewer nodes or GPUs, or another partition; `sinfo -N -l` lists them",
    "contact": "try again where Slurm answers: `scontrol ping`",
    "gres": "set gpu_request and gres in the site file; `sinfo -o '%P %G'` lists them",
}
OTHERWISE = "fix the request or the site file"


class Container(Record):
    """The image that the ranks run in; the batch shell does not."""

    kind: Literal["apptainer", "pyxis", "enroot"] = Field(description="what starts it")
    image: str = Field(min_length=1, description="file or address, as its starter takes it")
    mounts: tuple[str, ...] = Field(
        default=(),
        description="folders seen inside, as /path or /path:/inside; the run folder and the one of "
        "the command are there anyway",
    )
    options: tuple[str, ...] = Field(
        default=(),
        description="further flags of its starter; where there are GPUs, Apptainer has --nv "
        "beside them, unless --rocm is among them",
    )


class Options(Record):
    """A site: what a job script has to say on this cluster. Read from slurm/clusters/SITE.yaml."""

    description: str = Field(min_length=1, description="the cluster, in one line")
    documentation: str = Field(default="", description="address of the site's guide for users")
    sources: dict[str, str] = Field(
        default_factory=dict, description="a field's name: the address it was read at"
    )
    partition: str | None = Field(default=None, description="queue; left out: Slurm's default")
    account: str | None = Field(default=None, description="project that pays; left out: Slurm's")
    account_needed: bool = Field(
        default=False, description="whether a job without an account is refused"
    )
    qos: str | None = Field(default=None, description="quality of service")
    constraint: str | None = Field(default=None, description="features that nodes must have")
    gpus_per_node: int = Field(default=0, ge=0, description="GPUs of a node; 0: CPUs are used")
    gpu_request: Literal["gpus-per-node", "gres", "gpus-per-task", "none"] = Field(
        default="gpus-per-node", description="the flag by which GPUs are asked for"
    )
    gres: str = Field(default="gpu", description="name of the GPUs, perhaps typed, as gpu:a100")
    gpu_memory: float = Field(
        default=16.0, gt=0, description="GiB of one GPU; the plan's micro-batch comes of it"
    )
    bf16: bool = Field(default=True, description="whether the GPUs compute in bf16")
    cpus_per_task: int = Field(default=1, ge=1, description="CPU cores of a rank")
    memory: str | None = Field(default=None, description="main memory of a node, for --mem")
    exclusive: bool = Field(default=False, description="whether nodes are taken whole")
    max_time: str | None = Field(
        default=None, description="longest time limit of the partition, as 24:00:00 or 2-00:00:00"
    )
    launcher: Literal["srun", "torchrun"] = Field(
        default="srun", description="one srun task a rank, or one torchrun a node"
    )
    modules: tuple[str, ...] = Field(default=(), description="environment modules to load")
    purge_modules: bool = Field(default=False, description="unload all modules before")
    setup: tuple[str, ...] = Field(
        default=(), description="shell lines after the modules, each a whole command"
    )
    environment: dict[str, str] = Field(
        default_factory=dict, description="variables; $NAME in a value is that variable's value"
    )
    python: str | None = Field(
        default=None,
        description="interpreter of the job; left out: that of the desk, python3 in a container",
    )
    interface: str | None = Field(
        default=None, description="network between nodes, for NCCL and gloo, as hsn0 or ib0"
    )
    master_suffix: str = Field(
        default="", description="added to the first node's name where ranks meet, as i"
    )
    container: Container | None = Field(default=None, description="what the ranks run in")
    sbatch: tuple[str, ...] = Field(default=(), description="further flags of sbatch")
    srun: tuple[str, ...] = Field(default=(), description="further flags of srun")
    requeue: bool = Field(
        default=True, description="whether users may put a running job into the queue again"
    )
    restarts: int = Field(
        default=50, ge=0, description="times that one submission starts again, at most"
    )
    crashes: int = Field(default=3, ge=0, description="crashes after which it starts again")
    node_local: str | None = Field(
        default=None,
        description="folder on each node's own disk, as $TMPDIR, for compilers' caches",
    )
    offline: bool = Field(default=False, description="whether nodes cannot reach the internet")
    bandwidth_floor: float | None = Field(
        default=None, gt=0, description="GB/s that an all-reduce over the nodes has to reach"
    )
    lead_seconds: int = Field(
        default=300, ge=0, description="seconds before the time limit at which it saves, at least"
    )

    @model_validator(mode="after")
    def _can_be_written(self) -> Self:
        raise_config_faults([*self._name_faults(), *self._line_faults(), *self._time_faults()])
        return self

    def _name_faults(self) -> Iterator[ConfigFault]:
        for name in self.environment:
            if not re.fullmatch(r"[A-Za-z_]\w*", name):
                yield ConfigFault(
                    "environment",
                    problem=f"'{name}' is not a variable's name",
                    fix="use letters, digits and _",
                )

    def _line_faults(self) -> Iterator[ConfigFault]:
        for field in ("sbatch", "srun", "setup"):
            if any("\n" in line for line in getattr(self, field)):
                yield ConfigFault(
                    field, problem="an entry has several lines", fix="write one entry a line"
                )

    def _time_faults(self) -> Iterator[ConfigFault]:
        try:
            if self.max_time is not None:
                parse_seconds(self.max_time)
        except ValueError as fault:
            yield ConfigFault("max_time", problem=str(fault), fix="write it as 24:00:00")


def site_names() -> tuple[str, ...]:
    """The sites that dtl ships."""
    return tuple(
        sorted(file.stem for file in (find_package_folder("slurm") / "clusters").glob("*.yaml"))
    )


def read_site(site: str) -> Options:
    """A shipped site by its name, or a file. Raises DtlError with every fault found."""
    path = Path(site)
    if path.suffix not in (".yaml", ".yml"):
        if site not in site_names():
            fix = near(site, site_names()) or f"choose one of: {', '.join(site_names())}"
            raise DtlError.of("--cluster", f"no site is named '{site}'", f"{fix}; or name a file")
        path = find_package_folder("slurm") / "clusters" / f"{site}.yaml"
    if not path.is_file():
        raise DtlError.of("--cluster", f"there is no file {path}", "name a site, or its YAML file")
    document = read_yaml(path, record=Options)
    try:
        options = Options.model_validate(document.values)
    except ValidationError as error:
        raise DtlError(*document.faults, *describe_faults(error, document, str(path))) from None
    if document.faults:
        raise DtlError(*document.faults)
    return options


class Plugin(Backend):
    """Job ids are Slurm's; that of a grid's cell is ARRAY_CELL."""

    options: Options

    def render(self, job: Job) -> str:
        import jinja2

        folder = jinja2.FileSystemLoader(find_package_folder("slurm"))
        template = jinja2.Environment(
            loader=folder,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
        )
        template.filters |= {
            "quoted": lambda value: shlex.quote(str(value)),
            "one_line": lambda text: " ".join(str(text).split()),
            "in_double_quotes": _in_double_quotes,
            "expanding": _expanding,
        }
        site = self.options
        return template.get_template("job.sbatch.j2").render(
            job=job,
            site=site,
            flags=[*self._flags(job), *site.sbatch],
            environment=self._environment(job),
            cpus=self._cpus(job),
            srun=[*self._srun(job), *site.srun],
            inside=self._inside(job),
            argv=[
                '"$run"' if word == str(job.run) else shlex.quote(word)
                for word in (self._python(job.argv[0]), *job.argv[1:])
            ],
            python=shlex.quote(self._python(job.argv[0])),
            preflight=job.nodes > 1 or site.gpus_per_node > 0,
            first_port=PORTS.start,
            ports=len(PORTS),
            signals=HANDED_ON,
            stopped=STOPPED,
            cancelled=CANCELLED,
            unfit=UNFIT,
            unfit_nodes=UNFIT_NODES,
        )

    def check(self, job: Job) -> None:
        site, script = self.options, self.render(job)
        if site.account_needed and site.account is None:
            raise DtlError.of("--account", "this site wants an account", FIXES["account"])
        _refuse_odd_paths([job.run, job.folder, *job.cells])
        shell = _run(["bash", "-n"], script)
        if shell.returncode:
            words = _words(shell.stderr)
            raise DtlError.of(SCRIPT, f"no shell script ({words})", "fix setup in the site file")
        asked = _run(["sbatch", "--test-only", *self._arguments(job)], script)
        if asked.returncode:
            raise _refusal(asked.stderr)

    def submit(self, job: Job) -> tuple[str, ...]:
        script = self.render(job)
        for folder in (job.run, *job.cells):
            (folder / "logs").mkdir(parents=True, exist_ok=True)
            (folder / SCRIPT).write_text(script, encoding="utf-8")
        ids: list[str] = []
        for _ in range(job.links):
            before = [f"--dependency=afterany:{ids[-1]}"] if ids else self._arguments(job)
            asked = _run(["sbatch", "--parsable", *before, str(job.run / SCRIPT)])
            if asked.returncode:
                for number in ids:
                    _run(["scancel", number])
                raise _refusal(asked.stderr)
            ids.append(asked.stdout.strip().partition(";")[0])
        return tuple(f"{ids[0]}_{cell}" for cell in range(len(job.cells))) or tuple(ids)

    def states(self, job_ids: Sequence[str]) -> dict[str, JobState]:
        if not job_ids:
            return {}
        form = "%i|%T|%r"
        who = ["--user", getpass.getuser(), "--states=all", "--array", "--noheader"]
        asked = _run(["squeue", *who, f"--format={form}"])
        if asked.returncode:
            raise RunFailed.of("squeue", _words(asked.stderr), FIXES["contact"])
        found = dict.fromkeys(job_ids, JobState("ended"))
        for line in asked.stdout.splitlines():
            number, state, reason = line.strip().split("|", 2)
            if number in found:
                found[number] = _state(state, reason)
        return found

    def cancel(self, job_id: str) -> None:
        state = self.states([job_id])[job_id]
        if state.phase == "queued":
            asked = _run(["scancel", job_id])
        elif state.phase == "running":
            asked = _run(["scancel", "--batch", "--signal=TERM", job_id])
        else:
            return
        if asked.returncode:
            raise RunFailed.of("scancel", _words(asked.stderr), FIXES["contact"])

    def logs(self, job: Job) -> list[Path]:
        cells = [job.run / "logs" / f"cell-{number}.log" for number in range(len(job.cells))]
        return cells or [job.run / "logs" / "job.log"]

    def _flags(self, job: Job) -> Iterator[str]:
        """The lines for sbatch."""
        site = self.options
        yield _flag("job-name", re.sub(r"[^\w.+-]", "_", job.name))
        for name in ("partition", "account", "qos", "constraint"):
            if (value := getattr(site, name)) is not None:
                yield _flag(name, value)
        tasks = 1 if site.launcher == "torchrun" else job.processes
        yield from (_flag("nodes", job.nodes), _flag("ntasks-per-node", tasks))
        yield _flag("cpus-per-task", self._cpus(job))
        yield from self._gpu_flags(job)
        if site.memory is not None:
            yield _flag("mem", site.memory)
        if site.exclusive:
            yield "--exclusive"
        if job.seconds is not None:
            yield _flag("time", slurm_time(job.seconds))
        yield f"--signal=B:USR1@{self._lead(job)}"
        yield "--requeue" if site.requeue else "--no-requeue"
        if job.cells:
            yield f"--array=0-{len(job.cells) - 1}"
        log = str(self.logs(job)[0]).replace("%", "%%")
        log = log.replace("cell-0.log", "cell-%a.log") if job.cells else log
        yield from (_flag("output", log), "--open-mode=append", _flag("chdir", job.folder))

    def _gpu_flags(self, job: Job) -> Iterator[str]:
        site = self.options
        if site.gpus_per_node == 0:
            return
        kind = site.gres.partition(":")[2]
        typed = f"{kind}:" if kind else ""
        if site.gpu_request == "gpus-per-node":
            yield _flag("gpus-per-node", f"{typed}{site.gpus_per_node}")
        elif site.gpu_request == "gres":
            yield _flag("gres", f"{site.gres}:{site.gpus_per_node}")
        elif site.gpu_request == "gpus-per-task":
            each = site.gpus_per_node if site.launcher == "torchrun" else 1
            yield _flag("gpus-per-task", f"{typed}{each}")

    def _cpus(self, job: Job) -> int:
        """CPU cores of one Slurm task."""
        ranks = job.processes if self.options.launcher == "torchrun" else 1
        return ranks * self.options.cpus_per_task

    def _lead(self, job: Job) -> int:
        lead = max(job.lead_seconds, self.options.lead_seconds)
        return int(min(lead, (job.seconds or 2 * LONGEST_LEAD) / 2, LONGEST_LEAD))

    def _environment(self, job: Job) -> dict[str, str]:
        """What dtl itself sets; the site's own comes after it."""
        site = self.options
        values = {**job.environment, "OMP_NUM_THREADS": str(site.cpus_per_task)}
        if site.interface is not None:
            values |= dict.fromkeys(("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"), site.interface)
        if site.launcher == "srun":
            values["DTL_SLURM_TASKS_PER_NODE"] = str(job.processes)
        if site.node_local is not None:
            values["DTL_NODE_LOCAL"] = site.node_local
        return values | (OFFLINE if site.offline else {})

    def _srun(self, job: Job) -> Iterator[str]:
        tasks = 1 if self.options.launcher == "torchrun" else job.processes
        yield from ("--kill-on-bad-exit=1", f"--nodes={job.nodes}")
        yield from (f"--ntasks={job.nodes * tasks}", f"--ntasks-per-node={tasks}")
        if self.options.gpus_per_node and self.options.gpu_request != "gpus-per-task":
            yield "--gpu-bind=none"  # every rank sees all of its node and takes its own
        container = self.options.container
        if container is not None and container.kind == "pyxis":
            mounts = ",".join(self._mounts(job, container))
            yield shlex.quote(f"--container-image={container.image}")
            yield shlex.quote(f"--container-mounts={mounts}")
            yield shlex.quote(f"--container-workdir={job.folder}")
            yield from map(shlex.quote, container.options)

    def _inside(self, job: Job) -> str:
        """What stands before a command for it to run in the container."""
        container = self.options.container
        if container is None or container.kind == "pyxis":
            return ""
        mounts, image = self._mounts(job, container), container.image
        if container.kind == "apptainer":
            amd = "--rocm" in container.options
            devices = ["--nv"] if self.options.gpus_per_node and not amd else []
            words = ["apptainer", "exec", *devices, "--pwd", str(job.folder)]
            words += [word for mount in mounts for word in ("--bind", mount)]
        else:
            words = ["enroot", "start", *(f"--mount={mount}" for mount in mounts)]
        return shlex.join([*words, *container.options, image]) + " "

    def _mounts(self, job: Job, container: Container) -> list[str]:
        paths = dict.fromkeys(str(path) for path in (job.folder, job.run))
        own = [f"{path}:{path}" for path in paths]
        return [
            *own,
            *(mount if ":" in mount else f"{mount}:{mount}" for mount in container.mounts),
        ]

    def _python(self, ours: str) -> str:
        inside = "python3" if self.options.container is not None else ours
        return self.options.python or inside

    def _arguments(self, job: Job) -> list[str]:
        """What sbatch is told beside the script."""
        if job.after is None:
            return []
        how = "afterany" if job.after_any else "afterok"
        return [f"--dependency={how}:{job.after}", "--kill-on-invalid-dep=yes"]


def slurm_time(seconds: float) -> str:
    """As Slurm reads it: 5400 -> '0-01:30:00'."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{days}-{hours:02d}:{minutes:02d}:{rest:02d}"


def _flag(name: str, value: object) -> str:
    """For a line of sbatch, whose own reader knows double quotes and the backslash."""
    text = str(value)
    if re.fullmatch(r"[\w./:=,+@%-]*", text):
        return f"--{name}={text}"
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'--{name}="{escaped}"'


def _in_double_quotes(text: str) -> str:
    return re.sub(r'([\\"`$])', r"\\\1", text)


def _expanding(text: str) -> str:
    """In double quotes, where $NAME and ${NAME} are looked up and nothing is run."""
    escaped = re.sub(r'([\\"`])', r"\\\1", text)
    return re.sub(r"\$(?![A-Za-z_]|\{[A-Za-z_]\w*\})", r"\\$", escaped)


def _refuse_odd_paths(paths: list[Path]) -> None:
    for path in paths:
        if not str(path).isprintable() or "\\" in str(path):
            raise DtlError.of(
                "run.dir",
                f"{str(path)!r} cannot stand in a job script",
                "choose a folder without backslashes and line breaks",
            )


def _run(argv: list[str], text: str | None = None) -> subprocess.CompletedProcess[str]:
    """Ask a command of Slurm's. Raises DtlError where it is not installed or does not answer."""
    asked = partial(subprocess.run, capture_output=True, text=True, check=False)
    try:
        done: subprocess.CompletedProcess[str] = asked(argv, input=text, timeout=ANSWER_SECONDS)
    except FileNotFoundError:
        raise DtlError.of(
            argv[0], "there is no such command here", "use a login node of the cluster"
        ) from None
    except subprocess.TimeoutExpired:
        raise RunFailed.of(argv[0], "does not answer", FIXES["contact"]) from None
    return done


def _words(printed: str) -> str:
    """What a command of Slurm's complained of, in one line."""
    lines = [re.sub(r"^\w+: (error|fatal): ", "", line) for line in printed.splitlines()]
    return "; ".join(line.strip() for line in lines if line.strip()) or "it does not say why"


def _refusal(printed: str) -> DtlError:
    """Slurm's own words, and what fixes it."""
    words = _words(printed)
    fix = next((fix for word, fix in FIXES.items() if word in words.lower()), OTHERWISE)
    return DtlError.of("sbatch", words, fix)


def _state(state: str, reason: str) -> JobState:
    told = "" if reason == "None" else reason
    if state in ("PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"):
        return JobState("queued", told)
    if state in ("RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING"):
        return JobState("running", "" if state == "RUNNING" else state.lower())
    return JobState("ended", state.lower())
