"""Trained parameters and training mode of frozen, full and scratch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dtl.models.structure.head import head_modules
from tests import tiny
from tests.contracts.strategy_bench import make_bench, trainable


@pytest.fixture(scope="session")
def encoder_with_dropout(tmp_path_factory) -> Path:
    """A BERT with much dropout."""
    from transformers import AutoTokenizer, BertConfig, BertModel

    plain = tiny.encoder(tmp_path_factory.mktemp("models") / "plain")
    folder = tmp_path_factory.mktemp("models") / "dropout"
    config = BertConfig.from_pretrained(plain)
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.5
    torch.manual_seed(7)
    BertModel(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(plain).save_pretrained(folder)
    return folder


def features(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return model.bert(batch["input_ids"], attention_mask=batch["attention_mask"])[1]


def test_frozen_features_are_the_same_in_every_epoch(encoder_with_dropout):
    bench = make_bench(encoder_with_dropout, "text_classification", "frozen")
    model = bench.apply(bench.load())
    batch = bench.batch()
    model.train()
    assert not torch.equal(features(model, batch), features(model, batch)), "no dropout"
    bench.set_training_mode(model)
    assert torch.equal(features(model, batch), features(model, batch))
    assert not any(module.training for module in model.bert.modules())
    assert all(module.training for module in head_modules(model))


@pytest.mark.parametrize("strategy", ["full", "lora", "scratch"])
def test_training_the_base_uses_dropout(encoder_with_dropout, strategy):
    bench = make_bench(encoder_with_dropout, "text_classification", strategy)
    model = bench.apply(bench.load())
    model.eval()
    bench.set_training_mode(model)
    with torch.no_grad():
        first, second = (bench.task.loss(model, bench.batch()) for _ in range(2))
    assert not torch.equal(first, second)


def test_frozen_trains_only_the_head(decoder, encoder):
    for folder, task, names in (
        (decoder, "causal_lm", {"lm_head.weight"}),
        (decoder, "text_classification", {"score.weight"}),
        (encoder, "text_classification", {"classifier.weight", "classifier.bias"}),
    ):
        bench = make_bench(folder, task, "frozen")
        assert set(trainable(bench.apply(bench.load()))) == names


@pytest.mark.parametrize("strategy", ["full", "scratch"])
def test_full_and_scratch_train_all_parameters(decoder, encoder, strategy):
    for folder, task in ((decoder, "causal_lm"), (encoder, "text_classification")):
        bench = make_bench(folder, task, strategy)
        assert all(parameter.requires_grad for parameter in bench.apply(bench.load()).parameters())


def test_scratch_uses_no_weight_of_the_base(decoder):
    from safetensors.torch import load_file

    stored = load_file(decoder / "model.safetensors")
    bench = make_bench(decoder, "causal_lm", "scratch")
    for name, parameter in bench.load().model.named_parameters():
        if parameter.ndim > 1:
            assert not torch.equal(parameter, stored[name])
