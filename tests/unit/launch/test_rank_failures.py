"""Failures of one rank: memory or a disk is full. One message, and no useless restart."""

import errno
import json
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
    strategy, run = SimpleNamespace(name="full"), SimpleNamespace(dir="runs", name="x")
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


def fail_in_torch(run):
    """Return the error that torch raises."""
    with pytest.raises(Exception) as caught:
        run()
    return caught.value


DETERMINISTIC = {
    "type": lambda: TypeError("unsupported operand"),
    "value": lambda: ValueError("not enough values to unpack"),
    "key": lambda: KeyError("labels"),
    "index": lambda: IndexError("list index out of range"),
    "attribute": lambda: AttributeError("'NoneType' object has no attribute 'to'"),
    "name": lambda: NameError("name 'x' is not defined"),
    "assertion": lambda: AssertionError("a bug"),
    "zero": lambda: ZeroDivisionError("division by zero"),
    "overflow": lambda: OverflowError("too large"),
    "import": lambda: ModuleNotFoundError("No module named 'nothing'"),
    "abstract": lambda: NotImplementedError(),
    "recursion": lambda: RecursionError("maximum recursion depth exceeded"),
    "add": lambda: fail_in_torch(lambda: torch.ones(2) + torch.ones(3)),
    "multiply": lambda: fail_in_torch(lambda: torch.ones(2, 3) @ torch.ones(2, 3)),
    "view": lambda: fail_in_torch(lambda: torch.ones(4).view(3)),
    "concatenate": lambda: fail_in_torch(
        lambda: torch.cat([torch.ones(2, 3), torch.ones(2, 4)], dim=0)
    ),
    "gradient": lambda: fail_in_torch(lambda: torch.ones(1).backward()),
    "embedding": lambda: fail_in_torch(lambda: torch.nn.Embedding(2, 3)(torch.tensor([5]))),
    "dtype": lambda: fail_in_torch(lambda: torch.nn.Linear(2, 2)(torch.ones(1, 2).half())),
    "device": lambda: fail_in_torch(
        lambda: torch.nn.Linear(2, 2, device="meta")(torch.ones(1, 2)) + torch.ones(1, 2)
    ),
    "load": lambda: fail_in_torch(
        lambda: torch.nn.Linear(2, 2).load_state_dict({"weight": torch.ones(3, 3)})
    ),
}


@pytest.mark.parametrize("kind", DETERMINISTIC)
def test_an_error_of_code_ends_the_run_at_once_with_one_message(prepared, kind, capfd):
    error = DETERMINISTIC[kind]()
    message = message_for(prepared, error, "step 3, micro-batch 1")
    assert len(message.splitlines()) == 1
    assert type(error).__name__ in message and "in step 3, micro-batch 1" in message
    assert "a restart would end in the same way. Fix: " in message
    assert "Traceback" in capfd.readouterr().err, "the traceback is in the rank's log"


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer"),
        RuntimeError("NCCL error: unhandled system error"),
        ConnectionResetError(errno.ECONNRESET, "reset"),
        TimeoutError("wait timeout after 1800000ms"),
        OSError(errno.EIO, "I/O"),
        EOFError("ran out of input"),
        json.JSONDecodeError("Expecting value", "", 0),
    ],
    ids=lambda each: type(each).__name__,
)
def test_an_error_of_the_machine_or_of_another_rank_is_started_again(prepared, error):
    watchdog = SimpleNamespace(activity="step 1")
    with pytest.raises(type(error)) as caught, report_resource_failures(prepared, watchdog):
        raise error
    assert caught.value is error
