"""Data that changes while a run is interrupted."""

import shutil

import pytest

from dtl.config.load import load_config
from dtl.core.checksums import seal_folder
from dtl.core.errors import DtlError
from dtl.prepare import prepared_run
from dtl.run.folder import RunFolder
from tests import tiny


@pytest.fixture
def interrupted(tmp_path, decoder, cache):
    """Return the folder of a run that has been created, and its files."""
    for name, rows in (("train", 8), ("held_out", 3), ("other", 4)):
        tiny.write_texts(tmp_path / f"{name}.jsonl", rows)
    (tmp_path / "run.yaml").write_text(
        f"run: {{dir: {tmp_path}}}\nmodel: {{path: {decoder}}}\ntask: causal_lm\nstrategy: lora\n"
        f"data: {{train: {tmp_path}/train.jsonl, eval: {tmp_path}/held_out.jsonl}}\n"
        "train: {steps: 2}\n"
    )
    config = load_config(tmp_path / "run.yaml")
    folder = RunFolder.from_config(config)
    prepared_run.write_run(folder, prepared_run.prepare_run(config))
    return folder


@pytest.mark.parametrize(
    ("file", "problem"),
    [("train", "the data, or its tokenizer, has changed"), ("held_out", "the held-out data has")],
)
def test_run_does_not_resume_with_other_data(interrupted, tmp_path, file, problem):
    prepared_run.reopen_run(interrupted, writes=True)
    tiny.write_texts(tmp_path / f"{file}.jsonl", 5)
    with pytest.raises(DtlError, match=problem) as caught:
        prepared_run.reopen_run(interrupted, writes=True)
    assert str(tmp_path / f"{file}.jsonl") in str(caught.value)


def test_held_out_data_that_is_replaced_on_purpose_is_compared_from_then_on(interrupted, tmp_path):
    config = prepared_run.load_changed_config(
        interrupted,
        [f"data.eval={tmp_path / 'other.jsonl'}"],
        allow_change=frozenset({"data.eval.path"}),
    )
    prepared = prepared_run.prepare_run(config)
    prepared_run.check_data_unchanged(interrupted, prepared)
    prepared_run.write_run(interrupted, prepared)
    assert len(interrupted.previous_identities) == 1
    prepared_run.reopen_run(interrupted, writes=True)
    tiny.write_texts(tmp_path / "other.jsonl", 5)
    with pytest.raises(DtlError, match="the held-out data has changed"):
        prepared_run.reopen_run(interrupted, writes=True)


def test_export_that_is_trained_further_is_verified(interrupted, tmp_path, decoder):
    export = shutil.copytree(decoder, tmp_path / "export")
    seal_folder(export)
    config = load_config(tmp_path / "run.yaml", [f"model.path={export}"])
    prepared_run.prepare_run(config)
    weights = export / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-40] ^= 16
    weights.write_bytes(data)
    with pytest.raises(DtlError, match=r"model\.safetensors do not have their CRC-32"):
        prepared_run.prepare_run(config)
