"""What was trained under ZeRO-3 is what plain PEFT and transformers open in a fresh process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.distributed import launching
from tests.distributed.layouts import STEPS, zero
from tests.distributed.runs import Run, needs
from tests.distributed.test_resume import undisturbed

# Opens an export without dtl and scores the held-out rows: one loss a row.
REOPEN = """
import json, sys
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

export, base, rows, kind = sys.argv[1:]
auto = AutoModelForCausalLM if kind == "text" else AutoModelForSequenceClassification
labels = ["early", "late"]
if base == "-":
    model = auto.from_pretrained(export)
else:
    from peft import PeftModel
    settings = {} if kind == "text" else {"num_labels": len(labels)}
    model = PeftModel.from_pretrained(auto.from_pretrained(base, **settings), export)
model.eval()
tokenizer = AutoTokenizer.from_pretrained(export)
losses = []
for row in map(json.loads, open(rows)):
    with torch.no_grad():
        if kind == "text":
            ids = tokenizer(row["text"])["input_ids"] + [tokenizer.eos_token_id]
            ids = torch.tensor([ids[:64]])
            logits = model(input_ids=ids).logits[0, :-1]
            loss = cross_entropy(logits, ids[0, 1:], reduction="sum")
        else:
            logits = model(**tokenizer(row["text"], return_tensors="pt")).logits
            loss = cross_entropy(logits, torch.tensor([labels.index(row["label"])]))
    losses.append(float(loss))
print(json.dumps(losses))
"""


EXPORTED = {
    "lora": ("config.yaml", ("strategy=lora", "data.eval=eval.jsonl")),
    "full": ("config.yaml", ("strategy=full", "data.eval=eval.jsonl")),
    "frozen-head": ("labeled.yaml", ()),
    "lora-head": ("labeled.yaml", ("strategy=lora", "strategy.rank=4")),
    "full-head": ("labeled.yaml", ("strategy=full",)),
    "partial": ("config.yaml", ("strategy=partial", "data.eval=eval.jsonl")),
}


def exported(name: str) -> Run:
    """Return a run that saves and exports under ZeRO-3."""
    config, overrides = EXPORTED[name]
    return Run(f"export-{name}", 2, (*overrides, zero(3), "train.steps=3"), config, bare=False)


@pytest.mark.parametrize("name", EXPORTED)
@needs(lambda name: [exported(name)])
def test_export_scores_as_the_trained_model(bed: Path, name: str) -> None:
    run = exported(name).path(bed)
    kind, rows = ("label", "held_out.jsonl") if "head" in name else ("text", "eval.jsonl")
    base = "-"
    if "lora" in name:
        base = str(bed / ("encoder" if kind == "label" else "base"))
        assert not (run / "export" / "model.safetensors").exists(), "an adapter stays small"
    printed = subprocess.run(
        [sys.executable, "-c", REOPEN, str(run / "export"), base, str(bed / rows), kind],
        env=launching.environment(),
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    trained = (run / "evaluations" / "step-00000003.jsonl").read_text().splitlines()
    expected = [json.loads(line)["loss"] for line in trained]
    assert json.loads(printed.splitlines()[-1]) == pytest.approx(expected, rel=2e-6, abs=1e-6)


@needs(undisturbed("lion"))
def test_the_moving_average_is_exported_where_it_is_configured(bed: Path) -> None:
    """It was sharded by ZeRO-3; in the checkpoint it is next to the weights."""
    run = undisturbed("lion").path(bed)
    stored, exported = _checkpoint(run, STEPS), load_file(run / "export" / "model.safetensors")
    for name, value in exported.items():
        assert torch.equal(value, stored[f"average/{name}"]), name
        assert not torch.equal(value, stored[f"weight/{name}"]), name


@needs(undisturbed("average"))
def test_averages_are_scored_as_what_they_are_and_the_best_is_exported(bed: Path) -> None:
    run = undisturbed("average").path(bed)
    last, before = _checkpoint(run, STEPS), _checkpoint(run, STEPS - 4)
    names = [name.removeprefix("weight/") for name in last if name.startswith("weight/")]
    weights = {
        "adapted": {name: last[f"weight/{name}"] for name in names},
        "ema": {name: last[f"average/{name}"] for name in names},
        "average": {
            name: (last[f"weight/{name}"] + before[f"weight/{name}"]) / 2 for name in names
        },
    }
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    scores = {line["model"]: line["loss"] for line in logged if line["kind"] == "eval"}
    for name, tensors in weights.items():
        assert scores[name] == pytest.approx(_loss(bed, tensors), rel=2e-6), name
    assert len({scores[name] for name in weights}) == 3
    best = min(weights, key=lambda name: scores[name])
    for name, value in load_file(run / "export" / "model.safetensors").items():
        assert torch.allclose(value, weights[best][name], atol=1e-6), name


def _checkpoint(run: Path, step: int) -> dict[str, torch.Tensor]:
    parts = (run / "checkpoints" / f"step-{step:08d}").glob("part-*.safetensors")
    return {name: value for part in parts for name, value in load_file(part).items()}


def _loss(bed: Path, weights: dict[str, torch.Tensor]) -> float:
    """Mean over the tokens of the held-out texts, of the base with these weights."""
    model = AutoModelForCausalLM.from_pretrained(bed / "base").eval()
    model.load_state_dict(weights)
    tokenizer = AutoTokenizer.from_pretrained(bed / "base")
    total, targets = 0.0, 0
    for line in (bed / "eval.jsonl").read_text().splitlines():
        tokens = tokenizer(json.loads(line)["text"])["input_ids"] + [tokenizer.eos_token_id]
        ids = torch.tensor([tokens[:64]])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, :-1]
        total += float(cross_entropy(logits, ids[0, 1:], reduction="sum"))
        targets += ids.shape[1] - 1
    return total / targets


@needs(exported("lora"), exported("lora-head"))
def test_training_moved_what_was_exported(bed: Path) -> None:
    """An export of the untouched base would pass the test above if nothing had been trained."""
    adapter = load_file(exported("lora").path(bed) / "export" / "adapter_model.safetensors")
    risen = [value for name, value in adapter.items() if "lora_B" in name]
    assert risen and all(float(value.abs().max()) > 0 for value in risen)
    head = load_file(exported("lora-head").path(bed) / "export" / "adapter_model.safetensors")
    assert any("classifier" in name for name in head), "the new head travels with the adapter"


@needs(exported("partial"))
def test_a_checkpoint_holds_nothing_of_the_frozen_base(bed: Path) -> None:
    """Of partial tuning: the last block, the last norm and the head, each with its two moments."""
    from safetensors import safe_open

    run, names = exported("partial").path(bed), set()
    for part in (run / "checkpoints" / "step-00000003").glob("part-*.safetensors"):
        with safe_open(part, framework="pt") as file:
            names.update(file.keys())
    with safe_open(bed / "base" / "model.safetensors", framework="pt") as file:
        start = ("model.layers.1.", "model.norm.", "lm_head.")
        trained = {name for name in file.keys() if name.startswith(start)}  # noqa: SIM118
    kinds = ("weight", "exp_avg", "exp_avg_sq")
    assert names == {f"{kind}/{name}" for kind in kinds for name in trained}
