"""Scores by group equal those of reference libraries on the rows of each group."""

import json
import sys

import numpy as np
import pytest

from dtl.api import train
from dtl.config import registry
from dtl.config.load import load_config
from dtl.core.errors import DtlError
from dtl.evaluation.groups import bootstrap_interval, scores_by_group

LABELS = ["early", "late", "never"]


def make_task(name, **options):
    module = registry.load("tasks", name)
    return module.Plugin(module.Options(**options))


def guesses(count, *, right):
    draw = np.random.default_rng(4)
    truth = draw.integers(3, size=count)
    wrong = draw.random(count) > right
    guess = np.where(wrong, draw.integers(3, size=count), truth)
    groups = draw.choice(["north", "south", "(none)"], size=count)
    return [
        {"loss": 1.0, "label": int(label), "predicted": int(other), "group": str(group)}
        for label, other, group in zip(truth, guess, groups, strict=True)
    ]


def test_each_group_has_the_score_of_scikit_learn_on_its_rows():
    from sklearn.metrics import f1_score

    records = guesses(90, right=0.6)
    task = make_task("text_classification")
    scores = scores_by_group(task, records, {"labels": LABELS}, "place")
    expected = {}
    for group in ("north", "south", "(none)"):
        rows = [record for record in records if record["group"] == group]
        pairs = [[row[name] for row in rows] for name in ("label", "predicted")]
        expected[group] = f1_score(*pairs, average="macro")
        assert scores[f"group/place/{group}/macro_f1"] == pytest.approx(expected[group])
        assert scores[f"group/place/{group}/n"] == len(rows)
        low, high = scores[f"group/place/{group}/low"], scores[f"group/place/{group}/high"]
        assert low < expected[group] < high
    assert scores["group/place/worst"] == pytest.approx(min(expected.values()))
    assert scores["group/place/macro"] == pytest.approx(sum(expected.values()) / 3)
    assert len(scores) == 3 * 4 + 2


def test_the_worst_perplexity_is_the_highest():
    records = [
        {"loss": loss, "targets": 2, "correct": 1, "group": group}
        for loss, group in ((2.0, "a"), (4.0, "b"), (6.0, "b"))
    ]
    scores = scores_by_group(make_task("causal_lm"), records, {}, "kind")
    assert scores["group/kind/worst"] == pytest.approx(np.exp(10 / 4))
    assert scores["group/kind/a/perplexity"] == pytest.approx(np.exp(1))
    assert scores["group/kind/a/low"] == scores["group/kind/a/high"] == pytest.approx(np.exp(1))


def test_interval_is_that_of_resampling_row_by_row():
    """Rows drawn one by one, each sample scored by scikit-learn; two draws differ a little."""
    from sklearn.metrics import f1_score

    records, task = guesses(80, right=0.7), make_task("text_classification")
    low, high = bootstrap_interval(task, task.metric_counts(records, {"labels": LABELS}))
    draw = np.random.default_rng(9)
    truth = np.array([record["label"] for record in records])
    guess = np.array([record["predicted"] for record in records])
    found = []
    for _ in range(1000):
        chosen = draw.integers(80, size=80)
        found.append(f1_score(truth[chosen], guess[chosen], average="macro"))
    assert (low, high) == pytest.approx(tuple(np.percentile(found, (2.5, 97.5))), abs=0.015)
    assert (low, high) == bootstrap_interval(task, task.metric_counts(records, {"labels": LABELS}))


def test_bootstrap_in_chunks_gives_the_same_interval(monkeypatch):
    task = make_task("dpo")
    records = [
        {"loss": 0.0, "chosen_reward": float(place % 3), "rejected_reward": 0.5}
        for place in range(300)
    ]
    counts = task.metric_counts(records, {})
    full = bootstrap_interval(task, counts)
    monkeypatch.setattr(sys.modules["dtl.core.statistics"], "WEIGHTS_AT_ONCE", 2000)
    assert bootstrap_interval(task, counts) == full
    spread = np.sqrt(2 / 3 * 1 / 3 / 300)
    assert full == pytest.approx((2 / 3 - 1.96 * spread, 2 / 3 + 1.96 * spread), abs=0.01)


def config_of(folder, base, **held_out):
    rows = [
        {"text": f"{label} {word}", "label": label, "place": place}
        for label in ("early", "late")
        for word, place in (("river", "north"), ("ship", None), ("letter", "south"))
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "run": {"dir": str(folder / "runs"), "name": "grouped"},
        "model": {"path": str(base)},
        "task": {"name": "text_classification", "group_by": "place"},
        "data": {"train": str(folder / "rows.jsonl"), "eval": str(folder / "rows.jsonl")},
        "strategy": "lora",
        "train": {"steps": 1, "global_batch": 2},
        "layout": {"processes_per_node": 1, "zero_stage": 0},
    }
    path = folder / "grouped.yaml"
    path.write_text(json.dumps(config))
    return path


def test_run_reports_groups_in_scores_log_and_card(cache, tmp_path, encoder):
    from sklearn.metrics import f1_score

    printed = []
    outcome = train(load_config(config_of(tmp_path, encoder)), print_line=printed.append)
    assert outcome.exit_code == 0
    run = outcome.run
    lines = (run.path / "evaluations" / "step-00000001.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["group"] for row in rows] == ["north", "(none)", "south"] * 2
    scores = run.result["scores"]["adapted"]
    for group in ("north", "(none)", "south"):
        of_group = [row for row in rows if row["group"] == group]
        truth, guess = ([row[name] for row in of_group] for name in ("label", "predicted"))
        expected = f1_score(truth, guess, average="macro", zero_division=0.0)
        assert scores[f"group/place/{group}/macro_f1"] == pytest.approx(expected)
        assert scores[f"group/place/{group}/n"] == 2
    logged = [line for line in run.read_metrics() if line["kind"] == "eval"]
    assert logged[-1]["group/place/worst"] == scores["group/place/worst"]
    card = (run.export / "README.md").read_text()
    assert "## Held-out scores by place" in card and "| (none) | 2 |" in card


def test_unknown_column_is_rejected_before_launch(cache, tmp_path, encoder):
    path = config_of(tmp_path, encoder)
    config = load_config(path, ["task.group_by=plaec"])
    with pytest.raises(DtlError, match=r"task\.group_by: .*'plaec'.*did you mean 'place'\?"):
        train(config)
    assert not (tmp_path / "runs").exists()


def test_groups_need_held_out_rows(tmp_path, encoder):
    with pytest.raises(DtlError, match=r"task\.group_by: there are no held-out examples"):
        load_config(config_of(tmp_path, encoder), ["data.eval=null"])


def test_group_by_does_not_change_the_training_config(cache, tmp_path, encoder):
    from dtl.config.diff import changed_keys

    path = config_of(tmp_path, encoder)
    one, other = load_config(path), load_config(path, ["task.group_by=null"])
    assert changed_keys(one, other) == []
    assert other.task.group_by is None
