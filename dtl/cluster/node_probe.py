"""Probe a node before a run: code, versions, disks, files and the device of this process."""

from __future__ import annotations

import hashlib
import os
import platform
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dtl.assembly.parts import assemble
from dtl.config.schema import RunConfig, Source
from dtl.core.cache_folder import cache_folder
from dtl.core.errors import DtlError
from dtl.core.units import format_bytes
from dtl.data.cache.encoded import INDEX_FILE
from dtl.launch.leftover_processes import find_gpu_processes
from dtl.models.attention import check_attention_runs_here, needs_gpu
from dtl.models.fingerprint import find_hub_snapshot, fingerprint_model
from dtl.models.locate import locate_model
from dtl.models.pretrained_config import HeadConfig
from dtl.plan.disk import checkpoint_bytes
from dtl.plan.hardware import free_disk_bytes, has_compiler
from dtl.plan.records import Layout
from dtl.plan.zero_stage import NO_COMPILER
from dtl.run.folder import RunFolder
from dtl.run.versions import find_package_versions

Blame = Literal["node", "user"]  # whether another node would do, or the user must fix it
Problem = tuple[str, str]  # problem and fix

LOG_BYTES = 64 * 2**20  # that logs and records may take
MIN_FILES = 1000  # that a run may create
MAX_MEMORY_SHARE = 0.2  # of a device's memory that other processes may hold
MATRIX_SIZE = 1024  # of the test multiplication


@dataclass(frozen=True)
class NodeReport:
    """What a process has found on its node; JSON.

    `versions`: what must be the same on all nodes, by name. `faults`: blame, problem and fix.
    """

    rank: int
    host: str
    versions: dict[str, str]
    faults: tuple[tuple[Blame, str, str], ...]


def probe_node(folder: RunFolder, *, rank: int, local_rank: int) -> NodeReport:
    """Return all that can be found without other processes.

    The first process of a node checks its disks and files, and each process its own device.
    """
    layout = folder.plan.layout
    faults: list[tuple[Blame, str, str]] = []
    if local_rank == 0:
        faults += [("node", *problem) for problem in _check_disks(folder)]
        faults += [("user", *problem) for problem in _check_files(folder)]
        faults += [("user", *problem) for problem in _check_compiler(layout)]
    if layout.device == "cuda":
        faults += [("node", *problem) for problem in _check_device(layout, local_rank)]
    versions = {"code of dtl": package_digest(), "python": platform.python_version()}
    versions |= {name: version or "absent" for name, version in find_package_versions().items()}
    return NodeReport(rank, socket.gethostname(), versions, tuple(faults))


def package_digest() -> str:
    """Return the first digits of a SHA-256 over the Python files of the package."""
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        digest.update(str(file.relative_to(package)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:12]


def _check_disks(folder: RunFolder) -> Iterator[Problem]:
    """Check that there is space for one more checkpoint, and for weights that are staged."""
    config, needed = folder.config, checkpoint_bytes(folder.plan.parameters) + LOG_BYTES
    fix = "free disk space, or choose another run.dir"
    yield from _check_disk(folder.path, needed, "a checkpoint", fix)
    fix = "free disk space, or set DTL_CACHE"
    yield from _check_disk(cache_folder(), LOG_BYTES, "the cache", fix)
    if config.model.staging_dir is not None:
        path = Path(os.path.expandvars(os.path.expanduser(config.model.staging_dir)))
        size = sum(file.stat().st_size for file in _weight_files(config))
        yield from _check_disk(path, size, "a copy of the weights", "remove model.staging_dir")


def _check_disk(path: Path, needed: int, content: str, fix: str) -> Iterator[Problem]:
    try:
        free = free_disk_bytes(str(path))
        if free < needed:
            available = f"{format_bytes(free)} are free in {path}"
            yield f"{available}, and {content} takes {format_bytes(needed)}", fix
        folder = next(one for one in (path.absolute(), *path.absolute().parents) if one.exists())
        system = os.statvfs(folder)
        if system.f_files and system.f_favail < MIN_FILES:
            yield f"only {system.f_favail} files can be created in {path}", fix
        if not os.access(folder, os.W_OK):
            yield f"{folder} is not writable", fix
    except OSError as error:
        yield f"{path} cannot be read ({error.strerror})", fix


def _check_files(folder: RunFolder) -> Iterator[Problem]:
    """Check that this node reads the base and the data with which the run began."""
    config, fix = folder.config, "put the model where this node reads it"
    try:
        for file in _weight_files(config):
            _read_ends(file)
        if fingerprint_model(config.model) != folder.data["base"]:
            problem = f"the weights of {config.model.path} are not those of the run"
            yield problem, "put the same files on every node"
    except DtlError as error:
        yield error.faults[0].problem, fix
    except OSError as error:
        yield _format_unreadable(error), fix
    yield from _check_attention(folder)
    if (cache_folder() / "encoded" / folder.data["key"] / INDEX_FILE).exists():
        return
    for source in _local_sources(config):
        try:
            _read_ends(Path(source.path).expanduser())
        except OSError as error:
            yield _format_unreadable(error), "put the data where this node reads it"


def _check_compiler(layout: Layout) -> Iterator[Problem]:
    """Check that this node can build the optimizer that DeepSpeed runs in main memory."""
    if layout.offload == "optimizer" and not has_compiler():
        yield NO_COMPILER, "install g++ and ninja, or load their modules in the site file"


def _check_attention(folder: RunFolder) -> Iterator[Problem]:
    """Check that this node can run `model.attention`."""
    if not needs_gpu(folder.config.model.attention):
        return
    task = assemble(folder.config).task
    head = HeadConfig(task.auto_class, task.head_config(folder.dataset_stats))
    try:
        check_attention_runs_here(folder.config.model, head)
    except DtlError as error:
        yield error.faults[0].problem, error.faults[0].fix


def _weight_files(config: RunConfig) -> list[Path]:
    """Return the weight files. Raises DtlError where the model is not on this node's disks."""
    folder = Path(locate_model(config.model))
    if not folder.is_dir():
        snapshot = find_hub_snapshot(str(folder), config.model.revision)
        if snapshot is None:
            raise DtlError.of(
                "model.path",
                f"{config.model.path} is not in the cache of the hub",
                "download it on this node",
            )
        folder = snapshot
    return sorted(folder.glob("*.safetensors"))


def _local_sources(config: RunConfig) -> list[Source]:
    """Return the sources that are files or folders."""
    data = config.data
    sources = [data.train, *data.mix, *([data.eval] if data.eval is not None else [])]
    return [
        source
        for source in sources
        if not source.path.startswith("mini:") and _is_local(source.path)
    ]


def _is_local(path: str) -> bool:
    return path.startswith(("/", ".", "~")) or Path(path).exists() or Path(path).suffix != ""


def _read_ends(path: Path) -> None:
    """Read the first and last byte of a file, or list a folder."""
    if path.is_dir():
        next(path.iterdir(), None)
        return
    with path.open("rb") as file:
        file.read(1)
        file.seek(-min(1, path.stat().st_size), os.SEEK_END)
        file.read(1)


def _format_unreadable(error: OSError) -> str:
    return f"{error.filename} cannot be read ({error.strerror})"


def _check_device(layout: Layout, local_rank: int) -> Iterator[Problem]:
    """Check that the GPU exists, is free, and gives the same product twice."""
    import torch

    fix = "use another node"
    count = torch.cuda.device_count()
    if count == 0 or (count > 1 and count < layout.processes_per_node):
        yield f"{count} GPUs are visible (expected {layout.processes_per_node})", fix
        return
    try:
        device = torch.device("cuda", local_rank % count)
        free, total = torch.cuda.mem_get_info(device)
        if free < (1 - MAX_MEMORY_SHARE) * total:
            used = f"{format_bytes(total - free)} of {format_bytes(total)}"
            users = find_gpu_processes([f"GPU-{torch.cuda.get_device_properties(device).uuid}"])
            names = "; ".join(map(str, users)) or "another process"
            yield f"{used} of the memory of GPU {device.index} are in use: {names}", fix
        matrix = torch.randn(MATRIX_SIZE, MATRIX_SIZE, device=device)
        products = [matrix @ matrix for _ in range(2)]
        if not (torch.equal(*products) and products[0].isfinite().all()):
            yield f"GPU {device.index} computes wrong products", fix
    except RuntimeError as error:
        yield f"GPU {local_rank} fails ({str(error).splitlines()[0]})", fix
