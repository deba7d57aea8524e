"""Class numbers with names, as `datasets` stores them, are learned and predicted by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dtl import api
from dtl.config.load import load_config
from tests import tiny

NAMES = ["zeta", "alpha", "mid"]  # not in the order of the alphabet
NUMBERS = [number % 3 for number in range(12)]


def write_jsonl(texts: list[str]) -> Path:
    rows = [{"text": t, "label": NAMES[n]} for t, n in zip(texts, NUMBERS, strict=True)]
    tiny.write_rows(Path("named.jsonl"), rows)
    return Path("named.jsonl")


def _dataset(texts: list[str]) -> Any:
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features({"text": Value("string"), "label": ClassLabel(names=NAMES)})
    return Dataset.from_dict({"text": texts, "label": NUMBERS}, features=features)


def write_parquet(texts: list[str]) -> Path:
    _dataset(texts).to_parquet("numbers.parquet")
    return Path("numbers.parquet")


def save_dataset(texts: list[str]) -> Path:
    _dataset(texts).save_to_disk("saved")
    return Path("saved")


def train(encoder: Path, data: Path) -> Any:
    name = data.name.replace(".", "-")
    config = {
        "run": {"name": name},
        "model": {"path": str(encoder), "dtype": "fp32"},
        "task": "text_classification",
        "data": {"train": str(data), "eval": str(data)},
        "strategy": "full",
        "train": {"steps": 2, "global_batch": 4},
        "layout": {"processes_per_node": 1, "zero_stage": 0},
    }
    Path(f"{name}.yaml").write_text(json.dumps(config))
    outcome = api.train(load_config(f"{name}.yaml"), print_line=lambda line: None)
    assert outcome.exit_code == 0
    return outcome.run


def observe(run: Any) -> dict[str, Any]:
    """What the run has learned, predicted and exported."""
    lines = run.read_metrics()
    export = json.loads((run.export / "config.json").read_text())
    return {
        "losses": [line["loss"] for line in lines if line["kind"] == "train"],
        "scores": [
            {key: value for key, value in line.items() if "f1" in key or key.startswith("conf")}
            for line in lines
            if line["kind"] == "eval"
        ],
        "names": export["id2label"],
        "predicted": [
            row["predicted"] for row in api.predict(run.path, ["the old ship", "a river"])
        ],
    }


@pytest.mark.parametrize("write", [write_parquet, save_dataset])
def test_class_numbers_with_names_are_the_same_run_as_the_names(
    write: Any, cache: Path, tmp_path: Path, encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    texts = [f"{word} river {number}" for number, word in enumerate(tiny.WORDS[:12])]
    named, numbered = (observe(train(encoder, made(texts))) for made in (write_jsonl, write))
    assert numbered == named
    assert set(named["names"].values()) == set(NAMES)
    assert set(named["predicted"]) <= set(NAMES)
