"""The data and bases of the distributed tests, and the launches of the runs that they need."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import tiny
from tests.distributed.layouts import BATCH, CLIP, HELD_OUT, RATE, STEPS
from tests.distributed.runs import Run, launch, needed_by

CONFIG = f"""
model: {{path: base, dtype: fp32}}
task: {{name: causal_lm, max_length: 64}}
data: {{train: train.jsonl}}
strategy: full
optim: {{learning_rate: {RATE}, warmup: 0, gradient_clip: {CLIP}}}
train: {{steps: {STEPS}, global_batch: {BATCH}}}
"""
LABELED = f"""
model: {{path: encoder, dtype: fp32}}
task: text_classification
data: {{train: labeled.jsonl, eval: held_out.jsonl}}
strategy: frozen
optim: {{learning_rate: {RATE}}}
train: {{steps: 3, global_batch: {BATCH}, evaluation_batch: 4}}
"""


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with bases, data and configs; the runs of all files lie in its `runs`."""
    folder = tmp_path_factory.mktemp("distributed")
    tiny.decoder(folder / "base")
    tiny.encoder(folder / "encoder")
    tiny.write_texts(folder / "train.jsonl", 53)
    tiny.write_texts(folder / "eval.jsonl", HELD_OUT, seed=2)
    numbers = [{"text": " ".join(str(row * 7919 + n) for n in range(6))} for row in range(41)]
    tiny.write_rows(folder / "numbers.jsonl", numbers)
    texts = (folder / "train.jsonl").read_text().splitlines(keepends=True)
    gaps = [line for text in texts[:30] for line in ('{"text": ""}\n' * (len(text) % 2), text)]
    (folder / "gaps.jsonl").write_text("".join(gaps))
    tiny.write_labelled(folder / "labeled.jsonl", 53)
    tiny.write_labelled(folder / "held_out.jsonl", HELD_OUT, seed=2)
    (folder / "config.yaml").write_text(CONFIG)
    (folder / "labeled.yaml").write_text(LABELED)
    return folder


@pytest.fixture(scope="session")
def done() -> dict[Path, set[Run]]:
    """The runs that have been made, by their folder."""
    return {}


@pytest.fixture(scope="module")
def bed(request: pytest.FixtureRequest, folder: Path, done: dict[Path, set[Run]]) -> Path:
    """The folder, after the runs that the selected tests of this file need."""
    here = [item for item in request.session.items if item.path == request.path]
    launch(needed_by(here), folder=folder, done=done.setdefault(folder, set()))
    return folder
