"""Files of a comparison that are damaged: each is refused with its name, or made again."""

import pytest

from dtl.backends.slurm import Options
from dtl.compare.records import COMPARISON_FILE, load_comparison
from dtl.compare.results import _read_feature_probe
from dtl.compare.slurm_arrays import SUBMITTED_FILE, check_not_queued
from dtl.compare.state import GRID_FILE, SPENT_FILE, ComparisonState, describe_failure
from dtl.core.errors import DtlError
from dtl.core.files import write_record
from dtl.launch.supervisor import TERMINAL_LOG
from dtl.run.folder import RunFolder


def damages(content):
    """Yield a file with a flipped bit, one that is cut, and an empty one."""
    flipped = bytearray(content)
    flipped[len(content) // 3] ^= 1
    return [bytes(flipped), content[: len(content) // 2], b""]


def read_all(folder, name):
    state = ComparisonState(folder, None, (), ())
    readers = {
        GRID_FILE: lambda: ComparisonState.load(folder),
        SPENT_FILE: lambda: state.spent_seconds,
        COMPARISON_FILE: lambda: load_comparison(folder),
        SUBMITTED_FILE: lambda: check_not_queued(state),
    }
    return readers[name]()


@pytest.mark.parametrize("name", [GRID_FILE, SPENT_FILE, COMPARISON_FILE, SUBMITTED_FILE])
def test_damaged_file_of_a_comparison_is_named(tmp_path, name):
    options = Options.model_validate({"description": "a site"}).model_dump(mode="json")
    write_record(tmp_path / name, {"seconds": 12.5, "ids": [], "options": options})
    content = (tmp_path / name).read_bytes()
    for damaged in damages(content):
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(DtlError, match=r"cannot be read|no readable comparison") as caught:
            read_all(tmp_path, name)
        assert str(tmp_path) in str(caught.value)


def test_damaged_probe_of_features_is_computed_again(tmp_path, capsys):
    state = ComparisonState(tmp_path, None, (), ())
    write_record(state.probe_file, {"reason": "the task has no classes"})
    assert _read_feature_probe(state) == (None, "the task has no classes")
    for damaged in damages(state.probe_file.read_bytes()):
        state.probe_file.write_bytes(damaged)
        assert _read_feature_probe(state) == (None, "not computed yet")
        assert not state.probe_file.exists()
        assert f"{state.probe_file} is made again" in capsys.readouterr().err


def test_log_of_a_failed_run_may_have_any_bytes(tmp_path):
    run = RunFolder(tmp_path)
    run.logs.mkdir()
    (run.logs / TERMINAL_LOG).write_bytes(b"step 1\nno memory \xff left\n")
    assert describe_failure(run) == "failed: no memory \ufffd left"
