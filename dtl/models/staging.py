"""Weights on this node's own disk: copied by one process, checked, and then read by all of them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dtl.config.schema import Model
from dtl.core.errors import DtlError, RankFailed
from dtl.core.files import publish_folder
from dtl.core.units import format_bytes
from dtl.models.fingerprint import find_hub_snapshot, fingerprint_model
from dtl.models.locate import locate_model
from dtl.models.trust import PICKLE_SUFFIXES

LOCATION = "model.staging_dir"
CHECKSUM_FILE = "staged.json"  # written last: of each file the size and SHA-256
CHUNK_BYTES = 16 * 2**20  # bytes read at a time
COPY_THREADS = (
    8  # files at a time: a parallel file system gives one reader only a part of its speed
)


def stage_weights(model: Model) -> None:
    """Copy the weights to `model.staging_dir`, unless they are there whole: for one process a node.

    Raises RankFailed, which names the node, where the disk is too small or spoils what it keeps.
    """
    files, target = _list_files(model), _target_folder(model)
    if not is_intact(target):
        _copy_files(files, target, size=sum(file.stat().st_size for file in files))


def resolve_staged_model(model: Model) -> Model:
    """The model as it is read from there, once `stage` has ended. Raises RankFailed where nothing
    has been copied."""
    target = _target_folder(model)
    if not (target / CHECKSUM_FILE).is_file():
        raise _rank_failure(
            f"the first process of this node has left no {target}",
            "name a folder that all processes of a node share",
        )
    return model.model_copy(update={"path": str(target), "revision": None, "stage_to": None})


def is_intact(folder: Path) -> bool:
    """Whether every file of a staged folder has the content that was copied."""
    try:
        sums = json.loads((folder / CHECKSUM_FILE).read_text(encoding="utf-8"))
        return all(_checksum_file(folder / name) == expected for name, expected in sums.items())
    except (OSError, ValueError):
        return False


def _source_folder(model: Model) -> Path:
    where = Path(locate_model(model))
    if where.is_dir():
        return where
    snapshot = find_hub_snapshot(str(where), model.revision)
    if snapshot is None:
        raise DtlError.of(
            LOCATION,
            f"{model.path} is not in this machine's cache of the hub, so there is nothing to copy",
            f"fetch it once where there is a network: hf download {model.path}",
        )
    return snapshot


def _list_files(model: Model) -> list[Path]:
    """What may be read of it: no pickles, no notes of git."""
    return sorted(
        file
        for file in _source_folder(model).iterdir()
        if file.is_file() and file.suffix not in PICKLE_SUFFIXES and not file.name.startswith(".")
    )


def _target_folder(model: Model) -> Path:
    named = os.path.expandvars(os.path.expanduser(str(model.staging_dir)))
    if "$" in named:
        raise _rank_failure(
            f"{model.staging_dir} names a variable that is not set", "name a folder of this node"
        )
    number = hashlib.sha256(fingerprint_model(model).encode()).hexdigest()[:16]
    return Path(named) / f"{_source_folder(model).name}-{number}"


def _copy_files(files: list[Path], target: Path, *, size: int) -> None:
    """Beside it first, and renamed when whole: another run on this node may do the same now."""
    private = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        private.mkdir(parents=True)
        free = shutil.disk_usage(private).free
        if free < size:
            raise _rank_failure(
                f"the weights take {format_bytes(size)}, and {target.parent} has "
                f"{format_bytes(free)} left",
                "name another disk, or leave model.staging_dir out",
            )
        with ThreadPoolExecutor(COPY_THREADS) as pool:
            copies = [private / file.name for file in files]
            read = list(pool.map(_copy_file, files, copies))
            written = list(pool.map(_checksum_file, copies))
        for copy, before, after in zip(copies, read, written, strict=True):
            if before != after:
                raise _rank_failure(
                    f"{copy.name} was not written as it was read", "name another disk"
                )
        sums = {copy.name: found for copy, found in zip(copies, written, strict=True)}
        (private / CHECKSUM_FILE).write_text(json.dumps(sums), encoding="utf-8")
        publish_folder(private, target, is_valid=is_intact)
    except OSError as fault:
        raise _rank_failure(
            str(fault), "name another disk, or leave model.staging_dir out"
        ) from fault
    finally:
        shutil.rmtree(private, ignore_errors=True)


def _copy_file(source: Path, copy: Path) -> list[int | str]:
    digest = hashlib.sha256()
    with source.open("rb") as read, copy.open("wb") as written:
        while piece := read.read(CHUNK_BYTES):
            digest.update(piece)
            written.write(piece)
        return [written.tell(), digest.hexdigest()]


def _checksum_file(file: Path) -> list[int | str]:
    with file.open("rb") as read:
        return [file.stat().st_size, hashlib.file_digest(read, "sha256").hexdigest()]


def _rank_failure(problem: str, fix: str) -> RankFailed:
    return RankFailed.of(f"{LOCATION} on {socket.gethostname()}", problem, fix)
