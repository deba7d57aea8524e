"""A process that hangs is ended, with its stack in the log and the late rank named."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from dtl.train import heartbeat as heartbeat_module
from dtl.train.heartbeat import (
    HANG_EXIT_CODE,
    Heartbeat,
    Watchdog,
    describe_late_ranks,
    read_heartbeats,
)

# One of two ranks: when both have started it makes some heartbeats, then hangs.
PROCESS = """
import sys, time
from pathlib import Path
from dtl.train.heartbeat import Watchdog, read_heartbeats

rank, limit, beats = int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
def print_line(text):
    print(text, flush=True)

with Watchdog(Path(sys.argv[1]), rank=rank, world_size=2, print_line=print_line) as watchdog:
    while len(read_heartbeats(Path(sys.argv[1]))) < int(sys.argv[5]):
        time.sleep(0.02)
    for number in range(beats):
        watchdog.heartbeat(f"step {number + 1}", timeout=limit)
        time.sleep(0.3)
    def waits_for_the_others():
        time.sleep(60)
    waits_for_the_others()
"""


def start(folder, rank, *, limit, heartbeats, together=2):
    numbers = [str(number) for number in (rank, limit, heartbeats, together)]
    argv = [sys.executable, "-c", PROCESS, str(folder), *numbers]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_hanging_ranks_end_and_one_of_them_prints_which_is_late(tmp_path):
    ranks = [start(tmp_path, 0, limit=5, heartbeats=4), start(tmp_path, 1, limit=5, heartbeats=2)]
    output = [process.communicate(timeout=60) for process in ranks]
    assert [process.returncode for process in ranks] == [HANG_EXIT_CODE, HANG_EXIT_CODE]
    assert all("waits_for_the_others" in errors for _, errors in output), "the stack of each"
    assert output[0][0].startswith("rank 0 has made no progress for")
    late = ("behind the others is rank 1 on", "no sign of life from rank 1 on")
    assert any(name in output[0][0] for name in late), "the second may have ended by then"
    assert output[1][0] == "", "only one of them prints"


def test_a_stopped_rank_0_is_named_by_the_other(tmp_path):
    first = start(tmp_path, 0, limit=5, heartbeats=2)
    second = start(tmp_path, 1, limit=5, heartbeats=2)
    while [heartbeat.count for heartbeat in read_heartbeats(tmp_path)] != [2, 2]:
        time.sleep(0.02)
    first.send_signal(signal.SIGSTOP)
    output, _ = second.communicate(timeout=60)
    assert second.returncode == HANG_EXIT_CODE
    assert "no sign of life from rank 0 on" in output
    first.kill()
    first.communicate()


def test_time_in_which_a_process_was_suspended_does_not_count(tmp_path):
    process = start(tmp_path, 0, limit=3, heartbeats=1, together=1)
    while not read_heartbeats(tmp_path):
        time.sleep(0.02)
    process.send_signal(signal.SIGSTOP)
    time.sleep(4)
    process.send_signal(signal.SIGCONT)
    time.sleep(1)
    assert process.poll() is None
    process.kill()
    process.communicate()


def test_process_that_makes_progress_is_not_ended(tmp_path):
    with Watchdog(tmp_path, rank=0, world_size=1, print_line=pytest.fail) as mine:
        for number in range(8):
            mine.heartbeat(f"step {number}", timeout=0.6)
            time.sleep(0.15)
        assert mine.activity == "step 7"
    (heartbeat,) = read_heartbeats(tmp_path)
    assert (heartbeat.rank, heartbeat.pid) == (0, os.getpid())


def test_unreadable_heartbeat_is_skipped(tmp_path):
    (tmp_path / "rank-0.json").write_text('{"rank": 0')
    assert read_heartbeats(tmp_path) == []
    (tmp_path / "rank-0.json").write_text(json.dumps({"rank": 0, "unknown": 1}))
    assert read_heartbeats(tmp_path) == []


def test_full_disk_does_not_end_the_watchdog(tmp_path, monkeypatch, capsys):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(heartbeat_module, "write_text", full)
    heartbeat_module._write(tmp_path / "rank-0.json", {})
    assert "No space left" in capsys.readouterr().err


def test_late_ranks_are_described():
    now = time.time()

    def make_heartbeat(rank, number, alive=now):
        return Heartbeat(rank, "host", 1, number, f"step {number}", now, alive)

    assert (
        describe_late_ranks([make_heartbeat(0, 5), make_heartbeat(1, 5)], after=10)
        == "all ranks are at the same point"
    )
    assert (
        describe_late_ranks([make_heartbeat(0, 5), make_heartbeat(1, 4)], after=10)
        == "behind the others is rank 1 on host (step 4)"
    )
    assert describe_late_ranks(
        [make_heartbeat(0, 5, now - 20), make_heartbeat(1, 4)], after=10
    ) == ("no sign of life from rank 0 on host (step 5)")
