"""Ranks wait for a slow one outside of collectives, whose timeout would end the run."""

import subprocess
import sys

from tests.distributed.launching import environment, port

TIMEOUT_SECONDS = 2
SLOW = """
import sys, time
from dtl.core.parallel_dims import ParallelDims
from dtl.engine.base import EngineSettings
from dtl.engine.start import start

settings = EngineSettings(
    device="cpu",
    parallel_dims=ParallelDims(2),
    dtype="fp32",
    accumulation_steps=1,
    gradient_clip=None,
    deepspeed=None,
    timeout_seconds=float(sys.argv[1]),
)
engine = start(settings)

def hash_a_checkpoint():
    time.sleep(2 * float(sys.argv[1]))
    return "newest"

for _ in range(2):
    found = engine.broadcast_object(hash_a_checkpoint() if engine.is_main_process else "")
    assert found == "newest", found
if engine.rank == 1:
    time.sleep(1.5 * float(sys.argv[1]))
engine.barrier()
assert engine.all_reduce_sum(1.0) == [2.0]
engine.close()
print("done")
"""


def test_work_of_one_rank_may_take_longer_than_the_timeout_of_a_collective(tmp_path):
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port()), "WORLD_SIZE": "2"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", SLOW, str(TIMEOUT_SECONDS)],
            env=environment(RANK=str(rank), LOCAL_RANK=str(rank), **shared),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for rank in ranks:
        output, errors = rank.communicate(timeout=300)
        assert (rank.returncode, output) == (0, "done\n"), errors[-3000:]
