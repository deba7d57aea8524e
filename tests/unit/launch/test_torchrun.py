"""The command that starts a run, read by the launcher's own parser."""

import os
import socket
import subprocess
import sys
from dataclasses import replace

import pytest

from dtl.core.process_env import find_free_port, threads_per_process
from dtl.launch.torchrun import LaunchCommand, build_command
from dtl.plan.records import Layout, ParameterCounts, Plan
from dtl.run.folder import RunFolder

LAYOUT = Layout(1, 2, 2, "none", 4, 2, False, "fp32", "cpu")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return a function that makes a run folder with a layout."""

    def make(layout):
        plan = Plan(layout, ParameterCounts(1, 1), {}, (), 5, 5, None)
        monkeypatch.setattr(RunFolder, "plan", property(lambda _: plan))
        return RunFolder(tmp_path / "runs" / "a run")

    return make


def parse(command):
    """Return what torchrun's own parser reads."""
    from torch.distributed.run import get_args_parser

    assert command.argv[:3] == (sys.executable, "-m", "torch.distributed.run")
    return get_args_parser().parse_args(list(command.argv[3:]))


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_torchrun_starts_the_planned_ranks_on_the_run_folder(folder, processes):
    made = folder(replace(LAYOUT, processes_per_node=processes))
    options = parse(build_command(made))
    assert (options.nproc_per_node, options.nnodes) == (str(processes), "1:1")
    assert options.master_addr == "127.0.0.1", "the ranks of one machine use its loopback address"
    assert options.module and options.training_script == "dtl.launch.worker"
    assert options.training_script_args == ["run", str(made.path)]


def test_torchrun_forwards_every_signal_that_a_run_handles_and_waits_for_the_save(folder):
    from dtl.core.signals import SIGNALS

    command = build_command(folder(LAYOUT))
    handled = parse(command).signals_to_handle.split(",")
    assert {number.name for number in SIGNALS} <= set(handled)
    assert int(command.environment["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]) >= 1800


def test_run_folder_is_an_absolute_path(tmp_path, folder, monkeypatch):
    folder(LAYOUT)
    monkeypatch.chdir(tmp_path)
    options = parse(build_command(RunFolder(tmp_path.relative_to(tmp_path) / "runs" / "x")))
    assert options.training_script_args[1] == str(tmp_path / "runs" / "x")


def test_on_a_cpu_the_environment_forces_the_cpu_and_divides_the_cores(folder, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    environment = build_command(folder(replace(LAYOUT, processes_per_node=3))).environment
    assert environment["ACCELERATE_USE_CPU"] == "true"
    assert environment["DS_ACCELERATOR"] == "cpu"
    assert environment["OMP_NUM_THREADS"] == "2"


def test_on_gpus_the_environment_does_not_force_the_cpu(folder):
    environment = build_command(folder(replace(LAYOUT, device="cuda"))).environment
    assert not {"ACCELERATE_USE_CPU", "DS_ACCELERATOR"} & set(environment)


def test_on_gpus_each_rank_gets_its_share_of_the_cores_for_an_offloaded_optimizer(
    folder, monkeypatch
):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(32)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    gpus = folder(replace(LAYOUT, device="cuda", processes_per_node=4))
    assert build_command(gpus).environment["OMP_NUM_THREADS"] == "8"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_number_of_threads_that_the_user_has_set_is_used(folder, monkeypatch, device):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    command = build_command(folder(replace(LAYOUT, device=device)))
    assert {**os.environ, **command.environment}["OMP_NUM_THREADS"] == "3"


def test_single_process_on_a_gpu_is_a_fresh_interpreter_without_a_launcher(folder):
    made = folder(replace(LAYOUT, processes_per_node=1, device="cuda"))
    command = build_command(made)
    worker = (sys.executable, "-m", "dtl.launch.worker", "run", str(made.path))
    assert command.argv == worker
    assert "RANK" not in command.environment, "it is no process group of one"


def test_two_runs_started_at_once_use_different_ports(folder):
    made = folder(LAYOUT)
    ports = {parse(build_command(made)).master_port for _ in range(3)}
    assert len(ports) > 1


def test_free_port_can_be_bound():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", find_free_port()))


@pytest.mark.parametrize(("cores", "processes", "per_process"), [(8, 2, 4), (8, 3, 2), (2, 4, 1)])
def test_threads_are_the_cores_divided_by_the_processes(monkeypatch, cores, processes, per_process):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    assert threads_per_process(processes) == per_process


def test_shell_line_runs_the_same_command():
    code = "import os, sys; print(os.environ['A'], sys.argv[1])"
    line = LaunchCommand((sys.executable, "-c", code, "b c"), {"A": "x y"}).to_shell()
    output = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True).stdout
    assert output == "x y b c\n"
