"""The same command again, on an interrupted run: its options hold from then on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dtl import api
from dtl.config.load import load_config
from dtl.config.schema import RunConfig
from dtl.core.signals import STOPPED
from dtl.launch.supervisor import Supervisor
from dtl.prepare import prepared_run
from dtl.run.folder import RunFolder
from tests import tiny

# Options that do not change what a run learns, each with another value than its default.
OPTIONS = {
    "layout.micro_batch": "1",
    "train.wall_time": "1h",
    "train.hang_seconds": "77",
    "train.loading_hang_seconds": "777",
    "train.save_every": "3",
    "train.keep_last": "5",
    "train.export": "last",
    "train.max_skipped_steps": "9",
    "data.on_bad_row": "skip",
}


@pytest.fixture
def config_file(decoder: Path, cache: Path, tmp_path: Path, monkeypatch: Any) -> Path:
    monkeypatch.chdir(tmp_path)
    tiny.write_rows(tmp_path / "rows.jsonl", [{"text": f"row {index}"} for index in range(8)])
    file = tmp_path / "config.yaml"
    file.write_text(
        f"run: {{name: again}}\nmodel: {{path: {decoder}}}\ntask: causal_lm\n"
        "data: {train: rows.jsonl}\nstrategy: lora\ntrain: {steps: 2, global_batch: 2}\n"
    )
    return file


def test_an_interrupted_run_takes_the_options_of_the_new_command(
    config_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched: list[RunConfig] = []
    planned: list[RunConfig] = []
    prepare_run = prepared_run.prepare_run

    def prepare(config: RunConfig, **more: Any) -> Any:
        planned.append(config)
        return prepare_run(config, **more)

    def launch(_: Supervisor, folder: RunFolder, *__: Any) -> int:
        launched.append(folder.config)
        return STOPPED

    monkeypatch.setattr(prepared_run, "prepare_run", prepare)
    monkeypatch.setattr(Supervisor, "launch", launch)
    api.train(load_config(config_file))
    api.train(load_config(config_file))
    assert len(planned) == 1, "the same options need no new plan"
    changed = load_config(config_file, [f"{key}={value}" for key, value in OPTIONS.items()])
    api.train(changed)
    assert launched[:2] == [load_config(config_file)] * 2
    assert launched[2] == changed != launched[0]
    assert planned[1:] == [changed]
