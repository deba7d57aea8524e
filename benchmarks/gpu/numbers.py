"""Sections that compare numbers: with a CPU, between ZeRO stages, after a resume."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from importlib.util import find_spec
from typing import Any

from benchmarks.gpu.runs import ROOT, Job, Measured, environment, train_here
from benchmarks.gpu.setup import NotRun, Setup

TOLERANCES = {"fp32": 1e-4, "bf16": 2e-3}
LORA = {"name": "lora", "rank": 8, "alpha": 16}


def losses_on_cpu(setup: Setup, dtype: str) -> str:
    """The losses of the same run on the CPU."""
    found = train_here(setup, _dtype_job(dtype, "device"))
    argv = [sys.executable, "-m", "benchmarks.gpu.child", str(setup.folder), "--cpu-losses", dtype]
    reference = subprocess.run(
        [*argv, *["--dry-run"] * setup.is_dry],
        cwd=ROOT,
        env=environment(is_cpu=True),
        capture_output=True,
        text=True,
        timeout=setup.wait_seconds,
    )
    assert reference.returncode == 0, reference.stderr[-2000:]
    expected = json.loads(reference.stdout.splitlines()[-1])
    difference = largest_difference(found.losses, expected)
    assert difference <= TOLERANCES[dtype], f"{found.losses} instead of {expected}"
    return f"largest relative difference {difference:.1e} in {len(expected)} steps"


def print_cpu_losses(setup: Setup, dtype: str) -> None:
    """Print the losses of the run that `losses_on_cpu` compares with, on a CPU."""
    print(json.dumps(train_here(setup, _dtype_job(dtype, "cpu")).losses))


def _dtype_job(dtype: str, where: str) -> Job:
    return Job(f"{dtype}-{where}", {"model": {"dtype": dtype}})


def zero_stages(setup: Setup) -> str:
    """ZeRO 0 to 3 on one device, fp32: the same losses and gradient norms."""
    runs = [
        train_here(setup, Job(f"zero-{stage}", {"layout": {"zero_stage": stage}}))
        for stage in range(4)
    ]
    losses = max(largest_difference(run.losses, runs[0].losses) for run in runs)
    norms = max(largest_difference(run.norms, runs[0].norms) for run in runs)
    assert losses <= 1e-5 and norms <= 1e-4, f"losses differ by {losses:.1e}, norms by {norms:.1e}"
    return f"losses differ by {losses:.1e}, gradient norms by {norms:.1e}"


def sums_of_gradients(setup: Setup) -> str:
    """ZeRO 1 to 3 in bf16: a step in 8 micro-batches has the norm of ZeRO 0 within bf16's error,
    and the three have one norm."""
    settings = {"model": {"dtype": "bf16"}}
    runs = [
        train_here(
            setup,
            Job(f"sums-{stage}", {**settings, "layout": {"zero_stage": stage, "micro_batch": 1}}),
        )
        for stage in range(4)
    ]
    norms = [run.norms[0] for run in runs]
    spread = largest_difference(norms[1:], [norms[1]] * 3)
    assert spread <= 1e-5, norms
    assert largest_difference(norms, [norms[0]] * 4) <= 2e-2, norms
    return f"norms of stages 1 to 3 differ by {spread:.1e}"


def resumed_run(setup: Setup) -> str:
    """A run that was stopped and resumed, in bf16, with deterministic algorithms: the same bits."""
    settings = {"model": {"dtype": "bf16"}, "strategy": LORA, "train": {"save_every": 1}}
    expected = train_here(setup, Job("undisturbed", settings, saves=True))
    train_here(setup, Job("resumed", settings, saves=True, stop_after=2))
    found = train_here(setup, Job("resumed", settings, saves=True))
    assert found.losses == expected.losses, f"{found.losses} instead of {expected.losses}"
    return f"{len(found.losses)} losses bit-equal"


def loss_scaler(setup: Setup) -> str:
    """fp16 at ZeRO 0 to 3: near fp32, and no step skipped that another stage has applied."""
    reference = train_here(setup, Job("fp16-reference"))
    settings = {} if setup.is_dry else {"model": {"dtype": "fp16"}}
    runs = [
        train_here(setup, Job(f"fp16-{n}", {**settings, "layout": {"zero_stage": n}}, is_fp16=True))
        for n in range(4)
    ]
    difference = max(largest_difference(run.losses, reference.losses) for run in runs)
    assert difference <= 5e-3, f"losses differ from fp32 by {difference:.1e}"
    skipped = [[n for n, norm in enumerate(run.norms) if not _is_finite(norm)] for run in runs]
    assert all(each == skipped[0] for each in skipped), f"skipped steps: {skipped}"
    return f"losses differ from fp32 by {difference:.1e}; {len(skipped[0])} steps skipped"


def quantized_base(setup: Setup, kind: str) -> str:
    """LoRA on a base in nf4 or int8, with the loss near that on the base in bf16, and a loss that
    falls."""
    if find_spec("bitsandbytes") is None:
        raise NotRun("bitsandbytes is not installed")
    settings = {"strategy": LORA, "optim": {"learning_rate": 1e-2}}
    plain = train_here(setup, Job(f"plain-{kind}", {**settings, "model": {"dtype": "bf16"}}))
    model = {"dtype": "bf16", "quantize": kind}
    found = train_here(setup, Job(f"quantized-{kind}", {**settings, "model": model}))
    difference = largest_difference(found.losses[:1], plain.losses[:1])
    assert difference <= 5e-2, f"{found.losses} instead of {plain.losses}"
    assert found.losses[-1] < found.losses[0] and min(found.norms) > 0, found.losses
    return f"first loss differs by {difference:.1e}, then falls to {found.losses[-1]:.3f}"


def paged_optimizer(setup: Setup) -> str:
    """8-bit AdamW, whose moments are paged on a GPU: near AdamW, and resumed with the same bits."""
    if find_spec("bitsandbytes") is None:
        raise NotRun("bitsandbytes is not installed")
    name = "adamw_8bit" if setup.is_dry else "paged_adamw_8bit"
    settings = {"optim": {"name": name}, "train": {"save_every": 1}}
    plain = train_here(setup, Job("adamw"))
    expected = train_here(setup, Job("paged", settings, saves=True))
    train_here(setup, Job("paged-resumed", settings, saves=True, stop_after=2))
    found = train_here(setup, Job("paged-resumed", settings, saves=True))
    assert found.losses == expected.losses, f"{found.losses} instead of {expected.losses}"
    difference = largest_difference(found.losses, plain.losses)
    assert difference <= 5e-2, f"losses differ from AdamW by {difference:.1e}"
    return f"{name}: differs from AdamW by {difference:.1e}; resumed bit-equal"


def attention(setup: Setup) -> str:
    """Every attention that is installed here: the losses of `eager`, within bf16's error."""
    from transformers.utils import is_flash_attn_2_available

    names, absent = ["sdpa"], []
    if setup.is_dry:
        absent = ["flex_attention and flash_attention_2 (no GPU)"]
    else:
        names.append("flex_attention")
        if is_flash_attn_2_available():
            names.append("flash_attention_2")
        else:
            absent = ["flash_attention_2 (not installed)"]
    runs = {name: _attention_run(setup, name) for name in ("eager", *names)}
    expected = runs["eager"].losses
    differences = {name: largest_difference(runs[name].losses, expected) for name in names}
    assert max(differences.values()) <= 5e-3, differences
    listed = ", ".join(f"{name} {difference:.1e}" for name, difference in differences.items())
    return f"differences from eager: {listed}" + "".join(f"; not run: {each}" for each in absent)


def _attention_run(setup: Setup, name: str) -> Measured:
    settings: dict[str, Any] = {"model": {"dtype": "bf16", "attention": name}}
    # The backward pass of flex_attention is not known to be deterministic.
    return train_here(
        setup, Job(f"attention-{name}", {**settings, "run": {"deterministic": False}})
    )


def object_collectives(setup: Setup) -> str:
    """Objects of Python over the process group of the device (NCCL on a GPU)."""
    import torch

    if not torch.distributed.is_initialized():
        raise NotRun("no section before has started a process group")
    objects: list[Any] = [None]
    torch.distributed.all_gather_object(objects, {"rank": 0, "rows": list(range(1000))})
    assert objects == [{"rank": 0, "rows": list(range(1000))}], objects
    backend = torch.distributed.get_backend()
    assert backend == ("gloo" if setup.is_dry else "nccl"), backend
    return f"gathered over {backend}"


def largest_difference(found: list[float], expected: list[float]) -> float:
    """Return the largest relative difference; infinite where a number is missing."""
    if len(found) != len(expected) or not all(map(_is_finite, (*found, *expected))):
        return math.inf
    return max(abs(a - b) / max(abs(b), 1e-12) for a, b in zip(found, expected, strict=True))


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
