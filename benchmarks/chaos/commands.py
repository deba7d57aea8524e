"""Commands of dtl in the folder of a trial, and what they must never do."""

from __future__ import annotations

import atexit
import hashlib
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.chaos.setup import REPOSITORY, Setup
from dtl.core.json_lines import decode_line

LIMIT_SECONDS = 240.0
STEPS = 24
TRAIN = ("train", "small.yaml", "run.name=run")
EVALUATE = ("evaluate", "runs/run", "--data", "rows.jsonl", "--out", "scores")
PREDICT = ("predict", "runs/run", "the river turns", "--out", "answers.jsonl")
CONFIG = """
model: {{path: {folder}/base, dtype: fp32}}
task: {{name: causal_lm, max_length: 64}}
data: {{train: {folder}/train.jsonl, eval: {{path: {folder}/held-out.jsonl, limit: 12}}}}
strategy: lora
optim: {{learning_rate: 0.003}}
train: {{steps: {steps}, global_batch: 6, save_every: 4, evaluate_every: 8, keep_last: 3}}
layout: {{processes_per_node: 1, zero_stage: 0, micro_batch: 3}}
"""
COMPARISON = """
model: {path: "mini:vision"}
task: {name: image_classification, min_crop_scale: 1.0, horizontal_flip: false}
data:
  train: {path: "mini:digits/train", limit: 40}
  eval: {path: "mini:digits/heldout", limit: 20}
strategy: frozen
train: {steps: 3}
compare:
  strategies: [scratch, frozen]
  train_sizes: [2]
  seeds: 1
  learning_rates: {scratch: 0.003, frozen: 0.003}
"""
_servers = threading.local()


@dataclass(frozen=True)
class Answer:
    """How commands that were started together have ended. `output`: of all of them."""

    codes: list[int | None]
    seconds: float
    output: str

    @property
    def violations(self) -> list[str]:
        """What no command may do, whatever is wrong with its files or the machine."""
        faults = [] if None not in self.codes else ["a command did not end within its limit"]
        if "Traceback (most recent call last)" in self.output:
            faults.append(f"a traceback: {' '.join(self.output.split())[-300:]}")
        if any(code not in (0, None) for code in self.codes) and not self.output.strip():
            faults.append("a command failed without a message")
        return faults


def run_together(
    setup: Setup, folder: Path, commands: Sequence[Sequence[str]], **options: Any
) -> Answer:
    """Start commands at once in a folder. `options`: kill_after, stop_at, limits, environment."""
    logs = [folder / f"output-{number}.txt" for number in range(len(commands))]
    for log in logs:
        log.unlink(missing_ok=True)
    environment = {
        "DTL_CACHE": str(folder / "cache"),
        "CHAOS_MARK": folder.name,
        **options.pop("environment", {}),
    }
    request = {
        "commands": [
            {"argv": list(argv), "log": str(log)} for argv, log in zip(commands, logs, strict=True)
        ],
        "cwd": str(folder),
        "environment": environment,
        "limit": LIMIT_SECONDS,
        **options,
    }
    server = _server(setup)
    assert server.stdin and server.stdout
    print(json.dumps(request), file=server.stdin, flush=True)
    answer = json.loads(server.stdout.readline())
    texts = [log.read_text(errors="replace") for log in logs if log.exists()]
    return Answer(answer["codes"], answer["seconds"], "\n".join(texts))


def run(setup: Setup, folder: Path, argv: Sequence[str], **options: Any) -> Answer:
    """Run one command in a folder."""
    return run_together(setup, folder, [argv], **options)


def copy_template(setup: Setup, name: str, folder: Path) -> Path:
    """Copy a folder without faults, which is made once: `empty`, `interrupted`, `finished` or
    `comparison`; each with its cache."""
    template = setup.folder / "templates" / name
    with setup.lock("templates"):
        if not (template / "ready").exists():
            shutil.rmtree(template, ignore_errors=True)
            template.mkdir(parents=True)
            _make(setup, name, template)
            (template / "ready").touch()
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(template, folder, symlinks=True)
    return folder


def _make(setup: Setup, name: str, folder: Path) -> None:
    config = CONFIG.format(folder=setup.folder, steps=STEPS)
    (folder / "small.yaml").write_text(config, encoding="utf-8")
    shutil.copy(setup.folder / "held-out.jsonl", folder / "rows.jsonl")
    (folder / "few.yaml").write_text(COMPARISON, encoding="utf-8")
    if name == "empty":
        return
    commands = {
        "interrupted": [TRAIN],
        "finished": [TRAIN, PREDICT, EVALUATE],
        "comparison": [("compare", "few.yaml")],
    }[name]
    for argv in commands:
        stop_at = str(folder / "runs/run/checkpoints/step-00000012")
        options = {"stop_at": stop_at} if name == "interrupted" else {}
        answer = run(setup, folder, argv, **options)
        expected = 75 if name == "interrupted" else 0
        assert answer.codes == [expected], f"{name}: {argv}: {answer}"


def read_result(folder: Path) -> dict[str, Any]:
    """Return the losses by step, the scores, and the hashes of the exported weights."""
    run_folder = folder / "runs" / "run"
    losses, scores = {}, []
    metrics = run_folder / "metrics.jsonl"
    for line in metrics.read_bytes().splitlines() if metrics.exists() else []:
        try:
            value = decode_line(line)
        except ValueError:
            continue
        if value["kind"] == "train":
            losses[value["step"]] = value["loss"]
        elif value["kind"] == "eval":
            scores.append(value)
    weights = {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted((run_folder / "export").glob("*.safetensors"))
    }
    return {"losses": losses, "scores": scores, "weights": weights}


def find_silent_differences(
    found: dict[str, Any], expected: dict[str, Any], output: str
) -> list[str]:
    """Return what differs from the run without faults, where the output does not say so. Lines of
    the log that are missing must be named."""
    faults = []
    if found["weights"] != expected["weights"]:
        faults.append("SILENT: the exported weights differ")
    for name in ("losses",):
        if any(expected[name].get(step) != value for step, value in found[name].items()):
            faults.append("SILENT: losses differ")
    missing = expected["losses"].keys() - found["losses"].keys()
    lost_scores = [each for each in expected["scores"] if each not in found["scores"]]
    if (missing or lost_scores) and not any(
        word in output for word in ("damaged", "lost", "missing")
    ):
        faults.append(f"LOST: steps {sorted(missing)} and {len(lost_scores)} evaluations")
    return faults


def _server(setup: Setup) -> subprocess.Popen[str]:
    """Return the command server of this thread."""
    if getattr(_servers, "process", None) is None:
        environment = {
            **setup.environment("server"),
            "PYTHONPATH": str(REPOSITORY),
            "JE_ARROW_MALLOC_CONF": "background_thread:false",
            "TOKENIZERS_PARALLELISM": "false",
        }
        _servers.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.chaos.command_server"],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        atexit.register(_servers.process.communicate)
    return _servers.process  # type: ignore[no-any-return]
