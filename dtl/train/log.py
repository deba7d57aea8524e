"""What a run tells: metrics.jsonl, one live line on a terminal, plain lines anywhere else."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import IO, TYPE_CHECKING, Any

from dtl.core.units import format_bytes, format_seconds
from dtl.run.folder import SKIPPED
from dtl.train.trackers import Trackers

if TYPE_CHECKING:
    from dtl.data.cache.streamed import LeftOut
    from dtl.data.loader import StepBatches
    from dtl.run.folder import RunFolder
    from dtl.train.loop import Progress

PLAIN_LINE_SECONDS = 5.0


@dataclass
class RunLog:
    """Rank 0 writes; the others' calls do nothing. `terminal` is where the user looks. `unit`: what
    the length of an example counts."""

    folder: RunFolder
    terminal: IO[str] | None
    steps: int
    peak_learning_rate: float = 0.0  # of the present phase
    head_learning_rate: float | None = None  # highest, where the head has its own
    unit: str = "tokens"
    trackers: Trackers = field(default_factory=Trackers)
    _started: float = field(default_factory=time.monotonic)
    _last_step: float = field(default_factory=time.monotonic)
    _last_line: float = 0.0
    _first: int | None = None
    _live: Any = None
    _task: Any = None

    @property
    def writes(self) -> bool:
        return self.terminal is not None

    def say(self, text: str) -> None:
        """One line for the user."""
        if self.terminal is None:
            return
        if self._live is not None:
            self._live.console.print(text, highlight=False, markup=False)
        else:
            print(text, file=self.terminal, flush=True)

    def step(
        self, progress: Progress, window: StepBatches, *, loss: float, norm: float, rate: float
    ) -> None:
        """One optimizer step."""
        if self.terminal is None:
            return
        now = time.monotonic()
        seconds, self._last_step = now - self._last_step, now
        speed = window.all_length / seconds
        learning_rate = rate * self.peak_learning_rate
        rates = {"learning_rate": learning_rate}
        if self.head_learning_rate is not None:
            rates["head_learning_rate"] = rate * self.head_learning_rate
        self._note(
            {
                "kind": "train",
                "step": progress.step,
                "epoch": window.epoch,
                "loss": loss if math.isfinite(loss) else None,
                "targets": window.all_targets,
                "examples": window.all_examples,
                "digest": progress.digest,
                **rates,
                "gradient_norm": norm if math.isfinite(norm) else None,
                "seconds": seconds,
                "tokens_per_second": speed,
                "memory_bytes": _memory(),
                **({"left_out": len(window.left_out)} if window.left_out else {}),
            }
        )
        self._list(window.left_out)
        self._first = self._first or progress.step
        done = progress.step - self._first + 1
        left = (now - self._started) / done * (self.steps - progress.step)
        words = (
            f"loss {loss:.4f}  lr {learning_rate:.2e}  {speed:,.0f} {self.unit}/s  "
            f"{format_seconds(left)} left"
        )
        self._show(progress.step, words, now)

    def _list(self, rows: Sequence[LeftOut]) -> None:
        """Streamed rows that are no examples: each is listed once, one of each reason told."""
        for row in rows:
            if row.place in self.listed:
                continue
            if row.reason not in self.listed.values():
                self.say(f"{row.place}: left out ({row.reason})")
            self.listed[row.place] = row.reason
            line = {"source": "data.train", "place": row.place, "reason": row.reason}
            self.folder.append(line, to=SKIPPED)

    @cached_property
    def listed(self) -> dict[str, str]:
        """The rows in skipped_rows.jsonl: place -> reason."""
        return {line["place"]: line["reason"] for line in self.folder.skipped_rows()}

    def skip(self, step: int, examples: list[int], *, reason: str) -> None:
        """A step that was not taken, and why; `examples`: what it read."""
        if self.terminal is None:
            return
        line = {"kind": "skip", "step": step, "examples": examples, "reason": reason}
        self._note(line)
        self.say(f"step {step:>5}  skipped: {reason}")

    def saved(self, step: int, *, seconds: float, size: int) -> None:
        """A checkpoint of so many bytes, and how long the run stood still for it."""
        if self.terminal is None:
            return
        self._note({"kind": "save", "step": step, "seconds": seconds, "bytes": size})
        self._last_step = time.monotonic()

    def _note(self, line: dict[str, Any]) -> None:
        """Into metrics.jsonl, which is the truth, and to the trackers."""
        self.folder.append(line)
        self.trackers.take(line)

    def begin(self) -> None:
        """The first step is about to start."""
        self._started = self._last_step = time.monotonic()
        self._first = None

    def scores(self, step: int, scores: dict[str, float], *, model: str) -> None:
        """Held-out scores; `model`: unadapted, adapted, or with the weights of ema or average."""
        if self.terminal is None:
            return
        self._note({"kind": "eval", "step": step, "model": model, **scores})
        self.say(f"step {step:>5}  held-out ({model}): {format_scores(scores)}")
        self._last_step = time.monotonic()

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        self.trackers.close()

    def _show(self, step: int, words: str, now: float) -> None:
        assert self.terminal is not None
        if self.terminal.isatty():
            self._bar().update(self._task, completed=step, words=words)
        elif now - self._last_line > PLAIN_LINE_SECONDS or step in (self._first, self.steps):
            self._last_line = now
            self.say(f"step {step:>5}/{self.steps}  {words}")

    def _bar(self) -> Any:
        if self._live is None:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

            self._live = Progress(
                TextColumn("step"),
                MofNCompleteColumn(),
                BarColumn(bar_width=None),
                TextColumn("{task.fields[words]}"),
                console=Console(file=self.terminal),
            )
            self._task = self._live.add_task("", total=self.steps, words="")
            self._live.start()
        return self._live


def format_scores(scores: dict[str, float]) -> str:
    """The scores in one line, without the table of confusions; of groups the worst and the mean."""
    shown = {name: value for name, value in scores.items() if "/" not in name}
    for name, value in scores.items():
        if name.startswith("group/") and name.endswith(("/worst", "/macro")):
            column, _, which = name.removeprefix("group/").rpartition("/")
            shown[f"{which} {column}"] = value
    return "  ".join(f"{name} {value:.4g}" for name, value in shown.items())


def _memory() -> int:
    """Most bytes that this process has held, of GPU memory where there is one."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def memory_line() -> str:
    """The peak in words."""
    return f"peak memory {format_bytes(_memory())}"
