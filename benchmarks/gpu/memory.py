"""Sections on memory: offload, long evaluations, and the plan beside what is measured."""

from __future__ import annotations

from benchmarks.gpu.numbers import LORA, largest_difference
from benchmarks.gpu.runs import Job, Measured, train_here
from benchmarks.gpu.setup import Setup

GIB = 2**30


def offload(setup: Setup) -> str:
    """The optimizer in main memory, updated by DeepSpeed's CPUAdam, which is compiled first."""
    expected = train_here(setup, Job("not-offloaded", {"layout": {"zero_stage": 2}}))
    layout = {"zero_stage": 2, "offload": "optimizer"}
    found = train_here(setup, Job("offloaded", {"layout": layout}))
    difference = largest_difference(found.losses, expected.losses)
    assert difference <= 1e-4, f"{found.losses} instead of {expected.losses}"
    return f"largest relative difference {difference:.1e}"


def long_evaluation(setup: Setup) -> str:
    """An evaluation of long rows on a base with a large vocabulary, in the planned batches."""
    sizes, rows = setup.sizes, str(setup.folder / "long.jsonl")
    sections = {
        "model": {"path": str(setup.folder / "wide"), "dtype": "bf16"},
        "task": {"name": "causal_lm", "max_length": sizes.long_tokens},
        "data": {"train": rows, "eval": rows},
        "train": {"steps": 1, "global_batch": 1},
        "layout": {"micro_batch": None},
    }
    found = train_here(setup, Job("long-evaluation", sections))
    losses = [line["loss"] for line in found.scores]
    assert len(losses) >= 2 and all(loss > 0 for loss in losses), found.scores
    peak = f"; peak {found.peak_bytes / GIB:.1f} GiB" if found.peak_bytes else ""
    return f"{sizes.vocabulary} pieces, {sizes.long_tokens} tokens, loss {losses[-1]:.2f}{peak}"


def planned_state(setup: Setup) -> str:
    """Bytes of weights and optimizer that the plan names, beside those on the device, in bf16."""
    shares = []
    for stage in range(4):
        for strategy in ("full", LORA):
            name = f"planned-{stage}-{strategy if isinstance(strategy, str) else 'lora'}"
            sections = {
                "model": {"dtype": "bf16"},
                "strategy": strategy,
                "layout": {"zero_stage": stage},
            }
            shares.append((name, planned_share(train_here(setup, Job(name, sections)))))
    wrong = {name: share for name, share in shares if not 0.9 <= share <= 1.15}
    assert not wrong, f"measured as a share of the plan: {wrong}"
    listed = [share for _, share in shares]
    return f"measured is {min(listed):.2f} to {max(listed):.2f} of planned in {len(listed)} runs"


def planned_share(run: Measured) -> float:
    """Return the measured bytes of weights and optimizer as a share of the planned ones."""
    planned = run.plan.model_state["weights"] + run.plan.model_state["optimizer"]
    return float(run.state_bytes / planned)
