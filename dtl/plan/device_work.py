"""What training and evaluation take of a device besides the model state, at each ZeRO stage."""

from __future__ import annotations

from dataclasses import dataclass

from dtl.data.evaluation_batch import EvaluationBatchSize
from dtl.plan.activation_memory import (
    ActivationBudget,
    ModelSizes,
    strategy_without_checkpointing,
)
from dtl.plan.activation_trace import ActivationTracer
from dtl.plan.evaluation import EvaluationMemory, estimate_evaluation_bytes
from dtl.plan.memory_estimate import DeviceWork
from dtl.plan.request import PlanRequest


@dataclass(frozen=True)
class WorkEstimates:
    """The memory of passes in a dtype. `tracer`: None where it is estimated by formulas."""

    request: PlanRequest
    sizes: ModelSizes
    dtype: str
    tracer: ActivationTracer | None

    def open_budgets(
        self, stage: int, *, free_bytes: int = 0
    ) -> tuple[ActivationBudget, EvaluationMemory]:
        """Return what training and evaluation take at a ZeRO stage. `free_bytes`: of a device."""
        request = self.request
        traced = self.tracer and self.tracer.for_layout(self.dtype, zero_stage=stage)
        training = ActivationBudget(
            free_bytes,
            request.longest_example,
            self.sizes,
            self.dtype,
            traced.training_bytes if traced else None,
        )
        evaluation = EvaluationMemory(
            self.sizes,
            self.dtype,
            request.parts.task.evaluation_beams,
            traced.evaluation_bytes if traced else None,
        )
        return training, evaluation

    def of_one_example(self, stage: int) -> DeviceWork:
        """Return what one example takes at a ZeRO stage: as little as the plan may choose."""
        requested = self.request.config.layout.activation_checkpointing
        unsupported = strategy_without_checkpointing(self.request)
        can_checkpoint = unsupported is None and requested is not False
        training, evaluation = self.open_budgets(stage)
        return DeviceWork(
            training.estimate_bytes(1, checkpointing=can_checkpoint),
            estimate_evaluation_bytes(self.request, evaluation, EvaluationBatchSize(1)),
        )
