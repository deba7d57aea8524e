"""Recognize errors of the machine, of full memory or disks, of impossible paths, of operations that
are not deterministic, and of code, which happen again at every start."""

from __future__ import annotations

import errno
import json
import re

from dtl.core.errors import Fault

# What an error of the operating system means, and what to do.
FILE_ERRORS = {
    errno.ENOSPC: ("the disk is full", "free disk space"),
    errno.EDQUOT: ("the disk quota is used up", "free disk space, or ask for a larger quota"),
    errno.EROFS: (
        "the disk is read-only",
        "use another folder: run.dir for runs, the variable DTL_CACHE for the cache",
    ),
    errno.EACCES: (
        "permission denied",
        "change the permissions, or use another folder: run.dir for runs, the variable DTL_CACHE "
        "for the cache",
    ),
    errno.EIO: ("the disk has an input/output error", "check the disk, or use another one"),
    errno.EMFILE: ("too many open files", "raise the limit of open files (ulimit -n)"),
    errno.ENFILE: ("too many open files on this machine", "end other processes"),
    errno.ENAMETOOLONG: ("the name is too long", "use names of at most 255 bytes"),
    errno.ENOTDIR: ("a part of the path is a file, not a folder", "correct the path"),
    errno.ELOOP: ("a link of the path leads to itself", "correct or remove the link"),
    errno.EFBIG: ("the file is too large", "raise the limit of file sizes (ulimit -f)"),
}
# Of these, the path that the user has named is the cause.
PATH_ERRORS = (errno.ENAMETOOLONG, errno.ENOTDIR, errno.ELOOP)


def is_path_error(error: BaseException) -> bool:
    """Whether a path cannot be that of a file, which the user changes."""
    return _find_number(error) in PATH_ERRORS


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the machine has no memory left."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error).lower()
    return "can't allocate memory" in text or "out of memory" in text


def is_disk_full(error: BaseException) -> bool:
    """Whether a disk or this user's quota is full."""
    return _find_number(error) in (errno.ENOSPC, errno.EDQUOT)


def is_unwritable(error: BaseException) -> bool:
    """Whether a disk is full or read-only, which a restart does not change."""
    return is_disk_full(error) or _find_number(error) == errno.EROFS


def describe_file_error(error: BaseException) -> Fault | None:
    """Return what an error of the operating system means; None for another error. The location is
    its file, or ""."""
    number = _find_number(error)
    if number not in FILE_ERRORS:
        return None
    problem, fix = FILE_ERRORS[number]
    return Fault(str(getattr(error, "filename", None) or ""), problem, fix)


def _find_number(error: BaseException) -> int | None:
    """Return the error number; safetensors reports it as text only."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else None


def find_nondeterministic_operation(error: BaseException) -> str | None:
    """Return the operation that torch has refused because it is not deterministic, else None."""
    found = re.match(r"(\S+) does not have a deterministic implementation", str(error))
    return found.group(1) if isinstance(error, RuntimeError) and found else None


# Errors of code, or of values that it does not expect: the same at every start.
_CODE_ERRORS = (
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    NameError,
    AssertionError,
    ArithmeticError,
    ImportError,
    NotImplementedError,
    RecursionError,
)
# The same as RuntimeError, by what torch writes.
_CODE_ERROR_TEXTS = (
    "size of tensor",
    "shapes cannot be multiplied",
    "shape '",
    "size mismatch",
    "sizes of tensors must match",
    "expected all tensors to be on the same device",
    "is not on the expected device",
    "expected scalar type",
    "must have the same dtype",
    "not implemented for",
    "does not require grad",
    "in-place operation",
    "backward through the graph a second time",
    "expected input",
    "out of bounds",
)


def repeats_at_every_start(error: BaseException) -> bool:
    """Whether an error comes from code rather than from the machine or another process."""
    if isinstance(error, UnicodeError | json.JSONDecodeError):
        return False  # of a file that may have been damaged, or half written
    if isinstance(error, _CODE_ERRORS):
        return True
    text = str(error).lower()
    return type(error) is RuntimeError and any(each in text for each in _CODE_ERROR_TEXTS)
