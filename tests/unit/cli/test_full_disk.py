"""Commands on a full or read-only disk: one message, an exit code, and nothing half-made."""

import errno
import json
import os

import pytest

from dtl.cli.app import main
from dtl.core import checksums, files
from tests import tiny


@pytest.fixture
def config(tmp_path, encoder, cache):
    rows = [{"text": word, "label": label} for word in tiny.WORDS[:6] for label in ("a", "b")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "run": {"dir": str(tmp_path / "runs"), "name": "full"},
        "model": {"path": str(encoder), "dtype": "fp32"},
        "task": "text_classification",
        "data": {"train": str(tmp_path / "rows.jsonl"), "eval": str(tmp_path / "rows.jsonl")},
        "strategy": {"name": "lora", "rank": 2},
        "train": {"steps": 1, "global_batch": 4},
    }
    path = tmp_path / "full.yaml"
    path.write_text(json.dumps(values))
    return path


class FailingDisk:
    """`os` whose n-th fsync fails."""

    def __init__(self, number, at):
        self.number, self.calls_left = number, at

    def __getattr__(self, name):
        return getattr(os, name)

    def fsync(self, handle):
        self.calls_left -= 1
        if self.calls_left < 0:
            raise OSError(self.number, os.strerror(self.number))
        os.fsync(handle)


def run_with_failing_disk(monkeypatch, number, at, command):
    """Return the exit code."""
    with monkeypatch.context() as patch:
        disk = FailingDisk(number, at)
        patch.setattr(files, "os", disk)
        patch.setattr(checksums, "os", disk)
        return main(command)


MESSAGES = {
    errno.ENOSPC: "the disk is full. Fix: free disk space; then start it again",
    errno.EROFS: "the disk is read-only. Fix: use another folder",
    errno.EDQUOT: "the disk quota is used up",
    errno.EIO: "the disk has an input/output error",
}


@pytest.mark.parametrize("number", MESSAGES)
def test_encoding_on_a_disk_that_fails(config, cache, monkeypatch, capsys, number):
    failures = {errno.ENOSPC: range(0, 60, 3)}.get(number, [2])
    for at in failures:
        code = run_with_failing_disk(monkeypatch, number, at, ["plan", str(config)])
        printed = capsys.readouterr().err
        if code == 0:
            break
        assert code == 1 and MESSAGES[number] in printed
        assert printed.count("\n") == 1 and "Traceback" not in printed
        for folder in cache.glob("encoded/*"):
            assert (folder / "checksums.json").exists() and not folder.name.startswith(".")
    assert main(["plan", str(config)]) == 0


def test_a_run_that_cannot_be_created_leaves_nothing(config, tmp_path, monkeypatch, capsys):
    assert main(["plan", str(config)]) == 0  # the data is encoded
    capsys.readouterr()
    code = run_with_failing_disk(monkeypatch, errno.ENOSPC, 0, ["train", str(config)])
    printed = capsys.readouterr().err
    assert code == 1 and MESSAGES[errno.ENOSPC] in printed and "Traceback" not in printed
    assert list((tmp_path / "runs").iterdir()) == []
