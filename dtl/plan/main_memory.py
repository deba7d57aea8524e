"""The main memory that this process may use, and what the kernel has killed for the lack of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

CGROUP_ROOT = Path("/sys/fs/cgroup")
CGROUPS_OF_PROCESS = Path("/proc/self/cgroup")
LIMIT_FILES = ("memory.max", "memory.limit_in_bytes")  # cgroup v2, v1
OOM_KILL_FILES = (
    "/sys/fs/cgroup/memory.events",
    "/sys/fs/cgroup/memory/memory.oom_control",
    "/proc/vmstat",
)


def main_memory_bytes() -> int:
    """Return the bytes of main memory that this process may use: those of the machine, or the
    limit of its container or Slurm job."""
    import psutil

    return min([int(psutil.virtual_memory().total), *_cgroup_limits()])


def count_oom_kills() -> int:
    """Return how many processes of this container, or else of this machine, the kernel has killed
    so far because main memory was full; 0 where it does not say."""
    for file in OOM_KILL_FILES:
        try:
            lines = Path(file).read_text(encoding="utf-8").splitlines()
        except OSError:
            continue
        for line in lines:
            key, _, number = line.partition(" ")
            if key == "oom_kill":
                return int(number)
    return 0


def _cgroup_limits() -> Iterator[int]:
    """Yield the limits of the cgroups of this process and of those above them, in bytes."""
    try:
        lines = CGROUPS_OF_PROCESS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root = CGROUP_ROOT / "memory" if controllers else CGROUP_ROOT
        folder = root / path.lstrip("/")
        for each in (folder, *folder.parents):
            if each.is_relative_to(root):
                yield from _read_limits(each)


def _read_limits(folder: Path) -> Iterator[int]:
    for name in LIMIT_FILES:
        try:
            text = (folder / name).read_text(encoding="utf-8").strip()
        except OSError:
            continue
        if text.isdigit():  # "max" means no limit
            yield int(text)
