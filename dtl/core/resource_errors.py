"""Recognize errors that mean that memory or a disk is full, or an operation not deterministic."""

from __future__ import annotations

import errno
import re


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the machine has no memory left."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error).lower()
    return "can't allocate memory" in text or "out of memory" in text


def is_disk_full(error: BaseException) -> bool:
    """Whether a disk or this user's quota is full; safetensors reports that as text only."""
    numbers = (errno.ENOSPC, errno.EDQUOT)
    if isinstance(error, OSError) and error.errno in numbers:
        return True
    return any(f"(os error {number})" in str(error) for number in numbers)


def find_nondeterministic_operation(error: BaseException) -> str | None:
    """Return the operation that torch has refused because it is not deterministic, else None."""
    found = re.match(r"(\S+) does not have a deterministic implementation", str(error))
    return found.group(1) if isinstance(error, RuntimeError) and found else None
