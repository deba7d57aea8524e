"""The state of a training run: what stays the same, and the immutable record of what changes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from dtl.assembly.parts import Parts
from dtl.config.schema import RunConfig
from dtl.data.loader import Collate, Loader
from dtl.engine.base import Engine
from dtl.models.processor import get_pad_token_id
from dtl.plan.records import PhasePlan, Plan
from dtl.prepare.prepared_data import PreparedData
from dtl.run.folder import RunFolder
from dtl.train.checkpoint import CheckpointStore
from dtl.train.log import RunLog
from dtl.train.process import ProcessContext
from dtl.train.progress import Progress
from dtl.train.safe_points import SafePoints
from dtl.train.usage import UsageMeter


@dataclass(frozen=True)
class RunContext:
    """What stays the same during a run, on one rank.

    `parts`: the task and the strategies of all phases. `data`: as it is encoded.
    """

    folder: RunFolder
    config: RunConfig
    plan: Plan
    parts: Parts
    data: PreparedData
    engine: Engine
    process: ProcessContext
    log: RunLog
    store: CheckpointStore
    safe_points: SafePoints
    meter: UsageMeter


@dataclass(frozen=True)
class TrainState:
    """What changes during a run.

    `parts`: in the current phase. `data`: with the features of the base, where the phase caches
    them. `progress`: as it is saved in the newest checkpoint.
    """

    parts: Parts
    data: PreparedData
    progress: Progress

    @property
    def collate(self) -> Collate:
        """The function that makes a batch of encoded examples."""
        pad_token_id = get_pad_token_id(self.data.processor) or 0
        return partial(self.parts.task.collate, pad_token_id=pad_token_id)

    def phase(self, plan: Plan) -> PhasePlan:
        """Return the plan of the current phase."""
        return plan.phases[self.parts.phase]


def make_loader(context: RunContext, state: TrainState) -> Loader:
    """Return the loader of this rank's batches."""
    return Loader(
        data=state.data.train,
        collate=state.collate,
        transform=partial(state.parts.task.transform, processor=state.data.processor),
        batching=state.data.batching,
        micro_batch=context.plan.layout.micro_batch,
        parallel_dims=context.engine.parallel_dims,
        device=context.engine.device,
        packed_positions=context.plan.layout.packed_positions,
    )
