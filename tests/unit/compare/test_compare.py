"""A comparison from the command line: results, resume after a kill, output, single cells."""

import csv
import json
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from dtl.compare import formatting, terminal
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


def start(folder, *arguments):
    """Start `dtl compare` in a folder; its output is appended to output.txt."""
    with (folder / "output.txt").open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "dtl", "compare", *arguments],
            cwd=folder,
            env=environment(DTL_CACHE=str(folder / "cache")),
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def compare(folder, *arguments):
    """Run `dtl compare` in a folder and return all output so far."""
    code = start(folder, *arguments).wait(timeout=600)
    output = (folder / "output.txt").read_text(encoding="utf-8")
    assert code == 0, output
    return output


def cell_runs(folder):
    return [RunFolder(path) for path in sorted((folder / "cells").glob("*-seed*"))]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workdir")
    (folder / "few.yaml").write_text(CONFIG, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def finished(workdir):
    """The folder of a comparison that was not interrupted."""
    output = compare(workdir, "few.yaml")
    assert "10 of 10  frozen-4-seed1  macro_f1" in output
    return workdir / "comparisons" / "few"


def deterministic_values(comparison: Comparison):
    """The results without measured times and memory."""
    plain = comparison.to_dict() | {"name": ""}
    for one in [*plain["cells"], *plain["summaries"]]:
        for key in ("train_seconds", "wall_seconds", "peak_memory_bytes"):
            one.pop(key, None)
        (one.get("time_to_scratch_score") or {}).pop("seconds", None)
        one["curve"] = [[at["step"], at["score"]] for at in one.get("curve", ())]
    return plain | {"recommendations": [one["verdict"] for one in plain["recommendations"]]}


@pytest.mark.slow
def test_resume_after_kill_repeats_nothing_and_gives_the_same_results(workdir, finished):
    folder = workdir / "comparisons" / "killed"
    process = start(workdir, "few.yaml", "--out", str(folder))
    limit = time.monotonic() + 300
    halfway = RunFolder(folder / "cells" / "scratch-4-seed0")
    while halfway.state == "absent" or halfway.last_step < 6:
        assert process.poll() is None and time.monotonic() < limit
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {run.path: run.result for run in cell_runs(folder) if run.state == "finished"}
    mtimes = {path: (path / "result.json").stat().st_mtime_ns for path in before}
    assert len(before) == 2
    compare(workdir, "few.yaml", "--out", str(folder))
    assert {path: (path / "result.json").stat().st_mtime_ns for path in before} == mtimes
    log = (halfway.logs / "terminal.log").read_text(encoding="utf-8")
    assert "resuming from" in log
    assert deterministic_values(load_comparison(folder)) == deterministic_values(
        load_comparison(finished)
    )


def test_results_are_computed_from_the_stored_predictions_of_each_run(finished):
    from sklearn.metrics import f1_score

    comparison = load_comparison(finished)
    assert comparison.is_finished and len(comparison.cells) == CELLS
    assert [one.learning_rate for one in comparison.learning_rate_trials] == [0.003, 0.01]
    best = max(comparison.learning_rate_trials, key=lambda one: one.score).learning_rate
    with (finished / "comparison.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for cell, row in zip(comparison.cells, rows, strict=True):
        run = finished / cell.run
        lines = (run / "evaluations" / "step-00000012.jsonl").read_text(encoding="utf-8")
        records = [json.loads(line) for line in lines.splitlines()]
        labels, predicted = ([one[key] for one in records] for key in ("label", "predicted"))
        assert len(labels) == 60
        assert cell.score == pytest.approx(f1_score(labels, predicted, average="macro"))
        assert float(row["score"]) == cell.score and row["strategy"] == cell.strategy
        assert cell.interval.low < cell.score < cell.interval.high
        assert cell.learning_rate == (0.003 if cell.strategy == "scratch" else best)
        assert (cell.steps, cell.rows) == (12, 10 * cell.labels)
        assert cell.curve[-1].score == cell.score and len(cell.curve) == 6
        assert (
            cell.export_bytes > 1_000_000 and cell.train_seconds > 0 and cell.ood_score is not None
        )
    assert {one.verdict for one in comparison.recommendations} <= {
        "best",
        "not significantly different",
        "scratch",
    }
    assert comparison.feature_probe is not None and comparison.feature_probe.rows == 10
    assert {(pair.first, pair.second) for pair in comparison.differences} == {("scratch", "frozen")}


def test_frozen_features_are_extracted_once_for_all_cells(finished):
    """The four cells and two rates of two seeds: the rows of a seed, the validation rows and those
    held out are each read in one of them."""
    extracted = []
    for run in sorted((finished / "cells").iterdir()):
        log = (run / "logs" / "terminal.log").read_text(encoding="utf-8")
        extracted += re.findall(r"features of (\d+) examples: extracted", log)
    assert sorted(map(int, extracted)) == [20, 40, 40, 60]


def test_feature_probe_equals_scikit_learn_on_pooled_features(finished):
    """Nearest neighbors on the pooled features of plain transformers."""
    import torch
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.preprocessing import StandardScaler
    from transformers import AutoModel

    from dtl import mini
    from dtl.assembly.parts import assemble
    from dtl.compare.state import ComparisonState
    from dtl.prepare.prepared_data import prepare_data

    config = ComparisonState.load(finished).grid.probe_config
    examples, parts = prepare_data(config, assemble(config)), assemble(config)
    body = AutoModel.from_pretrained(mini.base_folder("vision")).eval()
    splits = []
    for data in (examples.train, examples.held_out):
        inputs = [
            parts.task.transform(data[n], processor=examples.processor, rng=None)
            for n in range(len(data))
        ]
        pixels = torch.tensor(np.stack([one["pixel_values"] for one in inputs]))
        with torch.no_grad():
            splits.append((body(pixels).pooler_output.flatten(1).numpy(), inputs))
    (train, train_inputs), (held_out, eval_inputs) = splits
    scaler = StandardScaler().fit(train)
    train_labels = [int(one["labels"]) for one in train_inputs]
    neighbors = KNeighborsClassifier(5).fit(scaler.transform(train), train_labels)
    eval_labels = [int(one["labels"]) for one in eval_inputs]
    accuracy = neighbors.score(scaler.transform(held_out), eval_labels)
    assert load_comparison(finished).feature_probe.nearest_neighbors == pytest.approx(accuracy)


def test_source_score_is_that_of_the_trained_body_with_the_old_head(finished):
    import torch
    from safetensors.torch import load_file
    from sklearn.metrics import f1_score
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    from dtl import mini

    comparison = load_comparison(finished)
    frozen = [cell.source_score for cell in comparison.cells if cell.strategy == "frozen"]
    assert frozen == [comparison.base.source_score] * 4
    zero = ConfidenceInterval(0.0, 0.0)
    assert [comparison.find_forgetting("frozen", labels).interval for labels in (1, 4)] == [
        zero
    ] * 2
    assert comparison.find_forgetting("scratch", 1) is None
    assert formatting.format_forgetting(comparison, comparison.find_summary("frozen", 1)) == "0.000"
    assert all(cell.source_score is None for cell in comparison.cells if cell.strategy == "scratch")

    base = mini.base_folder("vision")
    network = AutoModelForImageClassification.from_pretrained(base)
    processor = AutoImageProcessor.from_pretrained(base)
    cell = next(cell for cell in comparison.cells if cell.strategy == "frozen")
    trained = load_file(finished / cell.run / "export" / "model.safetensors")
    body = {name: value for name, value in trained.items() if not name.startswith("classifier")}
    network.load_state_dict(network.state_dict() | body)
    import io

    from PIL import Image

    rows = mini.load_rows("glyphs", "heldout")[:47]
    images = [Image.open(io.BytesIO(row["image"])) for row in rows]
    with torch.no_grad():
        logits = network.eval()(**processor(images, return_tensors="pt")).logits
    predicted = [network.config.id2label[int(index)] for index in logits.argmax(-1)]
    labels = [row["label"] for row in rows]
    assert cell.source_score == pytest.approx(f1_score(labels, predicted, average="macro"))


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


@pytest.mark.slow
def test_unadapted_base_has_the_score_of_dtl_evaluate(workdir):
    """Also: each number of labels has its own learning-rate search."""
    (workdir / "writing.yaml").write_text(WRITING, encoding="utf-8")
    output = compare(workdir, "writing.yaml", "layout.processes_per_node=1")
    comparison = load_comparison(workdir / "comparisons" / "writing")
    evaluated = subprocess.run(
        [sys.executable, "-m", "dtl", "evaluate", "writing.yaml"],
        cwd=workdir,
        env=environment(DTL_CACHE=str(workdir / "cache")),
        capture_output=True,
        text=True,
        check=True,
    )
    alone = float(re.search(r"perplexity +([0-9.]+)", evaluated.stdout)[1])
    base = comparison.base
    assert base.score == pytest.approx(alone, rel=1e-4)
    assert base.interval.low < base.score < base.interval.high
    assert f"unadapted base: perplexity {base.score:.3f}" in output
    # After four steps on four rows, scratch is much worse than the base.
    pairs = {(pair.first, pair.second): pair for pair in comparison.differences}
    assert pairs["unadapted", "scratch"].is_significant
    four = [cell for cell in comparison.cells if cell.labels == 4]
    assert pairs["unadapted", "scratch"].difference == pytest.approx(
        np.mean([cell.score for cell in four if cell.strategy == "scratch"]) - base.score
    )
    assert [one.text.count("unadapted base") for one in comparison.recommendations] == [1, 1]
    for labels in (2, 4):
        rates = [one for one in comparison.learning_rate_trials if one.labels == labels]
        best = min(rates, key=lambda one: one.score).learning_rate
        lora = [one for one in comparison.cells if (one.strategy, one.labels) == ("lora", labels)]
        assert len(rates) == 2 and {cell.learning_rate for cell in lora} == {best}


def test_finished_comparison_is_printed_without_importing_torch(workdir, finished):
    code = (
        "import sys; from dtl.cli.app import main; code = main(['compare', 'comparisons/few']); "
        "print(code, 'torch' in sys.modules, file=sys.stderr)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=workdir, capture_output=True, text=True, check=True
    )
    assert ran.stderr == "0 False\n"
    output = ran.stdout
    assert output == "\n".join(terminal.format_comparison(load_comparison(finished))) + "\n"
    assert "1 label per class" in output and "feature probe before any training" in output
    assert "source data: mini:glyphs/heldout, unadapted base" in output


@pytest.mark.slow
def test_single_cells_can_be_run_by_number(workdir, finished):
    folder = workdir / "comparisons" / "array"
    output = compare(workdir, "few.yaml", "--out", str(folder), "--list")
    assert output.endswith("   9  scratch-4-seed1\n  10  frozen-4-seed1\n")
    too_early = start(workdir, str(folder), "--cell", "10")
    assert too_early.wait(timeout=300) == 2
    output = (workdir / "output.txt").read_text(encoding="utf-8")
    assert "frozen-4-seed1: its learning-rate search is not finished" in output
    compare(workdir, str(folder), "--cell", "9")
    assert [run.path.name for run in cell_runs(folder)] == ["scratch-4-seed1"]
    scores = RunFolder(folder / "cells" / "scratch-4-seed1").result["scores"]
    assert scores == RunFolder(finished / "cells" / "scratch-4-seed1").result["scores"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--train-sizes", "90"], "compare.train_sizes: 90 are too many: no class has more than 8"),
        (["--strategies", "lora"], "'all-linear' does not fit"),
        (
            ["train.steps=null", "train.epochs=1"],
            "train.epochs: with epochs, fewer labels mean fewer steps",
        ),
        (["data.eval=null"], "data.eval: no held-out rows to compare on"),
        (["--source-data", "mini:digits/heldout"], "compare.source_data: the base has no head for"),
    ],
    ids=["labels", "strategy", "epochs", "eval", "source"],
)
def test_invalid_comparison_is_an_error_before_any_run(workdir, arguments, message, capsys):
    from dtl.cli.app import main

    path, out = workdir / "few.yaml", workdir / "comparisons" / "wrong"
    assert main(["compare", str(path), "--out", str(out), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not list((out / "cells").glob("*"))
