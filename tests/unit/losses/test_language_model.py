"""Losses from the learned hidden states, against torch's cross-entropy of all logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from dtl.losses import language_model
from dtl.losses.cross_entropy import IGNORE_INDEX
from dtl.losses.language_model import (
    next_tokens,
    score_tokens,
    sum_token_losses,
    token_losses,
)
from dtl.models.structure.token_head import find_token_head
from tests.architectures import (
    ARCHITECTURES,
    CAUSAL,
    GROUPED,
    MEL,
    Architecture,
    changed,
    pair,
    text,
)

VOCABULARY = 48
LANGUAGE_MODELS = [
    *(
        each
        for each in ARCHITECTURES
        if each.name.endswith(("CausalLM", "LMHeadModel", "MTModel"))
        or (
            each.name.endswith("ConditionalGeneration")
            and each.shows == "pairs of texts"
            and each.name != "M2M100ForConditionalGeneration"
        )
    ),
    Architecture("WhisperForConditionalGeneration", 5, "mel and text", MEL),
    changed(text("Gemma2ForCausalLM", **GROUPED), final_logit_softcapping=1.0),
    *CAUSAL,
]
HEADS = ("trained", "frozen", "lora", "modules_to_save")


@dataclass(frozen=True)
class Example:
    """Inputs of a model and the targets of its logits (2, 6)."""

    inputs: dict[str, Any]
    targets: Tensor


@pytest.fixture(autouse=True)
def chunks_of_three(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language_model, "CHUNK_LOGITS", 3 * VOCABULARY)


def make_example(architecture: Architecture) -> Example:
    batch = architecture.batch()
    if "decoder_input_ids" in batch:
        labels = batch["decoder_input_ids"].flip(1).clone()
        labels[1, -2:] = IGNORE_INDEX
        if architecture.shows == "pairs of texts":  # the model shifts them itself
            batch = {"input_ids": batch["input_ids"], "labels": labels}
        return Example({**batch, "use_cache": False}, labels)
    labels = batch["input_ids"].clone()
    labels[0, :2] = IGNORE_INDEX
    labels[1, 4:] = IGNORE_INDEX
    return Example({**batch, "use_cache": False}, next_tokens(labels))


def build(architecture: Architecture, head: str = "trained") -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = architecture.build()
    name = find_token_head(model).name  # type: ignore[union-attr]
    for parameter in model.get_output_embeddings().parameters():  # type: ignore[operator]
        nn.init.normal_(parameter, std=0.5)
        parameter.requires_grad_(head != "frozen")
    if head == "lora":
        model = get_peft_model(model, LoraConfig(target_modules=[name], init_lora_weights=False))
    if head == "modules_to_save":
        config = LoraConfig(target_modules="all-linear", modules_to_save=[name])
        model = get_peft_model(model, config)
    return model


def expected_losses(model: nn.Module, example: Example) -> Tensor:
    return losses_of(model(**example.inputs).logits, example.targets)


def losses_of(logits: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(logits.transpose(1, 2).float(), targets, reduction="none")


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        difference = float((actual[name] - gradient).abs().max())
        assert difference <= 3e-6 * largest, name


@pytest.mark.parametrize("architecture", LANGUAGE_MODELS, ids=lambda each: each.name)
def test_losses_gradients_and_scores_are_those_of_all_logits(architecture: Architecture) -> None:
    model, example = build(architecture), make_example(architecture)

    for is_trained in (True, False):
        for parameter in model.get_output_embeddings().parameters():  # type: ignore[operator]
            parameter.requires_grad_(is_trained)
        logits = model(**example.inputs).logits
        expected = losses_of(logits, example.targets)
        loss = sum_token_losses(model, example.inputs, example.targets)
        assert loss.item() == pytest.approx(expected.sum().item(), rel=1e-6)
        assert_same_gradients(gradients(model, 3 * loss), gradients(model, 3 * expected.sum()))

    scores = score_tokens(model, example.inputs, example.targets)
    torch.testing.assert_close(scores.losses_BT, expected, rtol=1e-5, atol=1e-6)
    assert scores.is_correct_BT.equal(logits.argmax(-1) == example.targets)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", ["LlamaForCausalLM", "Gemma2ForCausalLM", "PhiForCausalLM"])
def test_losses_of_tokens_have_gradients_of_their_own(name: str, head: str) -> None:
    settings = {"final_logit_softcapping": 1.0, "tie_word_embeddings": head in HEADS[:2]}
    architecture = text(name, num_key_value_heads=2, head_dim=8, **settings)
    model, example = build(architecture, head), make_example(architecture)
    weights = torch.linspace(-1, 2, example.targets.numel()).view(example.targets.shape)

    expected = expected_losses(model, example)
    losses = token_losses(model, example.inputs, example.targets)

    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-6)
    assert_same_gradients(
        gradients(model, (losses * weights).sum()), gradients(model, (expected * weights).sum())
    )
    summed = gradients(model, sum_token_losses(model, example.inputs, example.targets))
    assert_same_gradients(summed, gradients(model, expected_losses(model, example).sum()))


@pytest.mark.parametrize("architecture", LANGUAGE_MODELS, ids=lambda each: each.name)
def test_forward_is_seen_through_without_weights(architecture: Architecture) -> None:
    with torch.device("meta"):
        model = architecture.build()

    assert not isinstance(find_token_head(model), str)


def test_head_computes_learned_positions_only_and_in_chunks() -> None:
    architecture = text("LlamaForCausalLM")
    model, example = build(architecture), make_example(architecture)
    seen: list[int] = []
    plain = type(model.lm_head).forward

    def spy(states: Tensor) -> Tensor:
        seen.append(states.shape[:-1].numel())
        return plain(model.lm_head, states)

    model.lm_head.forward = spy
    sum_token_losses(model, example.inputs, example.targets)

    learned = int((example.targets != IGNORE_INDEX).sum())
    assert seen == [3] * (learned // 3) + [learned % 3] * (learned % 3 > 0)
    assert model.lm_head.forward is spy  # as before


def test_model_is_as_before_after_a_failed_forward() -> None:
    model, example = build(text("LlamaForCausalLM")), make_example(text("LlamaForCausalLM"))

    with pytest.raises(IndexError):
        sum_token_losses(model, {"input_ids": torch.full((2, 6), 99)}, example.targets)

    assert "forward" not in vars(model) and "forward" not in vars(model.lm_head)


def test_gradients_of_bf16_are_as_close_as_those_of_all_logits() -> None:
    architecture = text("LlamaForCausalLM")
    exact = build(architecture, "frozen")
    example = make_example(architecture)
    reference = gradients(exact, expected_losses(exact, example).sum())
    model = build(architecture, "frozen").to(torch.bfloat16)

    plain = gradients(model, expected_losses(model, example).sum())
    found = gradients(model, sum_token_losses(model, example.inputs, example.targets))

    def error(of: dict[str, Tensor]) -> float:
        return sum(float((of[name].float() - each).norm()) for name, each in reference.items())

    assert error(found) < 1.1 * error(plain)


@pytest.mark.parametrize(
    ("architecture", "reason"),
    [
        (text("BertLMHeadModel", is_decoder=True), "has no output layer of its own"),
        (text("RobertaForCausalLM", is_decoder=True), "has no output layer of its own"),
        (pair("M2M100ForConditionalGeneration"), "has no prepare_decoder_input_ids_from_labels"),
    ],
    ids=lambda each: getattr(each, "name", None),
)
def test_other_models_compute_all_logits(architecture: Architecture, reason: str) -> None:
    model, example = architecture.build(), make_example(architecture)

    assert reason in str(find_token_head(model, shifts_labels="labels" in example.inputs))
    expected = expected_losses(model, example).sum()
    assert sum_token_losses(model, example.inputs, example.targets).item() == pytest.approx(
        expected.item(), rel=1e-6
    )


def test_model_that_mixes_the_logits_of_positions_computes_all() -> None:
    import transformers

    class Mixing(transformers.LlamaForCausalLM):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            output = super().forward(*args, **kwargs)
            output.logits = output.logits.cumsum(1).flip(1)
            return output

    architecture = text("LlamaForCausalLM")
    model, example = Mixing(architecture.build().config), make_example(architecture)

    assert "from its hidden state alone" in str(find_token_head(model))
    assert sum_token_losses(model, example.inputs, example.targets).item() == pytest.approx(
        expected_losses(model, example).sum().item(), rel=1e-6
    )
