"""What one process can see of its node before a run: code, versions, disks, devices, files."""

from __future__ import annotations

import hashlib
import os
import platform
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dtl.config.schema import RunConfig, Source
from dtl.core.cache_folder import cache_folder
from dtl.core.errors import DtlError
from dtl.core.units import format_bytes
from dtl.data.cache.encoded import INDEX_FILE
from dtl.models.fingerprint import find_hub_snapshot, fingerprint_model
from dtl.models.load import locate_model
from dtl.plan.hardware import free_disk_bytes
from dtl.plan.memory import checkpoint_bytes
from dtl.plan.records import Layout
from dtl.run.folder import RunFolder
from dtl.run.versions import find_package_versions

Blame = Literal["node", "user"]  # whether another node would do, or the user must fix it
SMALL = 64 * 2**20  # bytes that logs and notes may take
FILES = 1000  # that a run may make
HELD = 0.2  # share of a device's memory that nobody else may hold
SIDE = 1024  # of the matrices multiplied for a trial


@dataclass(frozen=True)
class Seen:
    """What a process has found; JSON. `same`: what must be the same on all nodes."""

    rank: int
    host: str
    same: dict[str, str]
    faults: tuple[tuple[Blame, str, str], ...]  # blame, problem, fix


def look(folder: RunFolder, *, rank: int, local_rank: int) -> Seen:
    """All that can be seen without the other processes. The first of a node looks at its disks and
    files, each at its own device."""
    layout = folder.plan.layout
    found: list[tuple[Blame, str, str]] = []
    if local_rank == 0:
        found += [("node", *told) for told in _disks(folder)]
        found += [("user", *told) for told in _files(folder)]
    if layout.device == "cuda":
        found += [("node", *told) for told in _device(layout, local_rank)]
    same = {"code of dtl": code(), "python": platform.python_version()}
    same |= {name: version or "absent" for name, version in find_package_versions().items()}
    return Seen(rank, socket.gethostname(), same, tuple(found))


def code() -> str:
    """SHA-256 over the Python files of the package, short."""
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        digest.update(str(file.relative_to(package)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:12]


Told = tuple[str, str]  # problem and fix


def _disks(folder: RunFolder) -> Iterator[Told]:
    """Room for one checkpoint more, and for what is staged."""
    config, wanted = folder.config, checkpoint_bytes(folder.plan.parameters) + SMALL
    yield from _disk(folder.path, wanted, "a checkpoint", "make room, or choose another run.dir")
    yield from _disk(cache_folder(), SMALL, "the cache", "make room, or set DTL_CACHE")
    if config.model.staging_dir is not None:
        place = Path(os.path.expandvars(os.path.expanduser(config.model.staging_dir)))
        size = sum(file.stat().st_size for file in _weights(config))
        yield from _disk(place, size, "the weights", "leave model.staging_dir out")


def _disk(place: Path, wanted: int, what: str, fix: str) -> Iterator[Told]:
    try:
        free = free_disk_bytes(str(place))
        if free < wanted:
            has = f"{format_bytes(free)} are free in {place}"
            yield f"{has}, and {what} takes {format_bytes(wanted)}", fix
        there = next(one for one in (place.absolute(), *place.absolute().parents) if one.exists())
        system = os.statvfs(there)
        if system.f_files and system.f_favail < FILES:
            yield f"only {system.f_favail} files can be made in {place}", fix
        if not os.access(there, os.W_OK):
            yield f"{there} cannot be written", fix
    except OSError as fault:
        yield f"{place} cannot be looked at ({fault.strerror})", fix


def _files(folder: RunFolder) -> Iterator[Told]:
    """The base and the data, as the run began with them."""
    config = folder.config
    try:
        for file in _weights(config):
            _touch(file)
        if fingerprint_model(config.model) != folder.data["base"]:
            what = f"the weights of {config.model.path} are others than those of the run"
            yield what, "put the same files on every node"
    except DtlError as fault:
        yield str(fault).removeprefix("model.path: "), "put the model where this node reads it"
    except OSError as fault:
        yield _unreadable(fault), "put the model where this node reads it"
    if (cache_folder() / "encoded" / folder.data["key"] / INDEX_FILE).exists():
        return
    for source in _sources(config):
        try:
            _touch(Path(source.path).expanduser())
        except OSError as fault:
            yield _unreadable(fault), "put the data where this node reads it"


def _weights(config: RunConfig) -> list[Path]:
    """The weight files. Raises DtlError where the model is not on this node's disks."""
    where = Path(locate_model(config.model))
    if not where.is_dir():
        snapshot = find_hub_snapshot(str(where), config.model.revision)
        if snapshot is None:
            raise DtlError.of(
                "model.path", f"{config.model.path} is not in the cache of the hub", ""
            )
        where = snapshot
    return sorted(where.glob("*.safetensors"))


def _sources(config: RunConfig) -> list[Source]:
    """Those that are files or folders."""
    data = config.data
    named = [data.train, *data.mix, *([data.eval] if data.eval is not None else [])]
    return [one for one in named if not one.path.startswith("mini:") and _is_local(one.path)]


def _is_local(path: str) -> bool:
    return path.startswith(("/", ".", "~")) or Path(path).exists() or Path(path).suffix != ""


def _touch(path: Path) -> None:
    """Read the first and last byte of a file; list a folder."""
    if path.is_dir():
        next(path.iterdir(), None)
        return
    with path.open("rb") as file:
        file.read(1)
        file.seek(-min(1, path.stat().st_size), os.SEEK_END)
        file.read(1)


def _unreadable(fault: OSError) -> str:
    return f"{fault.filename} cannot be read ({fault.strerror})"


def _device(layout: Layout, local_rank: int) -> Iterator[Told]:
    """That the device is there, is nobody else's, and multiplies alike twice."""
    import torch

    fix = "take another node"
    count = torch.cuda.device_count()
    if count == 0 or (count > 1 and count < layout.processes_per_node):
        yield f"{count} of {layout.processes_per_node} GPUs are seen", fix
        return
    try:
        device = torch.device("cuda", local_rank % count)
        free, total = torch.cuda.mem_get_info(device)
        if free < (1 - HELD) * total:
            held = f"{format_bytes(total - free)} of {format_bytes(total)}"
            yield f"GPU {device.index} has {held} held by another process", fix
        matrix = torch.randn(SIDE, SIDE, device=device)
        products = [matrix @ matrix for _ in range(2)]
        if not (torch.equal(*products) and products[0].isfinite().all()):
            yield f"GPU {device.index} multiplies wrongly", fix
    except RuntimeError as fault:
        yield f"GPU {local_rank} fails ({str(fault).splitlines()[0]})", fix
