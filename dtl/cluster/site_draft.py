"""Draft a site file for a cluster, from what its Slurm reports."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

from dtl.cluster.gpu_memory import GpuMemory, find_gpu_memory
from dtl.core.errors import DtlError, near

_GPU = re.compile(r"gpu(?::(?!\d+(?:\(|,|$))[^:,()]+)?:(\d+)")
_GPU_TYPE = re.compile(r"gpu:(?!\d+(?:\(|,|$))([^:,()]+)")
_FAST_INTERFACE = re.compile(r"^\d+: ((?:hsn|ib)\w*)(?:@\S+)?: <[^>]*\bUP\b", re.MULTILINE)
_NO_LIMIT = ("UNLIMITED", "infinite")


@dataclass(frozen=True)
class Partition:
    """A partition, as sinfo reports it. `gpus`: of its node with the fewest."""

    name: str
    is_default: bool
    max_time: str
    gpus: int

    def __str__(self) -> str:
        limit = "no time limit" if self.max_time in _NO_LIMIT else f"at most {self.max_time}"
        return f"{self.name} ({self.gpus} GPUs per node, {limit})"


@dataclass(frozen=True)
class Node:
    """What a job can use of a node. `memory`: MB. `gpu_memory`: None where Slurm does not say."""

    gpus: int
    cpus: int
    memory: int
    gpu_memory: GpuMemory | None


def draft_site_file(*, partition: str | None = None) -> str:
    """Return the text of a site file; what Slurm does not know is a comment in it.

    `partition`: None for the default partition of the cluster. Raises DtlError where Slurm does not
    answer.
    """
    partitions = _query_partitions()
    chosen = _choose_partition(partitions, partition)
    fields = _parse_fields(_run("scontrol", "--oneliner", "show", "partition", chosen.name))
    config = dict(re.findall(r"^(\w+)\s*= (.*)$", _run("scontrol", "show", "config"), re.MULTILINE))
    cluster = config["ClusterName"].strip()
    lines = [
        f"# A draft, from what Slurm reports of partition {chosen.name}. Check it, fill in what",
        "# is commented out where you need it, and give it to dtl submit --cluster.",
        f"description: {_quoted(f'{cluster}, partition {chosen.name}')}",
        "documentation: ''  # the address of the cluster's user guide",
        "# account: NAME  # account that is charged; default: yours",
        *_access_lines(fields),
        f"partition: {_quoted(chosen.name)}",
        *(f"# or: {other}" for other in partitions if other != chosen),
        *_node_lines(_query_nodes(chosen.name)),
        *_time_lines(fields["MaxTime"]),
        f"requeue: {_format_bool(config.get('JobRequeue', '0').strip() == '1')}",
        *_interface_lines(),
        "# modules: []  # environment modules to load",
        "# setup: []  # shell lines after them, as: source $HOME/venv/bin/activate",
        "# node_local: $TMPDIR  # scratch on the node's own disk",
        "# offline: false  # compute nodes have access to the internet",
    ]
    return "\n".join(lines) + "\n"


def _choose_partition(partitions: list[Partition], name: str | None) -> Partition:
    names = [partition.name for partition in partitions]
    if name is not None and name not in names:
        fix = near(name, names) or f"choose one of: {', '.join(names)}"
        raise DtlError.of("--partition", f"Slurm lists no partition '{name}'", fix)
    if name is None:
        return next((one for one in partitions if one.is_default), partitions[0])
    return partitions[names.index(name)]


def _query_partitions() -> list[Partition]:
    """Return every partition that Slurm lists for this user, in its order."""
    partitions: dict[str, Partition] = {}
    for line in _run("sinfo", "--noheader", "--format=%P|%l|%G").splitlines():
        name, max_time, gres = line.split("|", 2)
        name, is_default = name.rstrip("*"), name.endswith("*")
        previous = partitions.get(name)
        gpus = min(_count_gpus(gres), previous.gpus) if previous else _count_gpus(gres)
        partitions[name] = Partition(name, is_default, max_time, gpus)
    if not partitions:
        fix = "ask the administrators which partitions you may use"
        raise DtlError.of("sinfo", "Slurm lists no partition", fix)
    return list(partitions.values())


def _query_nodes(partition: str) -> list[Node]:
    nodes = []
    for line in _run("scontrol", "--oneliner", "show", "node").splitlines():
        fields = _parse_fields(line)
        if partition in fields.get("Partitions", "").split(","):
            cpus = int(fields.get("CPUEfctv", fields["CPUTot"]))
            memory = int(fields["RealMemory"]) - int(fields.get("MemSpecLimit", 0))
            gpu_memory = find_gpu_memory(
                _GPU_TYPE.findall(fields["Gres"]), fields.get("AvailableFeatures", "").split(",")
            )
            nodes.append(Node(_count_gpus(fields["Gres"]), cpus, memory, gpu_memory))
    if not nodes:
        fix = "choose another with --partition"
        raise DtlError.of("scontrol", f"Slurm lists no node of partition '{partition}'", fix)
    return nodes


def _node_lines(nodes: list[Node]) -> Iterator[str]:
    """Yield what every node has."""
    gpus = min(node.gpus for node in nodes)
    cpus = min(node.cpus for node in nodes)
    memory = min(node.memory for node in nodes)
    if len(set(nodes)) > 1:
        yield "# The nodes of the partition differ: each has at least this. See `constraint`."
    yield f"gpus_per_node: {gpus}"
    yield f"gpu_request: {'gres' if gpus else 'none'}"
    if gpus:
        yield _gpu_memory_line([node.gpu_memory for node in nodes])
    yield f"cpus_per_task: {max(1, cpus // max(1, gpus))}"
    yield f"memory: {memory}M"


def _gpu_memory_line(memories: list[GpuMemory | None]) -> str:
    """Return the memory of the smallest GPU; a comment to fill in where it is unknown."""
    known = [memory for memory in memories if memory is not None]
    if len(known) < len(memories):
        return "# gpu_memory: GiB  # memory of one GPU, which Slurm does not know: fill it in"
    smallest = min(known, key=lambda memory: memory.gib)
    others = " or ".join(map(str, smallest.alternatives))
    note = f"; this model also has {others}, which Slurm does not say" if others else ""
    return f"gpu_memory: {smallest.gib}  # GiB of one GPU, for the plan{note}"


def _access_lines(partition: dict[str, str]) -> Iterator[str]:
    """Yield who may use the partition, if not everybody."""
    for field, key in {"AllowAccounts": "account", "AllowQos": "qos"}.items():
        if partition.get(field, "ALL") != "ALL":
            yield f"# The partition accepts {key}: {partition[field]}"


def _time_lines(max_time: str) -> Iterator[str]:
    if max_time in _NO_LIMIT:
        yield "# max_time: the partition has no limit"
    else:
        yield f"max_time: {_quoted(max_time)}"


def _interface_lines() -> Iterator[str]:
    """Yield the fast network interfaces of this machine, as far as their names show them."""
    interfaces = _FAST_INTERFACE.findall(_run("ip", "-o", "link")) if shutil.which("ip") else []
    slingshot = [name for name in interfaces if name.startswith("hsn")]
    if interfaces:
        yield "# That of this machine; compute nodes may have others."
        yield f"interface: {','.join(slingshot or interfaces[:1])}"
    else:
        yield "# interface: NAME  # fast network of the nodes, as ib0; default: NCCL chooses"


def _run(*command: str) -> str:
    """Return what a command prints."""
    if not shutil.which(command[0]):
        problem = f"{command[0]} is not on PATH, so this machine has no Slurm"
        raise DtlError.of("", problem, "run it on a login node of the cluster")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise DtlError.of(" ".join(command), reason, "run it by hand")
    return done.stdout


def _parse_fields(line: str) -> dict[str, str]:
    return dict(re.findall(r"(?:^|\s)(\w+)=(\S*)", line))


def _count_gpus(gres: str) -> int:
    return sum(int(count) for count in _GPU.findall(gres))


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _format_bool(value: bool) -> str:
    return "true" if value else "false"
