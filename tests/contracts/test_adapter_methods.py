"""IA3, virtual tokens, and methods that need full weights."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from dtl.config import registry
from dtl.core.errors import DtlError
from dtl.engine.deepspeed import read_full_shape
from dtl.models.full_shape import register_shape_reader
from dtl.models.peft.base import ADAPTER_WEIGHTS
from dtl.models.peft.save_load import build_adapter_files
from tests.contracts.adapter_cases import (
    attach,
    cases,
    fresh,
    is_close,
    logits,
    lora,
    make_strategy,
    train,
)


def test_ia3_defaults_are_those_of_the_paper_and_unknown_models_are_rejected() -> None:
    """Keys, values, and what goes into the last layer of the feed-forward part (arXiv:2205.05638,
    section 3.3)."""
    module = registry.load("strategies", "ia3")
    default = module.Plugin(module.Options())
    case = cases()["decoder"]["llama"]
    model = attach(default, case, fresh(case))
    scaled = {name.split(".")[-3]: p.shape for name, p in model.named_parameters() if "ia3" in name}
    assert scaled == {"k_proj": (16, 1), "v_proj": (16, 1), "down_proj": (1, 64)}
    speech = cases()["speech"]["ctc"]
    with pytest.raises(DtlError, match=r"'default' does not fit HubertForCTC.*or use all-linear"):
        attach(default, speech, fresh(speech))


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("p_tuning", {"encoder_reparameterization_type": "lstm", "encoder_hidden_size": 16}),
        ("prefix_tuning", {"prefix_projection": True}),
        ("prompt_tuning", {"init": "random"}),
    ],
)
def test_virtual_tokens_are_exported_without_their_network(
    method: str, options: dict[str, Any], tmp_path: Path
) -> None:
    """From the weights of another step than the model has, as with train.export=best."""
    from peft import PeftModel
    from safetensors.torch import load_file

    case, module = cases()["decoder"]["llama"], registry.load("strategies", method)
    base = fresh(case)
    model = attach(module.Plugin(module.Options(num_virtual_tokens=4, **options)), case, base)
    train(model, case.inputs)
    trained_parameters = {
        n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad
    }
    trained = logits(model, case.inputs).detach()
    train(model, case.inputs)
    build_adapter_files(model, trained_parameters).save(tmp_path / "adapter", base=base)
    assert not is_close(logits(model, case.inputs), trained)
    assert set(load_file(tmp_path / "adapter" / ADAPTER_WEIGHTS)) == {"prompt_embeddings"}
    opened = PeftModel.from_pretrained(fresh(case), tmp_path / "adapter").eval()
    assert is_close(logits(opened, case.inputs)[:, -8:], trained)


@pytest.mark.parametrize("strategy", ["loha", "lokr", "pissa", "olora", "lora", "vera"])
def test_method_limited_to_zero_2_fails_with_partitioned_weights(strategy: str) -> None:
    """DeepSpeed leaves an empty parameter; its layer still has the sizes."""
    case = cases()["decoder"]["llama"]
    changes_base = strategy in ("pissa", "olora")
    made = lora(init=strategy) if changes_base else make_strategy(strategy, case)
    base = fresh(case)
    register_shape_reader(read_full_shape)
    for name, parameter in base.named_parameters():
        if name.endswith("_proj.weight"):
            parameter.ds_shape = parameter.shape  # type: ignore[attr-defined]
            parameter.data = torch.empty(0)
    expectation = (
        nullcontext() if made.max_zero_stage == 3 else pytest.raises((IndexError, RuntimeError))
    )
    with expectation:
        model = attach(made, case, base)
        for layer in model.modules():
            if hasattr(layer, "get_delta_weight"):
                layer.get_delta_weight("default")
