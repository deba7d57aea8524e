"""What one rank meets alone: no memory, a full disk. One message, and no useless restart."""

import errno
from types import SimpleNamespace

import pytest
import torch
from safetensors import SafetensorError

from dtl.core.errors import RankFailed
from dtl.launch.worker import _local_faults
from dtl.plan.records import Layout, Parameters, Plan

LAYOUT = Layout(1, 2, 2, "none", 4, 2, False, "fp32", "cpu")


@pytest.fixture
def prepared():
    strategy, run = SimpleNamespace(name="full"), SimpleNamespace(dir="runs")
    plan = Plan(LAYOUT, Parameters(1, 1), {}, (), 5, 5, None)
    return SimpleNamespace(plan=plan, config=SimpleNamespace(strategy=strategy, run=run))


def told(prepared, fault, doing):
    with pytest.raises(RankFailed) as found, _local_faults(prepared, SimpleNamespace(doing=doing)):
        raise fault
    assert found.value.exit_code == 1
    return str(found.value)


def test_no_memory_is_told_with_what_was_done_the_peak_and_the_smallest_change(prepared, capfd):
    said = told(prepared, torch.OutOfMemoryError("CUDA out of memory"), "step 7, micro-batch 2")
    assert said.startswith("rank 0: out of memory in step 7, micro-batch 2; peak memory ")
    assert said.endswith("resume with layout.micro_batch=2; the result stays the same")
    assert "OutOfMemoryError" in capfd.readouterr().err, "the traceback is in the rank's log"


def test_a_full_disk_is_told_with_its_path(prepared, capfd):
    full = OSError(errno.ENOSPC, "No space left on device", "runs/x/checkpoints/.staged/part")
    said = told(prepared, full, "saving step 8")
    assert said.startswith("runs/x/checkpoints/.staged/part: the disk is full, in saving step 8")
    assert "make room, then resume" in said


def test_safetensors_tells_of_a_full_disk_in_words(prepared, capfd):
    """It says: Error while serializing: I/O error: No space left on device (os error 28)."""
    full = SafetensorError("I/O error: No space left on device (os error 28)")
    assert told(prepared, full, "saving step 8").startswith("runs: the disk is full")


@pytest.mark.parametrize("fault", [RuntimeError("Connection closed"), OSError(errno.EIO, "I/O")])
def test_other_faults_pass(prepared, fault):
    watch = SimpleNamespace(doing="step 1")
    with pytest.raises(type(fault)) as found, _local_faults(prepared, watch):
        raise fault
    assert found.value is fault
