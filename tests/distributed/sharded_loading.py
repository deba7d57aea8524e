"""Loading of many families at ZeRO stage 3, on the ranks of a launch."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch

from dtl.config.schema import Model
from dtl.core.parallel_dims import ParallelDims
from dtl.engine.base import Engine, EngineSettings
from dtl.engine.start import start
from dtl.models.load import load_pretrained
from dtl.models.pretrained_config import HeadConfig
from dtl.plan.deepspeed_config import build_deepspeed_config
from dtl.plan.records import Layout


def run(job: dict[str, Any]) -> None:
    """Write what differs from plain loading: a list of names, or an error, for each base."""
    world_size = int(os.environ["WORLD_SIZE"])
    layout = Layout(1, world_size, 3, "none", 1, 1, False, "fp32", "cpu")
    engine = start(
        EngineSettings(
            device="cpu",
            parallel_dims=ParallelDims(world_size=world_size, rank=0),
            dtype="fp32",
            accumulation_steps=1,
            gradient_clip=None,
            deepspeed=build_deepspeed_config(layout, gradient_clip=None),
        )
    )
    found = {folder: differences(engine, folder, head) for folder, head in job["bases"].items()}
    if engine.is_main_process:
        Path(job["file"]).write_text(json.dumps(found))


def differences(engine: Engine, folder: str, auto_class: str) -> list[str] | str:
    head = HeadConfig(auto_class, {})
    options: Any = {"head": head, "random_init": False, "seed": 0, "dtype": "fp32"}
    try:
        sharded = load_pretrained(Model(path=folder), engine=engine, **options)
        with engine.init_context(False):
            plain = load_pretrained(Model(path=folder), **options)
    except Exception as fault:
        return f"{type(fault).__name__}: {fault}"
    expected = dict(plain.model.named_parameters()) | dict(plain.model.named_buffers())
    wrong = sorted(sharded.new_parameters ^ plain.new_parameters)
    for name, value in sharded.model.named_parameters():
        with engine.gather_for_read([value]):
            if name not in sharded.new_parameters and not torch.equal(value, expected[name]):
                wrong.append(name)
    for name, value in sharded.model.named_buffers():
        if not torch.equal(value, expected[name]):
            wrong.append(name)
    return wrong
