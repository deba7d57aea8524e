"""What is found out at the desk, before any process group: config, data, plan; every fault is here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dtl.assemble import Parts, assemble
from dtl.config.load import load_config
from dtl.config.schema import RunConfig
from dtl.errors import DtlError
from dtl.examples import Examples, prepare
from dtl.plan import OuterLaunch, Plan
from dtl.plan.hardware import this_machine
from dtl.plan.make import make_plan
from dtl.run_folder import RunFolder


@dataclass(frozen=True)
class Prepared:
    """A run that can start."""

    config: RunConfig
    parts: Parts
    examples: Examples
    plan: Plan


def prepare_run(
    config: RunConfig, *, outer: OuterLaunch | None = None, writes: bool = True
) -> Prepared:
    """Read and encode the data, then plan. Starts nothing."""
    parts = assemble(config)
    examples = prepare(config, parts, writes=writes)
    plan = make_plan(
        config,
        parts,
        facts=examples.facts,
        settings=examples.settings,
        examples=len(examples.train),
        longest=int(examples.train.lengths.max()),
        hardware=this_machine(),
        outer=outer,
    )
    return Prepared(config, parts, examples, plan)


def prepare_file(
    path: str | Path, overrides: Sequence[str], *, outer: OuterLaunch | None, writes: bool
) -> Prepared:
    """The same from a config file."""
    return prepare_run(load_config(path, overrides), outer=outer, writes=writes)


def reopen(folder: RunFolder, *, writes: bool) -> Prepared:
    """A run as its folder has it: the plan stands."""
    config = folder.config
    parts = assemble(config)
    return Prepared(config, parts, prepare(config, parts, writes=writes), folder.plan)


def refuse_used(folder: RunFolder, config: RunConfig) -> None:
    """A folder that holds a run is never written over. Raises DtlError."""
    state = folder.state
    if state == "absent":
        return
    if state == "interrupted" and _same(folder, config):
        raise DtlError.of(
            str(folder.path),
            "holds an interrupted run of this config",
            f"continue it with `dtl resume {folder.path}`, or choose another run.name",
        )
    what = "a finished run" if state == "finished" else "an interrupted run of another config"
    raise DtlError.of(
        str(folder.path), f"holds {what}", "choose another run.name, or remove the folder yourself"
    )


def is_done(folder: RunFolder, config: RunConfig) -> bool:
    """Whether this very run is finished already, so that there is nothing to do."""
    return folder.state == "finished" and _same(folder, config)


def _same(folder: RunFolder, config: RunConfig) -> bool:
    return _without_place(folder.config) == _without_place(config)


def _without_place(config: RunConfig) -> dict[str, Any]:
    return {key: part for key, part in config.model_dump(mode="json").items() if key != "run"}
