"""The command that starts a run, read by the launcher's own parser."""

import os
import socket
import subprocess
import sys
from dataclasses import replace

import pytest

from dtl.core.process_env import free_port, threads
from dtl.launch.torchrun import Command, command
from dtl.plan.records import Layout, Parameters, Plan
from dtl.run.folder import RunFolder

LAYOUT = Layout(1, 2, 2, "none", 4, 2, False, "fp32", "cpu")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A function that gives a run folder with this layout."""

    def make(layout):
        plan = Plan(layout, Parameters(1, 1), {}, (), 5, 5, None)
        monkeypatch.setattr(RunFolder, "plan", property(lambda _: plan))
        return RunFolder(tmp_path / "runs" / "a run")

    return make


def parsed(started):
    """What torchrun understands."""
    from torch.distributed.run import get_args_parser

    assert started.argv[:3] == (sys.executable, "-m", "torch.distributed.run")
    return get_args_parser().parse_args(list(started.argv[3:]))


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_torchrun_starts_the_planned_ranks_on_the_run_folder(folder, processes):
    made = folder(replace(LAYOUT, processes=processes))
    found = parsed(command(made))
    assert (found.nproc_per_node, found.nnodes) == (str(processes), "1:1")
    assert found.master_addr == "127.0.0.1", "the ranks of one machine meet on it"
    assert found.module and found.training_script == "dtl.launch.worker"
    assert found.training_script_args == ["run", str(made.path)]


def test_torchrun_hands_on_every_signal_that_a_run_listens_to_and_waits_for_the_save(folder):
    from dtl.core.signals import SIGNALS

    started = command(folder(LAYOUT))
    handed_on = parsed(started).signals_to_handle.split(",")
    assert {number.name for number in SIGNALS} <= set(handed_on)
    assert int(started.environment["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]) >= 1800


def test_the_run_folder_is_named_from_the_root(tmp_path, folder, monkeypatch):
    folder(LAYOUT)
    monkeypatch.chdir(tmp_path)
    found = parsed(command(RunFolder(tmp_path.relative_to(tmp_path) / "runs" / "x")))
    assert found.training_script_args[1] == str(tmp_path / "runs" / "x")


def test_on_a_cpu_nobody_looks_for_a_gpu_and_cores_are_shared_out(folder, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    environment = command(folder(replace(LAYOUT, processes=3))).environment
    assert environment["ACCELERATE_USE_CPU"] == "true"
    assert environment["DS_ACCELERATOR"] == "cpu"
    assert environment["OMP_NUM_THREADS"] == "2"


def test_on_gpus_the_cpu_is_not_forced(folder):
    environment = command(folder(replace(LAYOUT, device="cuda"))).environment
    assert not {"ACCELERATE_USE_CPU", "DS_ACCELERATOR", "OMP_NUM_THREADS"} & set(environment)


def test_two_runs_started_at_once_meet_at_different_ports(folder):
    made = folder(LAYOUT)
    ports = {parsed(command(made)).master_port for _ in range(3)}
    assert len(ports) > 1


def test_a_free_port_can_be_bound():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", free_port()))


@pytest.mark.parametrize(
    ("cores", "processes", "each"), [(8, 2, 4), (8, 3, 2), (2, 4, 1), (None, 2, 1)]
)
def test_threads_are_the_cores_shared_out(monkeypatch, cores, processes, each):
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    assert threads(processes) == each


def test_the_shell_line_does_the_same():
    code = "import os, sys; print(os.environ['A'], sys.argv[1])"
    line = Command((sys.executable, "-c", code, "b c"), {"A": "x y"}).shell()
    told = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True).stdout
    assert told == "x y b c\n"
