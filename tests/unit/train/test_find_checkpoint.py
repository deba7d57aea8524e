"""What is resumed from, and that no loss of history is silent."""

import shutil
from dataclasses import asdict, dataclass

import pytest

from dtl.core.errors import RunFailed
from dtl.core.files import hash_file, write_json
from dtl.run.folder import RunFolder
from dtl.train.checkpoint import CheckpointStore
from dtl.train.find_checkpoint import find_checkpoint
from dtl.train.log import RunLog
from dtl.train.progress import Progress

STEPS, SAVED = 6, (2, 4)


@dataclass
class SingleProcess:
    """The part of an engine that is used here."""

    is_main_process: bool = True

    def broadcast_object(self, value):
        return value


class Printed(list):
    """A terminal that collects lines."""

    def write(self, text):
        self.append(text)

    def flush(self):
        pass

    def isatty(self):
        return False


@pytest.fixture
def folder(tmp_path):
    """A run that was killed after step 6, with checkpoints of steps 2 and 4."""
    run = RunFolder(tmp_path)
    for step in range(1, STEPS + 1):
        run.append_line({"kind": "train", "step": step, "loss": 1 / step})
        if step in SAVED:
            save(run, step)
            run.append_line({"kind": "save", "step": step, "seconds": 0.1, "bytes": 10})
    return run


def save(run, step):
    path = run.checkpoints / f"step-{step:08d}"
    path.mkdir(parents=True)
    write_json(path / "progress.json", asdict(Progress(step=step)))
    files = {"progress.json": asdict(hash_file(path / "progress.json"))}
    write_json(path / "manifest.json", {"step": step, "run": "mine", "files": files})


def resume(run):
    """Return the step that is resumed from, and what is printed."""
    printed = Printed()
    store = CheckpointStore(run.checkpoints, "mine")
    log = RunLog(run, printed, STEPS)
    found = find_checkpoint(run, store, SingleProcess(), log)
    return None if found is None else int(found.name[-8:]), "".join(printed)


def logged_steps(run):
    return [line["step"] for line in run.read_metrics() if line["kind"] == "train"]


def test_an_intact_run_resumes_from_the_newest_checkpoint(folder):
    step, printed = resume(folder)
    assert (step, logged_steps(folder)) == (4, [1, 2, 3, 4])
    assert printed.count("\n") == 1 and "resuming from" in printed


def test_removed_checkpoints_are_an_error_and_the_log_stays(folder):
    before = (folder.path / "metrics.jsonl").read_bytes()
    shutil.rmtree(folder.checkpoints)
    for _ in range(2):
        with pytest.raises(RunFailed, match=r"are gone; metrics\.jsonl has that of step 4"):
            resume(folder)
        assert (folder.path / "metrics.jsonl").read_bytes() == before
        folder.checkpoints.mkdir(exist_ok=True)


def test_a_run_without_a_save_starts_again(tmp_path):
    run = RunFolder(tmp_path)
    run.append_line({"kind": "train", "step": 1, "loss": 1.0})
    assert resume(run)[0] is None and logged_steps(run) == []


def test_a_removed_newest_checkpoint_is_named(folder):
    shutil.rmtree(folder.checkpoints / "step-00000004")
    step, printed = resume(folder)
    assert step == 2 and "step-00000004 is missing" in printed


def test_lines_that_were_cut_are_named_once_and_logged(folder):
    path = folder.path / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:1]))
    step, printed = resume(folder)
    assert step == 4 and "no line of 3 steps from 2 to 4" in printed
    lost = [line for line in folder.read_metrics() if line["kind"] == "lost"]
    assert lost == [{"kind": "lost", "step": 4, "steps": [2, 3, 4]}]
    assert "no line" not in resume(folder)[1]


def test_a_removed_log_is_named(folder):
    (folder.path / "metrics.jsonl").unlink()
    assert "no line of 4 steps from 1 to 4" in resume(folder)[1]


def test_damaged_lines_are_named_and_retained(folder):
    path = folder.path / "metrics.jsonl"
    damaged = path.read_bytes().replace(b'"step": 3, "loss": 0.3', b'"step": 3, "loss": 0.4')
    path.write_bytes(damaged)
    step, printed = resume(folder)
    assert step == 4 and "metrics.jsonl: line 4 does not have its CRC-32" in printed
    assert "no line of 1 steps from 3 to 3" in printed
    assert logged_steps(folder) == [1, 2, 4]
    assert (folder.path / "damaged-metrics.jsonl").read_bytes() == damaged
    assert folder.damaged_lines == []
