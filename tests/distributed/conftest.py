"""One bed for all distributed tests: every layout is run in one launch for each number of ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests import tiny
from tests.distributed import launching
from tests.distributed.matrix import (
    ACCUMULATION,
    BATCH,
    CLIP,
    EXPORTED,
    HELD_OUT,
    RATE,
    STAGES,
    STEPS,
    STRATEGIES,
)

CONFIG = f"""
model: {{path: base, dtype: fp32}}
task: {{name: causal_lm, max_length: 64}}
data: {{train: train.jsonl}}
strategy: full
optim: {{learning_rate: {RATE}, warmup: 0, gradient_clip: {CLIP}}}
train: {{steps: {STEPS}, global_batch: {BATCH}}}
"""
LABELLED = f"""
model: {{path: encoder, dtype: fp32}}
task: text_classification
data: {{train: labelled.jsonl, eval: held_out.jsonl}}
strategy: frozen
optim: {{learning_rate: {RATE}}}
train: {{steps: 3, global_batch: {BATCH}, evaluation_batch: 4}}
"""


@pytest.fixture(scope="session")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the data, and a run folder for each case."""
    folder = tmp_path_factory.mktemp("distributed")
    tiny.decoder(folder / "base")
    tiny.encoder(folder / "encoder")
    tiny.write_texts(folder / "train.jsonl", 53)
    tiny.write_texts(folder / "eval.jsonl", HELD_OUT, seed=2)
    tiny.write_labelled(folder / "labelled.jsonl", 53)
    tiny.write_labelled(folder / "held_out.jsonl", HELD_OUT, seed=2)
    (folder / "config.yaml").write_text(CONFIG)
    (folder / "labelled.yaml").write_text(LABELLED)
    for ranks in (1, 2):
        jobs = [_job(ranks, *case) for case in _cases()] + _labelled(ranks)
        jobs += _scored(ranks) + (_exported() if ranks == 2 else [])
        launching.run_jobs(ranks, jobs, cwd=folder)
    launching.run_jobs(3, _scored(3), cwd=folder)
    return folder


def _cases() -> list[tuple[str, int, int]]:
    return [(name, zero, turns) for name in STRATEGIES for zero in STAGES for turns in ACCUMULATION]


def _job(ranks: int, strategy: str, zero: int, turns: int) -> dict[str, Any]:
    overrides = [
        f"strategy={strategy}",
        *STRATEGIES[strategy],
        f"layout.zero={zero}",
        f"layout.micro_batch={-(-BATCH // ranks // turns)}",
        f"run.name={strategy}-{ranks}-{zero}-{turns}",
    ]
    return {"config": "config.yaml", "overrides": overrides, "bare": True}


def _labelled(ranks: int) -> list[dict[str, Any]]:
    """A head that the base does not bring, at each stage."""
    return [
        {
            "config": "labelled.yaml",
            "overrides": [f"layout.zero={zero}", f"run.name=head-{ranks}-{zero}"],
            "bare": True,
        }
        for zero in STAGES
    ]


def _scored(ranks: int) -> list[dict[str, Any]]:
    """Scores of the unadapted base, which no training has touched."""
    overrides = ["data.eval=eval.jsonl", "train.steps=1", "train.evaluation_batch=4"]
    overrides += [f"run.name=scored-{ranks}", "layout.zero=0"]
    return [{"config": "config.yaml", "overrides": overrides, "bare": True}]


def _exported() -> list[dict[str, Any]]:
    """Runs that save and export under ZeRO-3."""
    return [
        {
            "config": config,
            "overrides": [*more, "layout.zero=3", "train.steps=3", f"run.name=export-{name}"],
        }
        for name, (config, more) in EXPORTED.items()
    ]
