"""Run many jobs in one launch; see fork_server.py.

Each job is {"config": path, "overrides": [...]} and perhaps
  "bare": true         neither save nor export;
  "stop_after": step   stop there as if asked to by a signal; a later job of that name resumes;
  "stop_at": "export"  stop where the heartbeat says so;
  "poison": [steps]    make the loss of these steps NaN on the last rank;
  "jump": step         make the loss of this step 50 times as large;
  "skip_steps": [steps]  as if the loss of the last one had spiked;
  "fp16": true         train in fp16, which the planner and DeepSpeed refuse on a CPU;
  "chunk_logits": n    compute at most so many logits at a time;
  "call": module       no run: the function `run` of this module, which gets the job.
The run folders hold the results. The process group stays between jobs, which saves seconds a job;
all else starts again.
"""

from __future__ import annotations

import faulthandler
import gc
import hashlib
import importlib
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from accelerate.state import AcceleratorState, GradientState

from benchmarks.gpu.runs import fp16_on_cpu
from dtl.config.load import load_config
from dtl.jobs import train
from dtl.losses import language_model
from dtl.prepare import prepared_run
from dtl.run.folder import RunFolder
from dtl.tasks import causal_lm
from dtl.train import loop
from dtl.train.heartbeat import Watchdog
from dtl.train.process import ProcessContext
from dtl.train.setup import start_engine

LIMIT = 300  # seconds of a job; a rank that hangs then writes where it stands, and ends


def main(jobs_file: str) -> int:
    torch.set_num_threads(1)
    processes = int(os.environ["WORLD_SIZE"])
    for job in json.loads(Path(jobs_file).read_text(encoding="utf-8")):
        faulthandler.dump_traceback_later(LIMIT, exit=True)
        # DeepSpeed collects garbage at stage 3: let it look at no more than its own job has made.
        gc.collect()
        gc.freeze()
        chunk = job.get("chunk_logits", language_model.CHUNK_LOGITS)
        chunks = mock.patch.object(language_model, "CHUNK_LOGITS", chunk)
        with chunks, fp16_on_cpu() if "fp16" in job else nullcontext():
            if "call" in job:
                importlib.import_module(job["call"]).run(job)
            else:
                run_job(job, processes)
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
    torch.distributed.destroy_process_group()
    return 0


def run_job(job: dict[str, Any], processes: int) -> None:
    """Make one run on this rank."""
    config = load_config(
        job["config"], [*job["overrides"], f"layout.processes_per_node={processes}"]
    )
    prepared = prepared_run.prepare_run(config, writes=os.environ["RANK"] == "0")
    engine = start_engine(config, prepared.plan)
    folder = RunFolder.from_config(config)
    if engine.is_main_process and folder.state == "absent":
        examples = prepared.data
        folder.create(
            config,
            prepared.plan,
            examples.dataset_stats,
            examples.to_record(),
            batching=examples.batching,
        )
    elif engine.is_main_process:
        folder.update_plan(config, prepared.plan)
    if engine.is_main_process and "skip_steps" in job:
        folder.add_spike({"step": job["skip_steps"][-1], "skipped_steps": job["skip_steps"]})
    engine.barrier()
    with watched(job) as at:
        watch = Watchdog(
            folder.heartbeats, rank=engine.rank, world_size=engine.world_size, print_line=print
        )
        asked = partial(asks_to_stop, job, at, watch)
        terminal = sys.stdout if engine.is_main_process else None
        process = ProcessContext(
            terminal,
            watch,
            is_stop_requested=asked,
            check_lease=lambda: None,
            saves_checkpoints=not job.get("bare"),
            exports_model=not job.get("bare"),
        )
        with watch:
            train.run(folder, engine, prepared.data, process)
        if hasattr(engine, "model"):
            refuse_different_buffers(engine)


def refuse_different_buffers(engine: Any) -> None:
    """Whatever a rank has gathered, such as BatchNorm's statistics, all have."""
    digest = hashlib.sha256()
    for _, buffer in sorted(engine.unwrapped_model.named_buffers(), key=itemgetter(0)):
        digest.update(buffer.float().cpu().numpy().tobytes())
    if len(set(engine.all_gather_object([digest.hexdigest()]))) != 1:
        raise AssertionError("the ranks end with different buffers")


@dataclass
class At:
    """The step that the loop is in."""

    step: int = 0


def asks_to_stop(job: dict[str, Any], at: At, watch: Watchdog) -> bool:
    if "stop_at" in job:
        return watch.activity.startswith(job["stop_at"])
    return at.step >= job.get("stop_after", sys.maxsize)


@contextmanager
def watched(job: dict[str, Any]) -> Iterator[At]:
    """Follow the loop's steps, and spoil the loss of some."""
    at = At()
    poison, jump = job.get("poison", ()), job.get("jump")
    seed_generators, loss = loop.seed_generators, causal_lm.Plugin.loss
    last_rank = int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1

    def follow(seed: int, step: int, *position: int) -> None:
        at.step = step
        seed_generators(seed, step, *position)

    def with_faulty_loss(self: Any, model: Any, batch: Any) -> Any:
        factor = 1.0
        if at.step in poison and last_rank and model.training:
            factor = float("nan")
        elif at.step == jump and model.training:
            factor = 50.0
        return loss(self, model, batch) * factor

    followed = mock.patch.object(loop, "seed_generators", follow)
    with followed, mock.patch.object(causal_lm.Plugin, "loss", with_faulty_loss):
        yield at
