"""The lease: one writer per folder."""

import json
import os
import socket
import subprocess
import sys
import threading
import time

import pytest

from dtl.core import lock
from dtl.core.errors import DtlError
from dtl.core.lock import Lease, LeaseLost, find_local_holder, is_held


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


def write_lease(folder, text):
    (folder / ".new").write_text(text)
    os.replace(folder / ".new", folder / "lease.json")


@pytest.mark.parametrize("is_live", [False, True])
def test_a_heartbeat_in_the_future_counts_only_if_another_follows(tmp_path, monkeypatch, is_live):
    """A holder died while its clock was wrong; or it lives, and its clock is a day ahead."""
    monkeypatch.setattr(lock, "HEARTBEAT_SECONDS", 0.1)
    record = {"token": "x", "host": "elsewhere", "process": 1, "heartbeat": time.time() + 86400}
    write_lease(tmp_path, json.dumps(record))
    assert not is_held(tmp_path)
    if not is_live:
        with Lease(tmp_path) as lease:
            assert not lease.is_lost
        return
    later = json.dumps({**record, "heartbeat": record["heartbeat"] + 0.1})
    timer = threading.Timer(0.05, write_lease, (tmp_path, later))
    timer.start()
    with pytest.raises(DtlError, match="process 1 on elsewhere is writing the folder"):
        Lease(tmp_path).__enter__()
    timer.join()


DAMAGES = [
    "",
    "{",
    "5",
    "[]",
    "\x00\x00",
    '{"token": "x"}',
    '{"token": 1, "host": 2, "process": {}}',
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_lease_is_free_when_no_heartbeat_follows(tmp_path, monkeypatch, damage):
    monkeypatch.setattr(lock, "HEARTBEAT_SECONDS", 0.02)
    write_lease(tmp_path, damage)
    assert find_local_holder(tmp_path) is None and not is_held(tmp_path)
    with Lease(tmp_path) as lease:
        lease.check()


def test_a_holder_keeps_a_lease_that_is_damaged_meanwhile(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "HEARTBEAT_SECONDS", 0.05)
    with Lease(tmp_path) as lease:
        write_lease(tmp_path, "\xff{")
        lease.check()
        with pytest.raises(DtlError, match=f"process {os.getpid()}"):
            Lease(tmp_path).__enter__()
        lease.check()
