"""What a run takes: devices, wall time, and energy where the devices count it."""

from __future__ import annotations

import ctypes
import json
import os
import socket
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dtl.run.folder import write_json

if TYPE_CHECKING:
    import torch

    from dtl.engine.base import Engine

NVML = "libnvidia-ml.so.1"


@dataclass(frozen=True)
class Usage:
    """Of all launches of a run, each up to its last save. `energy`: joules of the GPUs; None where
    one did not count them."""

    hardware: tuple[str, ...]
    seconds: float
    energy: float | None


class Meter:
    """Counts one launch, from here on."""

    def __init__(self, folder: Path, engine: Engine) -> None:
        """Every rank must make one. `folder`: of the notes, one for each launch."""
        self._engine = engine
        self._began, self._clock = time.time(), time.monotonic()
        self._file = folder / f"launch-{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}.json"
        self._devices = Counter(_counted_once(engine.all_gather_object([_device(engine.device)])))
        self._uuid = _uuid(engine.device)
        self._energy = _energy(self._uuid)

    def note(self) -> None:
        """Write what this launch has taken so far. Every rank must call."""
        now = _energy(self._uuid)
        known = now is not None and self._energy is not None
        spent = now - self._energy if now is not None and self._energy is not None else 0.0
        joules, counted = self._engine.all_reduce_sum(spent, float(known))
        if not self._engine.is_first:
            return
        self._file.parent.mkdir(exist_ok=True)
        write_json(
            self._file,
            {
                "began": self._began,
                "seconds": time.monotonic() - self._clock,
                "devices": dict(self._devices),
                "energy_joules": joules if counted == self._engine.ranks else None,
            },
        )


def launches(folder: Path) -> list[dict[str, Any]]:
    """What each launch has noted, the oldest first."""
    notes = [json.loads(file.read_text(encoding="utf-8")) for file in folder.glob("*.json")]
    return sorted(notes, key=lambda note: note["began"])


def read_usage(folder: Path) -> Usage | None:
    """All launches together; None where nothing was noted."""
    notes = launches(folder)
    if not notes:
        return None
    energies = [note["energy_joules"] for note in notes]
    named = (f"{n} x {name}" for note in notes for name, n in note["devices"].items())
    return Usage(
        hardware=tuple(dict.fromkeys(named)),
        seconds=sum(note["seconds"] for note in notes),
        energy=None if None in energies else sum(energies),
    )


def _device(device: torch.device) -> tuple[str, str]:
    """Where it is, and its name; all processes on one machine's cores share these."""
    host = socket.gethostname()
    if device.type == "cuda":
        import torch

        return f"{host}:{device.index}", torch.cuda.get_device_name(device)
    return host, f"machine with {os.cpu_count()} CPU cores"


def _counted_once(devices: list[tuple[str, str]]) -> list[str]:
    return list(dict(devices).values())


def _uuid(device: torch.device) -> str | None:
    """As NVML names the device; None for what is no GPU."""
    if device.type != "cuda":
        return None
    import torch

    return f"GPU-{torch.cuda.get_device_properties(device).uuid}"


def _energy(uuid: str | None) -> float | None:
    """Joules that a GPU has taken since its driver was loaded; None where it does not count."""
    if uuid is None:
        return None
    try:
        library = ctypes.CDLL(NVML)
    except OSError:
        return None
    handle, millijoules = ctypes.c_void_p(), ctypes.c_ulonglong()
    told = (
        library.nvmlInit_v2() == 0
        and library.nvmlDeviceGetHandleByUUID(uuid.encode(), ctypes.byref(handle)) == 0
        and library.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(millijoules)) == 0
    )
    return millijoules.value / 1000 if told else None
