"""`dtl audit` finds an additional, a missing and a wrong line in the log of a run."""

import json

import numpy as np
import pytest

from dtl.core.files import write_record
from dtl.core.json_lines import encode_line
from dtl.data.batching import Batching, chain_order_digest
from dtl.inspect.audit import audit_run, find_data_difference
from dtl.run.folder import RunFolder

EXAMPLES, BATCH, SEED, KEY = 10, 4, 3, "k" * 32


@pytest.fixture
def log(tmp_path):
    """Return a function that writes a run folder; `change` modifies its log."""

    def write(name="run", *, steps=7, seed=SEED, change=lambda lines: lines):
        folder = tmp_path / name
        folder.mkdir()
        config = {
            "run": {"dir": str(tmp_path), "name": name},
            "model": {"path": "mini:text"},
            "task": "causal_lm",
            "data": {"train": "rows.jsonl"},
            "strategy": "full",
            "train": {"steps": steps, "global_batch": BATCH, "seed": SEED},
        }
        record = {"config": config, "data": {"key": KEY, "examples": EXAMPLES}}
        write_record(folder / "run.json", record)
        digest, lines = KEY, []
        for step in range(1, steps + 1):
            epoch, index = divmod(step - 1, 3)
            batches = Batching(EXAMPLES, BATCH, seed).form_epoch(epoch)
            digest = chain_order_digest(digest, batches[index])
            lines.append({"kind": "train", "step": step, "digest": digest})
        text = b"".join(encode_line(line) for line in change(lines))
        (folder / "metrics.jsonl").write_bytes(text)
        return RunFolder(folder)

    return write


def test_complete_log_is_proven(log):
    result = audit_run(log())
    assert (result.steps, result.epochs, result.fault) == (7, 2, None)
    assert "every example exactly once" in result.format_line("run")


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda lines: lines[:3] + lines[4:], "step 5 follows step 3"),
        (lambda lines: lines[:4] + lines[3:], "step 4 follows step 4"),
        (lambda lines: [*lines[:2], {**lines[2], "digest": "0" * 32}, *lines[3:]], "step 3 read"),
    ],
)
def test_first_fault_is_named(log, change, fault):
    assert fault in (audit_run(log(change=change)).fault or "")


def test_run_with_another_seed_reads_other_examples(log):
    run, other = log(), log("other", seed=SEED + 1)
    assert audit_run(other).fault == "step 1 read other examples than planned"
    assert find_data_difference(run, other) == "the runs read different examples from step 1 on"
    assert find_data_difference(run, log("same")) is None


@pytest.mark.parametrize("arrays", ["sizes", "lengths", "sizes lengths"])
def test_batches_by_length_are_proven_with_the_stored_lengths(log, arrays):
    numbers = {name: np.arange(1, EXAMPLES + 1) for name in arrays.split()}
    batching = Batching(EXAMPLES, 12 if "sizes" in numbers else BATCH, SEED, **numbers)
    run = log(steps=0)
    record = json.loads((run.path / "run.json").read_text())
    train = {"global_batch": "12 tokens" if "sizes" in numbers else BATCH}
    record["config"]["train"] |= {"steps": 12, "group_by_length": "lengths" in numbers} | train
    write_record(run.path / "run.json", record)
    digest, lines = KEY, []
    for epoch in range(2):
        for batch in batching.form_epoch(epoch):
            digest = chain_order_digest(digest, batch)
            lines.append({"kind": "train", "step": len(lines) + 1, "digest": digest})
    (run.path / "metrics.jsonl").write_bytes(b"".join(map(encode_line, lines)))
    assert audit_run(run).fault == "there is no lengths.npz, which the batches depend on"
    np.savez(run.path / "lengths.npz", **numbers)
    assert (audit_run(run).steps, audit_run(run).epochs, audit_run(run).fault) == (
        len(lines),
        2,
        None,
    )
    reversed_numbers = {name: values[::-1] for name, values in numbers.items()}
    np.savez(run.path / "lengths.npz", **reversed_numbers)
    assert audit_run(run).fault == "step 1 read other examples than planned"
