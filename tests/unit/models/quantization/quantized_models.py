"""Tiny quantized models, and helpers for their tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from dtl.assembly.parts import assemble
from dtl.config import registry
from dtl.config.schema import Model, RunConfig
from dtl.data.batching import Batching
from dtl.models.load import LoadedModel, load_pretrained
from dtl.models.new_parameters import init_new_parameters
from dtl.models.pretrained_config import HeadConfig
from dtl.plan.planner import make_plan
from dtl.plan.records import ExternalLaunch, Hardware
from dtl.plan.request import PlanRequest

LM, CLASSIFIER = "AutoModelForCausalLM", "AutoModelForSequenceClassification"
LAPTOP = Hardware("cpu", 4, 2**34, "4 CPU cores", supports_bf16=True, has_compiler=True)
IDS = torch.randint(3, 320, (3, 11), generator=torch.Generator().manual_seed(1))


def base(folder: Path, kind: str = "nf4", *, double: bool = True) -> Model:
    return Model(path=str(folder), quantize=kind, double_quantize=double)


def load(model: Model, *, auto_class: str = LM, dtype: str = "fp32", **changes: Any) -> LoadedModel:
    loaded = load_pretrained(
        model, head=HeadConfig(auto_class, changes), random_init=False, seed=0, dtype=dtype
    )
    init_new_parameters(
        loaded.model,
        loaded.new_parameters,
        seed=0,
        write_parameter=lambda to, value: to.data.copy_(value),
    )
    return loaded


def lora(**options: Any) -> Any:
    module = registry.load("strategies", "lora")
    return module.Plugin(module.Options(**{"rank": 4, "alpha": 8, **options}))


def attach_lora(loaded: LoadedModel, **options: Any) -> Any:
    torch.manual_seed(0)
    model = lora(**options).apply(loaded.model, new_parameters=loaded.new_parameters)
    for parameter in trainable(model).values():
        parameter.data = parameter.data.float()
    return model


def trainable(model: Any) -> dict[str, Any]:
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


def compute_loss(model: Any) -> Any:
    logits = model(input_ids=IDS).logits.float()
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())


def train(model: Any, *, steps: int = 4) -> list[float]:
    """Return the training losses, with an evaluation before each step."""
    optimizer = torch.optim.AdamW(trainable(model).values(), lr=0.01)
    losses = []
    for _ in range(steps):
        model.eval()
        with torch.no_grad():
            compute_loss(model)
        model.train()
        loss = compute_loss(model)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def bits(tensor: Any) -> Any:
    """Return the bytes of a tensor: levels are no numbers of their storage dtype, some are NaN."""
    return tensor.detach().reshape(-1).view(torch.uint8)


def compute_logits(model: Any) -> Any:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def config(folder: Path, **more: Any) -> RunConfig:
    made = {
        "run": {"name": "quantized"},
        "model": {"path": str(folder), "quantize": "nf4", "dtype": "fp32"},
        "task": "causal_lm",
        "data": {"train": "rows.jsonl"},
        "strategy": {"name": "lora", "rank": 4},
        "train": {"steps": 1, "global_batch": 4},
    }
    for part, values in more.items():
        made[part] = made.get(part, {}) | values if isinstance(values, dict) else values
    return RunConfig.model_validate(made)


def plan(
    made: RunConfig, *, hardware: Hardware = LAPTOP, external: ExternalLaunch | None = None
) -> Any:
    dataset_stats = {"labels": ["early", "late"]} if "classification" in made.task.name else {}
    request = PlanRequest(
        config=made,
        parts=assemble(made),
        dataset_stats=dataset_stats,
        model_config=None,
        batching=Batching(8, made.train.global_batch.limit, made.train.seed),
        lengths=np.full(8, 16),
        hardware=hardware,
        external=external,
    )
    return make_plan(request)
