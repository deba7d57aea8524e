"""The output of a run on disk, and how two outputs differ, bit for bit."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.chaos.runs import Run
from benchmarks.chaos.setup import Scenario, Setup


@dataclass(frozen=True)
class RunOutput:
    """Losses, norms, data digests and scores by step, and the hash of every compared file."""

    losses: list[float | None]
    norms: list[float | None]
    digests: list[str]
    scores: list[dict[str, Any]]
    checkpoint: dict[str, str]
    export: dict[str, str]

    def differences(self, other: RunOutput) -> list[str]:
        """Return what is not bitwise equal."""
        mine, yours = asdict(self), asdict(other)
        return [f"{name} differ" for name in mine if mine[name] != yours[name]]


def read_output(folder: Path, *, step: int) -> RunOutput:
    """Read the output of a finished run, with its checkpoint of that step."""
    text = (folder / "metrics.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    steps = [line for line in lines if line["kind"] == "train"]
    return RunOutput(
        losses=[line["loss"] for line in steps],
        norms=[line["gradient_norm"] for line in steps],
        digests=[line["digest"] for line in steps],
        scores=[line for line in lines if line["kind"] == "eval"],
        checkpoint=hashes(folder / "checkpoints" / f"step-{step:08d}"),
        export=hashes(folder / "export", pattern="*.safetensors"),
    )


def hashes(folder: Path, *, pattern: str = "*") -> dict[str, str]:
    """Return the hash of each file; of a manifest without the name of the run."""
    return {path.name: _hash(path) for path in sorted(folder.glob(pattern))}


def _hash(path: Path) -> str:
    data = path.read_bytes()
    if path.name == "manifest.json":
        manifest = json.loads(data)
        data = json.dumps({name: manifest[name] for name in ("step", "files")}).encode()
    return hashlib.sha256(data).hexdigest()


def reference_output(
    setup: Setup, scenario: Scenario, overrides: tuple[str, ...] = ()
) -> RunOutput:
    """Return the output of a run of the scenario without faults; it runs once."""
    name = "-".join(
        [scenario.name.replace(" ", "-"), *(word.replace("/", "_") for word in overrides)]
    )
    run = Run(setup, setup.folder / "references" / name, scenario, overrides)
    with setup.lock(f"reference {name}"):
        if not run.is_finished:
            run.remove()
            run.start()
            if run.wait():
                raise SystemExit(f"the run without faults '{name}' failed:\n{run.output}")
    return read_output(run.folder, step=scenario.steps)


def find_differences(run: Run, expected: RunOutput) -> list[str]:
    """Return in what a finished run differs from the run without faults."""
    try:
        output = read_output(run.folder, step=run.scenario.steps)
    except (OSError, ValueError, KeyError) as fault:
        return [f"the output of the run is incomplete ({fault})"]
    return expected.differences(output)
