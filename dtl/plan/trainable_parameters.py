"""Count the parameters that each strategy trains, on a model without weights."""

from __future__ import annotations

import warnings
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dtl.assembly.parts import Parts
from dtl.config.schema import RunConfig
from dtl.models.load import load_on_meta_device
from dtl.models.pretrained_config import HeadConfig
from dtl.models.quantization import quantize
from dtl.models.structure.head_input import find_inseparable_reason
from dtl.models.structure.parameter_roles import trains_new_head
from dtl.models.structure.token_head import find_token_head
from dtl.models.vocabulary import rows_to_read, trains_new_rows
from dtl.plan.memory import FP32_BYTES
from dtl.plan.parameter_groups import assign_update_rules, moment_bytes
from dtl.plan.records import ParameterCounts
from dtl.tasks.base import DatasetStats, Task

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class PhaseParameters:
    """What a phase trains.

    `names`: of the trainable parameters. `inseparable_reason`: why the base's output cannot be
    cached apart from the head; None where it can. `trains_new_rows`: of added tokens.
    `all_logits_reason`: why the loss needs the logits of all positions; None where it does not.
    `trains_new_head`: whether it trains a head that the weight files do not contain.
    """

    names: frozenset[str]
    counts: ParameterCounts
    inseparable_reason: str | None
    trains_new_rows: bool = True
    all_logits_reason: str | None = None
    trains_new_head: bool = False


def count_trainable_parameters(
    config: RunConfig, parts: Parts, stats: DatasetStats
) -> PhaseParameters:
    """Apply the strategy of `parts` to the model on the meta device, and count."""
    import torch

    loaded = load_on_meta_device(
        config.model, head=HeadConfig(parts.task.auto_class, parts.task.head_config(stats))
    )
    embeddings = rows_to_read(loaded.model)
    names_in_model = {name for name, _ in loaded.model.named_parameters()}
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the run raises them again, into its log
        model = parts.apply_strategy(loaded)
    rules = assign_update_rules(  # for the optimizer's bytes, on which no rate has an effect
        model, config.optim, learning_rate=1.0, new=loaded.new_parameters
    )
    trainable = {name: model.get_parameter(name) for name in rules}
    count = sum(parameter.numel() for parameter in trainable.values())
    moments = sum(moment_bytes(config.optim.name, trainable[name], rules[name]) for name in rules)
    has_ema = config.train.ema_decay is not None
    extra_bytes = FP32_BYTES * has_ema + parts.strategy.extra_optimizer_bytes
    counts = ParameterCounts(
        trainable=count,
        frozen=sum(parameter.numel() for parameter in model.parameters()) - count,
        quantized=quantize.measure_quantized_size(model, config.model),
        moment_bytes=moments + count * extra_bytes,
        largest=max(parameter.numel() for parameter in model.parameters()),
        l2_sp_numbers=sum(trainable[name].numel() for name in rules if rules[name].l2_sp),
        trainable_in_model=sum(
            value.numel()
            for name, value in trainable.items()
            if _name_before_peft(name, names_in_model) is not None
        ),
    )
    return PhaseParameters(
        frozenset(trainable),
        counts,
        find_inseparable_reason(model),
        trains_new_rows(loaded.model, embeddings),
        _find_all_logits_reason(model, parts.task),
        trains_new_head(model, loaded.new_parameters),
    )


def _find_all_logits_reason(model: nn.Module, task: Task) -> str | None:
    if not task.predicts_tokens:
        return "the task predicts no tokens"
    head = find_token_head(model, shifts_labels=task.passes_labels)
    return head if isinstance(head, str) else None


def find_trainable_names(config: RunConfig, parts: Parts, stats: DatasetStats) -> frozenset[str]:
    """Return the names, before the strategy of `parts` is applied, of the model's own parameters
    that it trains, with the other names of those that are tied."""
    import torch

    loaded = load_on_meta_device(
        config.model, head=HeadConfig(parts.task.auto_class, parts.task.head_config(stats))
    )
    own = dict(loaded.model.named_parameters(remove_duplicate=False))
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the strategy is applied again, to the loaded model
        model = parts.apply_strategy(loaded)
    trained = {
        id(own[before])
        for name, value in model.named_parameters()
        if value.requires_grad and (before := _name_before_peft(name, own)) is not None
    }
    return frozenset(name for name, value in own.items() if id(value) in trained)


def _name_before_peft(name: str, names_in_model: Collection[str]) -> str | None:
    """Return the name that a parameter has before PEFT wraps its model; None for one of PEFT."""
    plain = name.replace(".modules_to_save.default.", ".").replace(".base_layer.", ".")
    possible = (plain, plain.removeprefix("base_model.model."), plain.removeprefix("base_model."))
    return next((each for each in possible if each in names_in_model), None)
