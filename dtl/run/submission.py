"""What was submitted of a run, and to where: job.json in its folder."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dtl.backends.base import CANCELLED, Backend
from dtl.config import registry
from dtl.run.folder import write_json

FILE = "job.json"
FOLLOWERS = "followers"  # ids of the links of a chain, which the job script cancels when it is done
LAUNCHES = "launches"  # a line a submission, and for each start and end of a job


@dataclass(frozen=True)
class Submitted:
    """`options`: the backend's, as they were then. `processes`: on each node. `folder`: where the
    command was given. `log`: what the job writes to."""

    backend: str
    options: dict[str, Any]
    nodes: int
    processes: int
    seconds: float | None
    links: int
    folder: str
    log: str
    ids: tuple[str, ...] = ()

    @classmethod
    def of(cls, run: Path) -> Submitted | None:
        """That of a run folder; None where nothing was submitted."""
        if not (run / FILE).is_file():
            return None
        stored = json.loads((run / FILE).read_text(encoding="utf-8"))
        return cls(**{**stored, "ids": tuple(stored["ids"])})

    def open(self) -> Backend:
        """The backend that knows the ids."""
        module = registry.load("backends", self.backend)
        plugin: Backend = module.Plugin(module.Options.model_validate(self.options))
        return plugin

    def begin(self, run: Path) -> None:
        """Write it into a run folder before there are ids: a job may start at once."""
        (run / CANCELLED).unlink(missing_ok=True)
        (run / FOLLOWERS).unlink(missing_ok=True)
        with (run / LAUNCHES).open("a", encoding="utf-8") as file:
            file.write(f"submitted {time.time():.0f}\n")
        write_json(run / FILE, asdict(self))

    def note(self, run: Path, ids: tuple[str, ...]) -> None:
        """It has these ids now."""
        write_json(run / FILE, asdict(replace(self, ids=ids)))
        if ids[1:]:
            (run / FOLLOWERS).write_text(" ".join(ids[1:]) + "\n", encoding="utf-8")


def starts(run: Path) -> int:
    """How often the last submission has started so far."""
    path = run / LAUNCHES
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    words = [line.partition(" ")[0] for line in lines]
    last = len(words) - words[::-1].index("submitted") if "submitted" in words else 0
    return words[last:].count("begin")
