"""Build DeepSpeed's C++ extensions once per environment, without waiting for a killed build.

PyTorch marks a build by a file named `lock` in the extension's folder. Every other process waits
until the file is gone, without a limit, also if the build was killed.

Ninja compiles again what another version of ninja, or other flags, have compiled. So an environment
builds with its own ninja, whatever is first in PATH, and in a folder of its own.
"""

from __future__ import annotations

import fcntl
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

import psutil

MARKER = ".dtl-build"  # locked by the process that builds; its content says that a build has begun
LOCK = "lock"  # PyTorch's
FOLDER_VARIABLE = "TORCH_EXTENSIONS_DIR"
POLL_SECONDS = 0.2
# A lock that another program made, and no process of this machine has open, may belong to a build
# on another node that shares the folder. No extension takes this long.
FOREIGN_SECONDS = 600.0


def guard_extension_builds() -> None:
    """Have every build of a DeepSpeed extension in this process go through `exclusive_build`, with
    the ninja of this environment, and below TORCH_EXTENSIONS_DIR, or a folder of this
    environment."""
    from deepspeed.ops.op_builder.builder import OpBuilder
    from torch.utils.cpp_extension import _get_build_directory

    jit_load = OpBuilder.jit_load
    if hasattr(jit_load, "__wrapped__"):
        return

    @wraps(jit_load)
    def guarded(builder: Any, verbose: bool = True) -> Any:
        os.environ.setdefault(FOLDER_VARIABLE, str(_environment_folder()))
        folder = Path(_get_build_directory(builder.name, False))
        with exclusive_build(folder), _own_ninja_first():
            return jit_load(builder, verbose)

    OpBuilder.jit_load = guarded


def _environment_folder() -> Path:
    """Return the folder of the extensions of this environment and its versions."""
    from torch.utils.cpp_extension import get_default_build_root

    words = (sys.prefix, sys.version, *(version(name) for name in ("torch", "deepspeed", "ninja")))
    digest = sha256("\n".join(words).encode()).hexdigest()[:12]
    return Path(get_default_build_root()) / f"dtl-{digest}"


@contextmanager
def _own_ninja_first() -> Iterator[None]:
    """Have the ninja of this environment come first in PATH."""
    import ninja

    path = os.environ.get("PATH", "")
    os.environ["PATH"] = f"{ninja.BIN_DIR}{os.pathsep}{path}"
    try:
        yield
    finally:
        os.environ["PATH"] = path


@contextmanager
def exclusive_build(folder: Path) -> Iterator[None]:
    """Hold the right to build the extension in a folder. A lock of PyTorch that a killed build has
    left is removed, which is reported on stderr."""
    with (folder / MARKER).open("a+", encoding="utf-8") as marker:
        fcntl.flock(marker, fcntl.LOCK_EX)  # ends with the process, however that ends
        _wait_for_lock(folder / LOCK, marker)
        _write(marker, "building\n")
        yield
        _write(marker, "")


def _wait_for_lock(lock: Path, marker: IO[str]) -> None:
    """Wait until PyTorch's lock is gone. It is removed if its build has ended without doing so."""
    marker.seek(0)
    was_killed = bool(marker.read())
    while (age := _age(lock)) is not None:
        if not _is_open(lock) and (was_killed or age > FOREIGN_SECONDS):
            lock.unlink(missing_ok=True)
            print(
                f"dtl: {lock.parent}: an earlier compilation was killed; compiling it again",
                file=sys.stderr,
                flush=True,
            )
        time.sleep(POLL_SECONDS)


def _age(path: Path) -> float | None:
    """Return the seconds since a file was written, or None if there is none."""
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return None


def _is_open(path: Path) -> bool:
    """Return whether a process of this user on this machine has a file open, as PyTorch has its
    lock during a build."""
    for process in psutil.process_iter():
        try:
            if any(file.path == str(path) for file in process.open_files()):
                return True
        except (psutil.Error, OSError):  # another user's, or it has just ended
            continue
    return False


def _write(marker: IO[str], text: str) -> None:
    marker.truncate(0)
    marker.write(text)
    marker.flush()
