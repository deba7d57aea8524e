"""A process whose launcher was killed while it came up ends at once, and trains nothing."""

import os
import subprocess
import sys
import time

import psutil
import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a parent's death is told by Linux")

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
from dtl.launch import worker
worker._end_with_launcher()
time.sleep(60)
"""


def gone(process, *, within):
    limit = time.monotonic() + within
    while time.monotonic() < limit:
        if not psutil.pid_exists(process) or psutil.Process(process).status() == "zombie":
            return True
        time.sleep(0.05)
    return False


def test_a_rank_whose_launcher_died_while_it_came_up_ends():
    environment = {**os.environ, "DTL_SUPERVISOR": str(os.getpid())}
    argv = [sys.executable, "-c", LAUNCHER, RANK]
    launcher = subprocess.Popen(argv, stdout=subprocess.PIPE, env=environment, text=True)
    rank = int(launcher.stdout.readline())
    launcher.communicate()
    assert gone(rank, within=20)


def test_a_rank_whose_launcher_lives_goes_on():
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {SHORT!r}], check=True)"
    environment = {**os.environ, "DTL_SUPERVISOR": str(os.getpid())}
    argv = [sys.executable, "-c", code]
    told = subprocess.run(argv, env=environment, capture_output=True, text=True, check=True)
    assert told.stdout == "goes on\n"


SHORT = "from dtl.launch import worker; worker._end_with_launcher(); print('goes on')"


def test_a_child_of_a_process_that_is_gone_ends():
    code = "from dtl.launch import worker; worker.end_with_parent(1 << 22); print('goes on')"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (1, "")
