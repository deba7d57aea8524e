"""The setup of all trials: tiny models, data, configs and scenarios."""

from __future__ import annotations

import os
import random
import threading
from dataclasses import dataclass, field
from pathlib import Path

from tests import tiny

REPOSITORY = Path(__file__).parents[2]
INJECT = Path(__file__).parent / "inject"
SAVE_EVERY = 4
EVALUATE_EVERY = 20
CONFIG = """
model: {{path: {folder}/base, dtype: fp32}}
task: {{name: causal_lm, max_length: 64}}
data: {{train: {folder}/train.jsonl, eval: {folder}/held-out.jsonl}}
optim: {{learning_rate: 0.003}}
strategy: full
train:
  steps: 60
  global_batch: 6
  save_every: {save_every}
  evaluate_every: {evaluate_every}
  evaluation_batch: 4
layout: {{processes_per_node: 2, zero_stage: 0, micro_batch: 3}}
"""


@dataclass(frozen=True)
class Scenario:
    """One config. `steps`, `save_every`: written into its overrides."""

    name: str
    steps: int
    overrides: tuple[str, ...] = ()
    save_every: int = SAVE_EVERY

    def arguments(self) -> list[str]:
        """Return the overrides of the command."""
        rhythm = [f"train.steps={self.steps}", f"train.save_every={self.save_every}"]
        return [*rhythm, *self.overrides]


# Long enough for several kills: a step takes 7 ms at stage 0 and 40 ms at stage 3.
SCENARIOS = (
    Scenario("zero-0 full", 240, ("layout.zero_stage=0",)),
    Scenario("zero-2 lora", 120, ("layout.zero_stage=2", "strategy=lora")),
    Scenario("zero-3 full", 80, ("layout.zero_stage=3",)),
    Scenario("zero-0 lora", 240, ("layout.zero_stage=0", "strategy=lora")),
    Scenario("zero-2 full", 120, ("layout.zero_stage=2",)),
    Scenario("zero-3 lora", 80, ("layout.zero_stage=3", "strategy=lora")),
)
SINGLE_PROCESS = Scenario(
    "one process", 40, ("layout.processes_per_node=1", "train.keep_last=3"), save_every=10
)


@dataclass
class Setup:
    """A folder with models and data. Every trial has its own folder in it."""

    folder: Path
    seed: int
    most_kills: int = 7  # of one run
    locks: dict[str, threading.Lock] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def config(self) -> Path:
        return self.folder / "config.yaml"

    def create(self) -> None:
        """Write models, data and config, unless they exist."""
        if self.config.exists():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        tiny.decoder(self.folder / "base")
        tiny.write_texts(self.folder / "train.jsonl", 53)
        tiny.write_texts(self.folder / "held-out.jsonl", 60, seed=2)
        text = CONFIG.format(
            folder=self.folder, save_every=SAVE_EVERY, evaluate_every=EVALUATE_EVERY
        )
        self.config.write_text(text, encoding="utf-8")

    def rng(self, kind: str, number: int) -> random.Random:
        """Return the random generator of a trial: it depends only on seed, kind and number."""
        return random.Random(f"{self.seed}:{kind}:{number}")

    def trial_folder(self, kind: str, number: int) -> Path:
        """Return the folder of a trial."""
        return self.folder / "trials" / f"{kind}-{number:04d}"

    def lock(self, name: str) -> threading.Lock:
        """Return a lock by name, for what is created once and used by many trials."""
        with self._lock:
            return self.locks.setdefault(name, threading.Lock())

    def environment(self, mark: str) -> dict[str, str]:
        """Return the environment of the processes of a trial; `CHAOS_MARK` identifies them."""
        path = os.pathsep.join([str(INJECT), str(REPOSITORY)])
        return {
            **os.environ,
            "PYTHONPATH": path,
            "OMP_NUM_THREADS": "1",
            "DS_ACCELERATOR": "cpu",
            "DTL_CACHE": str(self.folder / "cache"),
            "CHAOS_MARK": mark,
        }
