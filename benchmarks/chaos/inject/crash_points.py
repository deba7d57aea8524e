"""Die by SIGKILL at the n-th call that changes the disk inside one save; 0 only lists the calls."""

import builtins
import io
import os
import shutil
import signal
import sys

COUNTED = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.truncate"}
state = {"count": 0}


def install() -> None:
    """Install an audit hook, and wrap calls without audit events."""
    sys.addaudithook(_audit)
    os.fsync = _before("os.fsync", os.fsync)
    os.write = _before("os.write", os.write)
    shutil.rmtree = _before("shutil.rmtree", shutil.rmtree)
    io.open = builtins.open = _open(io.open)
    sys.meta_path.insert(0, _AfterSafetensors())


def point(name: str) -> None:
    """Count one call, and kill the process at the chosen one; a file records that it died once."""
    if not _in_the_save() or os.path.exists(os.environ["CHAOS_CRASH_DONE"]):
        return
    state["count"] += 1
    at = int(os.environ["CHAOS_CRASH_AT"])
    if at == 0:
        _note(os.environ["CHAOS_CRASH_LIST"], name)
    elif state["count"] == at:
        _note(os.environ["CHAOS_CRASH_DONE"], name)
        os.kill(os.getpid(), signal.SIGKILL)


def _note(path: str, text: str) -> None:
    """Append a line with calls that are not counted."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    plain_write(file, text.encode() + b"\n")
    os.close(file)


plain_write = os.write


def _in_the_save() -> bool:
    """Whether `save` of the checkpoint module is saving the chosen step."""
    frame = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code.co_name == "save" and code.co_filename.endswith("train/checkpoint.py"):
            step = frame.f_locals["progress"].step
            return step == int(os.environ["CHAOS_CRASH_STEP"])
        frame = frame.f_back
    return False


def _audit(event: str, arguments: tuple) -> None:
    if event in COUNTED:
        point(f"{event} {os.path.basename(str(arguments[0]))}")


def _before(name, call):
    def wrapped(*arguments, **options):
        point(name)
        return call(*arguments, **options)

    return wrapped


def _open(plain):
    """Count writing opens: before the file exists, while it is empty, and half written."""

    def wrapped(file, mode="r", *arguments, **options):
        writes = set(mode) & set("wax+")
        if writes:
            point(f"open {os.path.basename(str(file))}")
        opened = plain(file, mode, *arguments, **options)
        if writes:
            point(f"{os.path.basename(str(file))} is empty")
            if _in_the_save():
                _halve(opened, os.path.basename(str(file)))
        return opened

    return wrapped


def _halve(opened, name: str) -> None:
    """Count the second write: at that point only the first may be on the disk."""
    write = opened.write

    def wrapped(text):
        if state.setdefault(name, 0) == 1:
            opened.flush()
            point(f"{name} is half written")
        state[name] += 1
        return write(text)

    opened.write = wrapped


class _AfterSafetensors:
    """Wrap the writer of safetensors, which is not Python, once it is imported."""

    def find_spec(self, name, path=None, target=None):
        if name == "safetensors.torch":
            sys.meta_path.remove(self)
            import safetensors.torch as module

            module.save_file = _save_file(module.save_file, module.save)
        return None


def _save_file(plain, in_memory):
    def wrapped(tensors, filename, *arguments, **options):
        name = os.path.basename(str(filename))
        point(f"save_file {name}")
        if _in_the_save():
            data = in_memory(tensors)
            for share in (0, 0.5):
                file = os.open(filename, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                plain_write(file, data[: int(len(data) * share)])
                os.close(file)
                point(f"{name} is written to {share:.0%}")
            os.unlink(filename)
        return plain(tensors, filename, *arguments, **options)

    return wrapped
