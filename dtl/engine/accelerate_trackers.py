"""Experiment trackers of Accelerate: TensorBoard, Weights & Biases, MLflow, trackio."""

from __future__ import annotations

import json
import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROJECT = "dtl"


@dataclass(frozen=True)
class AccelerateTracker:
    """A run that has been started in a tracker. `run_id`: its id there; None: its folder is its
    id."""

    tracker: Any
    run_id: str | None

    def log_config(self, values: dict[str, Any]) -> None:
        """Write the config of the run."""
        plain = {
            key: value if isinstance(value, str | int | float) else json.dumps(value)
            for key, value in values.items()
        }
        if self.tracker.name == "tensorboard":  # its own method would create a second run
            text = "".join(f"    {key}: {value}\n" for key, value in plain.items())
            self.tracker.log({"config": text}, step=0)
        else:
            self.tracker.store_init_configuration(plain)

    def log(self, values: dict[str, float], step: int) -> None:
        """Write the metrics of a step."""
        self.tracker.log(values, step=step)

    def finish(self) -> None:
        """End the run in the tracker."""
        self.tracker.finish()


def open_tracker(
    name: str, *, folder: Path, run_id: str | None, first_step: int
) -> AccelerateTracker:
    """Start a run in a tracker, or resume the run `run_id`. Call it on rank 0 only.

    It has the name of the run folder, in the project `dtl` unless the tracker's own environment
    variables name another. Steps from `first_step` on replace those that the tracker has.
    """
    from accelerate import PartialState, tracking

    PartialState()  # Accelerate's logger requires it, also outside of a run
    title = folder.name
    if name == "tensorboard":
        tracker = tracking.TensorBoardTracker(name, folder, purge_step=first_step)
    elif name == "wandb":
        run_id = run_id or uuid.uuid4().hex
        project = os.environ.get("WANDB_PROJECT", PROJECT)
        tracker = tracking.WandBTracker(
            project, name=title, id=run_id, resume="allow", dir=str(folder)
        )
    elif name == "mlflow":
        tracker = tracking.MLflowTracker(PROJECT, run_id=run_id, run_name=title)
    else:
        run_id = run_id or f"{title}-{uuid.uuid4().hex[:8]}"
        tracker = tracking.TrackioTracker(PROJECT, name=run_id, resume="allow")
    tracker.start()
    if name == "mlflow":
        run_id = tracker.tracker.info.run_id
    return AccelerateTracker(tracker, run_id)
