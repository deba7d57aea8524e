"""Paths of a run's config, from other folders and after a move."""

from pathlib import Path

import pytest

from dtl.config.schema import RunConfig
from dtl.core.errors import DtlError
from dtl.export.folder import build_export_metadata
from dtl.export.load_export import _find_base
from dtl.run.local_paths import LocalPaths, find_project, list_local_paths

FILES = ("models/base/config.json", "adapters/one/x", "rows.jsonl", "more.jsonl", "held.jsonl")


def configure(**model):
    return RunConfig.model_validate(
        {
            "run": {"name": "job"},
            "model": {"path": "models/base", "adapters": ["adapters/one"], **model},
            "task": "causal_lm",
            "data": {
                "train": {"path": "rows.jsonl"},
                "mix": [{"path": "more.jsonl"}, {"path": "mini:graphs/train"}, {"path": "own/hub"}],
                "eval": {"path": "held.jsonl"},
            },
            "strategy": "lora",
            "train": {"steps": 1},
        }
    )


@pytest.fixture
def project(tmp_path, monkeypatch):
    for name in FILES:
        (tmp_path / "project" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "project" / name).write_text("{}")
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


def local_paths(project, *, now=None):
    return LocalPaths(tuple(list_local_paths(configure())), project, now or project)


def test_local_paths_are_the_relative_ones_at_which_something_is(project):
    assert set(list_local_paths(configure())) == {
        "models/base",
        "adapters/one",
        "rows.jsonl",
        "more.jsonl",
        "held.jsonl",
    }
    assert list_local_paths(configure(path=str(project))) == list_local_paths(configure())[1:]


def test_paths_are_absolute_in_another_folder_only(project, tmp_path, monkeypatch):
    paths, config = local_paths(project), configure()
    assert paths.resolve(config) == config
    monkeypatch.chdir(tmp_path)
    found = paths.resolve(config)
    assert found.model.path == str(project / "models" / "base")
    assert found.model.adapters == (str(project / "adapters" / "one"),)
    assert found.data.train.path == str(project / "rows.jsonl")
    assert found.data.eval.path == str(project / "held.jsonl")
    names = [source.path for source in found.data.mix]
    assert names == [str(project / "more.jsonl"), "mini:graphs/train", "own/hub"]
    assert paths.unresolve(found) == config


def test_a_project_that_has_moved_is_found_where_it_is_now(project, tmp_path, monkeypatch):
    paths = local_paths(project, now=tmp_path / "moved")
    project.rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    assert paths.resolve(configure()).model.path == str(tmp_path / "moved" / "models" / "base")


def test_what_is_gone_is_looked_for_where_it_was_and_never_on_the_hub(
    project, tmp_path, monkeypatch
):
    paths = local_paths(project, now=tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    assert paths.resolve(configure()).model.path == str(project / "models" / "base")


@pytest.mark.parametrize(
    ("run", "run_dir", "project"),
    [
        ("/new/runs/job", "runs", "/new"),
        ("/new/out/runs/job", "out/runs", "/new"),
        ("/elsewhere/job", "runs", "/old"),
        ("/new/runs/job", "/big/runs", "/old"),
        ("/new/runs/job", "../runs", "/old"),
    ],
)
def test_the_project_is_as_far_above_the_run_as_it_was(run, run_dir, project):
    assert find_project(Path(run), run_dir, Path("/old")) == Path(project)


def test_the_base_of_an_export_is_found_where_it_was_or_as_far_away_as_it_was(project, tmp_path):
    def find(folder):
        return _find_base(metadata, folder).path

    export = project / "runs" / "job" / "export"
    config = configure(adapters=[])
    metadata = build_export_metadata(config, {}, kind="adapter", dtype="fp32", target=export)
    assert metadata["base_from_export"] == "../../../models/base"
    assert find(export) == str(project / "models" / "base")
    assert find(tmp_path / "alone") == str(project / "models" / "base"), "the export has moved"
    project.rename(tmp_path / "moved")
    moved = tmp_path / "moved" / "runs" / "job" / "export"
    assert find(moved) == str(tmp_path / "moved" / "models" / "base"), "both have moved"
    with pytest.raises(DtlError, match="the base that this adapter was trained over is gone"):
        find(tmp_path / "alone")
