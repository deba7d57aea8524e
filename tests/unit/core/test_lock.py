"""The lease: one writer per folder."""

import json
import os
import socket
import subprocess
import sys
import time

import pytest

from dtl.core import lock
from dtl.core.errors import DtlError
from dtl.core.lock import Lease, LeaseLost, find_local_holder


def test_a_second_writer_gets_an_error_that_names_the_first(tmp_path):
    with Lease(tmp_path):
        assert find_local_holder(tmp_path) == os.getpid()
        with pytest.raises(DtlError, match=f"process {os.getpid()} on {socket.gethostname()}"):
            Lease(tmp_path).__enter__()
    assert find_local_holder(tmp_path) is None
    with Lease(tmp_path):
        pass


def test_a_lease_of_a_dead_local_process_is_taken_at_once(tmp_path):
    code = "import os, sys; from pathlib import Path; from dtl.core.lock import Lease\n"
    code += "Lease(Path(sys.argv[1])).__enter__(); os._exit(9)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert (tmp_path / "lease.json").exists()
    start = time.monotonic()
    with Lease(tmp_path) as lease:
        assert not lease.is_lost
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(("age", "is_free"), [(0.0, False), (lock.STALE_SECONDS + 1, True)])
def test_a_lease_of_another_host_expires_without_heartbeats(tmp_path, age, is_free):
    record = {"token": "x", "host": "elsewhere", "process": 1, "heartbeat": time.time() - age}
    (tmp_path / "lease.json").write_text(json.dumps(record))
    if is_free:
        with Lease(tmp_path):
            pass
    else:
        with pytest.raises(DtlError, match="on elsewhere"):
            Lease(tmp_path).__enter__()


def test_a_lost_lease_raises_and_does_not_remove_the_other_one(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "HEARTBEAT_SECONDS", 0.02)
    with Lease(tmp_path) as old:
        record = {"token": "new", "host": "elsewhere", "process": 1, "heartbeat": time.time()}
        (tmp_path / ".new").write_text(json.dumps(record))
        os.replace(tmp_path / ".new", tmp_path / "lease.json")
        time.sleep(0.1)
        assert old.is_lost
        with pytest.raises(LeaseLost, match="process 1 on elsewhere has taken over"):
            old.check()
    assert json.loads((tmp_path / "lease.json").read_text())["token"] == "new"


def test_heartbeats_are_written(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "HEARTBEAT_SECONDS", 0.02)
    with Lease(tmp_path) as lease:
        first = json.loads(lease.path.read_text())["heartbeat"]
        time.sleep(0.2)
        assert json.loads(lease.path.read_text())["heartbeat"] > first
