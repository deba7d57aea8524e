"""Start the ranks of `many.py` as forks of one process that has imported the libraries already.

A launch by torchrun imports torch, DeepSpeed, transformers and PEFT in every rank, which takes
longer than ten runs of the tests. The process that forks has one thread; launching.py disables
the one that pyarrow would start. Each line of standard input is a launch, and each line of standard
output its exit codes, both as JSON.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from typing import Any

import datasets  # noqa: F401
import deepspeed  # noqa: F401
import peft  # noqa: F401
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401

from tests.distributed import many


def main() -> int:
    """Serve launches until standard input ends."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is no answer
    for line in sys.stdin:
        request = json.loads(line)
        ranks = [fork_rank(request, rank) for rank in range(request["processes"])]
        print(json.dumps(wait_for_ranks(ranks)), file=answers, flush=True)
    return 0


def fork_rank(request: dict[str, Any], rank: int) -> int:
    """Return the process id of a rank that runs the jobs of a request."""
    assert len(os.listdir("/proc/self/task")) == 1, "a lock that another thread holds stays locked"
    child = os.fork()
    if child:
        return child
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(request["cwd"])
    size = str(request["processes"])
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=size,
        LOCAL_WORLD_SIZE=size,
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(request["port"]),
    )
    try:
        code = many.main(request["jobs"])
    except Exception:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def wait_for_ranks(ranks: list[int]) -> list[int]:
    """Return the exit codes, in the order in which the ranks end. Where one fails, the others are
    killed, because they would wait for it."""
    codes, running = [], set(ranks)
    while running:
        ended, status = os.wait()
        running.discard(ended)
        codes.append(os.waitstatus_to_exitcode(status))
        if codes[-1] != 0:
            for rank in running:
                os.kill(rank, signal.SIGKILL)
    return codes


if __name__ == "__main__":
    sys.exit(main())
