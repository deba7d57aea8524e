"""Train: begin, learn, close."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import IO

from dtl.assemble import Parts, assemble
from dtl.config.schema import RunConfig
from dtl.data.encoded import EncodedData
from dtl.data.loader import Collate, Loader
from dtl.engine import Engine
from dtl.errors import RunFailed
from dtl.examples import Examples
from dtl.jobs.opening import find_checkpoint, open_model, restore_moments
from dtl.plan import Plan
from dtl.plan.memory import checkpoint_bytes
from dtl.run_folder import RunFolder
from dtl.train import checkpoint, optim
from dtl.train.card import model_card
from dtl.train.checkpoint import Store, Stored
from dtl.train.deadline import Deadline
from dtl.train.evaluate import evaluate
from dtl.train.export import export
from dtl.train.guards import Guard, SpikeFound
from dtl.train.log import RunLog, told
from dtl.train.loop import End, Hooks, Limits, Progress, StopAgreed, train
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
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    stepped: bool = False

    def begin(self) -> None:
        """Load, go back to where the run was, lay out, and score what is due."""
        engine, parts = self.engine, self.parts
        self.slowly("looking for a checkpoint")
        saved = find_checkpoint(self.folder, self.store, engine, self.log)
        self.slowly("loading the model")
        model = open_model(self.config, self.plan, parts, self.examples, engine)
        engine.watch_buffers(model)
        if saved is not None:
            checkpoint.restore_weights(saved, engine, model)
        parts.strategy.training_mode(model)
        options, plan = self.config.optim, self.plan
        optimizer = optim.make(
            model, options, learning_rate=plan.learning_rate, device=plan.layout.device
        )
        self.slowly("laying out the model")
        engine.prepare(model, optimizer)
        self.progress = Progress(digest=self.examples.train.key)
        if saved is not None:
            self.progress = self._with_best(checkpoint.read_progress(saved))
            restore_moments(saved, engine, parts, self.loader)
        if self.examples.held_out is not None:
            self._score_what_is_due()
        if self.config.train.spike is not None and saved is None:
            self.save(self.progress)  # so that there is always something to go back to

    def learn(self) -> End:
        """To the last step, or to where the run is asked to stop."""
        self.log.begin()
        while True:
            try:
                self.progress, end = self._train()
                return end
            except SpikeFound as spike:
                self._go_back(spike)

    def close(self) -> None:
        """Score, export, and write the result: from then on the run is finished."""
        if self.examples.held_out is not None:
            self.progress = self.evaluate(self.progress)
        self._export()
        if self.engine.is_first:
            result = {
                "steps": self.progress.step,
                "scores": self.scores,
                "best": {"step": self.progress.best_step, "score": self.progress.best},
                "export": str(self.folder.export),
            }
            self.folder.finish(result)
        self.engine.wait()
        for name, found in self.scores.items():
            self.log.say(f"{name:>10}: {told(found)}")
        self.log.say(f"    export: {self.folder.export}")

    def _train(self) -> tuple[Progress, End]:
        options, spikes = self.config.train, self.engine.agree(self.folder.spikes)
        leave_out = frozenset(step for spike in spikes for step in spike["left_out"])
        scored = self.examples.held_out is not None
        return train(
            self.engine,
            self.parts.task,
            self.parts.strategy,
            self.loader,
            self.log,
            progress=self.progress,
            limits=Limits(
                self.plan.steps,
                options.evaluate_every if scored else None,
                options.save_every,
                keep_best=options.keep_best,
                leave_out=leave_out,
            ),
            hooks=Hooks(
                evaluate=self.evaluate,
                save=self.save,
                beat=self.quickly,
                asked_to_stop=self.asked_to_stop,
                guard=Guard(
                    self.engine,
                    self.log,
                    options,
                    every_tensor_learns=self.parts.strategy.exports == "adapter",
                    finds_loss_scale=self.plan.layout.dtype == "fp16",
                    leave_out=leave_out,
                    losses=self._losses() if options.spike else [],
                ),
            ),
            optim=self.config.optim,
        )

    # What the loop calls.

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
        near = self.engine.is_first and self.deadline.near
        if near:
            self.log.say("the time of this launch is nearly over")
        return self.process.asked_to_stop() or near

    def pause(self, doing: str) -> None:
        """A safe point outside the loop. Raises StopAgreed, on all ranks or on none."""
        self.slowly(doing) if doing.startswith("export") else self.quickly(doing)
        if self.engine.reduce(float(self.asked_to_stop()))[0] > 0:
            raise StopAgreed

    def save(self, progress: Progress) -> None:
        """Save, and take the time that it took."""
        self.slowly(f"saving step {progress.step}")
        start = time.monotonic()
        path = self.store.save(self.engine, progress)
        seconds = time.monotonic() - start
        self.deadline.saved(seconds)
        self.log.saved(progress.step, seconds=seconds, size=checkpoint.size_of(path))
        self.progress = progress

    def evaluate(self, progress: Progress) -> Progress:
        """Score the model as it is now, and say whether it is the best so far."""
        found = self._score(progress, "adapted")
        value = _value(found, self.parts.task.best)
        if progress.best is not None and value <= progress.best:
            return progress
        return replace(progress, best=value, best_step=progress.step)

    # Scoring.

    def _score_what_is_due(self) -> None:
        """The untouched base, and what an interruption has left out."""
        at = self.progress
        if at.step == 0 and _base_can_be_scored(self.parts, self.examples):
            self._score(at, "unadapted")
        earlier = self._logged("unadapted", at.step)
        if earlier is not None:
            self.scores["unadapted"] = earlier
        every = self.config.train.evaluate_every
        due = Limits(self.plan.steps, every, None).evaluate_at(at.step) and at.step > 0
        if due and not self._logged("adapted", at.step, exactly=True):
            self.progress = self.evaluate(at)

    def _score(self, at: Progress, name: str) -> dict[str, float]:
        logged = self._logged(name, at.step, exactly=True)
        if logged is None:
            found = evaluate(
                self.engine,
                self.parts.task,
                self.held_out,
                self.collate,
                self.examples.facts,
                batch=self.config.train.evaluation_batch,
                processor=self.examples.processor,
                pause=self.pause,
            )
            if self.engine.is_first:
                found.write(self.folder.path / "evaluations" / f"step-{at.step:08d}.jsonl")
            self.log.scores(at.step, found.scores, model=name)
            logged = found.scores
        self.scores[name] = logged
        return logged

    def _logged(self, name: str, step: int, *, exactly: bool = False) -> dict[str, float] | None:
        """Scores that the log has already, the newest up to `step`; the same on every rank."""
        found = None
        if self.engine.is_first:
            for line in self.folder.metrics():
                if line["kind"] == "eval" and line["model"] == name and line["step"] <= step:
                    found = line
            if found is not None and exactly and found["step"] != step:
                found = None
        found = self.engine.agree(found)
        drop = ("kind", "step", "model")
        return found and {key: value for key, value in found.items() if key not in drop}

    def _with_best(self, progress: Progress) -> Progress:
        """The best scoring that the log knows of, as an interrupted one came after its save."""
        best: tuple[float, int] | None = None
        for line in self.folder.metrics() if self.engine.is_first else ():
            if line["kind"] == "eval" and line["model"] == "adapted":
                value = _value(line, self.parts.task.best)
                if best is None or value > best[0]:
                    best = value, line["step"]
        best = self.engine.agree(best)
        return progress if best is None else replace(progress, best=best[0], best_step=best[1])

    # A jump of the loss.

    def _losses(self) -> list[float]:
        lines = self.folder.metrics() if self.engine.is_first else ()
        found = [line["loss"] for line in lines if line["kind"] == "train"]
        return self.engine.agree([loss for loss in found if loss is not None])

    def _go_back(self, spike: SpikeFound) -> None:
        """To a checkpoint of before; the batches from there to the jump are left out."""
        options = self.config.train
        assert options.spike is not None
        self.slowly(f"going back from step {spike.step}")
        path = None
        first = max(1, spike.step - options.spike.back + 1)
        if self.engine.is_first:
            if len(self.folder.spikes) >= options.skip_limit:
                raise RunFailed.of(
                    f"step {spike.step}",
                    f"the loss has jumped {options.skip_limit + 1} times (to {spike.loss:.4g})",
                    "lower optim.learning_rate or optim.gradient_clip; spikes.json lists the steps",
                )
            path, _ = self.store.newest_whole(at_most=first - 1)
        path = self.engine.agree(path)
        if path is None:
            raise RunFailed.of(
                str(self.store.folder), "no whole checkpoint to go back to", "check the disk"
            )
        progress = checkpoint.read_progress(path)
        if self.engine.is_first:
            self.store.remove_after(progress.step)
            self.folder.forget_after(progress.step)
            self.folder.note_spike(
                {
                    "step": spike.step,
                    "loss": spike.loss,
                    "score": spike.score,
                    "examples": spike.examples,
                    "back_to": progress.step,
                    "left_out": list(range(first, spike.step + 1)),
                }
            )
        self.log.say(
            f"step {spike.step:>5}  the loss jumped to {spike.loss:.4g}, {spike.score:.1f} spreads "
            f"above the others; back to step {progress.step}, without steps {first} to {spike.step}"
        )
        checkpoint.restore_learnt(path, self.engine)
        restore_moments(path, self.engine, self.parts, self.loader)
        self.progress = self._with_best(progress)

    # The export.

    def _export(self) -> None:
        kind = self.parts.strategy.exports
        card = model_card(
            self.config,
            self.plan,
            kind=kind,
            head=self.parts.task.head,
            labels=self.examples.facts.get("labels"),
            scores=self.scores,
            versions=self.folder.versions,
        )
        best = self._best_checkpoint()
        export(
            self.engine,
            self.folder.export,
            processor=self.examples.processor,
            kind=kind,
            dtype=self.plan.layout.dtype,
            card=card,
            learnt=Stored(best) if best else None,
            pause=self.pause,
        )

    def _best_checkpoint(self) -> Path | None:
        """What is exported instead of the present weights; its scores become the run's."""
        at = self.progress
        if self.config.train.export == "last" or at.best_step in (None, at.step):
            return None
        assert at.best_step is not None
        path = self.store.path_of(at.best_step)
        fault = self.engine.agree(self.store.fault(path) if self.engine.is_first else None)
        if fault is not None:
            raise RunFailed.of(str(path), fault, "set train.export to last, and resume")
        return path

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
        return RunLog(self.folder, self.process.terminal, self.plan.steps, self.plan.learning_rate)

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
        size = checkpoint_bytes(self.plan.parameters)
        return Deadline.of(self.config.train, checkpoint_bytes=size)

    @cached_property
    def collate(self) -> Collate:
        return partial(self.parts.task.collate, padding=self.examples.processor.pad_token_id)

    @cached_property
    def loader(self) -> Loader:
        return Loader(
            data=self.examples.train,
            collate=self.collate,
            seed=self.config.train.seed,
            global_batch=self.config.train.global_batch,
            micro_batch=self.plan.layout.micro_batch,
            rank=self.engine.rank,
            ranks=self.engine.ranks,
        )

    @property
    def held_out(self) -> EncodedData:
        assert self.examples.held_out is not None
        return self.examples.held_out


def _value(scores: dict[str, float], best: str) -> float:
    """The score that tells which model is best, so that more is better."""
    return -scores[best[1:]] if best.startswith("-") else scores[best]


def _base_can_be_scored(parts: Parts, examples: Examples) -> bool:
    """Before the first step the model is the unadapted base, unless weights or head are new."""
    if parts.strategy.starts_from == "random":
        return False
    labels = examples.facts.get("labels")
    known = [str(name) for _, name in sorted((examples.settings.id2label or {}).items())]
    return labels is None or known == labels
