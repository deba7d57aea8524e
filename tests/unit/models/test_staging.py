"""Weights are copied to a node's own disk once, whole and checked."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest

from dtl import api
from dtl.config.schema import Model
from dtl.core.errors import DtlError, RankFailed
from dtl.models import staging
from dtl.models.fingerprint import fingerprint_model
from dtl.models.staging import is_intact, resolve_staged_model, stage_weights
from dtl.run.folder import RunFolder
from tests import tiny


@pytest.fixture
def model(decoder, tmp_path):
    base = shutil.copytree(decoder, tmp_path / "base")
    (base / "pytorch_model.bin").write_bytes(b"a pickle")
    return Model(path=str(base), staging_dir=str(tmp_path / "node"))


def test_what_is_read_afterwards_is_the_copy_and_has_the_same_content(model, tmp_path):
    stage_weights(model)
    copy = resolve_staged_model(model)
    assert copy.path.startswith(str(tmp_path / "node"))
    assert fingerprint_model(copy) == fingerprint_model(model)
    assert "pytorch_model.bin" not in {file.name for file in (tmp_path / "node").rglob("*")}
    assert copy.staging_dir is None


def test_a_whole_copy_is_used_again_and_a_damaged_one_replaced(model):
    stage_weights(model)
    weights = (folder := resolve_staged_model(model).path) + "/model.safetensors"
    first = _inode(weights)
    stage_weights(model)
    assert _inode(weights) == first
    with open(weights, "r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    assert not is_intact(staging.Path(folder))
    stage_weights(model)
    assert _inode(weights) != first and is_intact(staging.Path(folder))


def test_many_runs_on_a_node_at_the_same_time_leave_one_whole_copy(model, tmp_path):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: stage_weights(model), range(16)))
    (only,) = (tmp_path / "node").iterdir()
    assert is_intact(only) and str(only) == resolve_staged_model(model).path


def test_another_base_of_that_name_gets_another_folder(model):
    stage_weights(model)
    first = resolve_staged_model(model).path
    config = staging.Path(model.path) / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "rope_theta": 500.0}))
    stage_weights(model)
    assert resolve_staged_model(model).path != first and is_intact(staging.Path(first))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"staging_dir": "$NO_SUCH_VARIABLE/x"}, "a variable that is not set"),
        ({"staging_dir": "/proc/1/nothing"}, "/proc/1/nothing"),
    ],
)
def test_what_cannot_be_staged_names_the_node(model, monkeypatch, change, told):
    monkeypatch.setattr("socket.gethostname", lambda: "node17")
    with pytest.raises(RankFailed) as failed:
        stage_weights(model.model_copy(update=change))
    assert "model.staging_dir on node17: " in str(failed.value) and told in str(failed.value)


def test_a_disk_that_is_too_small_or_spoils_a_file_is_named(model, monkeypatch, tmp_path):
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr("shutil.disk_usage", lambda _: usage._replace(free=10))
        with pytest.raises(RankFailed, match="10 B left"):
            stage_weights(model)
    honest = staging._copy_file

    def spoils(source, copy):
        found = honest(source, copy)
        copy.write_bytes(copy.read_bytes()[:-1] + b"?")
        return found

    monkeypatch.setattr(staging, "_copy_file", spoils)
    with pytest.raises(RankFailed, match="not written as it was read"):
        stage_weights(model)
    assert list((tmp_path / "node").iterdir()) == []


def test_nothing_staged_and_a_hub_model_that_was_never_fetched(model, cache):
    with pytest.raises(RankFailed, match="has not staged"):
        resolve_staged_model(model)
    with pytest.raises(DtlError, match="hf download someone/model"):
        stage_weights(model.model_copy(update={"path": "someone/model"}))


def test_a_run_reads_the_copy_and_names_the_base(decoder, tmp_path, cache):
    tiny.write_texts(tmp_path / "rows.jsonl", 20)
    (tmp_path / "run.yaml").write_text(
        f"run: {{dir: {tmp_path}}}\nmodel: {{path: {decoder}}}\ntask: causal_lm\nstrategy: lora\n"
        f"data: {{train: {tmp_path / 'rows.jsonl'}}}\ntrain: {{steps: 2}}\n"
    )
    losses = []
    for name, more in (("far", ()), ("near", (f"model.staging_dir={tmp_path / 'node'}",))):
        api.train(
            api.load_config(tmp_path / "run.yaml", (f"run.name={name}", *more)), can_fork=False
        )
        run = RunFolder.open(tmp_path / name)
        losses.append([line["loss"] for line in run.read_metrics() if line["kind"] == "train"])
        named = json.loads((run.path / "export" / "adapter_config.json").read_text())
        assert named["base_model_name_or_path"] == str(decoder)
    assert losses[0] == losses[1]
    assert is_intact(next((tmp_path / "node").iterdir()))


def _inode(path):
    return staging.Path(path).stat().st_ino
