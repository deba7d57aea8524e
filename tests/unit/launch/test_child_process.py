"""A process whose launcher was killed during its start ends at once, and trains nothing."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from dtl.launch.child_process import continue_when_stopped

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs prctl of Linux")

# A launcher that starts a rank and is killed before the rank has reached dtl's first line.
LAUNCHER = """
import os, subprocess, sys
rank = subprocess.Popen([sys.executable, "-c", sys.argv[1]])
print(rank.pid, flush=True)
os.kill(os.getpid(), 9)
"""
RANK = """
import time
time.sleep(1)
from dtl.launch import child_process
child_process.exit_when_launcher_dies()
time.sleep(60)
"""


def has_ended(process, *, within):
    limit = time.monotonic() + within
    while time.monotonic() < limit:
        if not psutil.pid_exists(process) or psutil.Process(process).status() == "zombie":
            return True
        time.sleep(0.05)
    return False


def test_rank_whose_launcher_died_during_its_start_ends():
    environment = {**os.environ, "DTL_SUPERVISOR": str(os.getpid())}
    argv = [sys.executable, "-c", LAUNCHER, RANK]
    launcher = subprocess.Popen(argv, stdout=subprocess.PIPE, env=environment, text=True)
    rank = int(launcher.stdout.readline())
    launcher.communicate()
    assert has_ended(rank, within=20)


def test_rank_that_the_supervisor_itself_starts_continues():
    environment = {**os.environ, "DTL_SUPERVISOR": str(os.getpid())}
    argv = [sys.executable, "-c", SHORT]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "continues\n"


def test_rank_with_a_living_launcher_continues():
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {SHORT!r}], check=True)"
    environment = {**os.environ, "DTL_SUPERVISOR": str(os.getpid())}
    argv = [sys.executable, "-c", code]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "continues\n"


SHORT = (
    "from dtl.launch import child_process; "
    "child_process.exit_when_launcher_dies(); print('continues')"
)


def test_child_of_an_ended_process_ends():
    code = (
        "from dtl.launch import child_process; "
        "child_process.set_parent_death_signal(1 << 22); print('continues')"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (1, "")


def test_launcher_that_was_stopped_is_continued():
    lines = []
    with subprocess.Popen(["sleep", "0.3"]) as launcher:
        launcher.send_signal(signal.SIGSTOP)
        with continue_when_stopped(launcher.pid, lines.append, seconds=0.2):
            assert launcher.wait(timeout=30) == 0
    assert lines == [
        f"the launcher (process {launcher.pid}) was stopped by a signal; continuing it"
    ]


def test_launcher_that_runs_or_has_ended_is_left_alone():
    lines = []
    with subprocess.Popen(["sleep", "0.3"]) as launcher:
        with continue_when_stopped(launcher.pid, lines.append, seconds=0.1):
            assert launcher.wait(timeout=30) == 0
        with continue_when_stopped(launcher.pid, lines.append, seconds=0.1):
            time.sleep(0.2)
    assert lines == []
