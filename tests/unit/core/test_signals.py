"""Stop signals are stored at once and obeyed at a safe point."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from dtl.core.errors import StoppedEarly
from dtl.core.signals import SIGNALS, Stop


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
