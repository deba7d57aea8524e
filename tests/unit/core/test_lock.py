"""One writer a run folder."""

import json
import os
import socket
import subprocess
import sys
import time

import pytest

from dtl.core import lock as lease
from dtl.core.errors import DtlError
from dtl.core.lock import Lease, TakenOver, holder_here


def test_the_second_writer_is_refused_and_told_who_writes(tmp_path):
    with Lease(tmp_path):
        assert holder_here(tmp_path) == os.getpid()
        with pytest.raises(DtlError, match=f"process {os.getpid()} on {socket.gethostname()}"):
            Lease(tmp_path).__enter__()
    assert holder_here(tmp_path) is None
    with Lease(tmp_path):
        pass


def test_a_lease_of_a_dead_process_here_is_taken_at_once(tmp_path):
    code = "import os, sys; from pathlib import Path; from dtl.core.lock import Lease\n"
    code += "Lease(Path(sys.argv[1])).__enter__(); os._exit(9)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert (tmp_path / "lease.json").exists()
    start = time.monotonic()
    with Lease(tmp_path) as mine:
        assert not mine.lost
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(("age", "free"), [(0.0, False), (lease.STALE_SECONDS + 1, True)])
def test_a_lease_of_another_host_lasts_as_long_as_its_heart_beats(tmp_path, age, free):
    record = {"token": "x", "host": "elsewhere", "process": 1, "beat": time.time() - age}
    (tmp_path / "lease.json").write_text(json.dumps(record))
    if free:
        with Lease(tmp_path):
            pass
    else:
        with pytest.raises(DtlError, match="on elsewhere"):
            Lease(tmp_path).__enter__()


def test_who_was_taken_over_notices_and_leaves_the_other_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.02)
    with Lease(tmp_path) as old:
        record = {"token": "new", "host": "elsewhere", "process": 1, "beat": time.time()}
        (tmp_path / ".new").write_text(json.dumps(record))
        os.replace(tmp_path / ".new", tmp_path / "lease.json")
        time.sleep(0.1)
        assert old.lost
        with pytest.raises(TakenOver, match="was taken over by process 1 on elsewhere"):
            old.hold()
    assert json.loads((tmp_path / "lease.json").read_text())["token"] == "new"


def test_the_heart_beats(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.02)
    with Lease(tmp_path) as mine:
        first = json.loads(mine.path.read_text())["beat"]
        time.sleep(0.2)
        assert json.loads(mine.path.read_text())["beat"] > first
