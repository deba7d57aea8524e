"""A build of an extension waits for one that runs, and not for one that was killed."""

import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import ninja
import pytest
from torch.utils.file_baton import FileBaton

from dtl.engine import extension_builds
from dtl.engine.extension_builds import LOCK, exclusive_build, guard_extension_builds

BUILD = """
import sys, time
from pathlib import Path
from torch.utils.file_baton import FileBaton
from dtl.engine.extension_builds import LOCK, exclusive_build
folder = Path(sys.argv[1])
with exclusive_build(folder):
    assert FileBaton(str(folder / LOCK)).try_acquire()
    print("building", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def killed_build(tmp_path: Path) -> Path:
    """A folder whose build was killed under PyTorch's lock."""
    build = subprocess.Popen(
        [sys.executable, "-c", BUILD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert build.stdout is not None and build.stdout.readline() == "building\n"
    build.kill()
    build.communicate()
    assert (tmp_path / LOCK).exists()
    return tmp_path


def test_lock_of_a_killed_build_is_removed_and_reported(killed_build, capsys):
    with exclusive_build(killed_build):
        baton = FileBaton(str(killed_build / LOCK))
        assert baton.try_acquire()
        baton.release()
    assert f"{killed_build}: an earlier compilation was killed" in capsys.readouterr().err
    with exclusive_build(killed_build):
        assert not (killed_build / LOCK).exists()
    assert capsys.readouterr().err == ""


def test_build_of_another_program_is_waited_for(tmp_path):
    baton, order = FileBaton(str(tmp_path / LOCK)), []
    assert baton.try_acquire()

    def end_of_the_other_build() -> None:
        time.sleep(0.5)
        order.append("other")
        baton.release()

    other = threading.Thread(target=end_of_the_other_build)
    other.start()
    with exclusive_build(tmp_path):
        order.append("ours")
    other.join()
    assert order == ["other", "ours"]


def test_old_lock_that_nobody_holds_is_removed(tmp_path, monkeypatch, capsys):
    (tmp_path / LOCK).touch()
    monkeypatch.setattr(extension_builds, "FOREIGN_SECONDS", 0.3)
    before = time.monotonic()
    with exclusive_build(tmp_path):
        assert time.monotonic() - before > 0.2
    assert "compiling it again" in capsys.readouterr().err


def test_environments_have_folders_of_their_own(monkeypatch):
    folder = extension_builds._environment_folder()
    assert folder == extension_builds._environment_folder()
    monkeypatch.setattr(sys, "prefix", "/another/environment")
    assert folder != extension_builds._environment_folder()


def test_every_build_of_deepspeed_is_guarded(tmp_path, monkeypatch):
    from deepspeed.ops.op_builder.builder import OpBuilder

    class Builder(OpBuilder):
        def __init__(self):
            super().__init__(name="toy")

        def absolute_name(self):
            return "toy"

        def sources(self):
            return []

        def is_compatible(self, verbose=False):
            return (tmp_path / "toy" / extension_builds.MARKER).read_text() == "building\n"

    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setattr(OpBuilder, "jit_load", OpBuilder.jit_load)
    guard_extension_builds()
    guarded = OpBuilder.jit_load
    guard_extension_builds()
    assert OpBuilder.jit_load is guarded
    monkeypatch.setattr("torch.utils.cpp_extension.load", lambda **_: shutil.which("ninja"))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert Builder().jit_load() == str(Path(ninja.BIN_DIR) / "ninja"), "not that of the system"
    assert os.environ["PATH"] == "/usr/bin:/bin"
    assert (tmp_path / "toy" / extension_builds.MARKER).read_text() == ""
