"""The devices and the memory of this machine, by what drivers and the kernel say of it."""

import os

import pytest

from dtl.core.errors import DtlError
from dtl.plan import hardware, main_memory
from dtl.plan.hardware import detect_hardware, node_hardware

GIB = 2**30
TWO_H100 = "NVIDIA H100, 81559, 9.0, Disabled\nNVIDIA H100, 81559, 9.0, Disabled\n"


@pytest.fixture
def driver(tmp_path, monkeypatch):
    """Return a function that puts an nvidia-smi on PATH which prints a text."""

    def install(text, *, gpus):
        monkeypatch.setattr(hardware, "count_gpus", lambda: gpus)
        file = tmp_path / "nvidia-smi"
        file.write_text(f'#!/bin/sh\necho "$@" >{tmp_path}/arguments\nprintf "{text}"\n')
        file.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        return tmp_path / "arguments"

    return install


def test_gpus_are_described_by_the_driver(driver):
    driver(TWO_H100.replace("\n", "\\n"), gpus=2)
    found = detect_hardware()
    assert (found.device, found.device_count, found.name) == ("cuda", 2, "NVIDIA H100")
    assert found.memory_bytes == 81559 * 2**20
    assert found.supports_bf16


def test_plan_is_made_for_the_smallest_and_oldest_of_different_gpus(driver):
    driver("NVIDIA H100, 81559, 9.0, Disabled\\nTesla V100, 16160, 7.0, Disabled\\n", gpus=2)
    found = detect_hardware()
    assert found.memory_bytes == 16160 * 2**20
    assert not found.supports_bf16


def test_only_visible_gpus_are_asked_for(driver, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1")
    arguments = driver(TWO_H100.replace("\n", "\\n"), gpus=2)
    detect_hardware()
    assert "--id=3,1" in arguments.read_text().split()


@pytest.mark.parametrize("text", ["", "NVIDIA H100, 81559, 9.0, Enabled\\n"], ids=["AMD", "MIG"])
def test_gpu_that_the_driver_does_not_describe_is_described_by_torch(driver, monkeypatch, text):
    driver(text, gpus=1)
    monkeypatch.setattr(hardware, "GPU_PROBE", "print('[[\"AMD Instinct\", 68719476736, 9]]')")
    found = detect_hardware()
    assert (found.name, found.memory_bytes) == ("AMD Instinct", 64 * GIB)


def test_gpu_that_nothing_describes_is_a_fault_and_no_plan_for_0_bytes(driver, monkeypatch):
    driver("", gpus=1)
    monkeypatch.setattr(hardware, "GPU_PROBE", "raise SystemExit(1)")
    with pytest.raises(DtlError, match=r"memory of the GPUs cannot be read.*dtl doctor"):
        detect_hardware()


@pytest.mark.parametrize(
    ("line", "file"),
    [("0::/job/step\n", "job/memory.max"), ("4:memory:/job\n", "memory/job/memory.limit_in_bytes")],
    ids=["v2", "v1"],
)
def test_main_memory_is_that_of_the_slurm_job(tmp_path, monkeypatch, line, file):
    limit = tmp_path / file
    limit.parent.mkdir(parents=True)
    limit.write_text(f"{64 * 2**20}\n")
    (tmp_path / "cgroup").write_text(line)
    monkeypatch.setattr(main_memory, "CGROUP_ROOT", tmp_path)
    monkeypatch.setattr(main_memory, "CGROUPS_OF_PROCESS", tmp_path / "cgroup")
    assert main_memory.main_memory_bytes() == 64 * 2**20


def test_unlimited_job_has_the_memory_of_the_machine(tmp_path, monkeypatch):
    import psutil

    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "cgroup").write_text("0::/\n")
    monkeypatch.setattr(main_memory, "CGROUP_ROOT", tmp_path)
    monkeypatch.setattr(main_memory, "CGROUPS_OF_PROCESS", tmp_path / "cgroup")
    assert main_memory.main_memory_bytes() == psutil.virtual_memory().total


def test_node_elsewhere_has_the_memory_of_its_site_file():
    node = node_hardware(gpus=4, gpu_gib=80, supports_bf16=True, host_bytes=512 * GIB)
    assert (node.memory_bytes, node.host_memory_bytes) == (80 * GIB, 512 * GIB)
