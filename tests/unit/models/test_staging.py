"""Weights are copied to a node's own disk once, and the copy is verified."""

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


def test_staged_model_is_the_copy_with_the_same_content(model, tmp_path):
    stage_weights(model)
    copy = resolve_staged_model(model)
    assert copy.path.startswith(str(tmp_path / "node"))
    assert fingerprint_model(copy) == fingerprint_model(model)
    assert "pytorch_model.bin" not in {file.name for file in (tmp_path / "node").rglob("*")}
    assert copy.staging_dir is None


def test_intact_copy_is_reused_and_corrupted_copy_is_replaced(model):
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


def test_concurrent_runs_on_a_node_leave_one_intact_copy(model, tmp_path):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: stage_weights(model), range(16)))
    (only,) = (tmp_path / "node").iterdir()
    assert is_intact(only) and str(only) == resolve_staged_model(model).path


def test_other_base_of_the_same_name_gets_another_folder(model):
    stage_weights(model)
    first = resolve_staged_model(model).path
    config = staging.Path(model.path) / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "rope_theta": 500.0}))
    stage_weights(model)
    assert resolve_staged_model(model).path != first and is_intact(staging.Path(first))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"staging_dir": "$NO_SUCH_VARIABLE/x"}, "a variable that is not set"),
        ({"staging_dir": "/proc/1/nothing"}, "/proc/1/nothing"),
    ],
)
def test_staging_error_names_the_node(model, monkeypatch, change, message):
    monkeypatch.setattr("socket.gethostname", lambda: "node17")
    with pytest.raises(RankFailed) as failed:
        stage_weights(model.model_copy(update=change))
    assert "model.staging_dir on node17: " in str(failed.value) and message in str(failed.value)


def test_disk_that_is_too_small_or_corrupts_a_file_is_reported(model, monkeypatch, tmp_path):
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr("shutil.disk_usage", lambda _: usage._replace(free=10))
        with pytest.raises(RankFailed, match="10 B left"):
            stage_weights(model)
    original = staging._copy_file

    def corrupt(source, copy):
        checksum = original(source, copy)
        copy.write_bytes(copy.read_bytes()[:-1] + b"?")
        return checksum

    monkeypatch.setattr(staging, "_copy_file", corrupt)
    with pytest.raises(RankFailed, match="differs from its source"):
        stage_weights(model)
    assert list((tmp_path / "node").iterdir()) == []


def test_nothing_staged_and_hub_model_not_in_cache_are_reported(model, cache):
    with pytest.raises(RankFailed, match="has not staged"):
        resolve_staged_model(model)
    with pytest.raises(DtlError, match="hf download someone/model"):
        stage_weights(model.model_copy(update={"path": "someone/model"}))


def test_run_reads_the_staged_copy_and_its_export_names_the_base(decoder, tmp_path, cache):
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
        adapter_config = json.loads((run.path / "export" / "adapter_config.json").read_text())
        assert adapter_config["base_model_name_or_path"] == str(decoder)
    assert losses[0] == losses[1]
    assert is_intact(next((tmp_path / "node").iterdir()))


def _inode(path):
    return staging.Path(path).stat().st_ino
