"""Run many jobs in one launch: `torchrun --nproc-per-node N many.py JOBS.json`.

Each job is {"config": path, "overrides": [...], "bare": bool}; the run folders hold the results. A
bare job neither saves nor exports. The process group is kept between jobs, which saves seconds a
job; all else starts anew.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from unittest import mock

import torch
from accelerate.state import AcceleratorState, GradientState

from dtl import desk
from dtl.config.load import load_config
from dtl.jobs import train
from dtl.run_folder import RunFolder


def main(jobs_file: str) -> int:
    torch.set_num_threads(1)
    processes = int(os.environ["WORLD_SIZE"])
    for job in json.loads(Path(jobs_file).read_text(encoding="utf-8")):
        config = load_config(job["config"], [*job["overrides"], f"layout.processes={processes}"])
        prepared = desk.prepare_run(config, writes=os.environ["RANK"] == "0")
        engine = train.start_engine(config, prepared.plan)
        folder = RunFolder.of(config)
        if engine.is_first and folder.state == "absent":
            examples = prepared.examples
            folder.create(config, prepared.plan, examples.facts, examples.data)
        engine.wait()
        terminal = sys.stdout if engine.is_first else None
        with bare() if job.get("bare") else nullcontext():
            train.run(
                folder, engine, prepared.examples, terminal=terminal, asked_to_stop=lambda: False
            )
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
    torch.distributed.destroy_process_group()
    return 0


@contextmanager
def bare() -> Iterator[None]:
    """Leave out saving and exporting."""
    nothing = mock.Mock(return_value=None)
    without_save = mock.patch.object(train.checkpoint, "save", nothing)
    with without_save, mock.patch.object(train, "_export", nothing):
        yield


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1]))
    except Exception:
        traceback.print_exc()
        sys.exit(1)
