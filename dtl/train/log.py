"""The log of a run: metrics.jsonl, a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import IO, TYPE_CHECKING, Any

from dtl.core.units import format_bytes, format_seconds
from dtl.run.creation import SKIPPED
from dtl.run.evaluations import EVALUATION_KIND
from dtl.run.submission import record_first_step
from dtl.train.tracker_queue import Trackers

if TYPE_CHECKING:
    from dtl.data.cache.streamed import SkippedRow
    from dtl.data.loader import StepBatches
    from dtl.run.folder import RunFolder
    from dtl.train.progress import Progress

PLAIN_LINE_SECONDS = 5.0


@dataclass
class RunLog:
    """Writes on rank 0; calls on other ranks do nothing.

    `terminal`: where the user reads, or None. `steps`: of the run. `peak_learning_rate`: of the
    current phase. `head_learning_rate`: peak of the head, where it has its own. `length_unit`: the
    unit of an example's length.
    """

    folder: RunFolder
    terminal: IO[str] | None
    steps: int
    peak_learning_rate: float = 0.0
    head_learning_rate: float | None = None
    length_unit: str = "tokens"
    trackers: Trackers = field(default_factory=Trackers)
    _start_time: float = field(default_factory=time.monotonic)
    _last_step_time: float = field(default_factory=time.monotonic)
    _last_line_time: float = 0.0
    _first_step: int | None = None
    _has_stepped: bool = False
    _live: Any = None
    _task: Any = None

    @property
    def is_writer(self) -> bool:
        """Whether this rank writes."""
        return self.terminal is not None

    def print_line(self, text: str) -> None:
        """Print one line to the user."""
        if self.terminal is None:
            return
        if self._live is not None:
            self._live.console.print(text, highlight=False, markup=False)
        else:
            print(text, file=self.terminal, flush=True)

    def start_timer(self) -> None:
        """Start the clock of the steps; the first one is about to start."""
        self._start_time = self._last_step_time = time.monotonic()
        self._first_step = None

    def step(
        self,
        progress: Progress,
        batches: StepBatches,
        *,
        loss: float,
        router_loss: float | None,
        gradient_norm: float,
        lr_factor: float,
    ) -> None:
        """Log an optimizer step. `router_loss`: the part of the loss that routers add; None: there
        are none. `lr_factor`: the learning rate as a share of its peak."""
        if self.terminal is None:
            return
        now = time.monotonic()
        seconds, self._last_step_time = now - self._last_step_time, now
        speed = batches.global_length / seconds
        learning_rate = lr_factor * self.peak_learning_rate
        rates = {"learning_rate": learning_rate}
        if self.head_learning_rate is not None:
            rates["head_learning_rate"] = lr_factor * self.head_learning_rate
        self._write_line(
            {
                "kind": "train",
                "step": progress.step,
                "epoch": batches.epoch,
                "loss": loss if math.isfinite(loss) else None,
                **({} if router_loss is None else {"router_loss": router_loss}),
                "targets": batches.global_targets,
                "examples": batches.global_examples,
                "digest": progress.digest,
                **rates,
                "gradient_norm": gradient_norm if math.isfinite(gradient_norm) else None,
                "seconds": seconds,
                "tokens_per_second": speed,
                "memory_bytes": _peak_memory_bytes(),
                **({"skipped_rows": len(batches.skipped_rows)} if batches.skipped_rows else {}),
            }
        )
        self._list_skipped_rows(batches.skipped_rows)
        if not self._has_stepped:
            self._has_stepped = True
            record_first_step(self.folder.path)
        self._first_step = self._first_step or progress.step
        steps_done = progress.step - self._first_step + 1
        seconds_left = (now - self._start_time) / steps_done * (self.steps - progress.step)
        text = (
            f"loss {loss:.4f}  lr {learning_rate:.2e}  {speed:,.0f} {self.length_unit}/s  "
            f"{format_seconds(seconds_left)} left"
        )
        self._display(progress.step, text, now)

    def skip(self, step: int, examples: list[int], *, reason: str) -> None:
        """Log a step whose update was not applied. `examples`: ids of its batch."""
        if self.terminal is None:
            return
        line = {"kind": "skip", "step": step, "examples": examples, "reason": reason}
        self._write_line(line)
        self.print_line(f"step {step:>5}  skipped: {reason}")

    def save(self, step: int, *, seconds: float, size: int) -> None:
        """Log a checkpoint, its size in bytes, and the time that it took."""
        if self.terminal is None:
            return
        self._write_line({"kind": "save", "step": step, "seconds": seconds, "bytes": size})
        self._last_step_time = time.monotonic()

    def lose(self, step: int, missing: list[int]) -> None:
        """Log that there is no line of earlier steps. `step`: of the checkpoint."""
        if self.terminal is None:
            return
        self._write_line({"kind": "lost", "step": step, "steps": missing})
        self.print_line(
            f"metrics.jsonl has no line of {len(missing)} steps from {missing[0]} to "
            f"{missing[-1]}, before the checkpoint of step {step}: they were removed or damaged"
        )

    def scores(self, step: int, scores: dict[str, float], *, model: str) -> None:
        """Log held-out scores. `model`: unadapted, adapted, ema or average."""
        if self.terminal is None:
            return
        self._write_line({"kind": EVALUATION_KIND, "step": step, "model": model, **scores})
        self.print_line(f"step {step:>5}  held-out ({model}): {format_scores(scores)}")
        self._last_step_time = time.monotonic()

    def close(self) -> None:
        """End the live line and the trackers."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        self.trackers.close()

    @cached_property
    def listed_rows(self) -> dict[str, str]:
        """The reasons of the rows in skipped_rows.jsonl, by location."""
        return {line["location"]: line["reason"] for line in self.folder.read_skipped_rows()}

    def _list_skipped_rows(self, rows: Sequence[SkippedRow]) -> None:
        """List each skipped row of a stream once in the file; print the first of each reason."""
        for row in rows:
            if row.location in self.listed_rows:
                continue
            if row.reason not in self.listed_rows.values():
                self.print_line(f"{row.location}: skipped ({row.reason})")
            self.listed_rows[row.location] = row.reason
            line = {"source": "data.train", "location": row.location, "reason": row.reason}
            self.folder.append_line(line, file_name=SKIPPED)

    def _write_line(self, line: dict[str, Any]) -> None:
        """Append to metrics.jsonl, and pass the line on to the trackers."""
        self.folder.append_line(line)
        self.trackers.put(line)

    def _display(self, step: int, text: str, now: float) -> None:
        assert self.terminal is not None
        if self.terminal.isatty():
            self._progress_bar().update(self._task, completed=step, text=text)
        elif now - self._last_line_time > PLAIN_LINE_SECONDS or step in (
            self._first_step,
            self.steps,
        ):
            self._last_line_time = now
            self.print_line(f"step {step:>5}/{self.steps}  {text}")

    def _progress_bar(self) -> Any:
        if self._live is None:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

            self._live = Progress(
                TextColumn("step"),
                MofNCompleteColumn(),
                BarColumn(bar_width=None),
                TextColumn("{task.fields[text]}"),
                console=Console(file=self.terminal),
            )
            self._task = self._live.add_task("", total=self.steps, text="")
            self._live.start()
        return self._live


def format_scores(scores: dict[str, float]) -> str:
    """Return the scores as one line, without the confusion matrix; of groups the worst and the
    mean."""
    displayed = {name: value for name, value in scores.items() if "/" not in name}
    for name, value in scores.items():
        if name.startswith("group/") and name.endswith(("/worst", "/macro")):
            column, _, statistic = name.removeprefix("group/").rpartition("/")
            displayed[f"{statistic} {column}"] = value
    return "  ".join(f"{name} {value:.4g}" for name, value in displayed.items())


def format_peak_memory() -> str:
    """Return the peak memory of this process as text."""
    return f"peak memory {format_bytes(_peak_memory_bytes())}"


def _peak_memory_bytes() -> int:
    """Return the peak memory of this process, of the GPU where there is one."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
