"""One run on disk: run.json, metrics.jsonl, logs, checkpoints, export."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import yaml

from dtl.config.diff import result_values
from dtl.config.schema import RunConfig
from dtl.core.errors import DtlError
from dtl.data.batching import Batching
from dtl.plan.records import Plan
from dtl.tasks.base import DatasetStats

State = Literal["absent", "interrupted", "finished"]
METRICS = "metrics.jsonl"
SKIPPED = "skipped_rows.jsonl"
LENGTHS = "lengths.npz"  # of the examples, where batches depend on them
SKIPPED = "skipped_rows.jsonl"
STACK = ("dtl", "torch", "deepspeed", "accelerate", "transformers", "peft", "bitsandbytes")


@dataclass(frozen=True)
class Scored:
    """After which step, and under which weights: unadapted, adapted, ema or average."""

    step: int
    of: str


@dataclass(frozen=True)
class RunFolder:
    """`run.json` says what was asked and planned; `result.json` closes the run."""

    path: Path

    @classmethod
    def of(cls, config: RunConfig) -> RunFolder:
        """Where this config's run lies: <run.dir>/<run.name>."""
        assert config.run.name is not None, "load_config names the run"
        return cls(Path(config.run.dir) / config.run.name)

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """A run that exists. Raises DtlError where there is none."""
        folder = cls(Path(path))
        if folder.state == "absent":
            raise DtlError.of(
                str(path), "there is no run in this folder", "name a folder with run.json"
            )
        return folder

    @property
    def state(self) -> State:
        if not (self.path / "run.json").is_file():
            return "absent"
        return "finished" if (self.path / "result.json").is_file() else "interrupted"

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
        return RunConfig.model_validate(self._run["config"])

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
        """The git commit of the folder that the run was begun in."""
        commit: str | None = self._run.get("commit")
        return commit

    @property
    def result(self) -> dict[str, Any]:
        """Scores, steps and paths of a finished run."""
        return dict(_read(self.path / "result.json"))

    @property
    def _run(self) -> dict[str, Any]:
        return dict(_read(self.path / "run.json"))

    @property
    def data(self) -> dict[str, Any]:
        """What the run began with: `key`, which names the content of the training data, the number
        of examples, the digest and the rows of each of the `sources`, and the fingerprint of the
        `base`."""
        return dict(self._run["data"])

    @property
    def batching(self) -> Batching | None:
        """How the run's batches are formed; None where the folder lacks the lengths for it."""
        options = self.config.train
        wanted = {
            "sizes": options.global_batch.unit != "examples",
            "lengths": options.group_by_length,
        }
        path = self.path / LENGTHS
        kept = dict(np.load(path)) if path.is_file() else {}
        if not all(name in kept for name, needed in wanted.items() if needed):
            return None
        return Batching(
            self.data["examples"],
            options.global_batch.limit,
            options.seed,
            **{name: kept[name] for name, needed in wanted.items() if needed},
        )

    @property
    def identity(self) -> str:
        """What the run learns, in one text: the same for two runs that learn the same."""
        return _identity(self.config, self.data)

    @property
    def formerly(self) -> tuple[str, ...]:
        """Identities before the config was changed by --allow-change."""
        return tuple(self._run["formerly"])

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
        """Begin the run. `skipped`: rows that are no examples, each with its place and the reason.
        `batching`: whose lengths are kept for the audit.
        Raises DtlError when the folder holds something else."""
        if self.path.exists() and any(self.path.iterdir()):
            raise DtlError.of(
                str(self.path),
                "the folder is not empty, and it is not a run",
                "choose another run.name or run.dir",
            )
        self.logs.mkdir(parents=True, exist_ok=True)
        record: dict[str, Any] = {
            "config": config.model_dump(mode="json"),
            "plan": plan.to_dict(),
            "dataset_stats": dataset_stats,
            "data": data,
            "formerly": [],
            "versions": stack_versions(),
            "commit": _commit(),
        }
        text = yaml.safe_dump(record["config"], sort_keys=False)
        (self.path / "config.yaml").write_text(text, encoding="utf-8")
        self._list_skipped(skipped)
        if batching is not None and batching.stored_arrays:
            np.savez(self.path / LENGTHS, **batching.stored_arrays)  # type: ignore[arg-type]
        write_json(self.path / "run.json", record)

    def _list_skipped(self, rows: Iterable[dict[str, str]]) -> None:
        """Into skipped_rows.jsonl; no rows, no file."""
        file = None
        for row in rows:
            file = file or (self.path / SKIPPED).open("w", encoding="utf-8")
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        if file is not None:
            file.close()

    def lay_out_anew(self, config: RunConfig, plan: Plan) -> None:
        """The run goes on under another plan, and perhaps as another run than it was."""
        former = {self.identity} - {_identity(config, self.data)}
        record = {
            **self._run,
            "config": config.model_dump(mode="json"),
            "plan": plan.to_dict(),
            "formerly": [*self.formerly, *former],
        }
        write_json(self.path / "run.json", record)

    @property
    def usage(self) -> Path:
        """What each launch took."""
        return self.path / "usage"

    def outcomes_file(self, step: int, *, of: str = "adapted") -> Path:
        """Where the outcomes of a scoring lie; `of`: unadapted, adapted, or which average of the
        weights."""
        average = "" if of in ("unadapted", "adapted") else f"-{of}"
        return self.path / "evaluations" / f"step-{step:08d}{average}.jsonl"

    def outcomes(self, step: int, *, of: str = "adapted") -> list[dict[str, Any]]:
        """Of each held-out example, in the order of the rows, each with its `row`; none where that
        step was not scored."""
        file = self.outcomes_file(step, of=of)
        if not file.is_file():
            return []
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]

    @property
    def scored(self) -> Scored | None:
        """The scoring whose scores are the run's: of the exported weights, or, while it is not
        finished, the newest one. None: there is none yet."""
        if self.state != "finished":
            lines = [line for line in self.metrics() if line["kind"] == "eval"]
            return Scored(lines[-1]["step"], lines[-1]["model"]) if lines else None
        result = self.result
        if "adapted" not in result["scores"]:
            return None
        best, weights = result["best"]["step"], result["weights"]
        is_best = self.config.train.export == "best" and weights == "adapted"
        return Scored(best if is_best and best is not None else result["steps"], weights)

    @property
    def heartbeats(self) -> Path:
        return self.path / "heartbeats"

    @property
    def spikes(self) -> list[dict[str, Any]]:
        """Steps whose loss jumped, and to where the run went back: their batches are left out."""
        path = self.path / "spikes.json"
        return list(_read(path)) if path.is_file() else []

    def note_spike(self, spike: dict[str, Any]) -> None:
        """Leave out the batch of spike["step"] from now on."""
        write_json(self.path / "spikes.json", [*self.spikes, spike])

    def append(self, line: dict[str, Any], *, to: str = METRICS) -> None:
        """Add one line to a file; what a kill has left of a line before it is removed."""
        with (self.path / to).open("a+b") as file:
            file.truncate(_whole_lines(file))
            file.write(json.dumps(line, ensure_ascii=to == METRICS).encode() + b"\n")

    def metrics(self) -> Iterator[dict[str, Any]]:
        """Every whole line of metrics.jsonl; none where nothing has been told yet."""
        return self._lines_of(METRICS)

    def skipped_rows(self) -> Iterator[dict[str, str]]:
        """Every row that has been found to be no example: its source, its place, the reason."""
        return self._lines_of(SKIPPED)

    def _lines_of(self, name: str) -> Iterator[dict[str, Any]]:
        path = self.path / name
        if not path.exists():
            return
        with path.open(encoding="utf-8") as file:
            for line in file:
                if line.endswith("\n"):
                    yield json.loads(line)

    def forget_after(self, step: int) -> None:
        """Drop the lines of steps that a resumed run will take again."""
        kept = [line for line in self.metrics() if line["step"] <= step]
        staged = self.path / ".metrics.jsonl"
        staged.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        staged.replace(self.path / METRICS)

    def note_end(self, exit_code: int | None, *, rank: int | None = None) -> None:
        """Leave word how a launch ended, since launchers have exit codes of their own; None takes
        all words back. The word of one `rank` counts when every rank has left the same."""
        if exit_code is None:
            for note in self.path.glob("ended*.json"):
                note.unlink(missing_ok=True)
        else:
            name = "ended.json" if rank is None else f"ended-{rank}.json"
            write_json(self.path / name, {"exit_code": exit_code})

    @property
    def ended(self) -> int | None:
        """The exit code that the last launch left word of; None after a crash."""
        note = self.path / "ended.json"
        if note.is_file():
            return int(_read(note)["exit_code"])
        words = [int(_read(one)["exit_code"]) for one in self.path.glob("ended-*.json")]
        agreed = len(words) == self.plan.layout.world_size and len(set(words)) == 1
        return words[0] if agreed else None

    @property
    def last_step(self) -> int:
        """The newest step in the log; 0 before the first."""
        return max((line["step"] for line in self.metrics() if line["kind"] == "train"), default=0)

    def finish(self, result: dict[str, Any]) -> None:
        """Close the run: from here on it is finished."""
        write_json(self.path / "result.json", result)


def write_json(path: Path, value: Any) -> None:
    """Whole or not at all: written beside, synced, renamed."""
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    with staged.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    staged.replace(path)


def _identity(config: RunConfig, data: dict[str, Any]) -> str:
    text = json.dumps([result_values(config), data], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _whole_lines(file: BinaryIO) -> int:
    """Bytes up to the end of the last whole line."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 1))
    if file.read(1) in (b"", b"\n"):
        return size
    file.seek(0)
    return file.read().rfind(b"\n") + 1


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as fault:
        raise DtlError.of(
            str(path), f"cannot be read ({fault})", "the run folder is damaged"
        ) from fault


def stack_versions() -> dict[str, str | None]:
    """Of dtl and what it stands on; None for what is not installed."""
    return {name: _version(name) for name in STACK}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the folder that the command was given in, if it is a git checkout."""
    import subprocess

    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None
