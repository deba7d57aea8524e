"""The fingerprint of a base depends on its content."""

import shutil

import pytest

from dtl.config.load import load_config
from dtl.config.schema import Model
from dtl.core.errors import DtlError
from dtl.models import fingerprint as module
from dtl.models.fingerprint import fingerprint_model
from dtl.prepare import prepared_run
from dtl.run.folder import RunFolder
from tests import tiny


@pytest.fixture
def base(decoder, tmp_path):
    return shutil.copytree(decoder, tmp_path / "base")


def test_fingerprint_depends_on_content_and_not_on_path(base, tmp_path):
    first = fingerprint_model(Model(path=str(base)))
    moved = shutil.copytree(base, tmp_path / "elsewhere")
    assert fingerprint_model(Model(path=str(moved))) == first
    weights = moved / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert fingerprint_model(Model(path=str(moved))) != first


@pytest.mark.parametrize("offset", [0, 500, -1])
def test_large_file_is_sampled_at_start_middle_and_end(base, monkeypatch, offset):
    monkeypatch.setattr(module, "FULL_HASH_BYTES", 1000)
    monkeypatch.setattr(module, "SAMPLE_BYTES", 64)
    weights = base / "model.safetensors"
    first = fingerprint_model(Model(path=str(base)))
    data = bytearray(weights.read_bytes())
    step = (len(data) - 64) // 255
    position = offset if offset <= 0 else offset // step * step + 3
    data[position] ^= 1
    weights.write_bytes(data)
    assert fingerprint_model(Model(path=str(base))) != first


def test_uncached_hub_model_is_identified_by_its_revision():
    assert fingerprint_model(Model(path="someone/model")) == "hub:someone/model@main"
    assert fingerprint_model(Model(path="someone/model", revision="a1")) == "hub:someone/model@a1"


def test_run_does_not_resume_with_another_base(base, tmp_path, cache):
    tiny.write_texts(tmp_path / "rows.jsonl", 20)
    (tmp_path / "run.yaml").write_text(
        f"run: {{dir: {tmp_path}}}\nmodel: {{path: {base}}}\ntask: causal_lm\nstrategy: lora\n"
        f"data: {{train: {tmp_path / 'rows.jsonl'}}}\ntrain: {{steps: 2}}\n"
    )
    config = load_config(tmp_path / "run.yaml")
    prepared = prepared_run.prepare_run(config)
    folder, examples = RunFolder.from_config(config), prepared.data
    folder.create(config, prepared.plan, examples.dataset_stats, examples.to_record())
    prepared_run.reopen_run(folder, writes=True)
    shutil.rmtree(base)
    tiny.decoder(base, chat=True, seed=8)
    with pytest.raises(DtlError, match="have changed since the run started"):
        prepared_run.reopen_run(folder, writes=True)
