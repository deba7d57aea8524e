"""Errors that mean that memory is full."""

import pytest
import torch

from dtl.core.resource_errors import is_out_of_memory


def test_out_of_memory_errors_are_recognized():
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert is_out_of_memory(MemoryError())
    with pytest.raises(RuntimeError) as cpu:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(cpu.value), "the message of torch on a CPU"
    assert not is_out_of_memory(RuntimeError("Connection closed by peer"))
