"""What a config may say: frozen records, each key with its type, default and unit."""

from __future__ import annotations

import re
from collections.abc import Iterable
from math import ceil
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import (
    Field,
    field_validator,
    model_validator,
)

from dtl.config.batch_size import GlobalBatchSize
from dtl.config.choices import Phase, Strategies, TaskChoice
from dtl.config.comparing import Grid
from dtl.config.optim import Optim
from dtl.config.optimizers import OPTIMIZERS
from dtl.config.record import ConfigFault, Record, refuse
from dtl.core.units import parse_seconds

Tracking = Literal["tensorboard", "wandb", "mlflow", "trackio"]


def no_address(path: str) -> str:
    """The path, unless it is a URL: dtl reads none, and one may carry a password."""
    scheme, is_address, _ = path.partition("://")
    if is_address:
        refuse(
            [
                ConfigFault(
                    problem=f"dtl reads no {scheme}:// addresses",
                    fix="fetch it and name the file or folder, or write a hub id as owner/name",
                )
            ]
        )
    return path


class Run(Record):
    """Where the results go: the run folder is <dir>/<name>."""

    name: str | None = Field(
        default=None, description="name of the run folder; left out: the config file's name"
    )
    dir: str = Field(
        default="runs", min_length=1, description="folder in which the run folder is made"
    )

    @field_validator("name")
    @classmethod
    def _is_a_folder_name(cls, name: str | None) -> str | None:
        if name is not None and (
            not name.strip() or name in (".", "..") or set(name) & set("/\\\0")
        ):
            refuse(
                [
                    ConfigFault(
                        problem=f"'{name}' is not a plain folder name",
                        fix="use a name without slashes, and set run.dir to choose the folder",
                    )
                ]
            )
        return name


class Model(Record):
    """The pretrained model that is adapted."""

    path: str = Field(
        min_length=1, description="hub id, local folder, or mini:NAME for a base that dtl ships"
    )
    revision: str | None = Field(
        default=None, description="branch, tag or commit of a hub model; left out: its main branch"
    )
    adapters: tuple[str, ...] = Field(
        default=(),
        description="folders of adapters (a run's export, or PEFT's) that are worked into the base "
        "before anything else, in this order",
    )
    dtype: Literal["fp32", "bf16", "fp16"] | None = Field(
        default=None, description="number format of the weights; left out: planned"
    )
    quantize: Literal["nf4", "int8"] | None = Field(
        default=None,
        description="hold the linear layers of the base in 4 or 8 bits, beside a LoRA or another "
        "adapter (QLoRA); left out: in model.dtype",
    )
    double_quantize: bool = Field(
        default=True, description="with nf4, quantize the scales of its blocks as well"
    )
    attention: Literal["sdpa", "eager", "flash_attention_2", "flash_attention_3"] | None = Field(
        default=None, description="attention implementation; left out: the model's own default"
    )
    trust_remote_code: bool = Field(
        default=False, description="run the Python code that comes with the model"
    )
    stage_to: str | None = Field(
        default=None,
        min_length=1,
        description="folder on each node's own disk, as $TMPDIR, to which one process copies the "
        "weights before all of the node read them; left out: read where they lie",
    )

    _path_is_no_address = field_validator("path")(no_address)

    @model_validator(mode="after")
    def _only_nf4_has_scales_to_quantize(self) -> Self:
        if not self.double_quantize and self.quantize != "nf4":
            refuse(
                [
                    ConfigFault(
                        "double_quantize",
                        problem=f"there are no scales of nf4 with model.quantize {self.quantize}",
                        fix="set model.quantize to nf4, or remove model.double_quantize",
                    )
                ]
            )
        return self

    @model_validator(mode="after")
    def _adapters_are_of_a_whole_base(self) -> Self:
        if self.adapters and self.quantize is not None:
            refuse(
                [
                    ConfigFault(
                        "adapters",
                        problem="they are worked into whole weights, and these are quantized",
                        fix="export the adapters merged, and name that as model.path",
                    )
                ]
            )
        return self

    @model_validator(mode="after")
    def _remote_code_is_pinned(self) -> Self:
        pinned = re.fullmatch("[0-9a-f]{40}", self.revision or "")
        if self.trust_remote_code and not pinned and not Path(self.path).is_dir():
            refuse(
                [
                    ConfigFault(
                        "trust_remote_code",
                        problem=f"code of '{self.path}' would run in whatever version the hub has",
                        fix="set model.revision to a commit that you have read, all 40 digits",
                    )
                ]
            )
        return self


class Source(Record):
    """Where examples come from. A plain text stands for the path alone."""

    path: str = Field(
        min_length=1, description="local file or folder, hub data set, or mini:NAME/SPLIT"
    )
    name: str | None = Field(default=None, description="configuration of a hub data set")
    split: str | None = Field(default=None, description="split of a hub data set, such as train")
    limit: int | None = Field(default=None, ge=1, description="examples to read; left out: all")
    weight: float = Field(
        default=1.0,
        gt=0,
        description="how often an epoch reads each training row: 2 is twice, 0.5 half of the rows",
    )
    streaming: bool = Field(
        default=False,
        description="of data.train: read and encode each row in the step that learns from it, "
        "instead of all of them once into the cache",
    )

    _path_is_no_address = field_validator("path")(no_address)

    @model_validator(mode="before")
    @classmethod
    def _from_path(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value


class Draw(Record):
    """A few rows of data.train, drawn by chance; of one seed, fewer lie within more."""

    labels: int | None = Field(
        default=None,
        ge=1,
        description="rows of each class where the task has classes, else rows; left out: all that "
        "are not kept apart",
    )
    within: int | Literal["all"] | None = Field(
        default=None,
        description="labels, or more, or all: what a frozen base makes of rows is kept for so "
        "many, and runs with fewer of them share it; left out: for labels alone",
    )
    seed: int = Field(default=0, ge=0, lt=2**32, description="seed of the draw")
    apart: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="share of the rows, 500 at most, kept apart to choose settings by; the same "
        "for every seed",
    )
    score_on: Literal["eval", "apart"] = Field(
        default="eval", description="the rows that are scored: the held-out ones, or those apart"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        faults = []
        if self.score_on == "apart" and not self.apart:
            faults.append(
                ConfigFault(
                    "score_on",
                    problem="no rows are kept apart",
                    fix="set data.draw.apart, such as 0.2, or data.draw.score_on to eval",
                )
            )
        if isinstance(self.within, int) and (self.labels is None or self.within < self.labels):
            labels = "all" if self.labels is None else self.labels
            faults.append(
                ConfigFault(
                    "within",
                    problem=f"{labels} labels do not lie within {self.within}",
                    fix="set it to data.draw.labels or more, or to all",
                )
            )
        refuse(faults)
        return self

    @property
    def widest(self) -> Draw:
        """The draw for whose rows features are kept; `within` is set."""
        number = None if self.within == "all" else self.within
        return self.model_copy(update={"labels": number, "within": None})


class Data(Record):
    """The examples to learn from and to be scored on."""

    train: Source = Field(description="examples to learn from")
    mix: tuple[Source, ...] = Field(
        default=(), description="further sources to learn from, each with its weight"
    )
    eval: Source | None = Field(default=None, description="held-out examples to score on")
    columns: dict[str, str] = Field(
        default_factory=dict, description="dtl's name of a column -> its name in the data"
    )
    holdout: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="share of data.train held out for scoring where data.eval is left out",
    )
    draw: Draw | None = Field(
        default=None, description="a few rows of data.train to learn from; left out: all"
    )
    on_bad_row: Literal["fail", "skip"] = Field(
        default="fail",
        description="what a row at fault does: it stops the run, or it is left out, counted and "
        "listed in skipped_rows.jsonl",
    )
    max_bad_fraction: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="share of the rows of a source that may be skipped; more stop the run",
    )

    @model_validator(mode="after")
    def _scored_as_it_is(self) -> Self:
        if self.eval is not None and self.eval.weight != 1:
            refuse(
                [
                    ConfigFault(
                        "eval",
                        "weight",
                        problem="every held-out row is scored once",
                        fix="remove data.eval.weight",
                    )
                ]
            )
        return self

    @model_validator(mode="after")
    def _streamed_alone(self) -> Self:
        encoded = [("eval", self.eval), *(("mix", source) for source in self.mix)]
        faults = [
            ConfigFault(
                key,
                "streaming",
                problem="only what data.train names is streamed",
                fix="remove it here",
            )
            for key, source in encoded
            if source is not None and source.streaming
        ]
        if self.train.streaming and (self.mix or self.train.weight != 1):
            faults.append(
                ConfigFault(
                    "train",
                    "streaming",
                    problem="rows that are streamed are read once an epoch, and none are mixed in",
                    fix="remove data.mix and data.train.weight, and put all files into one "
                    "folder, or remove streaming",
                )
            )
        if self.train.streaming and self.draw is not None:
            faults.append(
                ConfigFault(
                    "draw",
                    problem="few rows are drawn of rows that are not streamed",
                    fix="remove data.draw, or data.train.streaming",
                )
            )
        refuse(faults)
        return self

    @model_validator(mode="after")
    def _held_out_once(self) -> Self:
        if self.eval is not None and self.holdout is not None:
            refuse(
                [
                    ConfigFault(
                        "holdout",
                        problem="data.eval is given as well",
                        fix="keep one of the two: remove data.holdout or data.eval",
                    )
                ]
            )
        return self


class Spike(Record):
    """When the loss jumps: go back to a checkpoint and leave out the batch of the jump."""

    score: float = Field(
        default=10.0,
        gt=0,
        description="how many normal spreads (scaled median absolute deviation) above the median "
        "of the losses before it a loss counts as a jump",
    )
    window: int = Field(default=100, ge=20, description="losses before it that it is compared with")
    back: int = Field(
        default=10, ge=1, description="steps to go back at least, to a checkpoint of before"
    )


class Train(Record):
    """How long and in what bites."""

    steps: int | None = Field(default=None, ge=1, description="optimizer steps to take")
    epochs: float | None = Field(default=None, gt=0, description="passes over the training data")
    global_batch: GlobalBatchSize = Field(
        default=16,
        validate_default=True,
        description="what one optimizer step learns from, over all processes: so many examples, or "
        "as many as fit into `8192 tokens` (of text) or `120 seconds` (of sound)",
    )
    group_by_length: bool = Field(
        default=False,
        description="form batches of examples of like length, so that less is padded",
    )
    evaluate_every: int | None = Field(
        default=None, ge=1, description="optimizer steps between scorings; left out: at the end"
    )
    save_every: int | None = Field(
        default=None, ge=1, description="optimizer steps between checkpoints; left out: at the end"
    )
    keep: int = Field(default=2, ge=1, description="checkpoints kept, the newest ones")
    keep_best: bool = Field(
        default=True,
        description="save at the best scoring so far as well, and keep that checkpoint",
    )
    export: Literal["last", "best", "ema", "average"] = Field(
        default="last",
        description="whose weights are exported: those of the last or of the best-scored step, or "
        "in any case the averages of train.ema or train.average",
    )
    ema: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="decay a step of a moving average of the weights, such as 0.999; it is scored "
        "at the end, and exported if it is better",
    )
    average: int | None = Field(
        default=None,
        ge=2,
        description="newest checkpoints whose weights are averaged at the end; the mean is scored, "
        "and exported if it is better",
    )
    wall_time: str | None = Field(
        default=None,
        description="longest time of one launch, as 45min, 4h or 1-12:00:00: it saves before that "
        "and ends with exit code 75; left out: Slurm's end time, where there is one",
    )
    hang_seconds: float = Field(
        default=300.0, gt=0, description="seconds without progress after which a run is ended"
    )
    loading_hang_seconds: float = Field(
        default=1800.0,
        gt=0,
        description="the same while it loads, takes its first step, saves or exports",
    )
    no_gradient: Literal["fail", "warn"] = Field(
        default="fail",
        description="what becomes of a run in which adapter or head tensors, or most tensors of a "
        "whole model, have had no gradient in 5 steps",
    )
    spike: Spike | None = Field(
        default=None, description="what to do when the loss jumps; left out: go on"
    )
    skip_limit: int = Field(
        default=5,
        ge=1,
        description="steps in a row with a gradient that is not finite, at which the run stops",
    )
    seed: int = Field(default=0, ge=0, lt=2**32, description="seed of all that is drawn by chance")
    evaluation_batch: int = Field(
        default=16, ge=1, description="examples in one forward pass of an evaluation, a process"
    )

    @field_validator("wall_time")
    @classmethod
    def _is_a_time(cls, wall_time: str | None) -> str | None:
        try:
            if wall_time is not None:
                parse_seconds(wall_time)
        except ValueError as fault:
            refuse([ConfigFault(problem=str(fault), fix="write it as 45min, 4h or 1-12:00:00")])
        return wall_time

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.steps is None and self.epochs is None:
            refuse(
                [
                    ConfigFault(
                        problem="the length of the training is missing",
                        fix="set train.steps or train.epochs",
                    )
                ]
            )
        if self.steps is not None and self.epochs is not None:
            refuse(
                [
                    ConfigFault(
                        "epochs",
                        problem="train.steps is given as well",
                        fix="keep one of the two: set the other to null or remove it",
                    )
                ]
            )
        return self


class Layout(Record):
    """How the run lies on the hardware; every key left out is planned."""

    nodes: int = Field(default=1, ge=1, description="machines")
    processes: int | None = Field(
        default=None, ge=1, description="processes a node, one a device; left out: planned"
    )
    zero: int | None = Field(
        default=None, ge=0, le=3, description="DeepSpeed ZeRO stage, 0 is plain data parallel"
    )
    offload: Literal["none", "optimizer"] | None = Field(
        default=None, description="what is kept in main memory instead of the device"
    )
    micro_batch: int | None = Field(
        default=None,
        ge=1,
        description="examples in one forward and backward pass, a process; where the global batch "
        "counts tokens or seconds, examples of the longest length: of shorter ones more",
    )
    activation_checkpointing: bool | None = Field(
        default=None, description="recompute activations in the backward pass to save memory"
    )

    @model_validator(mode="after")
    def _offload_needs_zero(self) -> Self:
        if self.offload == "optimizer" and self.zero == 0:
            refuse(
                [
                    ConfigFault(
                        "offload",
                        problem="ZeRO 0 cannot offload the optimizer",
                        fix="set layout.zero to 1, 2 or 3, or layout.offload to none",
                    )
                ]
            )
        return self


class Compare(Grid):
    """What `dtl compare` runs and scores. A run does not look at it."""

    ood: Source | None = Field(
        default=None, description="rows of another kind, on which every run is scored as well"
    )
    source: Source | None = Field(
        default=None,
        description="held-out rows of what the base had learnt, to see what each run forgets",
    )


class RunConfig(Record):
    """One run, as its config file says it."""

    run: Run = Field(default_factory=Run, description="where the results go")
    model: Model = Field(description="the pretrained model")
    task: TaskChoice = Field(
        description="what is learnt: a name, or a mapping with name and options"
    )
    data: Data = Field(description="the examples")
    strategy: Strategies = Field(
        description="which parameters learn: a name, a mapping with name and options, or a list of "
        "these: phases, one after the other"
    )
    optim: Optim = Field(default_factory=Optim, description="how parameters are updated")
    train: Train = Field(description="how long and in what bites")
    layout: Layout = Field(default_factory=Layout, description="how it lies on the hardware")
    compare: Compare = Field(
        default_factory=Compare, description="what `dtl compare` runs; of no effect on a run"
    )

    tracking: tuple[Tracking, ...] = Field(
        default=(), description="trackers that are told what metrics.jsonl is told"
    )

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        refuse(
            [
                *self._phase_faults(),
                *self._batch_faults(),
                *self._evaluation_faults(),
                *self._optimizer_faults(),
                *self._quantizing_faults(),
                *self._average_faults(),
            ]
        )
        return self

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The strategies, one after the other; mostly there is one."""
        if isinstance(self.strategy, tuple):
            return self.strategy
        return (Phase(name=self.strategy.name, options=self.strategy.options),)

    def _phase_faults(self) -> Iterable[ConfigFault]:
        if not self.phases:
            yield ConfigFault(
                "strategy", problem="the list is empty", fix="name the strategy of each phase"
            )
        shares = sum(phase.length for phase in self.phases if phase.length and phase.length < 1)
        if shares > 1:
            yield ConfigFault(
                "strategy",
                problem=f"the lengths of the phases make {shares:g} of the run",
                fix="give shares whose sum is 1, or leave lengths out",
            )

    def _batch_faults(self) -> Iterable[ConfigFault]:
        """A process without examples in every step is a mistake, not a layout."""
        if self.data.train.streaming:
            yield from self._streaming_faults()
        if self.train.global_batch.unit != "examples":
            return  # how many examples are in a step is seen in the data
        examples, layout = self.train.global_batch.limit, self.layout
        processes = layout.nodes * (layout.processes or 1)
        if processes > examples:
            yield ConfigFault(
                "train",
                "global_batch",
                problem=f"{examples} examples a step cannot feed {processes} processes",
                fix=f"set train.global_batch to {processes} or more, or use fewer processes",
            )
        elif layout.micro_batch is not None and layout.micro_batch > ceil(examples / processes):
            most = ceil(examples / processes)
            yield ConfigFault(
                "layout",
                "micro_batch",
                problem=f"{layout.micro_batch} is more than the {most} examples that a process "
                f"gets of a global batch of {examples}",
                fix=f"set layout.micro_batch to {most} or less, or raise train.global_batch",
            )

    def _streaming_faults(self) -> Iterable[ConfigFault]:
        """How long a streamed row is, is not known before it is read."""
        if (unit := self.train.global_batch.unit) != "examples":
            yield ConfigFault(
                "train",
                "global_batch",
                problem=f"how many {unit} a row has is not known where data.train is streamed",
                fix="write it as a number of examples, such as 16, or remove streaming",
            )
        if self.train.group_by_length:
            yield ConfigFault(
                "train",
                "group_by_length",
                problem="how long a row is, is not known where data.train is streamed",
                fix="remove it, or remove streaming",
            )

    def _optimizer_faults(self) -> Iterable[ConfigFault]:
        optimizer, name = OPTIMIZERS[self.optim.name], self.optim.name
        offloads = self.layout.offload == "optimizer"
        if optimizer.cut is not None and (self.layout.zero or offloads):
            yield ConfigFault(
                "optim",
                "name",
                problem=f"{name} and ZeRO do not go together: {optimizer.cut}",
                fix="set layout.zero to 0 and layout.offload to none, or optim.name to "
                f"{optimizer.nearest}",
            )
        elif offloads and (kept := self.keeps_on_device) is not None:
            yield ConfigFault(
                "layout",
                "offload",
                problem=f"{kept} does not work in main memory",
                fix="set layout.offload to none and layout.zero to 3",
            )

    def _average_faults(self) -> Iterable[ConfigFault]:
        """Averages of the weights want something to be made of, and to be told better by."""
        train, scored = self.train, bool(self.data.eval or self.data.holdout)
        asked = {"ema": train.ema, "average": train.average}
        if train.export in asked and asked[train.export] is None:
            yield ConfigFault(
                "train",
                "export",
                problem=f"train.{train.export} is not set",
                fix=f"set train.{train.export}, or train.export to last",
            )
        several = len(self.phases) > 1
        for where, key, set_to in (
            ("optim", "l2_sp", self.optim.l2_sp),
            ("train", "ema", train.ema),
            ("train", "average", train.average),
        ):
            if several and set_to is not None:
                yield ConfigFault(
                    where,
                    key,
                    problem="it is of one strategy, and each phase has another start",
                    fix=f"remove {where}.{key}, or take one strategy",
                )
        for key, value in asked.items():
            if value is not None and not scored and train.export != key:
                yield ConfigFault(
                    "train",
                    key,
                    problem="there are no held-out examples to tell whether the average is better",
                    fix=f"add data.eval or data.holdout, or set train.export to {key}",
                )
        if train.average is not None and train.average > train.keep:
            yield ConfigFault(
                "train",
                "average",
                problem=f"of {train.average} checkpoints only {train.keep} are kept",
                fix=f"set train.keep to {train.average}",
            )
        if train.average is not None and train.save_every is None:
            yield ConfigFault(
                "train",
                "average",
                problem="there is one checkpoint only, at the end",
                fix="set train.save_every",
            )

    @property
    def keeps_on_device(self) -> str | None:
        """What of this config keeps the optimizer from being offloaded."""
        if not OPTIMIZERS[self.optim.name].offloads:
            return self.optim.name
        if self.optim.l2_sp is not None:
            return "optim.l2_sp"
        return "train.ema" if self.train.ema is not None else None

    def _quantizing_faults(self) -> Iterable[ConfigFault]:
        """bitsandbytes holds 8-bit weights twice: ZeRO 3 would cut one hold, and save nothing."""
        if self.model.quantize == "int8" and self.layout.zero == 3:
            yield ConfigFault(
                "model",
                "quantize",
                problem="weights of 8 bits cannot be shared out by ZeRO 3",
                fix="set layout.zero to 2, or model.quantize to nf4",
            )

    def _evaluation_faults(self) -> Iterable[ConfigFault]:
        if self.task.group_by and self.data.eval is None and self.data.holdout is None:
            yield ConfigFault(
                "task",
                "group_by",
                problem="there are no held-out examples whose score could be broken down",
                fix="add data.eval or data.holdout, or remove task.group_by",
            )
        if self.train.export == "best" and self.train.evaluate_every is None:
            yield ConfigFault(
                "train",
                "export",
                problem="nothing tells which step is the best: only the end is scored",
                fix="set train.evaluate_every, or train.export to last",
            )
        if self.train.export == "best" and not self.train.keep_best:
            yield ConfigFault(
                "train",
                "keep_best",
                problem="the best checkpoint is not kept, but it is to be exported",
                fix="set train.keep_best to true, or train.export to last",
            )
        if (
            self.train.evaluate_every is not None
            and self.data.eval is None
            and self.data.holdout is None
        ):
            yield ConfigFault(
                "train",
                "evaluate_every",
                problem="there are no held-out examples to evaluate on",
                fix="add data.eval or data.holdout, or remove train.evaluate_every",
            )
