"""What is found out at the desk, before any process starts: config, data, plan, faults."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dtl.assembly.parts import Parts, assemble
from dtl.config.diff import changed_keys
from dtl.config.load import load_config
from dtl.config.schema import RunConfig
from dtl.core.errors import DtlError, Fault
from dtl.data.cache.features import feature_caches_folder
from dtl.data.cache.streamed import StreamedData
from dtl.plan.hardware import detect_hardware, free_disk_bytes
from dtl.plan.planner import make_plan
from dtl.plan.records import Hardware, OuterLaunch, Plan
from dtl.plan.request import CacheableExamples, PlanRequest
from dtl.prepare.dataset import Examples, prepare
from dtl.run.folder import RunFolder

PACKAGES = {"tensorboard": "'dtl[tracking]'"}  # what pip is told, where it is not the name


@dataclass(frozen=True)
class Prepared:
    """A run that can start."""

    config: RunConfig
    parts: Parts
    examples: Examples
    plan: Plan


def prepare_run(
    config: RunConfig,
    *,
    outer: OuterLaunch | None = None,
    hardware: Hardware | None = None,
    writes: bool = True,
) -> Prepared:
    """Read and encode the data, then plan. Starts nothing. `hardware`: of a node, if not of this
    machine."""
    refuse_absent_trackers(config.tracking)
    parts = assemble(config)
    examples = prepare(config, parts, writes=writes)
    request = PlanRequest(
        config=config,
        parts=parts,
        dataset_stats=examples.dataset_stats,
        model_config=examples.settings,
        batching=examples.batching,
        lengths=examples.train.lengths,
        hardware=hardware or detect_hardware(),
        outer=outer,
        free_disk_bytes=free_disk_bytes(config.run.dir),
        cacheable=_cacheable_examples(parts, examples),
    )
    return Prepared(config, parts, examples, make_plan(request))


def _cacheable_examples(parts: Parts, examples: Examples) -> CacheableExamples:
    free = free_disk_bytes(str(feature_caches_folder()))
    if isinstance(examples.train, StreamedData):
        streamed = "streamed rows are encoded again each time"
        return CacheableExamples(streamed, examples.train.lengths, free)
    data = examples.wider or examples.train
    reason = parts.task.uncacheable_reason(data, processor=examples.processor)
    return CacheableExamples(reason, data.lengths, free)


def prepare_file(
    path: str | Path, overrides: Sequence[str], *, outer: OuterLaunch | None, writes: bool
) -> Prepared:
    """The same from a config file."""
    return prepare_run(load_config(path, overrides), outer=outer, writes=writes)


def create(folder: RunFolder, prepared: Prepared) -> None:
    """Begin the run on disk. Raises DtlError where the folder holds something else."""
    examples = prepared.examples
    folder.create(
        prepared.config,
        prepared.plan,
        examples.dataset_stats,
        examples.data,
        skipped=examples.skipped_rows(),
        batching=examples.batching,
    )


def reopen(folder: RunFolder, *, writes: bool) -> Prepared:
    """A run as its folder has it: the plan stands."""
    config = folder.config
    parts = assemble(config)
    examples = prepare(config, parts, writes=writes)
    refuse_other_data(folder, examples)
    return Prepared(config, parts, examples, folder.plan)


def refuse_other_data(folder: RunFolder, examples: Examples) -> None:
    """A run goes on with the data and the base that it began with. Raises DtlError."""
    if examples.data["base"] != folder.data["base"]:
        raise DtlError.of(
            "model.path",
            f"the weights of {folder.config.model.path} have changed since the run began",
            "put back what was there, or start a new run under another run.name",
        )
    if examples.data["continued"] != folder.data.get("continued"):
        raise DtlError.of(
            "strategy.continue_from",
            "the adapter that learns further has changed since the run began",
            "put back what was there, or start a new run under another run.name",
        )
    if examples.train.key != folder.data["key"]:
        raise DtlError.of(
            folder.config.data.train.path,
            "the data, or its tokenizer, has changed since the run began",
            "put back what was there, or start a new run under another run.name",
        )


def refuse_absent_trackers(names: Iterable[str]) -> None:
    """Raises DtlError for trackers that are not installed."""
    faults = [
        Fault("tracking", f"{name} is not installed", f"pip install {PACKAGES.get(name, name)}")
        for name in names
        if importlib.util.find_spec(name) is None
    ]
    if faults:
        raise DtlError(*faults)


def refuse_used(folder: RunFolder, config: RunConfig) -> None:
    """A folder that holds another run is never written over. Raises DtlError."""
    state = folder.state
    if state == "absent":
        return
    what = "a finished run" if state == "finished" else "an interrupted run of another config"
    raise DtlError.of(
        str(folder.path), f"holds {what}", "choose another run.name, or remove the folder yourself"
    )


def holds(folder: RunFolder, config: RunConfig) -> bool:
    """Whether the folder holds this very run, begun or finished, on whatever layout."""
    return folder.state != "absent" and not changed_keys(folder.config, config)


def reconfigure(
    folder: RunFolder, overrides: Sequence[str], *, allow_change: frozenset[str]
) -> RunConfig:
    """The run's own config with overrides. Raises DtlError where these would change the result and
    are not allowed by name."""
    config = load_config(folder.path / "config.yaml", overrides)
    refused = [key for key in changed_keys(folder.config, config) if key not in allow_change]
    if refused:
        names = ", ".join(refused)
        raise DtlError.of(
            names,
            "changing this would change what the run learns",
            f"start a new run, or add --allow-change {','.join(refused)}",
        )
    return config
