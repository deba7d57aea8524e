"""A head trained from cached features: the loss of the full model on every layout, and resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dtl.run.folder import RunFolder
from dtl.train.checkpoint_tensors import CheckpointTensors
from tests.distributed.layouts import LAYOUTS, zero
from tests.distributed.runs import Run, needs
from tests.distributed.text_tasks import write_text_tasks

FEATURES, FEATURE_STEPS = {"head": "labeled.yaml", "tags": "tags.yaml"}, 8
EVALUATION_BATCH = "train.evaluation_batch"


@pytest.fixture(scope="module", autouse=True)
def text_tasks(folder: Path) -> None:
    """Write the taggers' data and base."""
    write_text_tasks(folder)


def feature_run(
    name: str, processes: int, stage: int, *more: str, cached: bool = True, **how: Any
) -> Run:
    """Return the run of a head over a frozen base. The size of an evaluation's batch is also that
    in which features are computed: with another one they are computed again."""
    strategy = f"strategy={{name: frozen, cache_features: {str(cached).lower()}}}"
    named = how.pop("named", f"features-{name}-{processes}-{stage}")
    overrides = (strategy, zero(stage), "layout.micro_batch=3", f"train.steps={FEATURE_STEPS}")
    return Run(named, processes, (*overrides, *more), FEATURES[name], **how)


def without_cache(name: str) -> Run:
    """Return the run on one process that computes the base at every step."""
    return feature_run(name, 1, 0, cached=False, named=f"features-{name}-uncached")


def cached_runs(name: str) -> list[Run]:
    """Return the runs on every layout, each of which computes the features for itself."""
    return [
        feature_run(name, *layout, f"{EVALUATION_BATCH}={2 + sum(layout)}") for layout in LAYOUTS
    ]


@pytest.mark.parametrize("name", FEATURES)
@needs(lambda name: [without_cache(name), *cached_runs(name)])
def test_loss_is_that_of_the_full_model_on_every_layout(bed: Path, name: str) -> None:
    expected = without_cache(name).losses(bed)
    assert len(expected) == FEATURE_STEPS and expected[-1] != expected[0]
    for run in cached_runs(name):
        assert run.losses(bed) == pytest.approx(expected, rel=1e-5)


def stopped(*before: Run, **how: Any) -> Run:
    """Return the run that is stopped and resumed."""
    named = "features-resumed"
    return feature_run(
        "tags", 2, 2, f"{EVALUATION_BATCH}=9", named=named, bare=False, before=before, **how
    )


# Stopped while the features are computed, then in the second epoch.
RESUMED = stopped(stopped(stopped(stop_at="features, batch 2"), stop_after=FEATURE_STEPS - 2))
UNDISTURBED = feature_run(
    "tags",
    2,
    2,
    f"{EVALUATION_BATCH}=9",
    named="features-undisturbed",
    bare=False,
    before=(RESUMED,),  # the features are computed by the run that is stopped
)


@needs(UNDISTURBED)
def test_stopped_and_resumed_is_bitwise_the_undisturbed_run(bed: Path) -> None:
    assert RESUMED.losses(bed) == UNDISTURBED.losses(bed)
    step = f"step-{FEATURE_STEPS:08d}"
    resumed, undisturbed = (
        CheckpointTensors(RunFolder(run.path(bed)).checkpoints / step)
        for run in (RESUMED, UNDISTURBED)
    )
    assert (
        resumed.weight_names == undisturbed.weight_names and len(undisturbed.weight_names) == 2
    )  # one linear
    for name in undisturbed.weight_names:
        key = f"weight/{name}"
        assert (resumed.read(key) == undisturbed.read(key)).all()
