"""What the features of the untouched base tell of the labels, before anything is trained."""

# B batch, F features

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from dtl import desk
from dtl.config.schema import Layout, RunConfig
from dtl.data.encoded import EncodedData
from dtl.data.loader import held_out
from dtl.errors import DtlError
from dtl.jobs.opening import open_model, start_engine
from dtl.models.anatomy import head_modules
from dtl.models.load import padding_token

if TYPE_CHECKING:
    from torch import Tensor, nn

NEIGHBOURS = 5
MOST_ROWS = 2000  # learnt from


@dataclass(frozen=True)
class Told:
    """Accuracies on the scored rows of the config: of a linear probe, of the nearest neighbours,
    and of always the commonest label; `rows`: learnt from."""

    rows: int
    probe: float
    neighbours: float
    chance: float


def hint(config: RunConfig) -> Told:
    """Logistic regression and nearest neighbours on what the head would be given, standardised.
    `config`: of a task with classes. Raises DtlError where the model has no head apart."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.preprocessing import StandardScaler

    alone = config.model_copy(update={"layout": Layout(processes=1, zero=0)})
    prepared = desk.prepare_run(alone)
    train, apart = prepared.examples.train, prepared.examples.held_out
    assert isinstance(train, EncodedData) and apart is not None
    engine = start_engine(alone, prepared.plan)
    try:
        opened = open_model(alone, prepared.plan, prepared.parts, prepared.examples, engine)
        model = opened.model.to(engine.device).eval()
        learnt, truth = _features(model, prepared, train, engine.device)
        scored, wanted = _features(model, prepared, apart, engine.device)
    finally:
        engine.close()
    scale = StandardScaler().fit(learnt)
    learnt, scored = scale.transform(learnt), scale.transform(scored)
    probe = LogisticRegression(max_iter=1000).fit(learnt, truth)
    near = KNeighborsClassifier(min(NEIGHBOURS, len(truth))).fit(learnt, truth)
    commonest = np.bincount(truth).argmax()
    return Told(
        rows=len(truth),
        probe=float(probe.score(scored, wanted)),
        neighbours=float(near.score(scored, wanted)),
        chance=float((wanted == commonest).mean()),
    )


@torch.no_grad()
def _features(
    model: nn.Module, prepared: desk.Prepared, data: EncodedData, device: torch.device
) -> tuple[np.ndarray, np.ndarray]:
    """What the head is given of each example, as one vector (F), and its label."""
    heads = head_modules(model)
    if not heads:
        raise DtlError.of("model.path", f"{type(model).__name__} has no head apart", "")
    given: list[Tensor] = []
    hook = heads[0].register_forward_pre_hook(lambda _, args: given.append(args[0]))
    examples, parts = prepared.examples, prepared.parts
    padding = padding_token(examples.processor)
    collate = partial(parts.task.collate, padding=0 if padding is None else padding)
    labels = []
    try:
        for batch in _one_by_one(data, collate, prepared):
            on_device = {name: value.to(device) for name, value in batch.items()}
            parts.task.outcomes(model, on_device, processor=examples.processor)
            labels.append(int(batch["labels"][0]))
    finally:
        hook.remove()
    return np.stack([_pooled(one) for one in given]), np.array(labels)


def _one_by_one(
    data: EncodedData, collate: partial[dict[str, Tensor]], prepared: desk.Prepared
) -> Iterator[dict[str, Tensor]]:
    """Alone, so that no padding is averaged."""
    present = partial(prepared.parts.task.present, processor=prepared.examples.processor)
    batches = held_out(data, collate, batch=1, rank=0, ranks=1, present=present)
    for number, batch in enumerate(batches):
        if number == MOST_ROWS:
            return
        yield batch.tensors


def _pooled(given_B: Tensor) -> np.ndarray:
    """The mean over positions (1, T, F), or over places (1, F, H, W); or as it is (1, F)."""
    given = given_B[0].float()
    if given.ndim == 2:
        given = given.mean(0)
    elif given.ndim == 3:
        given = given.mean((1, 2))
    return np.asarray(given.cpu().numpy())
