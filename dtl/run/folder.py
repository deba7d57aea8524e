"""The run folder: run.json, metrics.jsonl, logs, checkpoints, export."""

from __future__ import annotations

import os
import shutil
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal
from zipfile import BadZipFile

import numpy as np
import yaml

from dtl.config.schema import RunConfig
from dtl.core.errors import DtlError
from dtl.core.files import (
    find_unused_path,
    read_record,
    remove_abandoned,
    staged_folder,
    write_record,
    write_text,
)
from dtl.core.json_lines import DamagedLine, encode_line, iter_lines, read_lines
from dtl.data.batching import Batching
from dtl.plan.records import Plan
from dtl.run.creation import LENGTHS, SKIPPED, check_replaceable, publish_run_folder
from dtl.run.evaluations import read_evaluations
from dtl.run.identity import hash_identity
from dtl.run.local_paths import LocalPaths, list_local_paths
from dtl.run.versions import find_git_commit, find_package_versions
from dtl.tasks.base import DatasetStats

State = Literal["absent", "interrupted", "finished"]
RESULT = "result.json"
METRICS = "metrics.jsonl"


@dataclass(frozen=True)
class EvaluatedStep:
    """The step of an evaluation, and the weights: unadapted, adapted, ema or average."""

    step: int
    weights: str


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run: `run.json` has config and plan, `result.json` marks it finished."""

    path: Path

    @classmethod
    def from_config(cls, config: RunConfig) -> RunFolder:
        """Return the folder of a config's run: <run.dir>/<run.name>."""
        assert config.run.name is not None, "load_config names the run"
        return cls(Path(config.run.dir) / config.run.name)

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """Return the folder of an existing run. Raises DtlError if there is none."""
        folder = cls(Path(path))
        if folder.state == "absent":
            raise DtlError.of(
                str(path), "there is no run in this folder", "use a folder with run.json"
            )
        return folder

    @property
    def state(self) -> State:
        """The state by the files that there are. A result that is damaged counts as none: from the
        last checkpoint, it is written again."""
        if not (self.path / "run.json").is_file():
            return "absent"
        return "interrupted" if self.result_damage or not self._has_result else "finished"

    @property
    def _has_result(self) -> bool:
        return (self.path / RESULT).is_file()

    @property
    def result_damage(self) -> str | None:
        """What is wrong with result.json; None where it is intact, or is not there yet."""
        try:
            _ = self.result if self._has_result else None
        except DtlError as fault:
            return str(fault.faults[0].problem)
        return None

    @property
    def export(self) -> Path:
        return self.path / "export"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def config(self) -> RunConfig:
        """The config; its relative paths are absolute where this process is in another folder."""
        return self.local_paths.resolve(self._written_config)

    @property
    def _written_config(self) -> RunConfig:
        return RunConfig.model_validate(self._run["config"])

    @property
    def local_paths(self) -> LocalPaths:
        return LocalPaths.from_record(self._run, self.path)

    @property
    def plan(self) -> Plan:
        return Plan.from_dict(self._run["plan"])

    @property
    def dataset_stats(self) -> DatasetStats:
        return dict(self._run["dataset_stats"])

    @property
    def versions(self) -> dict[str, Any]:
        return dict(self._run["versions"])

    @property
    def commit(self) -> str | None:
        """The git commit of the folder in which the run was started."""
        commit: str | None = self._run.get("commit")
        return commit

    @property
    def result(self) -> dict[str, Any]:
        """Scores, steps and paths of a finished run."""
        return read_record(self.path / RESULT)

    @property
    def _run(self) -> dict[str, Any]:
        return read_record(self.path / "run.json")

    @property
    def data(self) -> dict[str, Any]:
        """The data and the base of the run: `key` (the content of the training data), the number of
        `examples`, digest and rows of each of the `sources`, and the fingerprint of the `base`."""
        return dict(self._run["data"])

    @property
    def batching(self) -> Batching | None:
        """How the run's batches are formed; None if the folder lacks the lengths for it."""
        options = self.config.train
        needed = {
            "sizes": options.global_batch.unit != "examples",
            "lengths": options.group_by_length,
        }
        path = self.path / LENGTHS
        stored = _read_arrays(path) if path.is_file() else {}
        if not all(name in stored for name, is_needed in needed.items() if is_needed):
            return None
        return Batching(
            self.data["examples"],
            options.global_batch.limit,
            options.seed,
            **{name: stored[name] for name, is_needed in needed.items() if is_needed},
        )

    @property
    def identity(self) -> str:
        """A hash of config and data: the same for two runs that give the same result."""
        return hash_identity(self._written_config, self.data)

    @property
    def previous_identities(self) -> tuple[str, ...]:
        """The identities before the config was changed with --allow-change."""
        return tuple(self._run["previous_identities"])

    def create(
        self,
        config: RunConfig,
        plan: Plan,
        dataset_stats: DatasetStats,
        data: dict[str, Any],
        *,
        skipped: Iterable[dict[str, str]] = (),
        batching: Batching | None = None,
    ) -> None:
        """Create the folder with run.json and config.yaml.

        `skipped`: rows that are not examples, each with location and reason. `batching`: its
        lengths are stored for the audit. The folder is complete or absent. Raises DtlError if it
        contains something else, or if another process has created it at the same time.
        """
        check_replaceable(self.path)
        record: dict[str, Any] = {
            "config": config.model_dump(mode="json"),
            "plan": plan.to_dict(),
            "dataset_stats": dataset_stats,
            "data": data,
            "previous_identities": [],
            "versions": find_package_versions(),
            "commit": find_git_commit(),
            "started_in": os.getcwd(),
            "local_paths": list_local_paths(config),
        }
        with staged_folder(self.path, publish=publish_run_folder) as staged:
            (staged / "logs").mkdir()
            text = yaml.safe_dump(record["config"], sort_keys=False)
            write_text(staged / "config.yaml", text, sync=False)
            lines = [encode_line(row, ensure_ascii=False).decode() for row in skipped]
            if lines:
                write_text(staged / SKIPPED, "".join(lines), sync=False)
            if batching is not None and batching.stored_arrays:
                np.savez(staged / LENGTHS, **batching.stored_arrays)  # type: ignore[arg-type]
            write_record(staged / "run.json", record)

    def update_plan(
        self, config: RunConfig, plan: Plan, *, held_out: dict[str, Any] | None = None
    ) -> None:
        """Replace config and plan; a run whose identity changes remembers the previous one.
        `held_out`: digest and rows of data.eval, where the config names one."""
        data, config = self.data, self.local_paths.unresolve(config)
        if held_out is not None:
            data["sources"] = {**data["sources"], "data.eval": held_out}
        previous = {self.identity} - {hash_identity(config, data)}
        record = {
            **self._run,
            "data": data,
            "config": config.model_dump(mode="json"),
            "plan": plan.to_dict(),
            "previous_identities": [*self.previous_identities, *previous],
        }
        write_record(self.path / "run.json", record)

    @property
    def usage(self) -> Path:
        """The folder of files with time, memory and energy of each launch."""
        return self.path / "usage"

    def eval_records_file(self, step: int, *, weights: str = "adapted") -> Path:
        """Return the path of an evaluation's records; `weights` as in EvaluatedStep."""
        average = "" if weights in ("unadapted", "adapted") else f"-{weights}"
        return self.path / "evaluations" / f"step-{step:08d}{average}.jsonl"

    def read_eval_records(self, step: int, *, weights: str = "adapted") -> list[dict[str, Any]]:
        """Return the record of each held-out example, or [] if there is no evaluation. Raises
        DtlError if one is damaged."""
        file = self.eval_records_file(step, weights=weights)
        return read_lines(file) if file.is_file() else []

    @property
    def reported_step(self) -> EvaluatedStep | None:
        """The evaluation whose scores are the run's: of the exported weights, or, while the run is
        not finished, the newest one. None: there is none yet."""
        if self.state != "finished":
            evaluations = list(read_evaluations(self.read_metrics()))
            newest = evaluations[-1] if evaluations else None
            return EvaluatedStep(newest.step, newest.model) if newest else None
        result = self.result
        if "adapted" not in result["scores"]:
            return None
        best, weights = result["best"]["step"], result["weights"]
        is_best = self.config.train.exported_weights == "best" and weights == "adapted"
        return EvaluatedStep(best if is_best and best is not None else result["steps"], weights)

    @property
    def heartbeats(self) -> Path:
        return self.path / "heartbeats"

    @property
    def spikes(self) -> list[dict[str, Any]]:
        """Steps whose loss jumped, and where the run went back to; their batches are skipped."""
        path = self.path / "spikes.json"
        return list(read_record(path)["spikes"]) if path.is_file() else []

    def add_spike(self, spike: dict[str, Any]) -> None:
        """Store a loss spike: the batch of spike["step"] is skipped from now on."""
        write_record(self.path / "spikes.json", {"spikes": [*self.spikes, spike]})

    def append_line(self, line: dict[str, Any], *, file_name: str = METRICS) -> None:
        """Append one line to a file; an incomplete last line, left by a kill, is removed first."""
        with (self.path / file_name).open("a+b") as file:
            file.truncate(_complete_bytes(file))
            file.write(encode_line(line, ensure_ascii=file_name == METRICS))

    def read_metrics(self) -> Iterator[dict[str, Any]]:
        """Yield every complete line of metrics.jsonl that is intact."""
        return self._iter_intact_lines(METRICS)

    def read_skipped_rows(self) -> Iterator[dict[str, str]]:
        """Yield every skipped row that is intact: its source, location and reason."""
        return self._iter_intact_lines(SKIPPED)

    def _iter_intact_lines(self, name: str) -> Iterator[dict[str, Any]]:
        lines = iter_lines(self.path / name)
        return (line for line in lines if not isinstance(line, DamagedLine))

    @property
    def damaged_lines(self) -> list[str]:
        """The damaged lines of metrics.jsonl and skipped_rows.jsonl, as text."""
        return [
            f"{name}: {line}"
            for name in (METRICS, SKIPPED)
            for line in iter_lines(self.path / name)
            if isinstance(line, DamagedLine)
        ]

    def retain_damaged_log(self) -> Path | None:
        """Keep a copy of metrics.jsonl under another name where lines of it are damaged, before it
        is written again without them; return the copy."""
        if not any(isinstance(line, DamagedLine) for line in iter_lines(self.path / METRICS)):
            return None
        copy = find_unused_path(self.path / f"damaged-{METRICS}")
        shutil.copyfile(self.path / METRICS, copy)
        return copy

    def remove_leftovers(self) -> None:
        """Remove what killed processes have left in the folder of files that they were writing."""
        for folder in (self.path, self.checkpoints, self.heartbeats, self.usage):
            if folder.is_dir():
                remove_abandoned(folder)

    def retain_damaged_result(self) -> None:
        """Rename a damaged result.json: a job script, which cannot verify it, would take the run
        for finished."""
        if self.result_damage:
            renamed = find_unused_path(self.path / f"damaged-{RESULT}")
            (self.path / RESULT).rename(renamed)

    def remove_metrics_after(self, step: int) -> None:
        """Remove the lines of later steps, which a resumed run takes again."""
        lines = [line for line in self.read_metrics() if line["step"] <= step]
        text = b"".join(encode_line(line) for line in lines).decode()
        write_text(self.path / METRICS, text, sync=False)

    def write_exit_code(self, exit_code: int | None, *, rank: int | None = None) -> None:
        """Write how a launch ended, because launchers have exit codes of their own.

        None removes all of these files. The file of one `rank` counts if all ranks wrote the same.
        """
        if exit_code is None:
            for file in self.path.glob("ended*.json"):
                file.unlink(missing_ok=True)
        else:
            name = "ended.json" if rank is None else f"ended-{rank}.json"
            write_record(self.path / name, {"exit_code": exit_code})

    @property
    def exit_code(self) -> int | None:
        """The exit code that the last launch wrote; None after a crash, or where it is damaged."""
        file = self.path / "ended.json"
        if file.is_file():
            return _read_exit_code(file)
        codes = [_read_exit_code(each) for each in self.path.glob("ended-*.json")]
        is_agreed = len(codes) == self.plan.layout.world_size and len(set(codes)) == 1
        return codes[0] if is_agreed else None

    @property
    def last_step(self) -> int:
        """The newest step in metrics.jsonl; 0 before the first."""
        return max(
            (line["step"] for line in self.read_metrics() if line["kind"] == "train"), default=0
        )

    def finish(self, result: dict[str, Any]) -> None:
        """Write result.json: from here on the run is finished."""
        write_record(self.path / RESULT, result)


def _read_exit_code(file: Path) -> int | None:
    try:
        return int(read_record(file)["exit_code"])
    except (DtlError, KeyError, TypeError, ValueError):
        return None


def _read_arrays(file: Path) -> dict[str, np.ndarray]:
    """Return the arrays of an npz file, each of which has a CRC-32. Raises DtlError."""
    try:
        return dict(np.load(file))
    except (OSError, ValueError, EOFError, BadZipFile, zlib.error) as fault:
        raise DtlError.of(
            str(file), f"the file cannot be read ({fault})", "restore it from a copy"
        ) from fault


def _complete_bytes(file: BinaryIO) -> int:
    """Return the number of bytes up to the end of the last complete line."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 1))
    if file.read(1) in (b"", b"\n"):
        return size
    file.seek(0)
    return file.read().rfind(b"\n") + 1
