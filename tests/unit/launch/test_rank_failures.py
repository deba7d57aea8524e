"""Failures of one rank: memory or a disk is full. One message, and no useless restart."""

import errno
from types import SimpleNamespace

import pytest
import torch
from safetensors import SafetensorError

from dtl.core.errors import RankFailed
from dtl.launch.rank_failures import report_resource_failures
from dtl.plan.records import Layout, ParameterCounts, Plan

LAYOUT = Layout(1, 2, 2, "none", 4, 2, False, "fp32", "cpu")


@pytest.fixture
def prepared():
    strategy, run = SimpleNamespace(name="full"), SimpleNamespace(dir="runs")
    plan = Plan(LAYOUT, ParameterCounts(1, 1), {}, (), 5, 5, None)
    return SimpleNamespace(plan=plan, config=SimpleNamespace(strategy=strategy, run=run))


def message_for(prepared, error, activity):
    with (
        pytest.raises(RankFailed) as caught,
        report_resource_failures(prepared, SimpleNamespace(activity=activity)),
    ):
        raise error
    assert caught.value.exit_code == 1
    return str(caught.value)


def test_out_of_memory_names_activity_peak_and_the_smallest_change(prepared, capfd):
    message = message_for(
        prepared, torch.OutOfMemoryError("CUDA out of memory"), "step 7, micro-batch 2"
    )
    assert message.startswith("rank 0: out of memory in step 7, micro-batch 2; peak memory ")
    assert message.endswith("resume with layout.micro_batch=2; the result stays the same")
    assert "OutOfMemoryError" in capfd.readouterr().err, "the traceback is in the rank's log"


def test_full_disk_is_reported_with_its_path(prepared, capfd):
    full = OSError(errno.ENOSPC, "No space left on device", "runs/x/checkpoints/.staged/part")
    message = message_for(prepared, full, "saving step 8")
    assert message.startswith("runs/x/checkpoints/.staged/part: the disk is full, in saving step 8")
    assert "free disk space, then resume" in message


def test_full_disk_in_the_text_of_a_safetensors_error_is_recognized(prepared, capfd):
    """It says: Error while serializing: I/O error: No space left on device (os error 28)."""
    full = SafetensorError("I/O error: No space left on device (os error 28)")
    assert message_for(prepared, full, "saving step 8").startswith("runs: the disk is full")


@pytest.mark.parametrize("error", [RuntimeError("Connection closed"), OSError(errno.EIO, "I/O")])
def test_other_errors_pass(prepared, error):
    watchdog = SimpleNamespace(activity="step 1")
    with pytest.raises(type(error)) as caught, report_resource_failures(prepared, watchdog):
        raise error
    assert caught.value is error


def test_operation_that_is_not_deterministic_is_named(prepared, capfd):
    torch.use_deterministic_algorithms(True)
    try:
        torch.zeros(3).put_(torch.tensor([0]), torch.ones(1))
    except RuntimeError as error:
        message = message_for(prepared, error, "step 1, micro-batch 1")
    finally:
        torch.use_deterministic_algorithms(False)
    assert message.startswith("run.deterministic: put_ has no deterministic implementation")
    assert "set it to false" in message
