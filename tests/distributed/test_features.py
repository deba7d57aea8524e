"""A head learnt from kept features: the loss of the whole model on every layout, and resumed."""

from __future__ import annotations

from pathlib import Path

import pytest

from dtl.run.folder import RunFolder
from dtl.train.checkpoint import Stored
from tests.distributed import launching
from tests.distributed.matrix import FEATURE_STEPS, FEATURES, TEXT_LAYOUTS


def losses(bed: Path, name: str) -> list[float]:
    return [line["loss"] for line in launching.train_lines(bed / "runs" / f"features-{name}")]


@pytest.mark.parametrize("name", FEATURES)
def test_loss_is_that_of_the_whole_model_on_every_layout(bed: Path, name: str) -> None:
    expected = losses(bed, f"{name}-none")
    assert len(expected) == FEATURE_STEPS and expected[-1] != expected[0]
    for ranks, zero in TEXT_LAYOUTS:
        assert losses(bed, f"{name}-{ranks}-{zero}") == pytest.approx(expected, rel=1e-5)


def test_stopped_and_resumed_is_bitwise_the_undisturbed_run(bed: Path) -> None:
    """Stopped while the features were made, and later on."""
    assert losses(bed, "stayed") == losses(bed, "whole")
    step = f"step-{FEATURE_STEPS:08d}"
    stayed, whole = (
        Stored(RunFolder(bed / "runs" / f"features-{name}").checkpoints / step)
        for name in ("stayed", "whole")
    )
    assert stayed.weights == whole.weights and len(whole.weights) == 2  # of one linear layer
    for name in whole.weights:
        place = f"weight/{name}"
        assert (stayed.read(place) == whole.read(place)).all()
