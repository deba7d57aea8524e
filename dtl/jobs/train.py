"""Train: begin, learn, close."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import count
from pathlib import Path
from typing import IO, TYPE_CHECKING

from dtl.assembly.parts import Parts, assemble
from dtl.config.schema import RunConfig
from dtl.core.errors import RunFailed
from dtl.data.loader import Collate, Loader
from dtl.engine.base import Engine, open_tracker
from dtl.evaluation.scoring import Scoring
from dtl.export.model_card import run_card
from dtl.export.write import export, note_of
from dtl.models.load import padding_token
from dtl.models.quantization import quantize
from dtl.plan.memory import checkpoint_bytes
from dtl.plan.records import PhasePlan, Plan
from dtl.prepare.dataset import Examples
from dtl.run.folder import RunFolder
from dtl.train import checkpoint, optim
from dtl.train.checkpoint import CheckpointStore, Learnt, Stored
from dtl.train.deadline import Deadline
from dtl.train.feature_cache import Source, learnt_from_features
from dtl.train.guards import Guard, SpikeFound
from dtl.train.heartbeat import Watch
from dtl.train.log import RunLog, format_scores
from dtl.train.loop import End, Hooks, Limits, Progress, StopAgreed, train
from dtl.train.setup import (
    find_checkpoint,
    is_phase_transition,
    open_model,
    restore,
    show,
    start_moments,
)
from dtl.train.spikes import go_back, left_out, losses_before
from dtl.train.trackers import Trackers
from dtl.train.usage import Meter
from dtl.train.weight_averages import Averaged, Mean, MovingAverage

if TYPE_CHECKING:
    from torch import Tensor, nn

LOOKED_AT_ONCE = 8  # examples, on every layout


@dataclass(frozen=True)
class Outcome:
    """How a run ended, and how far it has come."""

    end: End
    progress: Progress


@dataclass(frozen=True)
class Process:
    """What the process that does the job gives it.

    `terminal`: where rank 0 tells the user. `asked_to_stop`: whether it is time to save and end.
    `held`: raises when the run folder is no longer this process's to write.
    """

    terminal: IO[str] | None
    watch: Watch
    asked_to_stop: Callable[[], bool]
    held: Callable[[], None]


def run(folder: RunFolder, engine: Engine, examples: Examples, process: Process) -> Outcome:
    """The whole job on one rank."""
    job = _Job(folder, engine, examples, process, assemble(folder.config))
    try:
        job.begin()
        end = job.learn()
        if end == "done":
            job.close()
    except StopAgreed:
        end = "stopped"
    finally:
        job.log.close()
    return Outcome(end, job.progress)


@dataclass
class _Job:
    """One run on one rank. `parts`: in the present phase; `progress`: what is saved, or nothing
    yet."""

    folder: RunFolder
    engine: Engine
    examples: Examples
    process: Process
    parts: Parts
    progress: Progress = field(default_factory=Progress)
    stepped: bool = False
    weights: str = "adapted"  # those that are exported, or ema or average
    meter: Meter = field(init=False)

    def __post_init__(self) -> None:
        self._read = self.parts, self.examples

    def begin(self) -> None:
        """Go back to where the run was, and score what is due."""
        self.meter = Meter(self.folder.usage, self.engine)
        self.slowly("looking for a checkpoint")
        saved = find_checkpoint(self.folder, self.store, self.engine, self.log)
        self.open(saved)
        if self.scoring.wanted:
            self.scoring.unadapted(self.progress)
            if self.progress.step > 0 and self.limits().evaluate_at(self.progress.step):
                self.progress = self.scoring.adapted(self.progress)  # the interruption came before
        if self.config.train.spike is not None and saved is None:
            start_moments(self.engine, self.parts, self.loader)
            self.save(self.progress)  # so that there is always something to go back to

    def open(self, saved: Path | None) -> None:
        """Load and lay out the model in the phase that is due after a checkpoint."""
        engine, plan = self.engine, self.plan
        at = Progress(digest=self.examples.train.key)
        at = at if saved is None else checkpoint.read_progress(saved)
        plain, self.examples = self._read
        parts = self.parts = plain.in_phase(plan.phase_after(at.step))
        self.slowly("loading the model")
        adapted = open_model(self.config, plan, parts, self.examples, engine, saved=saved)
        model, options = adapted.model, self.config.optim
        parts.training_mode(model)
        rate, device = self.phase.learning_rate, plan.layout.device
        begins = saved is None or is_phase_transition(plan, parts, saved)
        if begins and parts.strategy.needs_calibration:
            self._begin_from_data(model)
        if begins and parts.strategy.needs_base_weights:
            parts.strategy.init_from_base_weights(
                model,
                whole=adapted.whole,
                device=engine.device,
                beat=partial(self.slowly, "making good what the base has lost"),
            )
        optimizer = optim.make(
            model,
            options,
            learning_rate=rate,
            new=adapted.new,
            device=device,
            rate_factor=parts.strategy.rate_factor,
        )
        self.slowly("laying out the model")
        engine.prepare(model, optimizer)
        self._look_at_every_step(at.updates if saved is not None and not begins else 0)
        self.log.peak_learning_rate = rate
        if saved is not None and begins:
            at = replace(at, updates=0, best=None, best_step=None)
            if parts.strategies[parts.phase - 1].exports == "model":  # else other names are learnt
                checkpoint.restore_weights(Stored(saved), engine, partly=True)
        elif saved is not None:
            at = self.scoring.with_best(at, after=self.phase.before)
            restore(saved, engine, parts, self.loader)
        self.progress = at
        if self.phase.caches_features:
            self._learn_from_features()
        scoring = self.scoring
        scoring.parts, scoring.examples, scoring.collate = self.parts, self.examples, self.collate

    def _learn_from_features(self) -> None:
        self.slowly("looking at what the head reads")
        source = Source(
            self.config,
            self.plan,
            self.parts,
            self.examples,
            self.engine,
            self.collate,
            pause=self.pause,
            say=self.log.say,
        )
        self.parts, self.examples = learnt_from_features(source)

    def _begin_from_data(self, model: nn.Module) -> None:
        self.slowly("looking at training examples")
        alone = replace(self.loader, rank=0, ranks=1, micro_batch=LOOKED_AT_ONCE)

        def show(model: nn.Module, batch: dict[str, Tensor]) -> None:
            self.slowly("looking at training examples")
            with self.engine.forward():
                self.parts.task.loss(model, self.engine.to_device(batch))

        self.parts.strategy.init_from_data(
            model.to(self.engine.device),
            batches=(
                batch.tensors
                for step in count(1)
                for batch in alone.window(step).batches
                if batch.targets
            ),
            show=show,
        )
        self.parts.training_mode(model)

    def _look_at_every_step(self, done: int) -> None:
        """Tie to the optimizer what works on the weights beside it, from where the base starts: a
        checkpoint is read after this. `done`: steps of this phase that have been taken."""
        masters, optimizer = self.engine.fp32_master_weights(), self.engine.inner_optimizer
        if self.config.optim.l2_sp is not None:
            optimizer.register_step_pre_hook(optim.Pull(masters))
        self.parts.strategy.register_optimizer_hooks(
            self.engine.plain_model,
            optimizer,
            steps=self.phase.last - self.phase.before,
            done=done,
        )
        if (decay := self.config.train.ema) is not None:
            optimizer.register_step_post_hook(MovingAverage(masters, decay=decay))

    def learn(self) -> End:
        """To the last step, or to where the run is asked to stop."""
        self.log.begin()
        while True:
            try:
                self.progress, end = self._train()
                if end == "stopped" or self.progress.step == self.plan.steps:
                    return end
                self.reopen(self.store.path_of(self.progress.step))
                place, of = self.parts.phase + 1, len(self.plan.phases)
                self.log.say(f"phase {place} of {of}: {self.phase.strategy}")
            except SpikeFound as spike:
                self.slowly(f"going back from step {spike.step}")
                options = self.config.train
                self.reopen(go_back(spike, options, self.folder, self.store, self.engine, self.log))

    def reopen(self, saved: Path) -> None:
        """Go on from a checkpoint, perhaps in another phase."""
        self.engine.release()
        self.open(saved)
        self.log.begin()

    def close(self) -> None:
        """Score, export, and write the result: from then on the run is finished."""
        if self.scoring.wanted:
            self.progress = self.scoring.adapted(self.progress)
        self.meter.note()
        self._export(self._chosen())
        scores, at = self.scoring.scores, self.progress
        if self.engine.is_first:
            self.folder.finish(
                {
                    "steps": at.step,
                    "scores": scores,
                    "best": {"step": at.best_step, "score": at.best},
                    "weights": self.weights,
                    "export": str(self.folder.export),
                }
            )
        self.engine.barrier()
        if self.config.data.train.streaming and self.engine.is_first and self.log.listed:
            self.log.say(f"  left out: {len(self.log.listed)} rows, in skipped_rows.jsonl")
        for name, found in scores.items():
            self.log.say(f"{name:>10}: {format_scores(found)}")
        self.log.say(f"    export: {self.folder.export}")

    def limits(self, leave_out: frozenset[int] = frozenset()) -> Limits:
        """When to score, save and end."""
        options = self.config.train
        return Limits(
            self.plan.steps,
            self.phase.before,
            self.phase.last,
            options.evaluate_every if self.scoring.wanted else None,
            options.save_every,
            keep_best=options.keep_best,
            leave_out=leave_out,
        )

    def _train(self) -> tuple[Progress, End]:
        options, leave_out = self.config.train, left_out(self.folder, self.engine)
        guard = Guard(
            self.engine,
            self.log,
            options,
            every_tensor_learns=self.parts.strategy.exports == "adapter",
            finds_loss_scale=self.plan.layout.dtype == "fp16",
            leave_out=leave_out,
            losses=losses_before(self.folder, self.engine) if options.spike else [],
        )
        return train(
            self.engine,
            self.parts,
            self.loader,
            self.log,
            progress=self.progress,
            limits=self.limits(leave_out),
            hooks=Hooks(
                evaluate=self.scoring.adapted,
                save=self.save,
                beat=self.quickly,
                asked_to_stop=self.asked_to_stop,
                guard=guard,
            ),
            optim=self.config.optim,
        )

    def _chosen(self) -> Learnt | None:
        """What is exported instead of the present weights; its scores become the run's."""
        best, averages = self._best_checkpoint(), self._averages()
        if not averages:
            return Stored(best) if best else None
        options, scoring = self.config.train, self.scoring
        # From here on the engine shows other weights; those of the last step are in its checkpoint.
        chosen: Learnt = Stored(best or self.store.path_of(self.progress.step))
        for name, average in averages.items():
            found = self._scores_of(name, average) if scoring.wanted else None
            better = found is not None and scoring.beats(found, scoring.scores["adapted"])
            if options.export == name or (better and options.export in ("last", "best")):
                chosen, self.weights = average, name
                self.log.say(f"the weights of train.{name} are exported")
                if found is not None:
                    scoring.scores["adapted"] = found
        return chosen

    def _averages(self) -> dict[str, Learnt]:
        """Averages of the weights, by the key of the config that asks for them."""
        options, averages = self.config.train, dict[str, Learnt]()
        if options.ema is not None:
            averages["ema"] = Averaged(Stored(self._whole(self.progress.step)))
        if options.average is not None:
            steps = self.engine.broadcast_object(self.store.steps)[-options.average :]
            self.log.say(f"the weights of steps {', '.join(map(str, steps))} are averaged")
            averages["average"] = Mean([Stored(self._whole(step)) for step in steps])
        return averages

    def _scores_of(self, name: str, average: Learnt) -> dict[str, float]:
        """Of the present step with averaged weights, taken once."""
        found = self.scoring.logged(name, self.progress.step)
        if found is None:
            self.slowly(f"evaluation, the weights of train.{name}")
            show(average, self.engine, self.parts, self.loader)
            found = self.scoring.score(self.progress, name)
        return found

    def _whole(self, step: int) -> Path:
        """The checkpoint of a step, looked at again before it is used."""
        path = self.store.path_of(step)
        fault = self.engine.broadcast_object(
            self.store.fault(path) if self.engine.is_first else None
        )
        if fault is not None:
            raise RunFailed.of(str(path), fault, "resume with train.export=last")
        return path

    def _export(self, learnt: Learnt | None) -> None:
        kind, facts, at = self.parts.strategy.exports, self.examples.facts, self.progress
        best = self.config.train.export == "best" and self.weights == "adapted"
        card = ""
        if self.engine.is_first:
            card = run_card(
                self.folder,
                self.parts.task,
                facts,
                kind=kind,
                scores=self.scoring.scores,
                step=at.best_step if best and at.best_step is not None else at.step,
                weights=self.weights,
                quantized=quantize.told(self.engine.plain_model),
            )
        export(
            self.engine,
            self.folder.export,
            processor=self.examples.processor,
            kind=kind,
            dtype=self.plan.layout.dtype,
            card=card,
            note=note_of(self.config, facts, kind=kind, dtype=self.plan.layout.dtype),
            learnt=learnt,
            pause=self.pause,
        )

    def _best_checkpoint(self) -> Path | None:
        """The best step's, where that is wanted and not the last; its scores become the run's."""
        at = self.progress
        if self.config.train.export != "best" or at.best_step is None or at.best_step == at.step:
            return None
        path = self._whole(at.best_step)
        found = self.scoring.logged("adapted", at.best_step)
        assert found is not None, "the best step was found in the log"
        self.scoring.scores["adapted"] = found
        self.log.say(f"the best scores are those of step {at.best_step}: it is exported")
        return path

    def save(self, progress: Progress) -> None:
        """Save, and take the time that it took."""
        self.slowly(f"saving step {progress.step}")
        start = time.monotonic()
        path = self.store.save(self.engine, progress)
        seconds = time.monotonic() - start
        self.meter.note()
        self.deadline.saved(seconds)
        self.log.saved(progress.step, seconds=seconds, size=checkpoint.size_of(path))
        self.progress = progress

    # Signs of life, and safe points.

    def quickly(self, doing: str) -> None:
        """A beat from a place that is soon left; the first step may build things."""
        options = self.config.train
        within = options.hang_seconds if self.stepped else options.loading_hang_seconds
        self.process.watch.beat(doing, within=within)

    def slowly(self, doing: str) -> None:
        """A beat from a place that takes its time."""
        self.process.watch.beat(doing, within=self.config.train.loading_hang_seconds)

    def asked_to_stop(self) -> bool:
        """This rank's word; it counts when all ranks have heard it."""
        self.stepped = True
        return self._asks()

    def _asks(self) -> bool:
        near = self.engine.is_first and self.deadline.near
        if near:
            self.log.say("the time of this launch is nearly over")
        return self.process.asked_to_stop() or near

    def pause(self, doing: str) -> None:
        """A safe point outside the loop. Raises StopAgreed, on all ranks or on none."""
        (self.slowly if doing.startswith("export") else self.quickly)(doing)
        if self.engine.all_reduce_sum(float(self._asks()))[0] > 0:
            raise StopAgreed

    # What it is made of.

    @cached_property
    def config(self) -> RunConfig:
        return self.folder.config

    @cached_property
    def plan(self) -> Plan:
        return self.folder.plan

    @property
    def phase(self) -> PhasePlan:
        return self.plan.phases[self.parts.phase]

    @cached_property
    def log(self) -> RunLog:
        log = RunLog(
            self.folder,
            self.process.terminal,
            self.plan.steps,
            head_learning_rate=self.config.optim.head_learning_rate,
            unit=self.parts.task.length_unit,
        )
        if log.writes:
            names = self.config.tracking
            log.trackers = Trackers.of(names, self.folder, log.say, opener=open_tracker)
        return log

    @cached_property
    def store(self) -> CheckpointStore:
        options = self.config.train
        return CheckpointStore(
            self.folder.checkpoints,
            self.folder.identity,
            self.folder.formerly,
            keep=options.keep,
            keep_best=options.keep_best,
            reach=options.spike.back if options.spike else None,
            held=self.process.held,
        )

    @cached_property
    def deadline(self) -> Deadline:
        size = checkpoint_bytes(self.plan.parameters)
        return Deadline.of(self.config.train, checkpoint_bytes=size)

    @property
    def collate(self) -> Collate:
        padding = padding_token(self.examples.processor)
        return partial(self.parts.task.collate, pad_token_id=0 if padding is None else padding)

    @cached_property
    def scoring(self) -> Scoring:
        return Scoring(
            self.folder,
            self.engine,
            self.parts,
            self.examples,
            self.collate,
            self.log,
            batch=self.config.train.evaluation_batch,
            pause=self.pause,
            group_by=self.config.task.group_by,
        )

    @property
    def loader(self) -> Loader:
        return Loader(
            data=self.examples.train,
            collate=self.collate,
            present=partial(self.parts.task.transform, processor=self.examples.processor),
            batching=self.examples.batching,
            micro_batch=self.plan.layout.micro_batch,
            rank=self.engine.rank,
            ranks=self.engine.ranks,
        )
