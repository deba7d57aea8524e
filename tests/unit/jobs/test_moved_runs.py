"""A run that was trained with relative paths opens from any folder, also after a move, offline."""

import json
import shutil
from pathlib import Path

import pytest

from dtl import api
from dtl.config.load import load_config
from dtl.core.errors import DtlError
from dtl.export.load_export import load_export
from dtl.report.write import write_report
from dtl.run.folder import RunFolder
from tests import tiny

pytestmark = pytest.mark.slow  # LocalPaths and the base of an export are tested without a run

TEXTS = [" ".join(tiny.WORDS[:length]) for length in range(3, 11)]
CONFIG = {
    "model": {"path": "models/base", "dtype": "fp32"},
    "task": "causal_lm",
    "data": {"train": "data/rows.jsonl", "eval": "data/held.jsonl"},
    "strategy": {"name": "lora", "rank": 2},
    "train": {"steps": 2, "global_batch": 4},
    "layout": {"processes_per_node": 1, "zero_stage": 0},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tied_decoder):
    """A project with a finished run, all of whose paths are relative."""
    project = tmp_path_factory.mktemp("moved") / "project"
    (project / "data").mkdir(parents=True)
    shutil.copytree(tied_decoder, project / "models" / "base")
    for name in ("rows", "held"):
        tiny.write_rows(project / "data" / f"{name}.jsonl", [{"text": text} for text in TEXTS])
    (project / "job.yaml").write_text(json.dumps(CONFIG))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DTL_CACHE", str(project.parent / "cache"))
        patch.chdir(project)
        done = api.train(load_config("job.yaml"), print_line=lambda line: None)
    assert done.exit_code == 0
    return project


@pytest.fixture
def project(trained, tmp_path, monkeypatch):
    """A copy of it at another place, as after a move; the place where it was trained is gone."""
    monkeypatch.setenv("DTL_CACHE", str(trained.parent / "cache"))
    copy, hidden = tmp_path / "copy", trained.with_name("hidden")
    shutil.copytree(trained, copy)
    trained.rename(hidden)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    yield copy
    hidden.rename(trained)


def use(run: Path) -> str:
    """Predict, report and open the trained model of a run; return a prediction."""
    write_report(run, png=False)
    worst = (run / "report.html").read_text()
    assert TEXTS[0] in worst, "the worst examples come from the held-out rows"
    config = RunFolder.open(run).config
    assert Path(config.model.path).is_dir() and Path(config.data.train.path).is_file()
    (prediction,) = api.predict(run, ["one two"], max_new_tokens=2)
    return str(prediction["predicted"])


def test_a_run_opens_from_another_folder(trained, tmp_path, monkeypatch):
    monkeypatch.setenv("DTL_CACHE", str(trained.parent / "cache"))
    monkeypatch.chdir(tmp_path)
    use(trained / "runs" / "job")
    assert api.export(trained / "runs" / "job", target=tmp_path / "merged", merge=True)


def test_a_run_opens_after_its_project_was_moved(project):
    use(project / "runs" / "job")


def test_a_resumed_run_is_the_same_run_from_every_folder(trained, tmp_path, monkeypatch):
    run = RunFolder.open(trained / "runs" / "job")
    monkeypatch.chdir(trained)
    here, identity = run.config, run.identity
    assert here.model.path == "models/base"
    monkeypatch.chdir(tmp_path)
    assert run.config.model.path == str(trained / "models" / "base")
    assert run.identity == identity
    assert run.local_paths.unresolve(run.config) == here


def test_an_adapter_names_its_base_by_an_absolute_path(trained):
    export = trained / "runs" / "job" / "export"
    metadata = json.loads((export / "dtl.json").read_text())
    assert metadata["base"]["path"] == str(trained / "models" / "base")
    assert metadata["base_from_export"] == "../../../models/base"
    peft = json.loads((export / "adapter_config.json").read_text())
    assert peft["base_model_name_or_path"] == str(trained / "models" / "base")


def test_a_base_that_is_gone_is_asked_for_in_one_sentence(project):
    shutil.rmtree(project / "models")
    with pytest.raises(DtlError) as caught:
        load_export(project / "runs" / "job")
    (line,) = str(caught.value).splitlines()
    assert "the base that this adapter was trained over is gone: /" in line
    assert "Fix: put it back there" in line
    with pytest.raises(DtlError, match="there is no folder /"):
        api.export(project / "runs" / "job")
