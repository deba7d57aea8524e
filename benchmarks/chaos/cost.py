"""The cost of a save as a share of the steps between two, and the time to resume."""

from __future__ import annotations

import json
import signal
import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks.chaos.runs import Run, TimedOut, kill
from benchmarks.chaos.setup import Scenario, Setup
from benchmarks.chaos.table import collect
from benchmarks.chaos.trials import TrialResult

NAME = "cost"
SAVE_EVERY = 50
BAR = 0.02
REQUIREMENT = f"a save every {SAVE_EVERY} LoRA steps takes less than {BAR:.0%} of their time"
SCENARIO = Scenario(
    "lora, a larger model",
    steps=3 * SAVE_EVERY + 5,
    overrides=(
        "layout.zero_stage=0",
        "layout.micro_batch=16",
        "train.global_batch=32",
        "train.evaluate_every=null",
        "strategy=lora",
    ),
    save_every=SAVE_EVERY,
)


def run_trial(setup: Setup, number: int) -> TrialResult:
    """Run alone on the machine; kill once, right after the first save."""
    result = TrialResult(NAME, number, actions=[f"{SCENARIO.steps} steps"])
    overrides = (f"model.path={_larger_model(setup)}",)
    run = Run(setup, setup.trial_folder(NAME, number), SCENARIO, overrides)
    run.remove()
    try:
        run.start()
        living = run.wait_for_ranks()
        if living is None or not run.wait_until(lambda: run.step > SAVE_EVERY):
            raise TimedOut(f"it did not start: {run.last_output}")
        kill(living.ranks[0], signal.SIGKILL)
        start = time.monotonic()
        run.wait_until_ended([*living.ranks.values()])
        step = run.step
        run.wait_until(lambda: run.step > step)
        result.measurements["resume_seconds"] = time.monotonic() - start
        result.injected = 1
        code = run.wait(seconds=600)
        if code:
            raise TimedOut(f"exit code {code}: {run.last_output}")
        result.measurements |= measure(_lines(run.folder / "metrics.jsonl"), save_every=SAVE_EVERY)
    except TimedOut as timeout:
        result.injected = 1
        result.violations.append(str(timeout))
        return result
    finally:
        run.kill_all()
    if result.measurements["share"] >= BAR:
        result.violations.append(
            f"a save takes {result.measurements['share']:.1%} of the steps between two"
        )
    run.remove()
    return result


def measure(lines: list[dict[str, Any]], *, save_every: int) -> dict[str, float]:
    """Return medians of a step, and of the time that a save adds: its own in the log, and how much
    longer the step after it takes."""
    steps = {line["step"]: line["seconds"] for line in lines if line["kind"] == "train"}
    after = [seconds for step, seconds in steps.items() if step > 1 and step % save_every == 1]
    others = [seconds for step, seconds in steps.items() if step % save_every != 1]
    saves = [line["seconds"] for line in lines if line["kind"] == "save"]
    step = statistics.median(others)
    longer = max(0.0, statistics.median(after) - step)
    stall = longer + (statistics.median(saves) if saves else 0.0)
    return {"step": step, "stall": stall, "share": stall / (save_every * step)}


def describe(trials: list[TrialResult]) -> str:
    """Return the text of the table."""
    (step,), (stall,), (share,) = (collect(trials, name) for name in ("step", "stall", "share"))
    (resume,) = collect(trials, "resume_seconds")
    return (
        f"LoRA on 2 processes, {step:.2f} s a step (median): a save stalls it for {stall:.3f} s, "
        f"{share:.2%} of {SAVE_EVERY} steps; kill to next new step {resume:.1f} s, of which 1 s is "
        "the back-off"
    )


def _larger_model(setup: Setup) -> Path:
    """Return a model so large that a step takes half a second on one core per process."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from tests import tiny

    folder = setup.folder / "larger"
    if not folder.exists():
        made = tiny.tokenizer()
        torch.manual_seed(7)
        config = LlamaConfig(
            vocab_size=len(made),
            hidden_size=384,
            intermediate_size=1536,
            num_hidden_layers=10,
            num_attention_heads=6,
            num_key_value_heads=6,
            max_position_embeddings=128,
            bos_token_id=made.bos_token_id,
            eos_token_id=made.eos_token_id,
            pad_token_id=made.pad_token_id,
        )
        LlamaForCausalLM(config).save_pretrained(folder)
        made.save_pretrained(folder)
    return folder


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()]
