"""Losses of packed texts equal those of the padded batch, token by token, whatever the head is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dtl.losses import language_model
from dtl.losses.cross_entropy import IGNORE_INDEX
from dtl.losses.language_model import next_tokens, sum_token_losses, token_losses
from dtl.models.packing import PackedTexts, is_packing, packing_texts, use_packed_attention
from dtl.models.structure.padding import right_padded_inputs
from tests.architectures import text
from tests.unit.losses.test_language_model import (
    HEADS,
    VOCABULARY,
    assert_same_gradients,
    build,
    gradients,
)

TOKENS = torch.tensor([[5, 6, 7, 8, 9, 10], [11, 12, 0, 0, 0, 0], [13, 14, 15, 0, 0, 0]])
MASK = (TOKENS > 0).long()
LABELS = TOKENS.masked_fill(MASK == 0, IGNORE_INDEX)
LABELS[0, :2] = IGNORE_INDEX


@pytest.fixture(params=[None, 3 * VOCABULARY], ids=["at-once", "chunks"])
def chunked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param is not None:
        monkeypatch.setattr(language_model, "CHUNK_LOGITS", request.param)


def compute(model: nn.Module, function: Any, *, packed: bool) -> Tensor:
    with packing_texts(is_on=packed):
        inputs = right_padded_inputs(model, TOKENS, MASK)
        found: Tensor = function(model, inputs, next_tokens(LABELS))
    return found


@pytest.mark.usefixtures("chunked")
@pytest.mark.parametrize("head", HEADS)
def test_losses_and_gradients_are_those_of_the_padded_batch(head: str) -> None:
    model = build(text("LlamaForCausalLM"), head)
    use_packed_attention(model)
    weights = torch.rand(TOKENS.shape)
    found, expected = (compute(model, token_losses, packed=packed) for packed in (True, False))
    assert found.shape == TOKENS.shape
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert_same_gradients(
        gradients(model, (found * weights).sum()), gradients(model, (expected * weights).sum())
    )
    sums = [compute(model, sum_token_losses, packed=packed) for packed in (True, False)]
    torch.testing.assert_close(*sums, rtol=1e-6, atol=0)
    assert_same_gradients(*(gradients(model, loss) for loss in sums))


def test_model_that_computes_all_logits_packs_too(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(text("LlamaForCausalLM"))
    use_packed_attention(model)
    expected = compute(model, token_losses, packed=False)
    monkeypatch.setattr(language_model, "find_token_head", lambda *_, **__: "a reason")
    found = compute(model, token_losses, packed=True)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    total = compute(model, sum_token_losses, packed=True)
    torch.testing.assert_close(total, expected.sum(), rtol=1e-6, atol=0)


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated")
def test_gradients_with_activation_checkpointing_are_the_same() -> None:
    model = build(text("MistralForCausalLM", num_key_value_heads=1, sliding_window=2)).train()
    use_packed_attention(model)
    expected = gradients(model, compute(model, sum_token_losses, packed=True))
    model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
    assert_same_gradients(gradients(model, compute(model, sum_token_losses, packed=True)), expected)


def test_packed_row_has_each_text_from_position_0() -> None:
    texts = PackedTexts.from_padded(TOKENS, MASK)
    assert texts.tokens_1N.tolist() == [[5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]]
    assert texts.positions_1N.tolist() == [[0, 1, 2, 3, 4, 5, 0, 1, 0, 1, 2]]
    assert texts.lengths == (6, 2, 3)
    assert torch.equal(texts.unpack(texts.tokens_1N), TOKENS)
    labels = texts.pack(next_tokens(LABELS))[0].tolist()
    ends = [5, 7, 10]  # the last token of a text predicts nothing of the next
    assert [labels[end] for end in ends] == [IGNORE_INDEX] * 3


def test_texts_are_packed_only_inside_the_context() -> None:
    assert not is_packing()
    with packing_texts(is_on=True):
        assert is_packing()
        with packing_texts(is_on=False):
            assert not is_packing()
    assert not is_packing()
