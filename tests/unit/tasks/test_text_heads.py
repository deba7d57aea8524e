"""Strategies on models that tag words or write texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dtl.config import registry
from dtl.core.errors import DtlError
from tests import tiny

HEADS = {
    "encoder": ("AutoModelForTokenClassification", "TOKEN_CLS"),
    "decoder": ("AutoModelForTokenClassification", "TOKEN_CLS"),
    "t5": ("AutoModelForSeq2SeqLM", "SEQ_2_SEQ_LM"),
    "bart": ("AutoModelForSeq2SeqLM", "SEQ_2_SEQ_LM"),
}


def strategy(name: str, **options: Any) -> Any:
    module = registry.load("strategies", name)
    return module.Plugin(module.Options(**options))


def load(folder: Path, head: str) -> Any:
    import transformers

    torch.manual_seed(0)
    return getattr(transformers, head).from_pretrained(folder).eval()


def answers(model: Any) -> torch.Tensor:
    tokens = torch.tensor([[5, 9, 7, 2]])
    two = {"labels": tokens} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model(input_ids=tokens, attention_mask=torch.ones_like(tokens), **two).logits


@pytest.mark.parametrize("base", HEADS)
def test_an_adapter_is_of_the_kind_that_peft_wants(
    base: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """It changes nothing at first, and plain PEFT opens it."""
    from peft import PeftModel

    folder = request.getfixturevalue(base)
    head, kind = HEADS[base]
    before = answers(load(folder, head))
    model = strategy("lora", rank=4).apply(load(folder, head), new_parameters=frozenset()).eval()
    assert model.peft_config["default"].task_type == kind
    assert torch.equal(answers(model), before)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.constant_(parameter, 0.05)
    after = answers(model)
    assert not torch.allclose(after, before, atol=1e-3)
    model.save_pretrained(tmp_path)
    opened = PeftModel.from_pretrained(load(folder, head), tmp_path).eval()
    assert torch.equal(answers(opened), after)


def test_an_adapter_on_a_base_that_already_tags_learns_its_complete_head(encoder: Path) -> None:
    model = strategy("lora", rank=4).apply(
        load(encoder, HEADS["encoder"][0]), new_parameters=frozenset()
    )
    learning = {name for name, value in model.named_parameters() if value.requires_grad}
    assert any("classifier.modules_to_save.default.weight" in name for name in learning)
    assert not any("classifier" in name and "lora" in name for name in learning)


def test_a_speech_model_is_of_no_kind_that_reads_tokens() -> None:
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    sizes = {"encoder_layers": 1, "decoder_layers": 1, "d_model": 16, "vocab_size": 64}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_source_positions": 8}
    special = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 0)
    config = WhisperConfig(decoder_start_token_id=1, **sizes, **heads, **special)
    model = strategy("lora", rank=2).apply(
        WhisperForConditionalGeneration(config), new_parameters=frozenset()
    )
    assert model.peft_config["default"].task_type is None
    sound, tokens = torch.zeros(1, 80, 16), torch.tensor([[3, 4]])
    assert model(input_features=sound, labels=tokens).logits.shape == (1, 2, 64)


def test_of_a_frozen_t5_only_the_output_learns(t5: Path) -> None:
    model = strategy("frozen").apply(load(t5, "AutoModelForSeq2SeqLM"), new_parameters=frozenset())
    learning = [name for name, value in model.named_parameters() if value.requires_grad]
    assert learning == ["lm_head.weight"]


def test_a_frozen_model_whose_output_is_tied_has_nothing_to_learn(
    bart: Path, tmp_path: Path
) -> None:
    tied = tiny.t5(tmp_path / "tied", tied=True)
    for folder in (bart, tied):
        with pytest.raises(DtlError, match="has no head of its own"):
            strategy("frozen").apply(
                load(folder, "AutoModelForSeq2SeqLM"), new_parameters=frozenset()
            )
