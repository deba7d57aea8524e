"""A plain Trainer under test: its command, and its state by its files."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from pathlib import Path

from benchmarks.chaos.runs import Run
from benchmarks.chaos.setup import REPOSITORY, Scenario, Setup
from dtl.core.process_env import find_free_port

SCENARIO = Scenario("plain Trainer", 60)
LAST = ("model.safetensors", "optimizer.pt")  # files of the last checkpoint that are compared


def peer_run(setup: Setup, place: Path, *, processes: int, save_every: int = 4) -> Run:
    """Return a run of the script on the same data, under torchrun for several processes."""
    run = Run(setup, place, SCENARIO)
    script = [str(REPOSITORY / "benchmarks" / "plain_trainer.py")]
    files = [str(setup.folder / "base"), str(setup.folder / "train.jsonl"), str(place / "out")]
    rhythm = ["--steps", str(SCENARIO.steps), "--save-every", str(save_every)]
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    launch += ["--master-port", str(find_free_port())]
    run.argv = (sys.executable, *(launch if processes > 1 else ()), *script, *files, *rhythm)
    return run


def peer_losses(run: Run) -> dict[int, float]:
    """Return the newest loss of each step."""
    path = run.workdir / "out" / "losses.jsonl"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    lines = [json.loads(line) for line in text.splitlines() if line.endswith("}")]
    return {line["step"]: line["loss"] for line in lines}


def peer_step(run: Run) -> int:
    """Return the last step in the log."""
    return next(reversed(peer_losses(run)), 0)


def is_peer_saving(run: Run) -> bool:
    """Whether its newest checkpoint lacks the file that is written last."""
    newest = max(run.workdir.glob("out/checkpoint-*"), key=_number, default=None)
    return newest is not None and not (newest / "trainer_state.json").exists()


def peer_end(run: Run) -> tuple[dict[int, float], dict[str, str]]:
    """Return losses by step, and hashes of the last checkpoint."""
    last = run.workdir / "out" / f"checkpoint-{SCENARIO.steps}"
    hashes = {
        name: hashlib.sha256((last / name).read_bytes()).hexdigest()
        for name in LAST
        if (last / name).exists()
    }
    losses = {step: loss for step, loss in peer_losses(run).items() if step <= SCENARIO.steps}
    return dict(sorted(losses.items())), hashes


def last_error(run: Run) -> str:
    """Return the last line of the output that names a Python error."""
    lines = [text.strip() for text in run.output.splitlines() if re.search(r"\w+Error: \S", text)]
    return lines[-1][-250:] if lines else run.last_output


def peer_reference(
    setup: Setup, *, processes: int, save_every: int = 4
) -> tuple[dict[int, float], dict[str, str]]:
    """Return the output of the script without faults; it runs once."""
    name = f"plain-trainer-{processes}-{save_every}"
    run = peer_run(
        setup, setup.folder / "references" / name, processes=processes, save_every=save_every
    )
    with setup.lock(name):
        if SCENARIO.steps not in peer_losses(run):
            run.remove()
            run.start()
            if run.wait():
                raise SystemExit(f"the plain script without faults failed:\n{run.output}")
    return peer_end(run)


def _number(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])
