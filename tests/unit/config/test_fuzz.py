"""Every key of every shipped config, changed in every way: a config or one clear message."""

import random
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from dtl import api
from dtl.config.load import load_config
from dtl.core.errors import DtlError
from tests.unit.config.mutations import KINDS, Mutation, key_lines, list_mutations

DRAWN = 120  # of about 9,000
# What one machine can plan without a network.
OFFLINE = ("quickstart", "mini")


def draw(mutations: Sequence[Mutation], number: int) -> list[Mutation]:
    return random.Random(21).sample(mutations, number)


def load(mutation: Mutation, folder: Path) -> str | None:
    """Return the message; None: it is a config. Any other error fails the test."""
    text, file = mutation.text(), folder / "shown.yaml"
    file.write_text(text, encoding="utf-8")
    try:
        load_config(file)
    except DtlError as error:
        check_message(str(error), mutation, text)
        return str(error)
    return None


def check_message(message: str, mutation: Mutation, text: str) -> None:
    """Each line is one fault with a fix, and one of them names the key or a line that has it."""
    for line in message.splitlines():
        assert ". Fix: " in line and len(line) < 1000, line
    lines = {} if mutation.kind == "doubled" else key_lines(text)
    sections = [mutation.keys[:depth] for depth in range(1, len(mutation.keys) + 1)]
    possible = {lines[keys] for keys in sections if keys in lines}
    named = set(map(int, re.findall(r"shown\.yaml:(\d+):", message)))
    assert named & possible or str(mutation.keys[-1]) in message, message


@pytest.mark.parametrize("mutation", draw(list_mutations(), DRAWN), ids=str)
def test_a_changed_key_is_accepted_or_named(mutation, tmp_path):
    load(mutation, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_changed_key_is_accepted_or_named(kind, tmp_path):
    mutations = [mutation for mutation in list_mutations() if mutation.kind == kind]
    messages = [load(mutation, tmp_path) for mutation in mutations]
    assert any(messages)


def offline(kinds: Sequence[str] = KINDS) -> list[Mutation]:
    return [
        mutation
        for mutation in list_mutations()
        if mutation.config.parent.name in OFFLINE and mutation.kind in kinds
    ]


@pytest.mark.slow
@pytest.mark.parametrize("mutation", draw(offline(), 60), ids=str)
def test_a_plan_of_a_changed_key_is_made_or_named(mutation, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if load(mutation, tmp_path) is not None:
        return
    try:
        api.plan(load_config("shown.yaml"))
    except DtlError as error:
        assert ". Fix: " in str(error)


@pytest.mark.slow
@pytest.mark.parametrize("mutation", draw(offline(), 100), ids=str)
def test_the_command_ends_with_a_plan_or_one_message(mutation, tmp_path):
    (tmp_path / "shown.yaml").write_text(mutation.text(), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "dtl", "plan", "shown.yaml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode in (0, 2), done.stderr
    assert "Traceback" not in done.stderr
    assert (done.returncode == 2) == bool(re.search(r"\. Fix: ", done.stderr)), done.stderr


# Values that are no sense, each with what its message must say.
NONSENSE = {
    "optim.learning_rate=1e99": "write 100 or less",
    "optim.weight_decay=1e99": "write 10 or less",
    "optim.epsilon=1e99": "too large",
    "train.steps=100000000000": "too large",
    "train.global_batch=100000000000": "too large",
    "train.global_batch=1e99": "not a batch size",
    "train.global_batch=99999999999 tokens": "too large",
    "train.hang_seconds=0.01": "write 1 or more",
    "train.loading_hang_seconds=0.01": "write 1 or more",
    "layout.collective_timeout_seconds=0.01": "write 1 or more",
    "data.train.weight=1e99": "write 1000 or less",
    "data.train.limit=99999999999": "too large",
    "data.columns={text: ''}": "the name of the column is empty",
    "data.train=[a.csv, b.csv]": "data.mix",
    "data.eval_fraction=1e99": "write a number below 1",
    "strategy.rank=99999999999": "too large",
    "strategy.alpha=1e99": "too large",
    "strategy.target_modules='[q_proj'": "no regular expression",
    "strategy.exclude_modules='*'": "no regular expression",
    "strategy.target_modules=''": "the value is empty",
    "model.path=''": "the value is empty",
    "run.name=''": "the value is empty",
    "train.steps=": "is a shell variable not set?",
    "optim.learning_rate=": "is a shell variable not set?",
    "data.train=": "is a shell variable not set?",
    "optim.warmup=1e99": "too large",
}


@pytest.mark.parametrize("override", NONSENSE)
def test_nonsense_is_refused_with_its_key(override):
    quickstart = Path(__file__).parents[3] / "configs" / "quickstart" / "text.yaml"
    with pytest.raises(DtlError) as caught:
        load_config(quickstart, [override])
    message = str(caught.value)
    assert len(message.splitlines()) == 1, message
    assert override.partition("=")[0] in message and NONSENSE[override] in message, message
    assert message.startswith("command line: ")
