"""Exports of embeddings, reward models and KTO give what plain transformers and PEFT give."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from dtl import api
from dtl.run.evaluations import read_evaluations
from tests import tiny
from tests.unit.jobs.test_predict import train

SILENT: dict[str, Any] = {"print_line": lambda line: None}


def evaluate_again(run: Any) -> tuple[dict[str, float], dict[str, float]]:
    """Return the last scores in the run's log, and those of `dtl evaluate` on the same rows."""
    *_, last = read_evaluations(run.read_metrics())
    data = str(run.path.parents[1] / "rows.jsonl")
    return last.scores, api.evaluate(run.path, data, **SILENT)


@pytest.fixture(scope="module")
def embedding_run(tmp_path_factory: pytest.TempPathFactory, encoder: Path) -> Any:
    folder = tmp_path_factory.mktemp("embedding")
    task = {"name": "embedding", "max_length": 12, "query_prefix": "a "}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DTL_CACHE", str(folder / "cache"))
        yield train(folder, encoder, task, tiny.searched(12, seed=1), "full")


def embed(run: Any, text: str) -> torch.Tensor:
    """Return the mean of the last states of a text, scaled to length 1."""
    from transformers import AutoModel, AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(run.export)(text)["input_ids"][:12]
    model = AutoModel.from_pretrained(run.export).eval()
    with torch.no_grad():
        states = model(input_ids=torch.tensor([tokens])).last_hidden_state
    pooled: torch.Tensor = states[0].mean(0)
    return pooled / pooled.norm()


def test_predicted_embeddings_are_those_of_plain_transformers(embedding_run: Any) -> None:
    (found,) = api.predict(embedding_run.path, ["the old ship carries a large letter"])
    for name, prefix in (("predicted", "a "), ("document", "")):
        expected = embed(embedding_run, f"{prefix}the old ship carries a large letter")
        assert found[name] == pytest.approx(expected.tolist(), abs=1e-5)


def test_evaluation_of_embeddings_repeats_the_scores_of_the_run(embedding_run: Any) -> None:
    logged, again = evaluate_again(embedding_run)
    assert again == pytest.approx(logged, rel=1e-5)
    records = embedding_run.eval_records_file(3, weights="adapted").read_text()
    assert "embeddings" not in json.loads(records.splitlines()[0])


def test_export_has_the_settings_of_sentence_transformers(embedding_run: Any) -> None:
    export = embedding_run.export
    types = [module["type"] for module in json.loads((export / "modules.json").read_text())]
    assert [name.rpartition(".")[2] for name in types] == ["Transformer", "Pooling", "Normalize"]
    pooling = json.loads((export / "1_Pooling" / "config.json").read_text())
    assert pooling["word_embedding_dimension"] == 32
    assert [name for name, value in pooling.items() if value is True] == [
        "pooling_mode_mean_tokens"
    ]
    settings = json.loads((export / "config_sentence_transformers.json").read_text())
    assert settings["prompts"] == {"query": "a ", "document": ""}


@pytest.mark.skipif(find_spec("sentence_transformers") is None, reason="not installed")
def test_sentence_transformers_computes_the_same_embeddings(embedding_run: Any) -> None:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(embedding_run.export), device="cpu")
    found = model.encode(["the old ship"], prompt_name="query")[0]
    assert found.tolist() == pytest.approx(
        embed(embedding_run, "a the old ship").tolist(), abs=1e-5
    )


def test_predicted_rewards_are_those_of_plain_peft(
    cache: Path, tmp_path: Path, decoder: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    rows = tiny.pairs(12, seed=1)
    run = train(tmp_path, decoder, "reward", rows, {"name": "lora", "rank": 2})
    inputs = tiny.write_rows(
        tmp_path / "in.jsonl",
        [{"prompt": row["prompt"], "completion": row["chosen"]} for row in rows],
    )
    found = [row["predicted"] for row in api.predict(run.path, [inputs], batch=5)]
    tokenizer = AutoTokenizer.from_pretrained(run.export)
    base = AutoModelForSequenceClassification.from_pretrained(
        decoder, num_labels=1, pad_token_id=tokenizer.pad_token_id
    )
    model = PeftModel.from_pretrained(base, str(run.export)).eval()
    for row, reward in zip(rows, found, strict=True):
        tokens = tokenizer(row["prompt"] + row["chosen"] + tokenizer.eos_token)["input_ids"]
        with torch.no_grad():
            expected = float(model(input_ids=torch.tensor([tokens])).logits)
        assert reward == pytest.approx(expected, rel=1e-4, abs=1e-6)
    logged, again = evaluate_again(run)
    assert again == pytest.approx(logged, rel=1e-5)


def test_evaluation_of_kto_repeats_the_scores_of_the_run(
    cache: Path, tmp_path: Path, decoder: Path
) -> None:
    """The KL divergence is over all held-out rows, however they are batched."""
    run = train(tmp_path, decoder, "kto", tiny.judged(10, seed=1), {"name": "lora", "rank": 2})
    logged, again = evaluate_again(run)
    assert again == pytest.approx(logged, rel=1e-4, abs=1e-5)
