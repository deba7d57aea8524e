"""What it costs to verify what a run reads: of the start of a resumed run, and of its first epoch.

    python -m benchmarks.verification_cost [--rows 20000]

A run of a tiny model is stopped and resumed in this process. The seconds inside the functions that
verify are added up, so that one run gives both numbers: the ratio is the time of all over the time
without them. A tiny model is the worst case, because its steps take the least time for each row.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dtl.core.checksums
import dtl.core.files
import dtl.core.json_lines
from dtl.config.load import load_config
from dtl.core.checksums import BlockVerifier
from dtl.jobs import train as jobs
from dtl.prepare import prepared_run
from dtl.run.folder import RunFolder
from dtl.train.heartbeat import Watchdog
from dtl.train.process import ProcessContext
from dtl.train.setup import start_engine
from tests import tiny

VERIFYING = (
    (dtl.core.checksums, "compute_checksums"),
    (dtl.core.files, "_hash_record"),
    (dtl.core.files, "hash_file"),
    (dtl.core.json_lines, "decode_line"),
    (BlockVerifier, "verify"),
)
MOST_AT_START, MOST_IN_EPOCH = 1.05, 1.02
BATCH = 100
CONFIG = """
run: {{dir: {folder}, name: run}}
model: {{path: {folder}/base, dtype: fp32}}
task: {{name: causal_lm, max_length: 64}}
data: {{train: {folder}/train.jsonl}}
strategy: lora
optim: {{learning_rate: 0.003}}
train: {{epochs: 1, global_batch: {batch}}}
layout: {{processes_per_node: 1, zero_stage: 0, micro_batch: {batch}}}
"""


@dataclass
class Clock:
    """Seconds inside the functions that verify, since the last reset, and since when."""

    inside: float = 0.0
    start: float = 0.0

    def reset(self) -> None:
        self.inside, self.start = 0.0, time.perf_counter()

    @property
    def ratio(self) -> float:
        """The time since the last reset, over the same without the functions that verify."""
        total = time.perf_counter() - self.start
        return total / (total - self.inside)

    def measure(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function whose seconds are added up."""

        def measured(*arguments: Any, **options: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                self.inside += time.perf_counter() - start

        return measured


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=20_000)
    rows = parser.parse_args().rows
    clock = Clock()
    for owner, name in VERIFYING:
        setattr(owner, name, clock.measure(getattr(owner, name)))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        os.environ["DTL_CACHE"] = str(folder / "cache")
        tiny.decoder(folder / "base")
        tiny.write_texts(folder / "train.jsonl", rows)
        config = CONFIG.format(folder=folder, batch=BATCH)
        (folder / "run.yaml").write_text(config, encoding="utf-8")
        clock.reset()
        _train(folder, stop_after=rows // BATCH - 2)
        epoch = clock.ratio
        clock.reset()
        _train(folder, stop_after=0)  # it stops after its first step
        start = clock.ratio
    print(f"{rows} rows, {rows // BATCH} steps")
    print(f"first epoch: {epoch:.4f} x (at most {MOST_IN_EPOCH})")
    print(f"start of a resumed run, to its first step: {start:.4f} x (at most {MOST_AT_START})")
    return 0 if epoch <= MOST_IN_EPOCH and start <= MOST_AT_START else 1


def _train(folder: Path, *, stop_after: int) -> None:
    """Start or resume the run, and stop it at a safe point after so many."""
    from accelerate.state import AcceleratorState, GradientState

    config = load_config(folder / "run.yaml")
    run = RunFolder.from_config(config)
    if run.state == "absent":
        prepared = prepared_run.prepare_run(config)
        prepared_run.write_run(run, prepared)
    else:
        prepared = prepared_run.reopen_run(run, writes=True)
    engine = start_engine(config, prepared.plan)
    watchdog = Watchdog(run.heartbeats, rank=0, world_size=1, print_line=print)
    points = itertools.count()
    process = ProcessContext(
        sys.stdout,
        watchdog,
        is_stop_requested=lambda: next(points) >= stop_after,
        check_lease=lambda: None,
    )
    with watchdog:
        jobs.run(run, engine, prepared.data, process)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


if __name__ == "__main__":
    sys.exit(main())
