"""Jobs on this machine, watched with the operating system's own eyes."""

import os
import shlex
import signal
import subprocess
import sys
import time

import pytest

from dtl.backends.base import Job
from dtl.backends.local import Options, Plugin
from dtl.core.errors import DtlError

WAITS = """
import signal, sys, time
def end(*_):
    print("saved", flush=True)
    sys.exit(75)
signal.signal(signal.SIGTERM, end)
print("started", flush=True)
time.sleep(60)
"""


@pytest.fixture
def backend():
    return Plugin(Options())


def python(tmp_path, code, *arguments, **environment):
    return Job(tmp_path / "a run", (sys.executable, "-c", code, *arguments), environment)


def until(holds, *, seconds=20.0):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def phase(backend, number):
    return backend.states([number])[number].phase


def test_a_command_that_is_not_there_is_refused(backend, tmp_path):
    backend.check(python(tmp_path, ""))
    with pytest.raises(DtlError, match="no such command"):
        backend.check(Job(tmp_path, ("no-such-command",), {}))


def printed(backend, job):
    (log,) = backend.logs(job)
    return log.read_text(encoding="utf-8") if log.exists() else ""


def test_what_is_rendered_is_a_line_that_a_shell_runs_as_meant(backend, tmp_path):
    code = "import os, sys; print(sys.argv[1:], os.environ['GREETING'])"
    job = python(tmp_path, code, "two words", "it's $HOME", GREETING="good 'day' $USER")
    text = backend.render(job)
    assert "\n" not in text
    assert not job.run.exists()
    told = subprocess.run(["bash", "-c", text], capture_output=True, text=True, check=True).stdout
    assert told == """['two words', "it's $HOME"] good 'day' $USER\n"""
    assert shlex.split(text) == ["GREETING=good 'day' $USER", *job.argv]


def test_a_job_runs_in_a_session_of_its_own_and_its_words_go_to_its_log(backend, tmp_path):
    code = "import os, sys; print(os.getsid(0), os.environ['ANSWER']); sys.stderr.write('oh')"
    job = python(tmp_path, code, ANSWER="42")
    (number,) = backend.submit(job)
    until(lambda: phase(backend, number) == "ended")
    assert (
        printed(backend, job) == f"{number} 42\noh" or printed(backend, job) == f"oh{number} 42\n"
    )
    assert os.getsid(0) != int(number)
    assert phase(backend, number) == "ended"


def test_a_job_has_our_environment_too(backend, tmp_path, monkeypatch):
    monkeypatch.setenv("DTL_TEST_OURS", "ours")
    job = python(tmp_path, "import os; print(os.environ['DTL_TEST_OURS'])")
    (number,) = backend.submit(job)
    until(lambda: phase(backend, number) == "ended")
    assert printed(backend, job) == "ours\n"


def test_a_second_job_of_a_run_adds_to_the_log(backend, tmp_path):
    for word in ("first", "second"):
        (number,) = backend.submit(python(tmp_path, f"print({word!r})"))
        until(lambda number=number: phase(backend, number) == "ended")
    assert printed(backend, python(tmp_path, "")) == "first\nsecond\n"


def test_a_cancelled_job_may_save_before_it_ends(backend, tmp_path):
    job = python(tmp_path, WAITS)
    (number,) = backend.submit(job)
    until(lambda: printed(backend, job) == "started\n")
    assert phase(backend, number) == "running"
    backend.cancel(number)
    until(lambda: phase(backend, number) == "ended")
    assert printed(backend, job) == "started\nsaved\n"
    backend.cancel(number)  # again, where there is nothing left to cancel


def test_another_process_sees_the_job_too(backend, tmp_path):
    job = python(tmp_path, WAITS)
    (number,) = backend.submit(job)
    until(lambda: printed(backend, job) == "started\n")
    asks = (
        "import sys; from dtl.backends.local import Options, Plugin; "
        "print(Plugin(Options()).states(sys.argv[1:])[sys.argv[1]].phase)"
    )
    argv = [sys.executable, "-c", asks, number]
    told = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    os.kill(int(number), signal.SIGKILL)
    until(lambda: phase(backend, number) == "ended")
    after = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    assert (told, after) == ("running\n", "ended\n")


def test_a_process_of_somebody_else_with_that_number_is_not_the_job(backend, monkeypatch):
    """The job ended long ago and its number was given away; we may not signal the new owner."""

    def refuse(*_):
        raise PermissionError

    def not_ours(*_):
        raise ChildProcessError

    monkeypatch.setattr(os, "waitpid", not_ours)
    monkeypatch.setattr(os, "kill", refuse)
    assert phase(backend, "12345") == "ended"
    backend.cancel("12345")
