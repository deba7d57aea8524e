"""One writer a run folder: a lease with a heartbeat, since some cluster disks fake file locks."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from typing import Any, Self

from dtl.core.errors import DtlError, RunFailed

BEAT_SECONDS = 5.0
STALE_SECONDS = 60.0
SETTLE_SECONDS = 0.2  # between taking a stale lease and believing that it is ours


class TakenOver(RunFailed):
    """The folder is another process's now: this one must write nothing more into it."""


class Lease:
    """Held while a run is written. `lost` tells that another process has taken the folder over."""

    def __init__(self, folder: Path, *, wait: float = 0.0) -> None:
        """`wait`: seconds in which another holder may turn out to be lost."""
        self.path, self.wait = folder / "lease.json", wait
        self.token = uuid.uuid4().hex
        self._ended = threading.Event()
        self._beating = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Self:
        """Take the folder. Raises DtlError while somebody else holds it."""
        until = time.monotonic() + self.wait
        while not (created := self._create()) and time.monotonic() < until:
            holder = self._read()
            if holder is None or not _alive(holder) or holder.get("host") == socket.gethostname():
                break
            time.sleep(0.5)
        if not created:
            holder = self._read()
            if holder is not None and _alive(holder):
                raise DtlError.of(
                    str(self.path.parent),
                    f"is being written by process {holder['process']} on {holder['host']}",
                    "wait for that run, or end it; a lease without heartbeat is free after "
                    f"{STALE_SECONDS:.0f} s",
                )
            self._write()
            time.sleep(SETTLE_SECONDS)
            if self.lost:
                raise DtlError.of(
                    str(self.path.parent), "another process took it at the same time", "wait for it"
                )
        self._beating.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._beating.join()
        if not self.lost:
            self.path.unlink(missing_ok=True)

    @property
    def lost(self) -> bool:
        """Whether the folder is another process's now."""
        holder = self._read()
        return holder is None or holder.get("token") != self.token

    def hold(self) -> None:
        """Raises TakenOver when the folder is another process's now."""
        if self.lost:
            holder = self._read() or {"process": "?", "host": "?"}
            raise TakenOver.of(
                str(self.path.parent),
                f"was taken over by process {holder['process']} on {holder['host']}",
                "end one of the two; this one has written nothing since",
            )

    def _record(self) -> str:
        return json.dumps(
            {
                "token": self.token,
                "host": socket.gethostname(),
                "process": os.getpid(),
                "began": _began(os.getpid()),
                "beat": time.time(),
            }
        )

    def _create(self) -> bool:
        """Make the file unless it is there; linking a whole file into place is atomic."""
        staged = self._staged()
        try:
            os.link(staged, self.path)
            return True
        except FileExistsError:
            return False
        finally:
            staged.unlink()

    def _write(self) -> None:
        self._staged().replace(self.path)

    def _staged(self) -> Path:
        staged = self.path.with_name(f".lease-{self.token}")
        staged.write_text(self._record(), encoding="utf-8")
        return staged

    def _read(self) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8"))
            return found
        except (OSError, ValueError):
            return None

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            if self.lost:
                return
            self._write()


def holder_here(folder: Path) -> int | None:
    """The process on this machine that writes the folder; None where there is none."""
    holder = Lease(folder)._read()
    if holder is None or holder.get("host") != socket.gethostname() or not _alive(holder):
        return None
    return int(holder["process"])


def is_held(folder: Path) -> bool:
    """Whether a process, on whatever machine, writes the folder."""
    holder = Lease(folder)._read()
    return holder is not None and _alive(holder)


def _alive(holder: dict[str, Any]) -> bool:
    """On this host: whether the process lives. Elsewhere: whether its heart beats."""
    if holder.get("host") == socket.gethostname():
        try:
            os.kill(int(holder["process"]), 0)
        except (ProcessLookupError, KeyError, ValueError):
            return False
        except PermissionError:
            return True
        return _runs(int(holder["process"]), since=holder.get("began"))
    return time.time() - float(holder.get("beat", 0.0)) < STALE_SECONDS


def _runs(process: int, *, since: str | None) -> bool:
    """Whether it is no zombie, nor another process that was given its number after it had ended."""
    state = _state(process)
    return state[:1] != ["Z"] and (since is None or not state or state[19] == since)


def _began(process: int) -> str | None:
    """When it began, in ticks since the machine was started; None where nobody tells."""
    state = _state(process)
    return state[19] if state else None


def _state(process: int) -> list[str]:
    """What Linux tells of a process, from its state on; elsewhere nothing."""
    try:
        status = Path(f"/proc/{process}/stat").read_text(encoding="utf-8")
    except OSError:
        return []
    return status.rpartition(")")[2].split()
