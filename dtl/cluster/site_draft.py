"""A first site file for a cluster, from what its Slurm says of itself."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

from dtl.core.errors import DtlError, near

_GPU = re.compile(r"gpu(?::(?!\d+(?:\(|,|$))[^:,()]+)?:(\d+)")
_FAST_LINK = re.compile(r"^\d+: ((?:hsn|ib)\w*)(?:@\S+)?: <[^>]*\bUP\b", re.MULTILINE)
_NO_LIMIT = ("UNLIMITED", "infinite")


@dataclass(frozen=True)
class Partition:
    """What sinfo says of a partition; GPUs are those of its node with the fewest."""

    name: str
    is_default: bool
    longest: str
    gpus: int

    def __str__(self) -> str:
        limit = "no time limit" if self.longest in _NO_LIMIT else f"at most {self.longest}"
        return f"{self.name} ({self.gpus} GPUs a node, {limit})"


@dataclass(frozen=True)
class Node:
    """What a job can have of a node. `memory`: MB."""

    gpus: int
    cpus: int
    memory: int


def draft(*, partition: str | None = None) -> str:
    """The text of a site file; what Slurm cannot know stands in it as a comment.

    `partition`: left out, the cluster's default one. Raises DtlError where Slurm does not answer.
    """
    partitions = _partitions()
    chosen = _choose(partitions, partition)
    named = _fields(_ask("scontrol", "--oneliner", "show", "partition", chosen.name))
    config = dict(re.findall(r"^(\w+)\s*= (.*)$", _ask("scontrol", "show", "config"), re.MULTILINE))
    cluster = config["ClusterName"].strip()
    lines = [
        f"# A draft from what Slurm says of partition {chosen.name}. Look through it, fill in",
        "# what is commented out where you need it, and name it to dtl submit --cluster.",
        f"description: {_quoted(f'{cluster}, partition {chosen.name}')}",
        "documentation: ''  # the address of the cluster's user guide",
        "# account: NAME  # what jobs are charged to; left out: your default one",
        *_admission(named),
        f"partition: {_quoted(chosen.name)}",
        *(f"# or: {other}" for other in partitions if other != chosen),
        *_of_a_node(_nodes(chosen.name)),
        *_of_time(named["MaxTime"]),
        f"requeue: {_truth(config.get('JobRequeue', '0').strip() == '1')}",
        *_interface(),
        "# modules: []  # loaded before the run",
        "# setup: []  # shell lines after them, as: source $HOME/venv/bin/activate",
        "# node_local: $TMPDIR  # scratch on the node's own disk",
        "# offline: false  # compute nodes reach the internet",
    ]
    return "\n".join(lines) + "\n"


def _choose(partitions: list[Partition], name: str | None) -> Partition:
    names = [partition.name for partition in partitions]
    if name is not None and name not in names:
        choose = f"choose one of: {', '.join(names)}"
        fix = near(name, names) or choose
        raise DtlError.of("--partition", f"Slurm shows no partition '{name}'", fix)
    if name is None:
        return next((found for found in partitions if found.is_default), partitions[0])
    return partitions[names.index(name)]


def _partitions() -> list[Partition]:
    """Every partition that Slurm shows to this user, in its order."""
    found: dict[str, Partition] = {}
    for line in _ask("sinfo", "--noheader", "--format=%P|%l|%G").splitlines():
        name, longest, gres = line.split("|", 2)
        name, is_default = name.rstrip("*"), name.endswith("*")
        seen = found.get(name)
        gpus = min(_gpus(gres), seen.gpus) if seen else _gpus(gres)
        found[name] = Partition(name, is_default, longest, gpus)
    if not found:
        fix = "ask who runs the cluster which partitions you may use"
        raise DtlError.of("sinfo", "Slurm shows you no partition", fix)
    return list(found.values())


def _nodes(partition: str) -> list[Node]:
    """The nodes of a partition."""
    nodes = []
    for line in _ask("scontrol", "--oneliner", "show", "node").splitlines():
        fields = _fields(line)
        if partition in fields.get("Partitions", "").split(","):
            cpus = int(fields.get("CPUEfctv", fields["CPUTot"]))
            memory = int(fields["RealMemory"]) - int(fields.get("MemSpecLimit", 0))
            nodes.append(Node(_gpus(fields["Gres"]), cpus, memory))
    if not nodes:
        fix = "name another with --partition"
        raise DtlError.of("scontrol", f"Slurm shows no node of partition '{partition}'", fix)
    return nodes


def _of_a_node(nodes: list[Node]) -> Iterator[str]:
    """What every one of the nodes has."""
    gpus = min(node.gpus for node in nodes)
    cpus = min(node.cpus for node in nodes)
    memory = min(node.memory for node in nodes)
    if len(set(nodes)) > 1:
        yield "# The partition's nodes differ: this is what each of them has. See `constraint`."
    yield f"gpus_per_node: {gpus}"
    yield f"gpu_request: {'gres' if gpus else 'none'}"
    if gpus:
        yield "# gpu_memory: 80  # GiB of one GPU, for the plan"
    yield f"cpus_per_task: {max(1, cpus // max(1, gpus))}"
    yield f"memory: {memory}M"


def _admission(partition: dict[str, str]) -> Iterator[str]:
    """Who may use the partition, if not everybody."""
    for field, key in {"AllowAccounts": "account", "AllowQos": "qos"}.items():
        if partition.get(field, "ALL") != "ALL":
            yield f"# The partition takes {key}: {partition[field]}"


def _of_time(longest: str) -> Iterator[str]:
    if longest in _NO_LIMIT:
        yield "# max_time: the partition has no limit"
    else:
        yield f"max_time: {_quoted(longest)}"


def _interface() -> Iterator[str]:
    """The fast network of this machine, if its name shows which it is."""
    links = _FAST_LINK.findall(_ask("ip", "-o", "link")) if shutil.which("ip") else []
    slingshot = [link for link in links if link.startswith("hsn")]
    if links:
        yield "# Seen on this machine; compute nodes may have others."
        yield f"interface: {','.join(slingshot or links[:1])}"
    else:
        yield "# interface: NAME  # the nodes' fast network, as ib0; left out: NCCL chooses"


def _ask(*command: str) -> str:
    """What a command prints."""
    if not shutil.which(command[0]):
        problem = f"{command[0]} is not on PATH, so this machine has no Slurm"
        raise DtlError.of("", problem, "run it on a login node of the cluster")
    asked = subprocess.run(command, capture_output=True, text=True, check=False)
    if asked.returncode:
        said = (asked.stderr.strip().splitlines() or [f"exit code {asked.returncode}"])[-1]
        raise DtlError.of(" ".join(command), said, "try it by hand")
    return asked.stdout


def _fields(line: str) -> dict[str, str]:
    return dict(re.findall(r"(?:^|\s)(\w+)=(\S*)", line))


def _gpus(gres: str) -> int:
    return sum(int(count) for count in _GPU.findall(gres))


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _truth(value: bool) -> str:
    return "true" if value else "false"
