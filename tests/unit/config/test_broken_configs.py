"""Broken configs and data: exit code 2, one message with location and fix, at once, no launch."""

import os
import resource
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from dtl.cli.app import main

CONFIG = """\
model:
  path: mini:text
task: causal_lm
data:
  train: good.jsonl
strategy: lora
train:
  steps: 5
"""
GOOD = '{"text": "one two three"}\n{"text": "four five six"}\n'
LABELS = '{"text": "good", "label": "yes"}\n{"text": "bad", "label": "no"}\n'
CLASSIFY = ("task=text_classification",)


@dataclass(frozen=True)
class Broken:
    """One broken config: what is replaced, and what the message must contain."""

    name: str
    location: str
    fix: str
    change: tuple[str, str] = ("", "")
    text: str | None = None
    overrides: tuple[str, ...] = ()
    files: dict[str, str | bytes] = field(default_factory=dict)
    config: str = "run.yaml"


def data(name: str, location: str, fix: str, files: dict[str, str | bytes], *, more=(), **kwargs):
    """Broken data: the first file is trained on."""
    return Broken(
        name,
        location,
        fix,
        overrides=(f"data.train={next(iter(files))}", *more),
        files=files,
        **kwargs,
    )


CONFIGS = [
    Broken(
        "typo in a key",
        "run.yaml:8: train.stpes: no such key",
        "did you mean 'steps'?",
        text=CONFIG.replace("steps: 5", "stpes: 5\n  epochs: 1"),
    ),
    Broken(
        "typo in a section",
        "run.yaml:9: layuot: no such key",
        "did you mean 'layout'?",
        text=CONFIG + "layuot: {zero_stage: 1}\n",
    ),
    Broken(
        "key of another trainer",
        "run.yaml:9: train.learning_rate: no such key",
        "did you mean 'optim.learning_rate'?",
        text=CONFIG + "  learning_rate: 1e-4\n",
    ),
    Broken(
        "text for a number",
        "run.yaml:8: train.steps: 'many' is not an integer",
        "write an integer (optimizer steps to take)",
        change=("steps: 5", "steps: many"),
    ),
    Broken(
        "quoted number",
        "run.yaml:8: train.steps: '5' is not an integer",
        "write an integer",
        change=("steps: 5", "steps: '5'"),
    ),
    Broken(
        "word for a bool",
        "run.yaml:3: model.trust_remote_code: 'yes' is not true or false",
        "write true or false",
        change=("mini:text\n", "mini:text\n  trust_remote_code: yes\n"),
    ),
    Broken(
        "value for a section",
        "run.yaml:9: layout: 2 is not a section of keys",
        "write a section of keys",
        text=CONFIG + "layout: 2\n",
    ),
    Broken(
        "missing section",
        "run.yaml: model: this key is missing",
        "add it",
        change=("model:\n  path: mini:text\n", ""),
    ),
    Broken(
        "no length",
        "run.yaml:7: train: the length of the training is missing",
        "set train.steps or train.epochs",
        change=("steps: 5", "global_batch: 8"),
    ),
    Broken(
        "two lengths",
        "command line: train.epochs=1: train.epochs: train.steps is set as well",
        "set the other to null",
        overrides=("train.epochs=1",),
    ),
    Broken(
        "unknown strategy",
        "run.yaml:6: strategy: no strategy is named 'lorra'",
        "did you mean 'lora'? (choose one of: ",
        change=("lora", "lorra"),
    ),
    Broken(
        "unknown task",
        "run.yaml:3: task.name: no task is named 'casual_lm'",
        "did you mean 'causal_lm'?",
        change=("task: causal_lm", "task: {name: casual_lm}"),
    ),
    Broken(
        "unknown option of a strategy",
        "command line: strategy.rnak=4: strategy.rnak: no such key",
        "did you mean 'rank'?",
        overrides=("strategy.rnak=4",),
    ),
    Broken(
        "option of another strategy",
        "command line: strategy.rank=4: strategy.rank: no such key",
        "the keys here are: name",
        overrides=("strategy=full", "strategy.rank=4"),
    ),
    Broken(
        "unknown number format",
        "run.yaml:3: model.dtype: 'bf61' is not possible",
        "did you mean 'bf16'? (choose one of: fp32, bf16, fp16)",
        change=("mini:text\n", "mini:text\n  dtype: bf61\n"),
    ),
    Broken(
        "ZeRO stage out of range",
        "command line: layout.zero_stage=4: layout.zero_stage: 4 is too large",
        "write 3 or less",
        overrides=("layout.zero_stage=4",),
    ),
    Broken(
        "empty global batch",
        "command line: train.global_batch=0: train.global_batch: 0 is too small",
        "write 1 or more",
        overrides=("train.global_batch=0",),
    ),
    Broken(
        "micro-batch larger than a process's share",
        "command line: layout.micro_batch=8: layout.micro_batch: 8 is more than the 4 examples",
        "set layout.micro_batch to 4 or less, or raise train.global_batch",
        overrides=("train.global_batch=8", "layout.processes_per_node=2", "layout.micro_batch=8"),
    ),
    Broken(
        "more processes than examples",
        "command line: train.global_batch=2: train.global_batch: 2 examples per step are too few",
        "set train.global_batch to 4 or more, or use fewer processes",
        overrides=("train.global_batch=2", "layout.processes_per_node=4"),
    ),
    Broken(
        "infinite learning rate",
        "command line: optim.learning_rate=.inf: optim.learning_rate: inf is not a finite number",
        "write a number",
        overrides=("optim.learning_rate=.inf",),
    ),
    Broken(
        "offload without ZeRO",
        "command line: layout.offload=optimizer: layout.offload: ZeRO 0 cannot offload",
        "set layout.zero_stage to 1, 2 or 3",
        overrides=("layout.zero_stage=0", "layout.offload=optimizer"),
    ),
    Broken(
        "two sources of held-out examples",
        "command line: data.eval_fraction=0.1: data.eval_fraction: data.eval is set as well",
        "keep one of the two",
        overrides=("data.eval=good.jsonl", "data.eval_fraction=0.1"),
    ),
    Broken(
        "nothing to evaluate on",
        "run.yaml:9: train.evaluate_every: there are no held-out examples to evaluate on",
        "add data.eval or data.eval_fraction",
        text=CONFIG + "  evaluate_every: 2\n",
    ),
    Broken(
        "run name that leaves its folder",
        "command line: run.name=../up: run.name: '../up' is not a plain folder name",
        "set run.dir to choose the folder",
        overrides=("run.name=../up",),
    ),
    Broken(
        "remote code of no known version",
        "command line: model.trust_remote_code=true: model.trust_remote_code: the newest code",
        "set model.revision to a commit that you have read",
        overrides=("model.path=a/b", "model.trust_remote_code=true"),
    ),
    Broken(
        "override without a value",
        "command line: train.steps: this is not of the form key=value",
        "write key=value, such as train.steps=100",
        overrides=("train.steps",),
    ),
    Broken(
        "override below a value",
        "command line: train.steps.most=3: train.steps is a value",
        "set train.steps itself",
        overrides=("train.steps.most=3",),
    ),
    Broken(
        "override that is a broken list",
        "command line: optim.betas=[0.9: this is not YAML",
        "fix the line",
        overrides=("optim.betas=[0.9",),
    ),
    Broken(
        "not YAML",
        "run.yaml:2: this is not YAML (mapping values are not allowed here)",
        "put a value that contains ': ' in quotes",
        change=("mini:text", "mini: text"),
    ),
    Broken(
        "indented with a tab",
        "run.yaml:8: this is not YAML (found character '\\t' that cannot start any token)",
        "indent with spaces, not tabs",
        change=("  steps", "\tsteps"),
    ),
    Broken(
        "key given twice",
        "run.yaml:9: 'train' is given twice (first on line 7)",
        "keep one of the two",
        text=CONFIG + "train: {steps: 6}\n",
    ),
    Broken(
        "YAML tag",
        "run.yaml:2: YAML tags such as !!python/name:os.system are not accepted",
        "remove the tag",
        change=("mini:text", "!!python/name:os.system mini:text"),
    ),
    Broken("empty file", "run.yaml: the file is empty", "copy a recipe", text=""),
    Broken(
        "list instead of sections",
        "run.yaml:1: a config is a mapping of sections",
        "begin with `model:`",
        text="- model\n- task\n",
    ),
    Broken(
        "config that is not there",
        "rum.yaml: there is no such file",
        "did you mean 'run.yaml'?",
        config="rum.yaml",
    ),
    Broken(
        "config that is not text",
        "broken.yaml:2: the file is not UTF-8 text",
        "save it as UTF-8",
        config="broken.yaml",
        files={"broken.yaml": b"model:\n  path: \xff\xfe\n"},
    ),
]
DATA = [
    Broken(
        "data that is not there",
        "command line: data.train=goood.jsonl: data.train.path: file not found: goood.jsonl",
        "did you mean 'good.jsonl'?",
        overrides=("data.train=goood.jsonl",),
    ),
    Broken(
        "data named in the file that is not there",
        "run.yaml:5: data.train.path: file not found: goood.jsonl",
        "did you mean 'good.jsonl'?",
        change=("good.jsonl", "goood.jsonl"),
    ),
    data(
        "unreadable row",
        "bad.jsonl:3: invalid JSON",
        "fix or remove the line",
        {"bad.jsonl": GOOD + '{"text": "seven\n'},
    ),
    data(
        "row that is no object",
        "bad.jsonl:3: the row is a list",
        "write an object, as",
        {"bad.jsonl": GOOD + '["seven"]\n'},
    ),
    data(
        "data that is not text",
        "bad.jsonl:1: not UTF-8 text",
        "save the file as UTF-8",
        {"bad.jsonl": b'{"text": "\xff\xfe"}\n'},
    ),
    data(
        "empty data",
        "command line: data.train=none.jsonl: data.train: none.jsonl has no rows",
        "use a source with rows",
        {"none.jsonl": ""},
    ),
    data(
        "uneven row",
        "bad.csv:3: 3 values for 2 columns",
        "quote values that contain the delimiter",
        {"bad.csv": "text,label\na,b\nc,d,e\n"},
    ),
    data(
        "unknown kind of file",
        "rows.xlsx: '.xlsx' files are not supported",
        "export the table as CSV",
        {"rows.xlsx": "text\n"},
    ),
    Broken(
        "column that is not there",
        "command line: data.columns={text: body}: data.columns.text: good.jsonl has no column",
        "use one of its columns: 'text'",
        overrides=("data.columns={text: body}",),
    ),
    Broken(
        "unknown data of dtl",
        "mini:grahps/train: no such mini data set",
        "did you mean 'graphs'?",
        overrides=("data.train=mini:grahps/train",),
    ),
    Broken(
        "unknown base of dtl",
        "mini:txt: no such mini base",
        "did you mean 'text'?",
        overrides=("model.path=mini:txt",),
    ),
    Broken(
        "model folder that is not there",
        "command line: model.path=./models/mine: model.path: there is no folder models/mine",
        "use a model folder, a hub id, or mini:text",
        overrides=("model.path=./models/mine",),
    ),
    Broken(
        "hub model that cannot be reached",
        "command line: model.path=nobody/nothing: model.path: cannot read the config",
        "check the name and the network",
        overrides=("model.path=nobody/nothing",),
    ),
    data(
        "label unseen in training",
        "eval.jsonl:2: the label 'maybe' does not occur in the training rows",
        "correct the row",
        {"train.jsonl": LABELS, "eval.jsonl": LABELS.replace('"no"', '"maybe"')},
        more=(*CLASSIFY, "data.eval=eval.jsonl", "strategy=frozen"),
    ),
    data(
        "one label",
        "command line: data.train=train.jsonl: data.train: all rows have the label 'yes'",
        "at least two labels",
        {"train.jsonl": LABELS.replace('"no"', '"yes"')},
        more=(*CLASSIFY, "strategy=frozen"),
    ),
    data(
        "chat without a chat template",
        "chat.jsonl:1: the row has chat messages, but the model's tokenizer has no",
        "`prompt` and `completion`",
        {"chat.jsonl": '{"messages": [{"role": "user", "content": "one"}]}\n'},
    ),
    data(
        "columns that the task does not read",
        "rows.jsonl:1: the row has 'body'",
        "map them in data.columns",
        {"rows.jsonl": '{"body": "one two three"}\n'},
    ),
    data(
        "number where text is meant",
        "rows.jsonl:3: `text` is int ('7'), not text",
        "give a string",
        {"rows.jsonl": GOOD + '{"text": 7}\n'},
    ),
    data(
        "no target left after truncation",
        "command line: data.train=rows.jsonl: data.train: none of 1 rows can be trained on",
        "raise task.max_length",
        {"rows.jsonl": '{"prompt": "one two three four five", "completion": "six"}\n'},
        more=("task.max_length=2",),
    ),
]


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("broken", CONFIGS + DATA, ids=lambda broken: broken.name)
def test_a_fault_is_one_message_with_location_and_fix(broken, tmp_path, cache, monkeypatch, capsys):
    write(broken, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DTL_CACHE", str(cache))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["train", broken.config, *broken.overrides]) == 2
    printed = capsys.readouterr()
    (message,) = printed.err.splitlines()
    assert message.startswith(broken.location)
    assert broken.fix in message.removeprefix(broken.location)
    assert printed.out == ""
    assert not (tmp_path / "runs").exists(), "processes are only started for a run folder"


@pytest.mark.parametrize("name", ["typo in a key", "offload without ZeRO"])
def test_a_fault_of_the_config_costs_two_seconds_of_cpu(name, tmp_path, cache):
    (broken,) = (broken for broken in CONFIGS if broken.name == name)
    write(broken, tmp_path)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert train(broken, tmp_path, cache).returncode == 2
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert used < 2.0


def write(broken: Broken, folder: Path) -> None:
    """Write the config and its data, with valid rows."""
    text = CONFIG if broken.text is None else broken.text
    if broken.text is None:
        assert broken.change[0] in text
        text = text.replace(*broken.change, 1)
    files = {"run.yaml": text, "good.jsonl": GOOD, **broken.files}
    for name, content in files.items():
        content = content.encode() if isinstance(content, str) else content
        (folder / name).write_bytes(content)


def train(broken: Broken, folder: Path, cache: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "DTL_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, "-m", "dtl", "train", broken.config, *broken.overrides],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
