"""Stop signals are stored at once and obeyed at a safe point."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from dtl.core.errors import StoppedEarly
from dtl.core.signals import SIGNALS, Stop, exit_on_signal


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_raises_while_there_is_nothing_to_save(number):
    with Stop(interrupts=True) as stop:
        with pytest.raises(StoppedEarly) as ended:
            os.kill(os.getpid(), number)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal_name == signal.Signals(number).name
    assert ended.value.exit_code == 75
    assert signal.Signals(number).name in str(ended.value)


def test_a_signal_is_stored_and_each_one_is_forwarded():
    forwarded = []
    with Stop(forward=lambda: forwarded.append(1)) as stop:
        assert not stop.is_requested
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert stop.is_requested
        assert stop.signal_name == "SIGTERM"
    assert forwarded == [1, 1]


def test_the_previous_handlers_are_restored():
    before = [signal.getsignal(number) for number in SIGNALS]
    with Stop():
        assert [signal.getsignal(number) for number in SIGNALS] != before
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_another_thread_than_the_main_one_installs_no_handlers():
    before = [signal.getsignal(number) for number in SIGNALS]
    seen = []

    def elsewhere():
        with Stop() as stop:
            seen.append(
                (stop.is_requested, [signal.getsignal(number) for number in SIGNALS] == before)
            )

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [(False, True)]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_during_shutdown_does_not_change_the_exit_code(number):
    code = (
        "import atexit, os, sys\n"
        "from dtl.cli import app as cli\n"
        "from dtl.core.errors import StoppedEarly\n"
        "def app(**_): raise StoppedEarly.of('', 'stopped', 'resume')\n"
        "cli.app = app\n"
        "atexit.register(os.kill, os.getpid(), int(sys.argv[1]))\n"
        "sys.exit(cli.main())\n"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(int(number))], capture_output=True)
    assert ended.returncode == 75


JOIN_ALONE = """
import sys
from datetime import timedelta
from torch.distributed import TCPStore
from dtl.core.signals import Stop, exit_on_signal
with Stop(), exit_on_signal():
    print("waiting", flush=True)
    TCPStore("127.0.0.1", 0, 2, True, timeout=timedelta(seconds=60), wait_for_workers=True)
"""


def test_signal_ends_a_process_that_waits_for_ranks_that_never_come():
    """As torchrun sends it where a rank was killed inside init_process_group: the others are
    inside a call of torch, in which Python calls no handler."""
    process = subprocess.Popen(
        [sys.executable, "-c", JOIN_ALONE],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "waiting\n"
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    _, printed = process.communicate(timeout=20)
    assert process.returncode == 75, printed
    assert "stopped by SIGTERM before the first step" in printed


def test_afterwards_a_signal_is_stored_again():
    with Stop() as stop:
        with exit_on_signal():
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal_name == "SIGTERM"
