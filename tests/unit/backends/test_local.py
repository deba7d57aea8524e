"""Jobs on this machine, checked through the operating system."""

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


def python_job(tmp_path, code, *arguments, **environment):
    return Job(tmp_path / "a run", (sys.executable, "-c", code, *arguments), environment)


def until(holds, *, seconds=20.0):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.02)


def state_of(backend, number):
    return backend.query_states([number])[number].state


def test_missing_command_is_reported(backend, tmp_path):
    backend.check(python_job(tmp_path, ""))
    with pytest.raises(DtlError, match="no such command"):
        backend.check(Job(tmp_path, ("no-such-command",), {}))


def read_log(backend, job):
    (log,) = backend.log_files(job)
    return log.read_text(encoding="utf-8") if log.exists() else ""


def test_rendered_line_runs_the_same_in_a_shell(backend, tmp_path):
    code = "import os, sys; print(sys.argv[1:], os.environ['GREETING'])"
    job = python_job(tmp_path, code, "two words", "it's $HOME", GREETING="good 'day' $USER")
    text = backend.render(job)
    assert "\n" not in text
    assert not job.run_folder.exists()
    output = subprocess.run(["bash", "-c", text], capture_output=True, text=True, check=True).stdout
    assert output == """['two words', "it's $HOME"] good 'day' $USER\n"""
    assert shlex.split(text) == ["GREETING=good 'day' $USER", *job.argv]


def test_job_runs_in_its_own_session_and_writes_to_its_log(backend, tmp_path):
    code = "import os, sys; print(os.getsid(0), os.environ['ANSWER']); sys.stderr.write('oh')"
    job = python_job(tmp_path, code, ANSWER="42")
    (number,) = backend.submit(job)
    until(lambda: state_of(backend, number) == "ended")
    assert (
        read_log(backend, job) == f"{number} 42\noh" or read_log(backend, job) == f"oh{number} 42\n"
    )
    assert os.getsid(0) != int(number)
    assert state_of(backend, number) == "ended"


def test_job_inherits_the_environment(backend, tmp_path, monkeypatch):
    monkeypatch.setenv("DTL_TEST_OURS", "ours")
    job = python_job(tmp_path, "import os; print(os.environ['DTL_TEST_OURS'])")
    (number,) = backend.submit(job)
    until(lambda: state_of(backend, number) == "ended")
    assert read_log(backend, job) == "ours\n"


def test_second_job_of_a_run_appends_to_the_log(backend, tmp_path):
    for word in ("first", "second"):
        (number,) = backend.submit(python_job(tmp_path, f"print({word!r})"))
        until(lambda number=number: state_of(backend, number) == "ended")
    assert read_log(backend, python_job(tmp_path, "")) == "first\nsecond\n"


def test_cancelled_job_may_save_before_it_ends(backend, tmp_path):
    job = python_job(tmp_path, WAITS)
    (number,) = backend.submit(job)
    until(lambda: read_log(backend, job) == "started\n")
    assert state_of(backend, number) == "running"
    backend.cancel(number)
    until(lambda: state_of(backend, number) == "ended")
    assert read_log(backend, job) == "started\nsaved\n"
    backend.cancel(number)  # again, where there is nothing left to cancel


def test_state_is_visible_from_another_process(backend, tmp_path):
    job = python_job(tmp_path, WAITS)
    (number,) = backend.submit(job)
    until(lambda: read_log(backend, job) == "started\n")
    code = (
        "import sys; from dtl.backends.local import Options, Plugin; "
        "print(Plugin(Options()).query_states(sys.argv[1:])[sys.argv[1]].state)"
    )
    argv = [sys.executable, "-c", code, number]
    output = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    os.kill(int(number), signal.SIGKILL)
    until(lambda: state_of(backend, number) == "ended")
    after = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    assert (output, after) == ("running\n", "ended\n")


def test_process_of_another_user_with_that_id_is_not_the_job(backend, monkeypatch):
    """The job ended long ago and its process id belongs to another user now."""

    def deny(*_):
        raise PermissionError

    def not_ours(*_):
        raise ChildProcessError

    monkeypatch.setattr(os, "waitpid", not_ours)
    monkeypatch.setattr(os, "kill", deny)
    assert state_of(backend, "12345") == "ended"
    backend.cancel("12345")
