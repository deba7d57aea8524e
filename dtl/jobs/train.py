"""Train: load, apply the strategy, lay out, learn, score, export."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import IO, TYPE_CHECKING, Any

import torch

from dtl.assemble import Parts, assemble
from dtl.config.schema import RunConfig
from dtl.data.loader import Loader
from dtl.engine import DTYPES, Engine, EngineSettings, start
from dtl.errors import RunFailed
from dtl.examples import Examples
from dtl.models.load import initialise, load_pretrained
from dtl.plan import Plan
from dtl.run_folder import RunFolder
from dtl.train import checkpoint, optim
from dtl.train.card import model_card
from dtl.train.evaluate import Evaluation, evaluate
from dtl.train.export import export
from dtl.train.guards import Guard
from dtl.train.log import RunLog, told
from dtl.train.loop import End, Hooks, Limits, Progress, train

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn


@dataclass(frozen=True)
class Outcome:
    """How a run ended, the scores by model, and where the export is."""

    end: End
    progress: Progress
    scores: dict[str, dict[str, float]]


def start_engine(config: RunConfig, plan: Plan) -> Engine:
    """Join the other ranks of this plan."""
    layout = plan.layout
    return start(
        EngineSettings(
            device=layout.device,
            ranks=layout.ranks,
            dtype=layout.dtype,
            accumulation=layout.accumulation,
            gradient_clip=config.optim.gradient_clip,
            deepspeed=plan.deepspeed,
        )
    )


def run(
    folder: RunFolder,
    engine: Engine,
    examples: Examples,
    *,
    terminal: IO[str] | None,
    asked_to_stop: Callable[[], bool],
) -> Outcome:
    """The whole job on one rank. `terminal`: where rank 0 tells the user."""
    config, plan = folder.config, folder.plan
    parts = assemble(config)
    log = RunLog(folder, terminal, plan.steps, plan.learning_rate)
    saved = _find_checkpoint(folder, engine, log)
    model = _load(config, plan, parts, examples, engine)
    if saved is not None:
        checkpoint.restore_weights(saved, engine, model)
    if plan.layout.activation_checkpointing:
        model.gradient_checkpointing_enable(  # type: ignore[operator]
            gradient_checkpointing_kwargs={"use_reentrant": False}
        )
    parts.strategy.training_mode(model)
    optimizer = optim.make(
        model, config.optim, learning_rate=plan.learning_rate, device=plan.layout.device
    )
    engine.prepare(model, optimizer)
    collate = partial(parts.task.collate, padding=examples.processor.pad_token_id)
    loader = Loader(
        data=examples.train,
        collate=collate,
        seed=config.train.seed,
        global_batch=config.train.global_batch,
        micro_batch=plan.layout.micro_batch,
        rank=engine.rank,
        ranks=engine.ranks,
    )
    progress = Progress(digest=examples.train.key)
    if saved is not None:
        progress = checkpoint.read_progress(saved)
        _restore_moments(saved, engine, parts, loader)
    scores: dict[str, dict[str, float]] = _earlier_scores(folder) if saved else {}

    def score(at: Progress, name: str) -> Evaluation:
        assert examples.held_out is not None
        batch = config.train.evaluation_batch
        found = evaluate(
            engine,
            parts.task,
            examples.held_out,
            collate,
            examples.facts,
            batch=batch,
            processor=examples.processor,
        )
        scores[name] = found.scores
        log.scores(at.step, found.scores, model=name)
        if engine.is_first:
            found.write(folder.path / "evaluations" / f"step-{at.step:08d}.jsonl")
        return found

    scored = examples.held_out is not None
    if scored and saved is None and _base_can_be_scored(parts, examples):
        score(progress, "unadapted")
    log.begin()
    progress, end = train(
        engine,
        parts.task,
        parts.strategy,
        loader,
        log,
        progress=progress,
        limits=Limits(
            plan.steps, config.train.evaluate_every if scored else None, config.train.save_every
        ),
        hooks=Hooks(
            evaluate=lambda at: _ignore(score(at, "adapted")),
            save=lambda at: _ignore(
                checkpoint.save(engine, folder.checkpoints, at, keep=config.train.keep)
            ),
            asked_to_stop=asked_to_stop,
            guard=Guard(engine, log, skip_limit=config.train.skip_limit),
        ),
        optim=config.optim,
    )
    log.close()
    if end == "done":
        if scored:
            score(progress, "adapted")
        _export(folder, engine, parts, examples, scores)
        _close(folder, engine, log, progress, scores)
    return Outcome(end, progress, scores)


def _load(
    config: RunConfig, plan: Plan, parts: Parts, examples: Examples, engine: Engine
) -> nn.Module:
    """The model with the strategy applied; its new parameters are the same on every layout."""
    whole_in_fp32 = plan.layout.zero == 0 and plan.parameters.frozen == 0
    loaded = load_pretrained(
        config.model,
        head=parts.task.head,
        changes=parts.task.head_settings(examples.facts),
        random=parts.strategy.starts_from == "random",
        seed=config.train.seed,
        dtype="fp32" if whole_in_fp32 else plan.layout.dtype,
        loading=engine.loading,
    )
    initialise(loaded.model, loaded.new, seed=config.train.seed, fill=engine.fill)
    loaded.model.config.pad_token_id = examples.processor.pad_token_id  # type: ignore[union-attr]
    torch.manual_seed(config.train.seed)
    model = parts.strategy.apply(loaded.model, new=loaded.new)
    # At stage 0 the optimizer works on the weights themselves: they are fp32. ZeRO keeps fp32
    # copies and wants one dtype, also where PEFT puts an fp32 adapter beside a head in bf16.
    dtype = torch.float32 if plan.layout.zero == 0 else DTYPES[plan.layout.dtype]
    for parameter in model.parameters():
        if parameter.requires_grad and not hasattr(parameter, "ds_id"):  # those are so already
            parameter.data = parameter.data.to(dtype)
    return model


def _base_can_be_scored(parts: Parts, examples: Examples) -> bool:
    """Before the first step the model is the unadapted base, unless weights or head are new."""
    if parts.strategy.starts_from == "random":
        return False
    labels = examples.facts.get("labels")
    known = [str(name) for _, name in sorted((examples.settings.id2label or {}).items())]
    return labels is None or known == labels


def _find_checkpoint(folder: RunFolder, engine: Engine, log: RunLog) -> Any:
    """The newest whole checkpoint, the same on every rank; damaged ones are named and set aside."""
    found = None
    if engine.is_first and folder.checkpoints.exists():
        found, damaged = checkpoint.newest_whole(folder.checkpoints)
        for damage in damaged:
            log.say(f"set aside {damage.path}: {damage.reason}")
            damage.path.rename(damage.path.with_name(f"damaged-{damage.path.name}"))
        if found is None and damaged:
            lost = f"{len(damaged)} checkpoints, none whole"
            raise RunFailed.of(str(folder.checkpoints), lost, "start a new run under another name")
    found = engine.agree(found)
    if engine.is_first:
        folder.forget_after(checkpoint.read_progress(found).step if found else -1)
    if found is not None:
        log.say(f"resuming from {found}")
    return found


def _restore_moments(saved: Any, engine: Engine, parts: Parts, loader: Loader) -> None:
    """ZeRO makes its optimizer states in the first step: take one that changes nothing."""
    if engine.needs_priming:
        engine.set_learning_rate(0.0)
        batch = loader.window(1).batches[0]
        with engine.micro_batch(last=True):
            with engine.forward():
                loss = parts.task.loss(engine.model, engine.to_device(batch.tensors)) * 0.0
            engine.backward(loss, targets=1)
        engine.step()
    checkpoint.restore_moments(saved, engine)


def _earlier_scores(folder: RunFolder) -> dict[str, dict[str, float]]:
    """The unadapted base was scored before the interruption."""
    for line in folder.metrics():
        if line["kind"] == "eval" and line["model"] == "unadapted":
            drop = ("kind", "step", "model")
            return {"unadapted": {key: value for key, value in line.items() if key not in drop}}
    return {}


def _export(
    folder: RunFolder,
    engine: Engine,
    parts: Parts,
    examples: Examples,
    scores: dict[str, dict[str, float]],
) -> None:
    config, plan = folder.config, folder.plan
    card = model_card(
        config,
        plan,
        kind=parts.strategy.exports,
        head=parts.task.head,
        labels=examples.facts.get("labels"),
        scores=scores,
        versions=folder.versions,
    )
    export(
        engine,
        folder.export,
        processor=examples.processor,
        kind=parts.strategy.exports,
        dtype=plan.layout.dtype,
        card=card,
    )


def _close(
    folder: RunFolder,
    engine: Engine,
    log: RunLog,
    progress: Progress,
    scores: dict[str, dict[str, float]],
) -> None:
    if engine.is_first:
        folder.finish({"steps": progress.step, "scores": scores, "export": str(folder.export)})
    engine.wait()
    for name, found in scores.items():
        log.say(f"{name:>10}: {told(found)}")
    log.say(f"    export: {folder.export}")


def _ignore(_: object) -> None:
    return None
