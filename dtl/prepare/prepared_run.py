"""Prepare a run before any process starts: its data, its plan and its folder."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dtl.assembly.parts import Parts, assemble
from dtl.config.diff import changed_keys
from dtl.config.load import load_config
from dtl.config.schema import RunConfig
from dtl.core.errors import DtlError, Fault
from dtl.core.paths import find_folder_obstacle
from dtl.core.resource_errors import is_disk_full
from dtl.data.cache.feature_cache import feature_caches_folder
from dtl.data.cache.streamed import StreamedData
from dtl.models.processor import get_pad_token_id
from dtl.plan.hardware import detect_hardware, free_disk_bytes
from dtl.plan.planner import make_plan
from dtl.plan.records import Decision, ExternalLaunch, Hardware, Plan
from dtl.plan.request import CacheableExamples, PlanRequest
from dtl.prepare.prepared_data import PreparedData, prepare_data
from dtl.prepare.splits import held_out_key
from dtl.run.folder import RunFolder
from dtl.tasks.base import Task

PIP_NAMES = {"tensorboard": "'dtl[tracking]'"}  # of a tracker, if it is not the tracker's name


@dataclass(frozen=True)
class PreparedRun:
    """A run that can start."""

    config: RunConfig
    parts: Parts
    data: PreparedData
    plan: Plan


def prepare_run(
    config: RunConfig,
    *,
    external: ExternalLaunch | None = None,
    hardware: Hardware | None = None,
    writes: bool = True,
) -> PreparedRun:
    """Read and encode the data, then plan. Starts nothing.

    `hardware`: of a node; None: this machine's. `writes`: this process encodes; the others wait.
    """
    check_trackers(config.tracking)
    _check_run_folder(config)
    parts = assemble(config)
    data = prepare_data(config, parts, writes=writes)
    request = PlanRequest(
        config=config,
        parts=parts,
        dataset_stats=data.dataset_stats,
        model_config=data.model_config,
        batching=data.batching,
        lengths=data.train.lengths,
        hardware=hardware or detect_hardware(),
        external=external,
        free_disk_bytes=free_disk_bytes(config.run.dir),
        cacheable=_find_cacheable_examples(parts, data),
        held_out_lengths=None if data.held_out is None else data.held_out.lengths,
        longest_batch=_find_longest_batch(parts.task, data),
    )
    plan = make_plan(request)
    decisions = (*_describe_data(data, parts), *plan.decisions)
    return PreparedRun(config, parts, data, replace(plan, decisions=decisions))


def _check_run_folder(config: RunConfig) -> None:
    """Raise DtlError if the run folder cannot be created."""
    problem = find_folder_obstacle(Path(config.run.dir))
    if problem is not None:
        raise DtlError.of("run.dir", problem, "set run.dir to a folder that can be written to")


def _find_longest_batch(task: Task, data: PreparedData) -> Callable[[int], dict[str, Any]] | None:
    """Return what makes a batch of copies of the longest training example; None for streamed rows,
    which are not encoded yet."""
    examples, processor = data.train, data.processor
    if isinstance(examples, StreamedData):
        return None
    longest = int(examples.lengths.argmax())

    def make_batch(count: int) -> dict[str, Any]:
        shown = task.transform(examples[longest], processor=processor, rng=None)
        return task.collate([shown] * count, pad_token_id=get_pad_token_id(processor) or 0)

    return make_batch


def _describe_data(data: PreparedData, parts: Parts) -> Iterator[Decision]:
    """Yield the detected format of each source, and what the task does with the rows."""
    for source in data.all_sources:
        description = source.rows.description
        yield Decision(source.key, description.name, ", ".join(description.details))
    for note in parts.task.find_data_notes(data.dataset_stats):
        yield Decision("rows", "converted", note)


def _find_cacheable_examples(parts: Parts, data: PreparedData) -> CacheableExamples:
    free = free_disk_bytes(str(feature_caches_folder()))
    if isinstance(data.train, StreamedData):
        reason = "streamed rows are encoded again each time"
        return CacheableExamples(reason, data.train.lengths, free)
    examples = data.feature_cache_data or data.train
    uncacheable = parts.task.uncacheable_reason(examples, processor=data.processor)
    return CacheableExamples(uncacheable, examples.lengths, free)


def prepare_config_file(
    path: str | Path, overrides: Sequence[str], *, external: ExternalLaunch | None, writes: bool
) -> PreparedRun:
    """Prepare the run of a config file."""
    return prepare_run(load_config(path, overrides), external=external, writes=writes)


def write_run(folder: RunFolder, prepared: PreparedRun) -> None:
    """Create the run folder, or write the new plan into that of an interrupted run.

    Raises DtlError if the folder contains something else than a run.
    """
    data = prepared.data
    if folder.state != "absent":
        folder.update_plan(
            prepared.config, prepared.plan, held_out=data.to_record()["sources"].get("data.eval")
        )
        return
    try:
        folder.create(
            prepared.config,
            prepared.plan,
            data.dataset_stats,
            data.to_record(),
            skipped=data.iter_skipped_rows(),
            batching=data.batching,
        )
    except OSError as error:
        if is_disk_full(error):
            raise
        raise DtlError.of(
            "run.dir",
            f"the run folder {folder.path} cannot be created ({error.strerror or error})",
            "set run.dir to a folder that can be written to",
        ) from error


def reopen_run(folder: RunFolder, *, writes: bool) -> PreparedRun:
    """Prepare the run of a folder again, with its config and its plan."""
    config = folder.config
    parts = assemble(config)
    data = prepare_data(config, parts, writes=writes)
    prepared = PreparedRun(config, parts, data, folder.plan)
    check_data_unchanged(folder, prepared)
    return prepared


def check_data_unchanged(folder: RunFolder, prepared: PreparedRun) -> None:
    """Raise DtlError if data or base are not those that the run started with. Held-out data may be
    others where the config names others, which `load_changed_config` has allowed."""
    record = prepared.data.to_record()
    fix = "restore it, or start a new run with another run.name"
    if record["base"] != folder.data["base"]:
        raise DtlError.of(
            "model.path",
            f"the weights of {folder.config.model.path} have changed since the run started",
            fix,
        )
    if record["adapter"] != folder.data.get("adapter"):
        raise DtlError.of(
            "strategy.continue_from",
            "the adapter whose training is continued has changed since the run started",
            fix,
        )
    if record["key"] != folder.data["key"]:
        raise DtlError.of(
            folder.config.data.train.path,
            "the data, or its tokenizer, has changed since the run started",
            fix,
        )
    before, after = folder.config.data.eval, prepared.config.data.eval
    if after is None or after != before or held_out_key(prepared.config.data) != "data.eval":
        return
    hashes = [each["sources"]["data.eval"]["sha256"] for each in (folder.data, record)]
    if hashes[0] != hashes[1]:
        raise DtlError.of(
            f"data.eval: {after.path}",
            "the held-out data has changed since the run started, and the scores of its "
            "evaluations would not be comparable",
            fix,
        )


def check_trackers(names: Iterable[str]) -> None:
    """Raise DtlError for trackers that are not installed."""
    faults = [
        Fault("tracking", f"{name} is not installed", f"pip install {PIP_NAMES.get(name, name)}")
        for name in names
        if importlib.util.find_spec(name) is None
    ]
    if faults:
        raise DtlError(*faults)


def check_unused(folder: RunFolder, config: RunConfig) -> None:
    """Raise DtlError if the folder contains a run; a run is never overwritten."""
    state = folder.state
    if state == "absent":
        return
    content = "a finished run" if state == "finished" else "an interrupted run of another config"
    raise DtlError.of(
        str(folder.path),
        f"the folder contains {content}",
        "choose another run.name, or remove the folder",
    )


def has_same_run(folder: RunFolder, config: RunConfig) -> bool:
    """Return whether the folder contains a run with the same result, on whatever layout."""
    return folder.state != "absent" and not changed_keys(folder.config, config)


def load_changed_config(
    folder: RunFolder, overrides: Sequence[str], *, allow_change: frozenset[str]
) -> RunConfig:
    """Return the run's own config with overrides.

    Raises DtlError for keys that would change the result and are not in `allow_change`.
    """
    config = folder.local_paths.resolve(load_config(folder.path / "config.yaml", overrides))
    refused = [key for key in changed_keys(folder.config, config) if key not in allow_change]
    if refused:
        raise DtlError.of(
            ", ".join(refused),
            "a change of this changes what the run learns",
            f"start a new run, or add --allow-change {','.join(refused)}",
        )
    return config
