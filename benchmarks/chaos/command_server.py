"""Run commands of dtl as forks of one process that has imported its libraries already.

Each line of standard input is a request, and each line of standard output its answer, as JSON. The
commands of a request start together; each has its own session, and is killed with its processes.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

import datasets  # noqa: F401
import peft  # noqa: F401
import transformers  # noqa: F401

import dtl.jobs.train
import dtl.launch.worker
from dtl.cli.app import main as run_dtl

TIMED_OUT = "timed out"
POLL_SECONDS = 0.002


def main() -> int:
    """Serve requests until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    for line in sys.stdin:
        print(json.dumps(_serve(json.loads(line))), file=answers, flush=True)
    return 0


def _serve(request: dict[str, Any]) -> dict[str, Any]:
    """Return exit codes (None: killed at its limit) and the seconds that the request took."""
    start = time.monotonic()
    running = {_fork(command, request): n for n, command in enumerate(request["commands"])}
    children, codes = tuple(running), [None] * len(running)
    while running:
        seconds = time.monotonic() - start
        child, status = os.waitpid(-1, os.WNOHANG)
        if child:
            codes[running.pop(child)] = os.waitstatus_to_exitcode(status)
            continue
        if request.get("stop_at") and Path(request["stop_at"]).exists():
            _signal(running, signal.SIGTERM)
            request["stop_at"] = None
        if seconds > request.get("kill_after", request["limit"]):
            _signal(running, signal.SIGKILL)
            break
        time.sleep(POLL_SECONDS)
    seconds = time.monotonic() - start
    for child in running:
        os.waitpid(child, 0)
    _signal(children, signal.SIGKILL)  # what a command has left in its session
    return {"codes": codes, "seconds": seconds}


def _signal(children: Any, number: signal.Signals) -> None:
    for child in children:
        try:
            (os.killpg if number == signal.SIGKILL else os.kill)(child, number)
        except ProcessLookupError:
            continue


def _fork(command: dict[str, Any], request: dict[str, Any]) -> int:
    """Return the process id of a command."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.setsid()
        log = os.open(command["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(log, stream)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.chdir(request["cwd"])
        os.environ.update(request["environment"])
        for name, value in request.get("limits", {}).items():
            resource.setrlimit(getattr(resource, name), (value, value))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # an error of write instead
        code = run_dtl(command["argv"])
    except BaseException:  # as Python itself does
        import traceback

        traceback.print_exc()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


if __name__ == "__main__":
    assert dtl.jobs.train and dtl.launch.worker
    sys.exit(main())
