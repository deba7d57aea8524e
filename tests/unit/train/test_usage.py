"""The usage of a run is summed over its launches; energy is reported where it is counted."""

import ctypes
import types

import pytest
import torch

from dtl.core.files import write_record
from dtl.export.model_card.table import usage_rows
from dtl.train import usage


class SingleRankEngine:
    device, is_main_process, world_size = torch.device("cpu"), True, 1

    def all_gather_object(self, values):
        return values

    def all_reduce_sum(self, *values):
        return [float(value) for value in values]


def library(*, counts):
    """As libnvidia-ml: each function returns 0 where all went well."""

    def energy(handle, found):
        assert handle.value == 77
        found._obj.value = next(counts)
        return 0

    def handle(uuid, found):
        assert uuid == b"GPU-aa-bb"
        found._obj.value = 77
        return 0

    return types.SimpleNamespace(
        nvmlInit_v2=lambda: 0,
        nvmlDeviceGetHandleByUUID=handle,
        nvmlDeviceGetTotalEnergyConsumption=energy,
    )


def test_record_of_a_launch_is_updated_at_each_save(tmp_path):
    meter = usage.UsageMeter(tmp_path / "usage", SingleRankEngine())
    meter.write()
    first = usage.read_usage(tmp_path / "usage")
    meter.write()
    found = usage.read_usage(tmp_path / "usage")
    assert found.seconds > first.seconds > 0 and found.energy_joules is None
    assert len(list((tmp_path / "usage").iterdir())) == 1 and "CPU cores" in found.hardware[0]
    assert usage.read_usage(tmp_path / "none") is None


def test_energy_is_the_difference_of_nvml_counters(tmp_path, monkeypatch):
    monkeypatch.setattr(usage, "_read_uuid", lambda device: "GPU-aa-bb")
    nvml = library(counts=iter([5_000, 12_500, 20_000]))
    monkeypatch.setattr(ctypes, "CDLL", lambda name: nvml)
    meter = usage.UsageMeter(tmp_path, SingleRankEngine())
    meter.write()
    assert usage.read_usage(tmp_path).energy_joules == 7.5
    meter.write()
    assert usage.read_usage(tmp_path).energy_joules == 15.0


@pytest.mark.parametrize(
    ("energies", "expected"), [((1.8e6, 5.4e6), "2 kWh"), ((1.8e6, None), None)]
)
def test_launches_are_summed_and_a_missing_energy_is_not_estimated(tmp_path, energies, expected):
    for number, joules in enumerate(energies):
        devices = {"H100": 4}
        record = {"began": 0, "seconds": 60, "devices": devices, "energy_joules": joules}
        write_record(tmp_path / f"launch-{number}.json", record)
    rows = dict(usage_rows(usage.read_usage(tmp_path)))
    assert rows["hardware"] == "4 x H100" and rows["wall time"] == "2 min 00 s"
    assert rows.get("energy", "none").startswith(expected or "none")
