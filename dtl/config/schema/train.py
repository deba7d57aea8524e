"""The section `train`: how long a run trains, and when it evaluates, saves and stops."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from dtl.config.schema.base import ConfigFault, Record, check_duration, raise_config_faults
from dtl.config.schema.batch_size import GlobalBatchSize


class LossSpikeOptions(Record):
    """Loss-spike recovery: roll back to a checkpoint and skip the batch of the spike."""

    threshold: float = Field(
        default=10.0,
        gt=0,
        description="a loss is a spike if it exceeds the median of the previous losses by this "
        "many robust standard deviations (scaled MAD)",
    )
    window_steps: int = Field(
        default=100, ge=20, description="number of previous losses in the window"
    )
    rollback_steps: int = Field(
        default=10, ge=1, description="minimum number of steps to roll back"
    )


class Train(Record):
    """How long a run trains, and when it evaluates, saves and stops."""

    steps: int | None = Field(default=None, ge=1, description="optimizer steps to take")
    epochs: float | None = Field(default=None, gt=0, description="passes over the training data")
    global_batch: GlobalBatchSize = Field(
        default=16,
        validate_default=True,
        description="what one optimizer step trains on, over all processes: a number of examples, "
        "or as many as fit into `8192 tokens` (of text) or `120 seconds` (of audio)",
    )
    group_by_length: bool = Field(
        default=False,
        description="form batches of examples of similar length, so that there is less padding",
    )
    packing: bool | None = Field(
        default=None,
        description="put the examples of a micro-batch in one row without padding, each isolated "
        "from the others; the loss is the same; default: planned, on where the model isolates "
        "them and at least 5% of the work would be padding",
    )
    router_aux_loss_coef: float | None = Field(
        default=None,
        ge=0,
        description="weight of the load-balancing loss of a mixture of experts; default: that of "
        "the model's config if it sets output_router_logits, else 0",
    )
    evaluate_every: int | None = Field(
        default=None,
        ge=1,
        description="optimizer steps between evaluations; default: only at the end",
    )
    save_every: int | None = Field(
        default=None,
        ge=1,
        description="optimizer steps between checkpoints; default: only at the end",
    )
    keep_last: int = Field(
        default=2, ge=1, description="number of newest checkpoints that are not deleted"
    )
    keep_best: bool = Field(
        default=True,
        description="save also at the best evaluation so far, and do not delete that checkpoint",
    )
    export: Literal["last", "best", "ema", "average"] | None = Field(
        default=None,
        description="weights that are exported: of the last step, of the step with the best score, "
        "or always the averages of train.ema_decay or train.average_checkpoints; default: best "
        "where held-out examples are evaluated during the run and train.keep_best is true, else "
        "last",
    )
    ema_decay: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="decay per step of an exponential moving average of the weights, such as "
        "0.999; it is evaluated at the end, and exported if it is better",
    )
    average_checkpoints: int | None = Field(
        default=None,
        ge=2,
        description="number of newest checkpoints whose weights are averaged at the end; the mean "
        "is evaluated, and exported if it is better",
    )
    wall_time: str | None = Field(
        default=None,
        description="time limit of one launch, as 45min, 4h or 1-12:00:00: the run saves before it "
        "and ends with exit code 75; default: Slurm's end time, if there is one",
    )
    hang_seconds: float = Field(
        default=300.0,
        ge=1,
        description="timeout in seconds: a run without progress for this long is stopped",
    )
    loading_hang_seconds: float = Field(
        default=1800.0,
        ge=1,
        description="timeout in seconds while loading, in the first step, saving or exporting",
    )
    on_missing_gradient: Literal["fail", "warn"] = Field(
        default="fail",
        description="what happens to a run in which adapter or head tensors, or most tensors of a "
        "full model, have had no gradient in 5 steps",
    )
    loss_spike: LossSpikeOptions | None = Field(
        default=None, description="recovery from loss spikes; default: off"
    )
    max_skipped_steps: int = Field(
        default=5,
        ge=1,
        description="maximum number of consecutive steps with non-finite gradients; then the run "
        "fails",
    )
    seed: int = Field(default=0, ge=0, lt=2**32, description="seed of all random numbers")
    evaluation_batch: int | None = Field(
        default=None,
        ge=1,
        description="examples in one forward pass of an evaluation, per process; default: planned, "
        "as many as fit into memory, at most 16 on a CPU and 64 on a GPU",
    )

    @property
    def exported_weights(self) -> Literal["last", "best", "ema", "average"]:
        """What is exported: `export`, or its default."""
        if self.export is not None:
            return self.export
        return "best" if self.evaluate_every is not None and self.keep_best else "last"

    _check_wall_time = field_validator("wall_time")(check_duration)

    @model_validator(mode="after")
    def _check_length(self) -> Self:
        faults = []
        if self.steps is None and self.epochs is None:
            faults.append(
                ConfigFault(
                    problem="the length of the training is missing",
                    fix="set train.steps or train.epochs",
                )
            )
        if self.steps is not None and self.epochs is not None:
            faults.append(
                ConfigFault(
                    "epochs",
                    problem="train.steps is set as well",
                    fix="keep one of the two: set the other to null or remove it",
                )
            )
        raise_config_faults(faults)
        return self
