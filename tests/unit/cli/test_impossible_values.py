"""Paths that cannot be, models that disagree with their config, values that match nothing: one
message and exit code 2."""

import json
import os
import shutil

import pytest

from dtl import mini
from dtl.cli.app import main

LONG = "n" * 300
CONFIG = """\
model: {path: "mini:text"}
task: causal_lm
data: {train: rows.jsonl, eval_fraction: 0.2}
strategy: lora
train: {steps: 2, global_batch: 4}
layout: {processes_per_node: 1}
"""


@pytest.fixture
def workdir(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"text": f"row {number} of some text"} for number in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "run.yaml").write_text(CONFIG)
    (tmp_path / "file").write_text("a file")
    os.symlink("nowhere", tmp_path / "dangling")
    os.symlink("loop", tmp_path / "loop")
    return tmp_path


def refuse(capsys, *arguments, code=2):
    """Return the message of a command that is refused."""
    assert main(list(arguments)) == code
    message = capsys.readouterr().err.strip()
    assert len(message.splitlines()) == 1, message
    assert ". Fix: " in message and len(message) < 1000, message
    return message


PATHS = {
    "run.dir=file/runs": "run.dir: file is a file, not a folder",
    "run.dir=dangling": "run.dir: dangling is a link to nowhere, which does not exist",
    "run.dir=loop": "run.dir: loop is a link to loop",
    f"run.dir={LONG}": "has 300 bytes, and a file system accepts 255",
    "data.train=dangling": "data.train.path: dangling is a link to nowhere",
    "data.train=loop": "data.train.path: loop is a link to loop",
    "data.train=file/rows.jsonl": "data.train.path: file is a file, not a folder",
    f"data.train={LONG}": "has 300 bytes",
    "model.path=dangling": "model.path: dangling is a link to nowhere",
    "model.path=loop": "model.path: loop is a link to loop",
    "model.path=file": "model.path: file is a file, not a folder",
    "model.path=file/model": "model.path: file is a file, not a folder",
    f"model.path={LONG}": "has 300 bytes",
    f"strategy.continue_from={LONG}": "has 300 bytes",
}


@pytest.mark.parametrize("override", PATHS, ids=lambda each: each[:30])
def test_a_path_that_cannot_be_is_refused_with_its_key(workdir, capsys, override):
    for command in ("plan", "train"):
        message = refuse(capsys, command, "run.yaml", override)
        assert PATHS[override] in message
        assert override.partition("=")[0] in message
    assert not (workdir / "runs").exists()


def test_a_folder_that_cannot_be_written_is_refused_before_the_run(workdir, capsys):
    message = refuse(capsys, "train", "run.yaml", "run.dir=/proc/runs")
    assert "run.dir" in message and "/proc/runs" in message


@pytest.mark.parametrize("command", ["report", "audit", "resume", "export", "status", "logs"])
def test_a_run_that_cannot_be_is_refused(workdir, capsys, command):
    assert "the name is too long" in refuse(capsys, command, LONG)
    for path in ("file/run", "loop", "dangling"):
        refuse(capsys, command, path)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"hidden_size": 96}, "tensors of other sizes than its config.json says"),
        ({"vocab_size": 17}, "tensors of other sizes than its config.json says"),
        ({"num_hidden_layers": 9}, "are missing in the weight files"),
        ({"num_attention_heads": 7}, "not a multiple of the number of attention heads"),
        ({"hidden_size": -4}, "cannot read the config"),
        ({"hidden_size": "many"}, "cannot read the config"),
        ({"model_type": "bert", "architectures": ["BertModel"]}, "are missing in the weight files"),
    ],
    ids=str,
)
def test_a_config_that_disagrees_with_its_weights_is_refused(workdir, capsys, changes, says):
    shutil.copytree(mini.base_folder("text"), workdir / "base")
    file = workdir / "base" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    message = refuse(capsys, "plan", "run.yaml", "model.path=base")
    assert says in message and "model.path" in message


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json"])
@pytest.mark.parametrize("text", ["[]", "{}", "{", ""])
def test_a_file_of_a_model_that_is_none_is_refused(workdir, capsys, file, text):
    shutil.copytree(mini.base_folder("text"), workdir / "base")
    (workdir / "base" / file).write_text(text)
    assert "cannot read the" in refuse(capsys, "plan", "run.yaml", "model.path=base")


NOTHING = {
    "strategy.modules_to_save=[nosuch]": "no module has a name that ends with 'nosuch'",
    "strategy.exclude_modules=[nosuch]": "no module has a name that ends with 'nosuch'",
    "strategy.exclude_modules=nosuch.*": "no layer has a name like 'nosuch.*'",
    "strategy.target_modules=[q_proj, q_porj]": "did you mean 'q_proj'?",
    "strategy.rank=1000": "have at most rank 192 (got 1000). Fix: set strategy.rank to 192 or less",
    "optim.warmup=100": "the warm-up takes 100 steps, and the phase has 2",
    "data.eval_fraction=0.9999": "0.9999 of 20 rows leaves none to train on",
}


@pytest.mark.parametrize("override", NOTHING)
def test_a_value_that_matches_nothing_is_refused(workdir, capsys, override):
    message = refuse(capsys, "plan", "run.yaml", override)
    assert NOTHING[override] in message and override.partition("=")[0] in message


def test_a_block_that_the_model_does_not_have_is_refused(workdir, capsys):
    options = "strategy={name: lora, target_modules: [q_proj], layers_to_transform: [1, 99]}"
    assert "there is no block 99" in refuse(capsys, "plan", "run.yaml", options)
