"""Processes of an earlier job that hold the port or a GPU are named before a model is loaded."""

import os
import socket

import pytest

from dtl.core.errors import RankFailed
from dtl.launch.leftover_processes import check_port, check_rendezvous_port, find_gpu_processes


@pytest.fixture
def taken():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other.getsockname()[1]


def test_process_at_the_port_is_named(taken):
    environment = {"RANK": "0", "MASTER_PORT": str(taken)}
    with pytest.raises(RankFailed, match=rf"port {taken}.* is used by process {os.getpid()} of "):
        check_rendezvous_port(environment)
    check_rendezvous_port(environment | {"RANK": "1"})
    check_rendezvous_port(environment | {"TORCHELASTIC_USE_AGENT_STORE": "True"})


def test_free_port_is_free(taken):
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    check_port(port)


def test_processes_on_a_gpu_are_named(tmp_path, monkeypatch):
    command = tmp_path / "nvidia-smi"
    command.write_text(
        f"#!/bin/bash\necho 'GPU-1, {os.getppid()}, 1024'\necho 'GPU-1, {os.getpid()}, 5'\n"
        "echo 'GPU-2, 4000001, [N/A]'\necho 'No running processes'\n"
    )
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found = [str(each) for each in find_gpu_processes(["GPU-1"])]
    assert found[0].startswith(f"GPU-1: process {os.getppid()} of ")
    assert found[0].endswith(", 1.00 GiB") and found[1] == "GPU-2: process 4000001"
