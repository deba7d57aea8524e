"""A site file names its backend, and `dtl submit` uses any backend."""

import time
from types import SimpleNamespace

import pytest

from dtl import api
from dtl.backends import local
from dtl.backends.base import SiteOptions
from dtl.cluster.sites import read_site
from dtl.config import registry
from dtl.core.errors import DtlError
from dtl.run.submission import Submission
from tests import tiny

CONFIG = """
model: {path: base, dtype: fp32}
task: {name: causal_lm, max_length: 64}
data: {train: train.jsonl}
strategy: lora
optim: {learning_rate: 0.003}
train: {steps: 1, global_batch: 4}
"""


class Options(SiteOptions):
    """Options of a backend for this test."""


class Plugin(local.Plugin):
    """Runs jobs on this machine."""

    def log_files(self, job):
        return [job.run_folder / "output.txt"]


@pytest.fixture
def third_backend(monkeypatch):
    """Install a backend `third`, which runs jobs on this machine."""
    load, names = registry.load, registry.list_names
    module = SimpleNamespace(Options=Options, Plugin=Plugin)
    monkeypatch.setattr(
        registry, "load", lambda folder, name: module if name == "third" else load(folder, name)
    )
    monkeypatch.setattr(registry, "list_names", lambda folder: (*names(folder), "third"))


def write_site(tmp_path, text):
    path = tmp_path / "site.yaml"
    path.write_text(text)
    return str(path)


def test_run_is_submitted_by_the_backend_of_the_site_file(tmp_path, monkeypatch, third_backend):
    tiny.decoder(tmp_path / "base")
    tiny.write_texts(tmp_path / "train.jsonl", 8)
    (tmp_path / "config.yaml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    site = write_site(tmp_path, "backend: third\n")
    (folder,) = api.submit("config.yaml", cluster=site, print_line=lambda _: None)
    submission = Submission.load(folder.path)
    assert submission.backend == "third" and isinstance(submission.open_backend(), Plugin)
    end = time.monotonic() + 120
    while folder.state != "finished":
        assert time.monotonic() < end, (folder.path / "output.txt").read_text()
        time.sleep(0.2)
    assert (folder.path / "output.txt").is_file()


def test_site_of_another_backend_has_no_slurm_fields(tmp_path, third_backend):
    with pytest.raises(DtlError, match=r"site\.yaml:2: qos: no such key"):
        read_site(write_site(tmp_path, "backend: third\nqos: high\n"))


def test_invalid_time_limit_is_reported_for_any_backend(tmp_path, third_backend):
    with pytest.raises(DtlError, match=r"site\.yaml:2: max_time"):
        read_site(write_site(tmp_path, "backend: third\nmax_time: soon\n"))


def test_default_backend_is_slurm(tmp_path):
    assert read_site(write_site(tmp_path, "description: mine\n")).backend == "slurm"


@pytest.mark.parametrize(
    ("name", "problem"),
    [("slrum", "no backend is named 'slrum'"), ("local", "backend 'local' has no site files")],
)
def test_unusable_backend_is_reported(tmp_path, name, problem):
    with pytest.raises(DtlError, match=rf"site\.yaml: backend: {problem}"):
        read_site(write_site(tmp_path, f"backend: {name}\n"))
