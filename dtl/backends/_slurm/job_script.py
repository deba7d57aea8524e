"""Render a job script from the template and a site file."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from dtl.backends._slurm.site import Container, Site
from dtl.backends.base import CANCELLED, EXCLUDED_NODES, UNFIT_NODE, Job
from dtl.core.errors import DtlError, control_characters
from dtl.core.files import HASH
from dtl.core.package_files import find_package_folder
from dtl.core.process_env import JOB_PORTS
from dtl.core.signals import FORWARDED_BY_TORCHRUN, STOPPED

SCRIPT = "job.sbatch"
IDLE_STARTS = 3  # starts in a row without a new step, after which a job does not restart
MAX_LEAD_SECONDS = 65_535.0  # the most that sbatch accepts
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "WANDB_MODE": "offline",
}


def render_script(site: Site, job: Job) -> str:
    """Return the text of the job script."""
    import jinja2

    template = jinja2.Environment(
        loader=jinja2.FileSystemLoader(find_package_folder("slurm")),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    template.filters |= {
        "quoted": lambda value: shlex.quote(str(value)),
        "one_line": lambda text: " ".join(str(text).split()),
        "in_double_quotes": _escape_in_double_quotes,
        "expanding": _escape_but_variables,
    }
    python = site_python(site, job)
    return template.get_template("job.sbatch.j2").render(
        job=job,
        site=site,
        flags=[_single_line(flag) for flag in (*_sbatch_flags(site, job), *site.sbatch)],
        environment=_environment(site, job),
        cpus=_cpus_per_task(site, job),
        srun=[_single_line(flag) for flag in (*_srun_flags(site, job), *site.srun)],
        inside=_container_prefix(site, job),
        argv=[
            '"$run"' if word == str(job.run_folder) else shlex.quote(word)
            for word in (python, *job.argv[1:])
        ],
        python=shlex.quote(python),
        preflight=job.nodes > 1 or site.gpus_per_node > 0,
        first_port=JOB_PORTS.start,
        ports=len(JOB_PORTS),
        signals=FORWARDED_BY_TORCHRUN,
        stopped=STOPPED,
        cancelled=CANCELLED,
        unfit_node=UNFIT_NODE,
        excluded_nodes=EXCLUDED_NODES,
        hash=HASH,
        idle_starts=IDLE_STARTS,
        lead_seconds=_lead_seconds(site, job),
    )


def log_files(job: Job) -> list[Path]:
    """Return the files of a job's output: one, or one per run of an array."""
    logs = job.run_folder / "logs"
    return [logs / f"task-{number}.log" for number in range(len(job.array_runs))] or [
        logs / "job.log"
    ]


def format_time(seconds: float) -> str:
    """Return a time as Slurm reads it: 5400 -> '0-01:30:00'."""
    minutes, seconds_left = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{days}-{hours:02d}:{minutes:02d}:{seconds_left:02d}"


def site_python(site: Site, job: Job) -> str:
    """Return the interpreter of the job."""
    default = "python3" if site.container is not None else job.argv[0]
    return site.python or default


def check_paths(job: Job) -> None:
    """Raise DtlError where a folder has characters that a job script cannot hold."""
    for path in (job.run_folder, job.working_dir, *job.array_runs):
        if not str(path).isprintable() or "\\" in str(path):
            raise DtlError.of(
                "run.dir",
                f"{str(path)!r} cannot be written in a job script",
                "choose a folder without backslashes and line breaks",
            )


def _sbatch_flags(site: Site, job: Job) -> Iterator[str]:
    yield _flag("job-name", re.sub(r"[^\w.+-]", "_", job.name))
    for name in ("partition", "account", "qos", "constraint"):
        if (value := getattr(site, name)) is not None:
            yield _flag(name, value)
    tasks = 1 if site.launcher == "torchrun" else job.processes_per_node
    yield from (_flag("nodes", job.nodes), _flag("ntasks-per-node", tasks))
    yield _flag("cpus-per-task", _cpus_per_task(site, job))
    yield from _gpu_flags(site)
    if site.memory is not None:
        yield _flag("mem", site.memory)
    if site.exclusive:
        yield "--exclusive"
    if job.time_limit_seconds is not None:
        yield _flag("time", format_time(job.time_limit_seconds))
    yield f"--signal=B:USR1@{_lead_seconds(site, job)}"
    yield "--requeue" if site.requeue else "--no-requeue"
    if job.array_runs:
        yield f"--array=0-{len(job.array_runs) - 1}"
    log = str(log_files(job)[0]).replace("%", "%%")
    log = log.replace("task-0.log", "task-%a.log") if job.array_runs else log
    yield from (_flag("output", log), "--open-mode=append", _flag("chdir", job.working_dir))


def _gpu_flags(site: Site) -> Iterator[str]:
    if site.gpus_per_node == 0:
        return
    gpu_type = site.gres.partition(":")[2]
    prefix = f"{gpu_type}:" if gpu_type else ""
    if site.gpu_request == "gpus-per-node":
        yield _flag("gpus-per-node", f"{prefix}{site.gpus_per_node}")
    elif site.gpu_request == "gres":
        yield _flag("gres", f"{site.gres}:{site.gpus_per_node}")
    elif site.gpu_request == "gpus-per-task":
        per_task = site.gpus_per_node if site.launcher == "torchrun" else 1
        yield _flag("gpus-per-task", f"{prefix}{per_task}")


def _cpus_per_task(site: Site, job: Job) -> int:
    ranks = job.processes_per_node if site.launcher == "torchrun" else 1
    return ranks * site.cpus_per_task


def _lead_seconds(site: Site, job: Job) -> int:
    """Return how long before the time limit the run saves: at most half of the time."""
    lead = max(job.lead_seconds, site.lead_seconds)
    half = (job.time_limit_seconds or 2 * MAX_LEAD_SECONDS) / 2
    return int(min(lead, half, MAX_LEAD_SECONDS))


def _environment(site: Site, job: Job) -> dict[str, str]:
    """Return the variables that dtl sets; those of the site come after them."""
    values = {**job.environment, "OMP_NUM_THREADS": str(site.cpus_per_task)}
    if site.interface is not None:
        values |= dict.fromkeys(("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"), site.interface)
    if site.launcher == "srun":
        values["DTL_SLURM_TASKS_PER_NODE"] = str(job.processes_per_node)
    if site.node_local is not None:
        values["DTL_NODE_LOCAL"] = site.node_local
    return values | (OFFLINE if site.offline else {})


def _srun_flags(site: Site, job: Job) -> Iterator[str]:
    tasks = 1 if site.launcher == "torchrun" else job.processes_per_node
    yield from ("--kill-on-bad-exit=1", f"--nodes={job.nodes}")
    yield from (f"--ntasks={job.nodes * tasks}", f"--ntasks-per-node={tasks}")
    if site.gpus_per_node and site.gpu_request != "gpus-per-task":
        yield "--gpu-bind=none"  # every rank sees all GPUs of its node and takes its own
    container = site.container
    if container is not None and container.kind == "pyxis":
        mounts = ",".join(_mounts(job, container))
        yield shlex.quote(f"--container-image={container.image}")
        yield shlex.quote(f"--container-mounts={mounts}")
        yield shlex.quote(f"--container-workdir={job.working_dir}")
        yield from map(shlex.quote, container.options)


def _container_prefix(site: Site, job: Job) -> str:
    """Return what precedes a command for it to run in the container; pyxis needs nothing."""
    container = site.container
    if container is None or container.kind == "pyxis":
        return ""
    mounts, image = _mounts(job, container), container.image
    if container.kind == "apptainer":
        is_amd = "--rocm" in container.options
        devices = ["--nv"] if site.gpus_per_node and not is_amd else []
        words = ["apptainer", "exec", *devices, "--pwd", str(job.working_dir)]
        words += [word for mount in mounts for word in ("--bind", mount)]
    else:
        words = ["enroot", "start", *(f"--mount={mount}" for mount in mounts)]
    return shlex.join([*words, *container.options, image]) + " "


def _mounts(job: Job, container: Container) -> list[str]:
    folders = dict.fromkeys(str(path) for path in (job.working_dir, job.run_folder))
    return [
        *(f"{path}:{path}" for path in folders),
        *(mount if ":" in mount else f"{mount}:{mount}" for mount in container.mounts),
    ]


def _flag(name: str, value: object) -> str:
    """Return a flag for an #SBATCH line, where double quotes and the backslash are special."""
    text = str(value)
    if re.fullmatch(r"[\w./:=,+@%-]*", text):
        return f"--{name}={text}"
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'--{name}="{escaped}"'


def _single_line(flag: str) -> str:
    """Return a flag unless it would end its line: what follows would be run as a command."""
    if control_characters(flag):
        name = flag.partition("=")[0]
        raise DtlError.of(name, f"{flag!r} has a control character", "remove it")
    return flag


def _escape_in_double_quotes(text: str) -> str:
    return re.sub(r'([\\"`$])', r"\\\1", text)


def _escape_but_variables(text: str) -> str:
    """Escape for double quotes so that $NAME and ${NAME} are expanded and nothing is run."""
    escaped = re.sub(r'([\\"`])', r"\\\1", text)
    return re.sub(r"\$(?![A-Za-z_]|\{[A-Za-z_]\w*\})", r"\\$", escaped)
