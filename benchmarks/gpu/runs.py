"""Training runs of the sections: in this process, or by the command `dtl train`."""

from __future__ import annotations

import gc
import io
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.gpu.setup import WARMUP_STEPS, Setup

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Job:
    """A run. `sections`: of its config, over the defaults. `stop_after`: the step after which it is
    asked to stop. `is_fp16`: in fp16, also on a CPU. `is_random`: weights are drawn on the device.
    """

    name: str
    sections: dict[str, Any] = field(default_factory=dict)
    saves: bool = False
    stop_after: int = sys.maxsize
    is_fp16: bool = False
    is_random: bool = False


@dataclass(frozen=True)
class Measured:
    """What a run has shown. `state_bytes`: weights and optimizer on the device after the last step.
    `peak_bytes`: the most that was allocated on the device; 0 on a CPU."""

    lines: list[dict[str, Any]]
    scores: dict[str, Any]
    plan: Any
    state_bytes: int
    peak_bytes: int

    @property
    def losses(self) -> list[float]:
        return [line["loss"] for line in self.lines]

    @property
    def norms(self) -> list[float]:
        return [line["gradient_norm"] for line in self.lines]

    @property
    def step_seconds(self) -> float:
        """The median of the steps after the warm-up."""
        return statistics.median(line["seconds"] for line in self.lines[WARMUP_STEPS:])


def make_config(setup: Setup, name: str, sections: dict[str, Any]) -> dict[str, Any]:
    """Return a config: that of the small decoder, with these sections changed, and the task
    replaced."""
    defaults: dict[str, Any] = {
        "run": {"dir": str(setup.folder / "runs"), "deterministic": True},
        "model": {"path": str(setup.folder / "decoder"), "dtype": "fp32"},
        "task": {"name": "causal_lm", "max_length": 64},
        "data": {"train": str(setup.folder / "short.jsonl")},
        "strategy": "full",
        "optim": {"learning_rate": 1e-3, "warmup": 0, "gradient_clip": 1.0},
        "train": {"steps": setup.sizes.steps, "global_batch": 8},
        "layout": {"processes_per_node": 1, "zero_stage": 0, "micro_batch": 4},
    }
    config = {
        key: {**value, **sections[key]}
        if isinstance(value, dict) and isinstance(sections.get(key), dict) and key != "task"
        else sections.get(key, value)
        for key, value in defaults.items()
    }
    config["run"] = {**config["run"], "name": name}
    return config


def train_here(setup: Setup, job: Job) -> Measured:
    """Train in this process, with everything of a run but its export."""
    from dtl.config.schema import RunConfig
    from dtl.jobs import train
    from dtl.prepare import prepared_run
    from dtl.run.folder import RunFolder
    from dtl.train.heartbeat import Watchdog
    from dtl.train.process import ProcessContext
    from dtl.train.setup import start_engine

    config = RunConfig.model_validate(make_config(setup, job.name, job.sections))
    with ExitStack() as contexts:
        contexts.enter_context(_new_process_state())
        if job.is_fp16 and setup.is_dry:
            contexts.enter_context(fp16_on_cpu())
        if job.is_random:
            contexts.enter_context(draw_weights_on_device(setup.device))
        prepared = prepared_run.prepare_run(config)
        engine = start_engine(config, prepared.plan)
        folder = RunFolder.from_config(config)
        if folder.state == "absent":
            data = prepared.data
            folder.create(
                config, prepared.plan, data.dataset_stats, data.to_record(), batching=data.batching
            )
        watchdog = Watchdog(folder.heartbeats, rank=0, world_size=1, print_line=print)
        process = ProcessContext(
            io.StringIO(),  # what a run prints on the terminal
            watchdog,
            is_stop_requested=partial(_has_step, folder, job.stop_after),
            check_lease=lambda: None,
            saves_checkpoints=job.saves,
            exports_model=False,
        )
        _reset_peak()
        with watchdog:
            train.run(folder, engine, prepared.data, process)
        metrics = list(folder.read_metrics())
        measured = Measured(
            [line for line in metrics if line["kind"] == "train"],
            [line for line in metrics if line["kind"] == "eval"],
            prepared.plan,
            measure_state(engine),
            _read_peak(),
        )
        expected = min(config.train.steps or 0, job.stop_after + 1)
        assert len(measured.lines) >= expected, f"{len(measured.lines)} of {expected} steps"
        return measured


def _has_step(folder: Any, step: int) -> bool:
    return step < sys.maxsize and bool(folder.last_step >= step)


def measure_state(engine: Any) -> int:
    """Return the bytes of weights and optimizer on this device, each storage counted once."""
    tensors = list(engine.unwrapped_model.parameters())
    tensors += [partition for _, partition in engine.fp32_master_weights()]
    tensors += [
        value
        for state in engine.inner_optimizer.state.values()
        for value in state.values()
        if hasattr(value, "untyped_storage")
    ]
    tensors += [
        each.ds_tensor for each in engine.unwrapped_model.parameters() if hasattr(each, "ds_tensor")
    ]
    sizes = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors
    }
    return sum(sizes.values())


@contextmanager
def _new_process_state() -> Iterator[None]:
    """Start each run as in a new process; the process group stays, of one process."""
    import torch
    from accelerate.state import AcceleratorState, GradientState

    from dtl.core.process_env import find_free_port

    os.environ.update({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"})
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", str(find_free_port()))
    try:
        yield
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


@contextmanager
def fp16_on_cpu() -> Iterator[None]:
    """Have the planner choose fp16 on a CPU, and DeepSpeed accept it: slow, the same numbers."""
    from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator

    from dtl.plan import planner

    chosen = mock.patch.object(planner, "choose_dtype", lambda *_: "fp16")
    accepted = mock.patch.object(CPU_Accelerator, "is_fp16_supported", lambda _: True)
    with chosen, accepted:
        yield


@contextmanager
def draw_weights_on_device(device: str) -> Iterator[None]:
    """Have the run's base drawn on its device instead of read from files: 8 B parameters are there
    in seconds."""
    drawn = mock.patch("dtl.train.model.load_pretrained", partial(_draw_weights, device))
    unchecked = mock.patch("dtl.prepare.prepared_data.check_safetensors", lambda _: None)
    with drawn, unchecked:
        yield


def _draw_weights(device: str, model: Any, *, head: Any, dtype: str, **_: Any) -> Any:
    import torch

    from dtl.models.dtypes import torch_dtype
    from dtl.models.load import LoadedModel
    from dtl.models.pretrained_config import get_auto_class, load_changed_config

    torch.manual_seed(7)
    with torch.device(device):
        network = get_auto_class(model, head).from_config(
            load_changed_config(model, head), dtype=torch_dtype(dtype)
        )
    return LoadedModel(network, frozenset())


def _reset_peak() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def _read_peak() -> int:
    import torch

    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0


def write_config(setup: Setup, name: str, sections: dict[str, Any]) -> Path:
    """Write the config of a run for the command."""
    file = setup.folder / f"{name}.yaml"
    file.write_text(json.dumps(make_config(setup, name, sections)), encoding="utf-8")
    return file


def start_command(setup: Setup, *arguments: str) -> subprocess.Popen[str]:
    """Start `dtl` with these arguments; on the CPU in a dry run."""
    return subprocess.Popen(
        [sys.executable, "-m", "dtl", *arguments],
        cwd=ROOT,
        env=environment(is_cpu=setup.is_dry),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def environment(*, is_cpu: bool) -> dict[str, str]:
    """Return the environment of a child process; one that runs on the CPU sees no GPU."""
    outside = {key: value for key, value in os.environ.items() if key not in LAUNCH_VARIABLES}
    hidden = {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"} if is_cpu else {}
    return {**outside, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", **hidden}


LAUNCH_VARIABLES = (
    *("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
    *("ACCELERATE_USE_DEEPSPEED", "DS_ACCELERATOR", "CUBLAS_WORKSPACE_CONFIG"),
)


def read_losses(setup: Setup, name: str) -> list[float]:
    """Return the loss of each step of a run; of a step that was run twice, the last one."""
    text = (setup.folder / "runs" / name / "metrics.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    by_step = {line["step"]: line["loss"] for line in lines if line["kind"] == "train"}
    return [by_step[step] for step in sorted(by_step)]


Section = Callable[[Setup], str]
