"""A whole comparison from the command line: killed and gone on with, printed, one cell alone."""

import csv
import json
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from dtl.compare import terminal as show
from dtl.compare.records import Comparison, ConfidenceInterval, load_comparison
from dtl.run.folder import RunFolder
from tests.distributed.launching import environment

CONFIG = """\
model: {path: "mini:vision"}
task: {name: image_classification, min_crop_scale: 1.0, horizontal_flip: false}
data:
  train: {path: "mini:digits/train", limit: 100}
  eval: {path: "mini:digits/heldout", limit: 60}
strategy: frozen
train: {steps: 12, save_every: 4}
compare:
  strategies: [scratch, frozen]
  train_sizes: [1, 4]
  seeds: 2
  learning_rates: {scratch: 0.003, frozen: [0.003, 0.01]}
  source_data: {path: "mini:glyphs/heldout", limit: 47}
  ood_data: {path: "mini:digits/train", limit: 20}
"""
CELLS = 8


def start(desk, *arguments):
    with (desk / "told.txt").open("ab") as told:
        return subprocess.Popen(
            [sys.executable, "-m", "dtl", "compare", *arguments],
            cwd=desk,
            env=environment(DTL_CACHE=str(desk / "cache")),
            stdout=told,
            stderr=subprocess.STDOUT,
        )


def compare(desk, *arguments):
    code = start(desk, *arguments).wait(timeout=600)
    told = (desk / "told.txt").read_text(encoding="utf-8")
    assert code == 0, told
    return told


def cells(folder):
    return [RunFolder(path) for path in sorted((folder / "cells").glob("*-seed*"))]


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    folder = tmp_path_factory.mktemp("desk")
    (folder / "few.yaml").write_text(CONFIG, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def whole(desk):
    """A comparison that was not interrupted."""
    told = compare(desk, "few.yaml")
    assert "10 of 10  frozen-4-seed1  macro_f1" in told
    return desk / "comparisons" / "few"


def comparison_values(found: Comparison):
    """The table without what the clock and the memory say."""
    plain = found.to_dict() | {"name": ""}
    for one in [*plain["cells"], *plain["points"]]:
        for key in ("seconds", "wall_seconds", "peak_memory_bytes"):
            one.pop(key, None)
            (one.get("to_scratch") or {}).pop(key, None)
        one["curve"] = [[at["step"], at["score"]] for at in one.get("curve", ())]
    return plain | {"recommendations": [one["verdict"] for one in plain["recommendations"]]}


def test_killed_and_started_again_it_repeats_nothing_and_gives_the_same_table(desk, whole):
    folder = desk / "comparisons" / "killed"
    process = start(desk, "few.yaml", "--out", str(folder))
    limit = time.monotonic() + 300
    halfway = RunFolder(folder / "cells" / "scratch-4-seed0")
    while halfway.state == "absent" or halfway.last_step < 6:
        assert process.poll() is None and time.monotonic() < limit
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {run.path: run.result for run in cells(folder) if run.state == "finished"}
    stamps = {path: (path / "result.json").stat().st_mtime_ns for path in before}
    assert len(before) == 2
    compare(desk, "few.yaml", "--out", str(folder))
    assert {path: (path / "result.json").stat().st_mtime_ns for path in before} == stamps
    went_on = (halfway.logs / "terminal.log").read_text(encoding="utf-8")
    assert "resuming from" in went_on
    assert comparison_values(load_comparison(folder)) == comparison_values(load_comparison(whole))


def test_all_of_it_is_in_the_table_and_comes_from_what_each_run_has_stored(whole):
    from sklearn.metrics import f1_score

    found = load_comparison(whole)
    assert found.is_finished and len(found.cells) == CELLS
    assert [one.learning_rate for one in found.learning_rate_trials] == [0.003, 0.01]
    best = max(found.learning_rate_trials, key=lambda one: one.score).learning_rate
    with (whole / "comparison.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for cell, row in zip(found.cells, rows, strict=True):
        run = whole / cell.run
        lines = (run / "evaluations" / "step-00000012.jsonl").read_text(encoding="utf-8")
        outcomes = [json.loads(line) for line in lines.splitlines()]
        truth, guess = ([one[key] for one in outcomes] for key in ("label", "predicted"))
        assert len(truth) == 60
        assert cell.score == pytest.approx(f1_score(truth, guess, average="macro"))
        assert float(row["score"]) == cell.score and row["strategy"] == cell.strategy
        assert cell.interval.low < cell.score < cell.interval.high
        assert cell.learning_rate == (0.003 if cell.strategy == "scratch" else best)
        assert (cell.steps, cell.rows) == (12, 10 * cell.labels)
        assert cell.curve[-1].score == cell.score and len(cell.curve) == 6
        assert (
            cell.export_bytes > 1_000_000 and cell.train_seconds > 0 and cell.ood_score is not None
        )
    assert {one.verdict for one in found.recommendations} <= {
        "best",
        "not distinguishable",
        "scratch",
    }
    assert found.feature_probe is not None and found.feature_probe.rows == 10
    assert {(pair.first, pair.second) for pair in found.differences} == {("scratch", "frozen")}


def test_a_frozen_base_reads_each_row_once_for_all_cells(whole):
    """The four cells and two rates of two seeds: the rows of a seed, those kept apart and those
    held out are each read in one of them."""
    made = []
    for run in sorted((whole / "cells").iterdir()):
        told = (run / "logs" / "terminal.log").read_text(encoding="utf-8")
        made += re.findall(r"features of (\d+) examples: made", told)
    assert sorted(map(int, made)) == [20, 40, 40, 60]


def test_the_hint_is_scikit_learns_on_what_the_head_is_given(whole):
    """Nearest neighbours by hand, on the pooled features of the network without its head."""
    import torch
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.preprocessing import StandardScaler
    from transformers import AutoModel

    from dtl import mini
    from dtl.assembly.parts import assemble
    from dtl.prepare.prepared_data import prepare_data

    config = ComparisonState.load(whole).grid.probe_config
    examples, parts = prepare_data(config, assemble(config)), assemble(config)
    body = AutoModel.from_pretrained(mini.base_folder("vision")).eval()
    known = []
    for data in (examples.train, examples.held_out):
        shown = [
            parts.task.transform(data[n], processor=examples.processor, rng=None)
            for n in range(len(data))
        ]
        pixels = torch.tensor(np.stack([one["pixel_values"] for one in shown]))
        with torch.no_grad():
            known.append((body(pixels).pooler_output.flatten(1).numpy(), shown))
    (learnt, shown), (scored, wanted) = known
    scale = StandardScaler().fit(learnt)
    near = KNeighborsClassifier(5).fit(scale.transform(learnt), [int(o["labels"]) for o in shown])
    accuracy = near.score(scale.transform(scored), [int(o["labels"]) for o in wanted])
    assert load_comparison(whole).feature_probe.nearest_neighbors == pytest.approx(accuracy)


def test_what_is_forgotten_is_that_of_the_body_under_the_old_head(whole):
    import torch
    from safetensors.torch import load_file
    from sklearn.metrics import f1_score
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    from dtl import mini

    found = load_comparison(whole)
    frozen = [cell.source_score for cell in found.cells if cell.strategy == "frozen"]
    assert frozen == [found.base.source_score] * 4
    nothing = ConfidenceInterval(0.0, 0.0)
    assert [found.find_forgetting("frozen", labels).interval for labels in (1, 4)] == [nothing] * 2
    assert found.find_forgetting("scratch", 1) is None
    assert show.forgets(found, found.find_summary("frozen", 1)) == "0.000"
    assert all(cell.source_score is None for cell in found.cells if cell.strategy == "scratch")

    base = mini.base_folder("vision")
    network = AutoModelForImageClassification.from_pretrained(base)
    processor = AutoImageProcessor.from_pretrained(base)
    cell = next(cell for cell in found.cells if cell.strategy == "frozen")
    learnt = load_file(whole / cell.run / "export" / "model.safetensors")
    body = {name: value for name, value in learnt.items() if not name.startswith("classifier")}
    network.load_state_dict(network.state_dict() | body)
    import io

    from PIL import Image

    rows = mini.load_rows("glyphs", "heldout")[:47]
    shown = [Image.open(io.BytesIO(row["image"])) for row in rows]
    with torch.no_grad():
        logits = network.eval()(**processor(shown, return_tensors="pt")).logits
    guess = [network.config.id2label[int(place)] for place in logits.argmax(-1)]
    truth = [row["label"] for row in rows]
    assert cell.source_score == pytest.approx(f1_score(truth, guess, average="macro"))


WRITING = """\
model: {path: "mini:text"}
task: {name: causal_lm, max_length: 64}
data:
  train: {path: "mini:graphs/train", limit: 40}
  eval: {path: "mini:graphs/heldout", limit: 20}
strategy: lora
train: {steps: 4, global_batch: 4}
compare:
  {strategies: [scratch, lora], train_sizes: [2, 4], learning_rate_search: per_size, seeds: 2,
   learning_rates: {scratch: 0.001, lora: [0.001, 0.003]}}
"""


def test_the_base_as_it_is_stands_beside_what_learns(desk):
    """With the score that `dtl evaluate` finds, and an interval that holds it; each number of
    labels has its own learning rate."""
    (desk / "writing.yaml").write_text(WRITING, encoding="utf-8")
    told = compare(desk, "writing.yaml", "layout.processes_per_node=1")
    found = load_comparison(desk / "comparisons" / "writing")
    evaluated = subprocess.run(
        [sys.executable, "-m", "dtl", "evaluate", "writing.yaml"],
        cwd=desk,
        env=environment(DTL_CACHE=str(desk / "cache")),
        capture_output=True,
        text=True,
        check=True,
    )
    alone = float(re.search(r"perplexity +([0-9.]+)", evaluated.stdout)[1])
    base = found.base
    assert base.score == pytest.approx(alone, rel=1e-4)
    assert base.interval.low < base.score < base.interval.high
    assert f"the base as it is: perplexity {base.score:.3f}" in told
    # Four steps on four rows teach nothing that the base does not know, and scratch far less.
    pairs = {(pair.first, pair.second): pair for pair in found.differences}
    assert pairs["unadapted", "scratch"].is_significant
    four = [cell for cell in found.cells if cell.labels == 4]
    assert pairs["unadapted", "scratch"].difference == pytest.approx(
        np.mean([cell.score for cell in four if cell.strategy == "scratch"]) - base.score
    )
    assert [one.text.count("base as it is") for one in found.recommendations] == [1, 1]
    for labels in (2, 4):
        rates = [one for one in found.learning_rate_trials if one.labels == labels]
        best = min(rates, key=lambda one: one.score).learning_rate
        lora = [one for one in found.cells if (one.strategy, one.labels) == ("lora", labels)]
        assert len(rates) == 2 and {cell.learning_rate for cell in lora} == {best}


def test_a_finished_comparison_is_shown_at_once(desk, whole):
    """Nothing is loaded that could train."""
    code = (
        "import sys; from dtl.cli.app import main; code = main(['compare', 'comparisons/few']); "
        "print(code, 'torch' in sys.modules, file=sys.stderr)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=desk, capture_output=True, text=True, check=True
    )
    assert ran.stderr == "0 False\n"
    told = ran.stdout
    assert told == "\n".join(show.lines(load_comparison(whole))) + "\n"
    assert "1 label a class" in told and "hint, before any training" in told
    assert "source: mini:glyphs/heldout, on which the base had" in told


def test_cells_are_numbered_and_each_can_be_run_alone(desk, whole):
    folder = desk / "comparisons" / "array"
    told = compare(desk, "few.yaml", "--out", str(folder), "--list")
    assert told.endswith("   9  scratch-4-seed1\n  10  frozen-4-seed1\n")
    waits = start(desk, str(folder), "--cell", "10")
    assert waits.wait(timeout=300) == 2
    told = (desk / "told.txt").read_text(encoding="utf-8")
    assert "frozen-4-seed1: its learning rate is that of the best of others" in told
    compare(desk, str(folder), "--cell", "9")
    assert [run.path.name for run in cells(folder)] == ["scratch-4-seed1"]
    alone = RunFolder(folder / "cells" / "scratch-4-seed1").result["scores"]
    assert alone == RunFolder(whole / "cells" / "scratch-4-seed1").result["scores"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--train-sizes", "90"], "compare.train_sizes: 90 are too many: no class has more than 8"),
        (["--strategies", "lora"], "'all-linear' does not fit"),
        (["train.steps=null", "train.epochs=1"], "train.epochs: few labels would mean few steps"),
        (["data.eval=null"], "data.eval: there are no held-out rows to compare on"),
        (["--source-data", "mini:digits/heldout"], "compare.source_data: the base has no head for"),
    ],
    ids=["labels", "strategy", "epochs", "eval", "source"],
)
def test_what_cannot_be_compared_is_told_before_anything_runs(desk, arguments, told, capsys):
    from dtl.cli.app import main

    path, out = desk / "few.yaml", desk / "comparisons" / "wrong"
    assert main(["compare", str(path), "--out", str(out), *arguments]) == 2
    assert told in capsys.readouterr().err
    assert not list((out / "cells").glob("*"))
