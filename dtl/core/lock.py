"""One writer per folder: a lock file with a heartbeat, because some disks fake file locks."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from dtl.core.errors import DtlError, RunFailed
from dtl.core.files import write_text

HEARTBEAT_SECONDS = 5.0
STALE_SECONDS = 60.0
CONFIRM_SECONDS = 0.2  # between taking a stale lease and checking that it is still ours
OBSERVED_HEARTBEATS = 2.5  # within which a live holder is seen to write
FILE = "lease.json"


@dataclass(frozen=True)
class Holder:
    """Who holds a lease. `heartbeat`: in seconds since 1970, by the clock of its host.
    `start_ticks`: when the process was started; None where that is unknown."""

    token: str
    host: str
    process: int
    heartbeat: float
    start_ticks: str | None = None


class LeaseLost(RunFailed):
    """Another process has taken the folder: this one must not write into it."""


class Lease:
    """The right to write a folder, held while a `with` block runs."""

    def __init__(self, folder: Path, *, wait: float = 0.0) -> None:
        """`wait`: seconds to wait for another holder's heartbeat to stop."""
        self.path, self.wait = folder / FILE, wait
        self.token = uuid.uuid4().hex
        self._ended = threading.Event()
        self._heartbeat = threading.Thread(target=self._write_heartbeats, daemon=True)

    def __enter__(self) -> Self:
        """Take the folder. Raises DtlError while another process holds it."""
        if not self._create_or_wait():
            self._take_stale()
        self._heartbeat.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._heartbeat.join()
        if not self.is_lost:
            self.path.unlink(missing_ok=True)

    @property
    def is_lost(self) -> bool:
        """Whether another process has taken the folder. A damaged file does not mean that: the next
        heartbeat writes it again."""
        holder = read_holder(self.path)
        return not self.path.exists() if holder is None else holder.token != self.token

    def check(self) -> None:
        """Raise LeaseLost if another process has taken the folder."""
        if self.is_lost:
            holder = read_holder(self.path)
            name = f"process {holder.process} on {holder.host}" if holder else "another process"
            raise LeaseLost.of(
                str(self.path.parent),
                f"{name} has taken over the folder",
                "end one of the two; this one has written nothing since",
            )

    def _create_or_wait(self) -> bool:
        """Create the file, or wait for its holder to stop; return whether it was created."""
        deadline = time.monotonic() + self.wait
        while not (is_created := self._create()) and time.monotonic() < deadline:
            holder = read_holder(self.path)
            if holder is None or not is_alive(holder) or holder.host == socket.gethostname():
                break
            time.sleep(0.5)
        return is_created

    def _take_stale(self) -> None:
        """Take the folder of a holder that is not alive. Raises DtlError if it is."""
        holder = read_holder(self.path)
        if (holder is None and self.path.exists()) or _is_in_future(holder):
            holder = self._observe(holder)
        elif holder is not None and not is_alive(holder):
            holder = None
        if holder is not None:
            raise DtlError.of(
                str(self.path.parent),
                f"process {holder.process} on {holder.host} is writing the folder",
                "wait for that run, or end it; a lease expires "
                f"{STALE_SECONDS:.0f} s after its last heartbeat",
            )
        self._write()
        time.sleep(CONFIRM_SECONDS)
        if self.is_lost:
            raise DtlError.of(
                str(self.path.parent),
                "another process has taken the folder at the same time",
                "wait for it",
            )

    def _observe(self, before: Holder | None) -> Holder | None:
        """Return the holder if it writes a heartbeat while this process waits: where the file is
        damaged, or the clock of its host differs, its age says nothing."""
        end = time.monotonic() + OBSERVED_HEARTBEATS * HEARTBEAT_SECONDS
        while time.monotonic() < end:
            holder = read_holder(self.path)
            if holder is not None and holder != before:
                return holder
            time.sleep(min(0.5, HEARTBEAT_SECONDS))
        return None

    def _to_json(self) -> str:
        process = os.getpid()
        holder = Holder(
            self.token, socket.gethostname(), process, time.time(), _read_start_ticks(process)
        )
        return json.dumps(asdict(holder))

    def _create(self) -> bool:
        """Create the file unless it exists; a hard link to a complete file is atomic."""
        staged = self.path.with_name(f".lease-{self.token}")
        write_text(staged, self._to_json(), sync=False)
        try:
            os.link(staged, self.path)
            return True
        except FileExistsError:
            return False
        finally:
            staged.unlink()

    def _write(self) -> None:
        write_text(self.path, self._to_json(), sync=False)

    def _write_heartbeats(self) -> None:
        while not self._ended.wait(HEARTBEAT_SECONDS):
            if self.is_lost:
                return
            self._write()


def find_local_holder(folder: Path) -> int | None:
    """Return the process on this machine that writes the folder, or None."""
    holder = read_holder(folder / FILE)
    if holder is None or holder.host != socket.gethostname() or not is_alive(holder):
        return None
    return holder.process


def is_held(folder: Path) -> bool:
    """Return whether a process, on any machine, writes the folder."""
    holder = read_holder(folder / FILE)
    return holder is not None and is_alive(holder)


def read_holder(path: Path) -> Holder | None:
    """Return who a lease file names; None where there is no file, or a damaged one."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        return Holder(
            str(stored["token"]),
            str(stored["host"]),
            int(stored["process"]),
            float(stored["heartbeat"]),
            stored.get("start_ticks"),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return None


def is_alive(holder: Holder) -> bool:
    """Return whether the process runs on this host, or has a recent heartbeat on another. One in
    the future, by more than the same time, is not recent."""
    if holder.host == socket.gethostname():
        try:
            os.kill(holder.process, 0)
        except (ProcessLookupError, OverflowError):
            return False
        except PermissionError:
            return True
        return _is_same_process(holder.process, holder.start_ticks)
    return abs(time.time() - holder.heartbeat) < STALE_SECONDS


def _is_in_future(holder: Holder | None) -> bool:
    """Return whether a heartbeat of another host is newer than any could be."""
    if holder is None or holder.host == socket.gethostname():
        return False
    return holder.heartbeat - time.time() >= STALE_SECONDS


def _is_same_process(process: int, start_ticks: str | None) -> bool:
    """Return whether it is neither a zombie nor another process with a reused number."""
    stat = _read_stat(process)
    return stat[:1] != ["Z"] and (start_ticks is None or not stat or stat[19] == start_ticks)


def _read_start_ticks(process: int) -> str | None:
    """Return the start time in clock ticks since boot; None where it is unknown."""
    stat = _read_stat(process)
    return stat[19] if stat else None


def _read_stat(process: int) -> list[str]:
    """Return the fields of /proc/PID/stat from the state on; [] on other systems than Linux."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text(encoding="utf-8")
    except OSError:
        return []
    return stat.rpartition(")")[2].split()
