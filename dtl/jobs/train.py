"""Train: begin, learn, close."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import IO

from dtl.assemble import Parts, assemble
from dtl.config.schema import RunConfig
from dtl.data.loader import Collate, Loader
from dtl.engine import Engine
from dtl.errors import RunFailed
from dtl.examples import Examples
from dtl.jobs.opening import find_checkpoint, open_model, restore_moments, start_moments
from dtl.jobs.scoring import Scoring
from dtl.jobs.spikes import go_back, left_out, losses_before
from dtl.models.load import padding_token
from dtl.plan import Plan
from dtl.plan.memory import checkpoint_bytes
from dtl.run_folder import RunFolder
from dtl.train import checkpoint, optim
from dtl.train.card import run_card
from dtl.train.checkpoint import Store, Stored
from dtl.train.deadline import Deadline
from dtl.train.export import export, note_of
from dtl.train.guards import Guard, SpikeFound
from dtl.train.log import RunLog, told
from dtl.train.loop import End, Hooks, Limits, Progress, StopAgreed, train
from dtl.train.usage import Meter
from dtl.train.watch import Watch


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
    job = _Job(folder, engine, examples, process)
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
    """One run on one rank. `progress`: what is saved, or nothing yet."""

    folder: RunFolder
    engine: Engine
    examples: Examples
    process: Process
    progress: Progress = field(default_factory=Progress)
    stepped: bool = False
    meter: Meter = field(init=False)

    def begin(self) -> None:
        """Load, go back to where the run was, lay out, and score what is due."""
        engine, parts, plan = self.engine, self.parts, self.plan
        self.meter = Meter(self.folder.usage, engine)
        self.slowly("looking for a checkpoint")
        saved = find_checkpoint(self.folder, self.store, engine, self.log)
        self.slowly("loading the model")
        model = open_model(self.config, plan, parts, self.examples, engine)
        engine.watch_buffers(model)
        if saved is not None:
            checkpoint.restore_weights(saved, engine, model)
        parts.training_mode(model)
        rate, device = plan.learning_rate, plan.layout.device
        optimizer = optim.make(model, self.config.optim, learning_rate=rate, device=device)
        self.slowly("laying out the model")
        engine.prepare(model, optimizer)
        self.progress = Progress(digest=self.examples.train.key)
        if saved is not None:
            self.progress = self.scoring.with_best(checkpoint.read_progress(saved))
            restore_moments(saved, engine, parts, self.loader)
        if self.scoring.wanted:
            self.scoring.unadapted(self.progress)
            if self.progress.step > 0 and self.limits().evaluate_at(self.progress.step):
                self.progress = self.scoring.adapted(self.progress)  # the interruption came before
        if self.config.train.spike is not None and saved is None:
            start_moments(engine, parts, self.loader)
            self.save(self.progress)  # so that there is always something to go back to

    def learn(self) -> End:
        """To the last step, or to where the run is asked to stop."""
        self.log.begin()
        while True:
            try:
                self.progress, end = self._train()
                return end
            except SpikeFound as spike:
                self.slowly(f"going back from step {spike.step}")
                options = self.config.train
                path = go_back(spike, options, self.folder, self.store, self.engine, self.log)
                checkpoint.restore_learnt(path, self.engine)
                restore_moments(path, self.engine, self.parts, self.loader)
                self.progress = self.scoring.with_best(checkpoint.read_progress(path))

    def close(self) -> None:
        """Score, export, and write the result: from then on the run is finished."""
        if self.scoring.wanted:
            self.progress = self.scoring.adapted(self.progress)
        self.meter.note()
        self._export()
        scores, at = self.scoring.scores, self.progress
        if self.engine.is_first:
            self.folder.finish(
                {
                    "steps": at.step,
                    "scores": scores,
                    "best": {"step": at.best_step, "score": at.best},
                    "export": str(self.folder.export),
                }
            )
        self.engine.wait()
        for name, found in scores.items():
            self.log.say(f"{name:>10}: {told(found)}")
        self.log.say(f"    export: {self.folder.export}")

    def limits(self, leave_out: frozenset[int] = frozenset()) -> Limits:
        """When to score, save and end."""
        options = self.config.train
        return Limits(
            self.plan.steps,
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

    def _export(self) -> None:
        best, at = self._best_checkpoint(), self.progress
        kind = self.parts.strategy.exports
        facts = self.examples.facts
        card = ""
        if self.engine.is_first:
            card = run_card(
                self.folder,
                self.parts.task,
                facts,
                kind=kind,
                scores=self.scoring.scores,
                step=at.best_step if best and at.best_step is not None else at.step,
            )
        export(
            self.engine,
            self.folder.export,
            processor=self.examples.processor,
            kind=kind,
            dtype=self.plan.layout.dtype,
            card=card,
            note=note_of(self.config, facts, kind=kind),
            learnt=Stored(best) if best else None,
            pause=self.pause,
        )

    def _best_checkpoint(self) -> Path | None:
        """What is exported instead of the present weights; its scores become the run's."""
        at = self.progress
        if self.config.train.export == "last" or at.best_step is None or at.best_step == at.step:
            return None
        path = self.store.path_of(at.best_step)
        fault = self.engine.agree(self.store.fault(path) if self.engine.is_first else None)
        if fault is not None:
            raise RunFailed.of(str(path), fault, "resume with train.export=last")
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
        if self.engine.reduce(float(self._asks()))[0] > 0:
            raise StopAgreed

    # What it is made of.

    @cached_property
    def config(self) -> RunConfig:
        return self.folder.config

    @cached_property
    def plan(self) -> Plan:
        return self.folder.plan

    @cached_property
    def parts(self) -> Parts:
        return assemble(self.config)

    @cached_property
    def log(self) -> RunLog:
        return RunLog(
            self.folder,
            self.process.terminal,
            self.plan.steps,
            self.plan.learning_rate,
            unit=self.parts.task.length_unit,
        )

    @cached_property
    def store(self) -> Store:
        options = self.config.train
        return Store(
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
        size = checkpoint_bytes(self.plan.parameters, self.config.optim.name)
        return Deadline.of(self.config.train, checkpoint_bytes=size)

    @cached_property
    def collate(self) -> Collate:
        padding = padding_token(self.examples.processor)
        return partial(self.parts.task.collate, padding=0 if padding is None else padding)

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

    @cached_property
    def loader(self) -> Loader:
        return Loader(
            data=self.examples.train,
            collate=self.collate,
            present=partial(self.parts.task.present, processor=self.examples.processor),
            seed=self.config.train.seed,
            global_batch=self.config.train.global_batch,
            micro_batch=self.plan.layout.micro_batch,
            rank=self.engine.rank,
            ranks=self.engine.ranks,
        )
