"""`dtl diff` shows the differences between two runs, and nothing else."""

import json

import pytest

from dtl.cli.app import main
from dtl.core.files import write_record
from dtl.inspect.diff import diff_runs
from dtl.run.folder import RunFolder
from tests.tiny_run import stopped_run


@pytest.fixture
def runs(tmp_path):
    """Return two runs of the same config and data."""
    folders = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        rows = [{"text": f"text {n}"} for n in range(8)]
        folders.append(stopped_run(tmp_path / name, rows, labels=["a", "b"]))
    first = json.loads((folders[0].path / "run.json").read_text())
    second = json.loads((folders[1].path / "run.json").read_text())
    for key in ("train", "eval"):
        second["config"]["data"][key] = first["config"]["data"][key]
    second["data"] = first["data"]
    write_record(folders[1].path / "run.json", second)
    return folders


def change_record(run: RunFolder, **sections):
    """Set some keys of sections of run.json."""
    record = json.loads((run.path / "run.json").read_text())
    for section, values in sections.items():
        record[section] = {**record[section], **values} if isinstance(values, dict) else values
    write_record(run.path / "run.json", record)


def test_two_runs_of_one_config_have_no_differences(runs, capsys):
    for run, seconds in zip(runs, (3.0, 4.0), strict=True):
        run.usage.mkdir()
        usage = {"began": 1e9, "seconds": seconds, "devices": {"card": 2}, "energy_joules": None}
        write_record(run.usage / "launch-1.json", usage)
    assert diff_runs(*runs) == []
    assert main(["diff", *(str(run.path) for run in runs)]) == 0
    assert capsys.readouterr().out == "nothing differs\n"


def test_each_difference_is_shown_with_both_values(runs, capsys):
    train = {**json.loads((runs[1].path / "run.json").read_text())["config"]["train"], "seed": 7}
    change_record(
        runs[1], config={"train": train}, versions={"torch": "9.9"}, data={"base": "e" * 80}
    )
    change_record(runs[0], commit="c" * 40)
    change_record(runs[1], commit=None)
    (runs[1].path / "usage").mkdir()
    usage = {"began": 1e9, "seconds": 3.0, "devices": {"card": 2}, "energy_joules": None}
    write_record(runs[1].usage / "launch-1.json", usage)
    best, scores = {"step": 60, "score": 0.5}, {"loss": 1.0, "confusion/a/b": 3}
    for run, loss in zip(runs, (1.0, 0.75), strict=True):
        final = {"adapted": {**scores, "loss": loss}}
        run.finish({"steps": 60, "scores": final, "best": best, "weights": "adapted"})
    names = [str(run.path) for run in runs]
    assert main(["diff", *names, "--json"]) == 1
    printed = json.loads(capsys.readouterr().out)
    torch = runs[0].versions["torch"]
    assert printed == {
        "config": {"train.seed": [0, 7]},
        "code": {"git commit": ["c" * 40, None]},
        "data": {"base": ["f" * 8, "e" * 80]},
        "versions": {"torch": [torch, "9.9"]},
        "hardware": {"devices": [None, ["2 x card"]]},
        "results": {"scores.adapted.loss": [1.0, 0.75]},
    }
    assert main(["diff", *names]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == names
    assert lines[1] == "config" and lines[2].split() == ["train.seed", "0", "7"]
    assert lines[-1].split() == ["scores.adapted.loss", "1.0", "0.75"]
    assert f"{'e' * 23}…{'e' * 23}" in lines[6]


def test_folder_without_a_run_is_an_error(runs, tmp_path):
    assert main(["diff", str(runs[0].path), str(tmp_path)]) == 2
