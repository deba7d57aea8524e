"""The resources that a run uses: devices, wall time, and energy where the devices count it."""

from __future__ import annotations

import ctypes
import os
import socket
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dtl.core.errors import DtlError
from dtl.core.files import read_record, write_record

if TYPE_CHECKING:
    import torch

    from dtl.engine.base import Engine

NVML = "libnvidia-ml.so.1"


@dataclass(frozen=True)
class Usage:
    """The resources of all launches of a run, each up to its last save. `energy_joules`: of the
    GPUs; None where one did not count it."""

    hardware: tuple[str, ...]
    seconds: float
    energy_joules: float | None


class UsageMeter:
    """Measures one launch, from its creation on."""

    def __init__(self, folder: Path, engine: Engine) -> None:
        """Start measuring. Every rank must call. `folder`: of the records, one for each launch."""
        self._engine = engine
        self._start_time, self._clock = time.time(), time.monotonic()
        self._file = folder / f"launch-{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}.json"
        devices = engine.all_gather_object([_describe_device(engine.device)])
        self._devices = Counter(_unique_devices(devices))
        self._uuid = _read_uuid(engine.device)
        self._energy_at_start = _read_energy(self._uuid)

    def write(self) -> None:
        """Write what this launch has used so far. Every rank must call."""
        now, start = _read_energy(self._uuid), self._energy_at_start
        is_known = now is not None and start is not None
        used = now - start if now is not None and start is not None else 0.0
        joules, counted = self._engine.all_reduce_sum(used, float(is_known))
        if not self._engine.is_main_process:
            return
        self._file.parent.mkdir(exist_ok=True)
        write_record(
            self._file,
            {
                "began": self._start_time,
                "seconds": time.monotonic() - self._clock,
                "devices": dict(self._devices),
                "energy_joules": joules if counted == self._engine.world_size else None,
            },
        )


def read_launches(folder: Path) -> list[dict[str, Any]]:
    """Return the record of each launch, the oldest first. A damaged one is named and left out."""
    records = []
    for file in sorted(folder.glob("*.json")):
        try:
            records.append(read_record(file))
        except DtlError as fault:
            print(
                f"{fault.faults[0].location}: left out: {fault.faults[0].problem}", file=sys.stderr
            )
    return sorted(records, key=lambda record: record["began"])


def read_usage(folder: Path) -> Usage | None:
    """Return the usage of all launches together; None where there is no record."""
    launches = read_launches(folder)
    if not launches:
        return None
    energies = [launch["energy_joules"] for launch in launches]
    named = (f"{n} x {name}" for launch in launches for name, n in launch["devices"].items())
    return Usage(
        hardware=tuple(dict.fromkeys(named)),
        seconds=sum(launch["seconds"] for launch in launches),
        energy_joules=None if None in energies else sum(energies),
    )


def _describe_device(device: torch.device) -> tuple[str, str]:
    """Return the address of a device and its name; all processes on the CPU of a machine share
    these."""
    host = socket.gethostname()
    if device.type == "cuda":
        import torch

        return f"{host}:{device.index}", torch.cuda.get_device_name(device)
    return host, f"machine with {os.cpu_count()} CPU cores"


def _unique_devices(devices: list[tuple[str, str]]) -> list[str]:
    return list(dict(devices).values())


def _read_uuid(device: torch.device) -> str | None:
    """Return NVML's name of the device; None where it is not a GPU."""
    if device.type != "cuda":
        return None
    import torch

    return f"GPU-{torch.cuda.get_device_properties(device).uuid}"


def _read_energy(uuid: str | None) -> float | None:
    """Return the joules that a GPU has used since its driver was loaded; None where it does not
    count them."""
    if uuid is None:
        return None
    try:
        library = ctypes.CDLL(NVML)
    except OSError:
        return None
    handle, millijoules = ctypes.c_void_p(), ctypes.c_ulonglong()
    is_available = (
        library.nvmlInit_v2() == 0
        and library.nvmlDeviceGetHandleByUUID(uuid.encode(), ctypes.byref(handle)) == 0
        and library.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(millijoules)) == 0
    )
    return millijoules.value / 1000 if is_available else None
