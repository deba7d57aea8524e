"""Signals are noted at once and obeyed at a safe point."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from dtl.core.errors import StoppedEarly
from dtl.core.signals import SIGNALS, Stop


@pytest.mark.parametrize("number", SIGNALS)
def test_with_nothing_to_save_the_first_signal_ends_at_once_and_a_second_changes_nothing(number):
    with Stop(interrupts=True) as stop:
        with pytest.raises(StoppedEarly) as ended:
            os.kill(os.getpid(), number)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.by == signal.Signals(number).name
    assert ended.value.exit_code == 75
    assert signal.Signals(number).name in str(ended.value)


def test_else_it_is_noted_and_passed_on_each_time():
    passed = []
    with Stop(passes_on=lambda: passed.append(1)) as stop:
        assert not stop.asked
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert stop.asked
        assert stop.by == "SIGTERM"
    assert passed == [1, 1]


def test_the_handlers_of_before_come_back():
    before = [signal.getsignal(number) for number in SIGNALS]
    with Stop():
        assert [signal.getsignal(number) for number in SIGNALS] != before
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_outside_the_main_thread_nobody_listens_and_nothing_fails():
    before = [signal.getsignal(number) for number in SIGNALS]
    seen = []

    def elsewhere():
        with Stop() as stop:
            seen.append((stop.asked, [signal.getsignal(number) for number in SIGNALS] == before))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [(False, True)]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_while_a_stopped_command_ends_does_not_change_its_exit_code(number):
    code = (
        "import atexit, os, sys\n"
        "from dtl.cli import app as cli\n"
        "from dtl.core.errors import StoppedEarly\n"
        "def app(**_): raise StoppedEarly.of('', 'stopped', 'go on')\n"
        "cli.app = app\n"
        "atexit.register(os.kill, os.getpid(), int(sys.argv[1]))\n"
        "sys.exit(cli.main())\n"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(int(number))], capture_output=True)
    assert ended.returncode == 75
