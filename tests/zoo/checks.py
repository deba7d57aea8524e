"""What each pair of a model type and a task is checked for, in one process."""

from __future__ import annotations

import copy
import math
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from dtl.config import registry
from dtl.core.errors import DtlError
from dtl.models.padding_dependence import explain_padding_dependence
from tests import task_bench
from tests.zoo.bases import NotBuildable, write_base

LOSS_TOLERANCE = 1e-5
STRATEGIES = ("full", "lora", "frozen")
UNEVEN = np.array([9, 30])
SUMMED_TARGETS = ("token_classification", "seq2seq", "asr_seq2seq")


def check(model_type: str, task: str, folder: Path) -> dict[str, Any]:
    """Return the result: `status` is works, refused, not buildable or wrong, with a `reason`;
    `refused` has the strategies that refuse the model, and `alone` why batches hold one example."""
    auto_class = registry.load("tasks", task).Plugin.auto_class
    try:
        write_base(model_type, task, auto_class, folder)
        bench = task_bench.make_bench.__wrapped__(folder, task, 0)
        alone = explain_padding_dependence(bench.model.config, UNEVEN)
        faults = _find_loss_faults(bench, task, needs_one_length=alone is not None)
        refused: dict[str, str] = {}
        for name in STRATEGIES:
            try:
                faults += [f"{name}: {fault}" for fault in _step(bench, name)]
            except DtlError as fault:
                refused[name] = str(fault)
    except NotBuildable as fault:
        return {"status": "not buildable", "reason": str(fault)}
    except DtlError as fault:
        return {"status": "refused", "reason": str(fault)}
    except Exception as fault:
        where = traceback.extract_tb(fault.__traceback__)[-1]
        reason = f"{type(fault).__name__}: {fault} ({Path(where.filename).name}:{where.lineno})"
        return {"status": "wrong", "reason": reason[:300]}
    status = "wrong" if faults else "works"
    return {"status": status, "reason": "; ".join(faults), "refused": refused, "alone": alone}


def _find_loss_faults(bench: Any, task: str, *, needs_one_length: bool) -> list[str]:
    """Compare the losses of examples alone with those of a batch, and with transformers' own."""
    faults = []
    alone = [bench.loss([index]) for index in bench.all]
    if not all(math.isfinite(value) for value in alone):
        faults.append(f"losses {alone[:3]}")
    together = bench.loss(bench.all)
    if not needs_one_length and not math.isclose(together, sum(alone), rel_tol=LOSS_TOLERANCE):
        faults.append(f"padding: {together:.7g} together, {sum(alone):.7g} alone")
    if needs_one_length:  # transformers' loss is that of unpadded examples
        return faults
    theirs = sum(_plain_loss(bench, index, task) for index in bench.all)
    if not math.isclose(sum(alone), theirs, rel_tol=LOSS_TOLERANCE):
        faults.append(f"loss: {sum(alone):.7g}, by transformers {theirs:.7g}")
    return faults


def _plain_loss(bench: Any, index: int, task: str) -> float:
    """Return the loss that the model itself computes of one example without padding."""
    batch = bench.collate([index])
    mask = batch.get("attention_mask")
    length = int(mask.sum()) if mask is not None and "input_ids" in batch else None
    if length is not None:
        batch = {
            name: value[:, :length]
            if name in ("input_ids", "attention_mask", "token_type_ids")
            or (name == "labels" and task in ("causal_lm", "token_classification"))
            else value
            for name, value in batch.items()
        }
    known = {
        "input_ids",
        "attention_mask",
        "token_type_ids",
        "labels",
        "pixel_values",
        "input_values",
        "input_features",
    }
    inputs = {name: value for name, value in batch.items() if name in known}
    with torch.no_grad():
        if task == "causal_lm":  # the decoders of BART's kin do not shift labels themselves
            labels = inputs.pop("labels")
            logits = bench.model(**inputs, use_cache=False).logits[:, :-1].flatten(0, 1)
            return cross_entropy(logits, labels[:, 1:].flatten(), reduction="sum").item()
        if task == "asr_ctc":
            bench.model.config.ctc_loss_reduction = "sum"
        loss = bench.model(**inputs).loss.item()
    if task in SUMMED_TARGETS:
        return loss * int((batch["labels"] != -100).sum())
    return loss


def _step(bench: Any, name: str) -> list[str]:
    """Take one step with a strategy and return what is wrong after it."""
    module = registry.load("strategies", name)
    strategy = module.Plugin(module.Options())
    model = copy.deepcopy(bench.model)
    head = frozenset(
        key for key, _ in model.named_parameters() if key.split(".")[0] in ("score", "classifier")
    )
    adapted = strategy.apply(model, new_parameters=head)
    strategy.set_training_mode(adapted)
    trained = [value for value in adapted.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    batch = bench.collate(bench.all)
    loss = bench.task.loss(adapted, batch)
    loss.backward()
    optimizer.step()
    faults = []
    if not math.isfinite(loss.item()):
        faults.append(f"loss {loss.item()}")
    if not all(value.isfinite().all() for value in trained):
        faults.append("weights are not finite")
    if all(value.grad is None or not value.grad.any() for value in trained):
        faults.append("no gradient")
    adapted.eval()
    with torch.no_grad():
        before = bench.task.loss(adapted, batch).item()
        merged = strategy.merge(adapted)
        after = bench.task.loss(merged, batch).item()
    if not math.isclose(before, after, rel_tol=1e-4):
        faults.append(f"loss {before:.7g}, merged {after:.7g}")
    return faults
