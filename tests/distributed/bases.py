"""Tiny bases for the tasks, with rows and a config for each, written to one folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests import tiny_speech, tiny_whisper


@dataclass(frozen=True)
class Case:
    """A base for a task. `rate`: small where a few steps would otherwise lead far away. `batches`:
    how the global batches are formed."""

    task: str
    base: Any
    rows: Any
    rate: float = 0.003
    batches: str = "global_batch: 6"


def spoken(count: int, *, seed: int) -> list[dict[str, Any]]:
    return list(tiny_whisper.spoken(count, seed=seed))


def layer_normed_hubert(folder: Path) -> Path:
    """Write a HuBERT with an attention mask: one without depends on the padding of its batch."""
    return tiny_speech.hubert(folder, norm="layer")


def config(name: str, case: Case, *, steps: int) -> str:
    """Views are varied by example, so that they too are the same on every layout."""
    return f"""
model: {{path: {name}, dtype: fp32}}
task: {case.task}
data: {{train: {name}-train.parquet, eval: {name}-held-out.parquet}}
strategy: full
optim: {{learning_rate: {case.rate}, warmup: 0}}
train: {{steps: {steps}, {case.batches}, evaluation_batch: 2}}
"""


def write_cases(
    folder: Path, cases: Mapping[str, Case], *, steps: int, rows: int, held_out: int
) -> None:
    """Write a base, its rows and NAME.yaml for each case."""
    import pyarrow as pa
    from pyarrow import parquet

    for name, case in cases.items():
        case.base(folder / name)
        for split, count, seed in (("train", rows, 1), ("held-out", held_out, 2)):
            table = pa.Table.from_pylist(case.rows(count, seed=seed))
            parquet.write_table(table, folder / f"{name}-{split}.parquet")
        (folder / f"{name}.yaml").write_text(config(name, case, steps=steps))
