"""Untrained models of each kind, and helpers for the tests of PEFT adapters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

from dtl.config import registry
from dtl.models.structure.head import head_parameters
from dtl.strategies.base import Adapter
from tests import tiny_sound

WORDS, LABELS = 120, 3


def _make_padded_text() -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids and attention mask (3 texts, 8 tokens); the first text is shorter."""
    ids = torch.randint(5, WORDS, (3, 8), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    mask[0, 5:] = 0
    return ids * mask, mask


IDS, MASK = _make_padded_text()
TEXT = {"input_ids": IDS, "attention_mask": MASK}
WIDTH = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
SIDES = {"d_model": 32, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "dropout": 0.0} | {
    f"{side}_{part}": 2 for side in ("encoder", "decoder") for part in ("layers", "attention_heads")
}


@dataclass(frozen=True)
class Case:
    """An untrained model and its inputs. `has_new_head`: whether its head is new."""

    make: Callable[[], nn.Module]
    inputs: dict[str, torch.Tensor]
    has_new_head: bool = False
    target_modules: Any = "all-linear"


def _llama(kind: str) -> Callable[[], nn.Module]:
    import transformers

    settings = transformers.LlamaConfig(
        **WIDTH,
        vocab_size=WORDS,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_labels=LABELS,
        pad_token_id=0,
    )
    return lambda: getattr(transformers, f"LlamaFor{kind}")(settings)


def _bert(kind: str) -> Callable[[], nn.Module]:
    import transformers

    settings = transformers.BertConfig(
        **WIDTH, vocab_size=WORDS, num_attention_heads=4, num_labels=LABELS
    )
    return lambda: getattr(transformers, f"BertFor{kind}")(settings)


def _bart(kind: str) -> Callable[[], nn.Module]:
    import transformers

    settings = transformers.BartConfig(
        **SIDES, vocab_size=WORDS, max_position_embeddings=64, num_labels=LABELS, eos_token_id=2
    )
    return lambda: getattr(transformers, f"BartFor{kind}")(settings)


def _t5() -> nn.Module:
    import transformers

    return transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=WORDS,
            d_model=32,
            d_kv=8,
            d_ff=64,
            num_layers=2,
            num_heads=4,
            dropout_rate=0.0,
            decoder_start_token_id=0,
        )
    )


def _hubert() -> nn.Module:
    import transformers

    settings = tiny_sound.SMALL | tiny_sound.CONVOLUTIONS
    return transformers.HubertForCTC(transformers.HubertConfig(**settings, vocab_size=20))


def _whisper() -> nn.Module:
    import transformers

    return transformers.WhisperForConditionalGeneration(
        transformers.WhisperConfig(
            **SIDES,
            vocab_size=WORDS,
            num_mel_bins=16,
            max_source_positions=50,
            max_target_positions=32,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            decoder_start_token_id=1,
        )
    )


def _vit() -> nn.Module:
    import transformers

    return transformers.ViTForImageClassification(
        transformers.ViTConfig(
            **WIDTH, num_attention_heads=4, image_size=32, patch_size=8, num_labels=LABELS
        )
    )


def _resnet() -> nn.Module:
    import transformers

    return transformers.ResNetForImageClassification(
        transformers.ResNetConfig(
            embedding_size=8,
            hidden_sizes=[8, 16],
            depths=[1, 1],
            layer_type="basic",
            num_labels=LABELS,
        )
    )


def _noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(5))


@cache
def cases() -> dict[str, dict[str, Case]]:
    """By kind, as the table has it."""
    ends = torch.cat([IDS[:, :7], torch.full((3, 1), 2)], 1)  # BART reads its label there
    ends[0, 5:], ends[0, 4] = 0, 2
    labels = IDS.where(MASK > 0, -100)
    return {
        "decoder": {"llama": Case(_llama("CausalLM"), {**TEXT, "use_cache": False})},
        "classifier on a decoder": {
            "llama": Case(_llama("SequenceClassification"), TEXT, has_new_head=True)
        },
        "encoder": {
            "bert": Case(_bert("SequenceClassification"), TEXT, has_new_head=True),
            "tags": Case(_bert("TokenClassification"), TEXT, has_new_head=True),
            "tags of a decoder": Case(_llama("TokenClassification"), TEXT, has_new_head=True),
        },
        "encoder-decoder": {
            name: Case(make, {**TEXT, "labels": labels, "use_cache": False})
            for name, make in (("t5", _t5), ("bart", _bart("ConditionalGeneration")))
        },
        "classifier on an encoder-decoder": {
            "bart": Case(
                _bart("SequenceClassification"), {**TEXT, "input_ids": ends}, has_new_head=True
            )
        },
        "speech": {
            "ctc": Case(_hubert, {"input_values": _noise(2, 4000)}, has_new_head=True),
            "whisper": Case(
                _whisper, {"input_features": _noise(2, 16, 100), "decoder_input_ids": IDS[1:]}
            ),
        },
        "vision": {"vit": Case(_vit, {"pixel_values": _noise(2, 3, 32, 32)}, has_new_head=True)},
        "convolutional": {
            "resnet": Case(
                _resnet,
                {"pixel_values": _noise(2, 3, 32, 32)},
                has_new_head=True,
                target_modules=("convolution",),
            )
        },
    }


def parametrize_cells(cells: list[tuple[str, str, str]]) -> Any:
    return pytest.mark.parametrize(
        ("method", "kind", "name"), cells, ids=["-".join(cell) for cell in cells]
    )


def fresh(case: Case) -> nn.Module:
    torch.manual_seed(7)
    return case.make().eval()


def make_strategy(method: str, case: Case) -> Adapter:
    module = registry.load("strategies", method)
    targets = (
        {"target_modules": case.target_modules}
        if "target_modules" in module.Options.model_fields
        else {}
    )
    small = {
        name: 4
        for name in ("rank", "target_rank", "block_size", "num_virtual_tokens")
        if name in module.Options.model_fields
    }
    return module.Plugin(module.Options(**targets, **small))


def attach(strategy: Adapter, case: Case, model: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return strategy.apply(
        model, new_parameters=head_parameters(model) if case.has_new_head else frozenset()
    )


def logits(model: nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
    return model(**inputs).logits


def train(model: nn.Module, inputs: dict[str, Any], *, steps: int = 3) -> None:
    """Train a few steps in evaluation mode, so that there is no dropout."""
    trainable = [value for value in model.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-2, weight_decay=0.1)
    for _ in range(steps):
        logits(model, inputs).log_softmax(-1)[..., 1].sum().neg().backward()
        without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert without == []
        optimizer.step()
        optimizer.zero_grad()


def is_close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return torch.allclose(found, expected, atol=2e-5, rtol=1e-4)


def lora(**options: Any) -> Any:
    module = registry.load("strategies", "lora")
    return module.Plugin(module.Options(**{"rank": 4, "alpha": 8.0, **options}))
