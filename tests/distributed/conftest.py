"""One bed for all distributed tests: every layout is run in one launch for each number of ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests import tiny
from tests.distributed import launching
from tests.distributed.matrix import (
    ACCUMULATION,
    ADAPTER_EXPORTS,
    ADAPTER_RUNS,
    ADAPTER_STEPS,
    ADAPTERS,
    BATCH,
    BATCHING_LAYOUTS,
    BATCHINGS,
    CLIP,
    CONTINUED_STAGES,
    EXPORT_PLACES,
    EXPORTED,
    FEATURE_STEPS,
    FEATURES,
    FORMER,
    HELD_OUT,
    JUMP,
    JUMP_BACK,
    KEPT,
    LOFTQ_LAYOUTS,
    LORA,
    MOVES,
    OPTIMIZERS,
    PARITY,
    PARTS,
    PARTS_LAYOUTS,
    PHASED_STAGES,
    PHASES,
    QUANTIZED_LAYOUTS,
    QUANTIZED_STEPS,
    RATE,
    STAGES,
    STEPS,
    STRATEGIES,
    TEXT_HELD_OUT,
    TEXT_LAYOUTS,
    TEXT_RUNS,
    TEXT_STEPS,
    TEXT_STRATEGIES,
    TOKEN_STEPS,
    UPDATED,
)

CHECKPOINTING = "layout.activation_checkpointing=true"
CONFIG = f"""
model: {{path: base, dtype: fp32}}
task: {{name: causal_lm, max_length: 64}}
data: {{train: train.jsonl}}
strategy: full
optim: {{learning_rate: {RATE}, warmup: 0, gradient_clip: {CLIP}}}
train: {{steps: {STEPS}, global_batch: {BATCH}}}
"""
LABELLED = f"""
model: {{path: encoder, dtype: fp32}}
task: text_classification
data: {{train: labelled.jsonl, eval: held_out.jsonl}}
strategy: frozen
optim: {{learning_rate: {RATE}}}
train: {{steps: 3, global_batch: {BATCH}, evaluation_batch: 4}}
"""
TAGS = f"""
model: {{path: tagger, dtype: fp32}}
task: {{name: token_classification, max_length: 48}}
data: {{train: tagged.jsonl, eval: tagged_held_out.jsonl}}
strategy: full
optim: {{learning_rate: {RATE}, warmup: 0}}
train: {{steps: {TEXT_STEPS}, global_batch: {BATCH}, evaluation_batch: 2}}
"""
SUMMARY = f"""
model: {{path: summariser, dtype: fp32}}
task: {{name: seq2seq, prefix: "shorten: ", generate_length: 16}}
data: {{train: summaries.jsonl, eval: summaries_held_out.jsonl}}
strategy: full
optim: {{learning_rate: {RATE}, warmup: 0}}
train: {{steps: {TEXT_STEPS}, global_batch: {BATCH}, evaluation_batch: 2}}
"""
PAIRS = f"""
model: {{path: base, dtype: fp32}}
task: {{name: dpo, beta: 0.5, max_length: 64}}
data: {{train: pairs.jsonl, eval: pairs_held_out.jsonl}}
strategy: lora
optim: {{learning_rate: {RATE}, warmup: 0, gradient_clip: null}}
train: {{steps: {TEXT_STEPS}, global_batch: {BATCH}, evaluation_batch: 2}}
"""


@pytest.fixture(scope="session")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the data, and a run folder for each case."""
    folder = tmp_path_factory.mktemp("distributed")
    tiny.decoder(folder / "base")
    tiny.encoder(folder / "encoder")
    tiny.write_texts(folder / "train.jsonl", 53)
    tiny.write_texts(folder / "eval.jsonl", HELD_OUT, seed=2)
    numbers = [{"text": " ".join(str(row * 7919 + n) for n in range(6))} for row in range(41)]
    tiny.write_rows(folder / "numbers.jsonl", numbers)
    texts = (folder / "train.jsonl").read_text().splitlines(keepends=True)
    gaps = [line for text in texts[:30] for line in ('{"text": ""}\n' * (len(text) % 2), text)]
    (folder / "gaps.jsonl").write_text("".join(gaps))
    tiny.write_labelled(folder / "labelled.jsonl", 53)
    tiny.write_labelled(folder / "held_out.jsonl", HELD_OUT, seed=2)
    (folder / "config.yaml").write_text(CONFIG)
    (folder / "labelled.yaml").write_text(LABELLED)
    _lay_out_text_tasks(folder)
    alone = [_job(1, *case) for case in _cases()] + _labelled(1) + _parts(1) + _scored(1)
    alone += _text_tasks(1) + _adapters(1) + _quantized(1) + _updated(1) + _batchings(1)
    alone += _from_features(1)
    alone += _streamed(1)
    launching.run_jobs(1, alone + _interrupted(1), cwd=folder)
    pair = [_job(2, *case) for case in _cases()] + _labelled(2) + _parts(2) + _scored(2)
    pair += _text_tasks(2) + _updated(2)
    pair += (
        _phased()
        + _exported()
        + _moved_to(2)
        + _stayed()
        + _poisoned()
        + _varied()
        + _jumped()
        + _stopped()
    )
    pair += _adapters(2) + _quantized(2) + _batchings(2) + _batched_and_resumed()
    pair += _from_features(2) + _features_interrupted()
    pair += _streamed(2)
    launching.run_jobs(2, pair + _interrupted(2), cwd=folder)
    launching.run_jobs(3, _scored(3) + _moved_to(3) + _interrupted(3), cwd=folder)
    launching.run_jobs(1, _moved_to(1), cwd=folder)
    return folder


def _cases() -> list[tuple[str, int, int]]:
    return [(name, zero, turns) for name in STRATEGIES for zero in STAGES for turns in ACCUMULATION]


def _job(ranks: int, strategy: str, zero: int, turns: int) -> dict[str, Any]:
    overrides = [
        f"strategy={strategy}",
        *STRATEGIES[strategy],
        f"layout.zero={zero}",
        f"layout.micro_batch={-(-BATCH // ranks // turns)}",
        f"run.name={strategy}-{ranks}-{zero}-{turns}",
    ]
    return {"config": "config.yaml", "overrides": overrides, "bare": True}


def _adapters(ranks: int) -> list[dict[str, Any]]:
    """PEFT's methods, as far as each goes with ZeRO."""
    jobs = []
    for name, many, zero in ADAPTER_RUNS:
        if many != ranks:
            continue
        run = f"{name}-{ranks}-{zero}"
        steps = STEPS if name in PARITY else ADAPTER_STEPS
        more = [f"layout.zero={zero}", f"run.name={run}", f"train.steps={steps}"]
        exports = run in ADAPTER_EXPORTS
        overrides = [*ADAPTERS[name], *more, *["data.eval=eval.jsonl"] * exports]
        jobs.append({"config": "config.yaml", "overrides": overrides, "bare": not exports})
    if ranks == 2:  # over an adapter that is worked into the base, or further with it
        for zero in CONTINUED_STAGES:
            further = ["strategy=lora", f"strategy.continue_from={FORMER}"]
            more = [f"layout.zero={zero}", f"run.name=continued-{zero}"]
            more += [f"train.steps={ADAPTER_STEPS}"]
            jobs.append({"config": "config.yaml", "overrides": [*further, *more], "bare": True})
        below = "model.adapters=[runs/vera-2-3/export]"
        for zero in (0, 3):
            more = [below, f"layout.zero={zero}", f"run.name=stacked-{zero}"]
            more += [f"train.steps={ADAPTER_STEPS}"]
            jobs.append({"config": "config.yaml", "overrides": [*LORA, *more], "bare": True})
        half = ["layout.zero=2", "model.dtype=bf16", "run.name=vera-half"]
        half += [f"train.steps={ADAPTER_STEPS}"]
        overrides = [*ADAPTERS["vera"], *half]
        jobs.append({"config": "config.yaml", "overrides": overrides, "bare": True})
    return jobs


def _updated(ranks: int) -> list[dict[str, Any]]:
    """Other optimizers, rates and pulls."""
    return [
        {
            "config": "config.yaml",
            "overrides": [
                "strategy=full",
                *OPTIMIZERS[name],
                f"layout.zero={zero}",
                "layout.micro_batch=3",
                f"run.name=updated-{name}-{many}-{zero}",
            ],
            "bare": True,
        }
        for name, layouts in UPDATED.items()
        for many, zero in layouts
        if many == ranks
    ]


def _batchings(ranks: int) -> list[dict[str, Any]]:
    """Global batches of tokens, and of examples of like length."""
    return [
        _batched(name, zero, micro, f"run.name=batches-{name}-{ranks}-{zero}-{micro}")
        | {"bare": True}
        for name in BATCHINGS
        for many, zero, micro in BATCHING_LAYOUTS
        if many == ranks
    ]


def _batched_and_resumed() -> list[dict[str, Any]]:
    """Stopped in the second epoch and resumed, beside one that nothing disturbed."""
    stayed = _batched("both", 2, 1, "run.name=stayed-batches")
    whole = _batched("both", 2, 1, "run.name=whole-batches")
    return [{**stayed, "stop_after": TOKEN_STEPS - 2}, stayed, whole]


def _batched(name: str, zero: int, micro: int, *more: str) -> dict[str, Any]:
    layout = [f"layout.zero={zero}", f"layout.micro_batch={micro}"]
    overrides = [f"train.steps={TOKEN_STEPS}", *BATCHINGS[name], *layout, *more]
    return {"config": "config.yaml", "overrides": overrides}


def _streamed(ranks: int) -> list[dict[str, Any]]:
    """Rows that are read in their step; of gaps.jsonl some are no examples, and that run is stopped
    on one rank and goes on on two."""
    moved = _streamed_job("gaps.jsonl", 2 if ranks == 2 else 0, "run.name=streamed-moved")
    if ranks == 2:
        layouts = [
            _streamed_job("train.jsonl", zero, f"run.name=streamed-{zero}") for zero in (0, 3)
        ]
        return [moved, *({**job, "bare": True} for job in layouts)]
    whole = _streamed_job("gaps.jsonl", 0, "run.name=streamed-gaps")
    return [{**whole, "bare": True}, {**moved, "stop_after": STEPS // 2}]


def _streamed_job(rows: str, zero: int, *more: str) -> dict[str, Any]:
    source = f"data.train={{path: {rows}, streaming: true}}"
    overrides = [source, f"layout.zero={zero}", "layout.micro_batch=2", *more]
    return {"config": "config.yaml", "overrides": overrides}


def _labelled(ranks: int) -> list[dict[str, Any]]:
    """A head that the base does not bring, at each stage."""
    return [
        {
            "config": "labelled.yaml",
            "overrides": [f"layout.zero={zero}", f"run.name=head-{ranks}-{zero}"],
            "bare": True,
        }
        for zero in STAGES
    ]


def _parts(ranks: int) -> list[dict[str, Any]]:
    """Some of the base's own parameters learn; at stage 3 also with recomputed activations."""
    layouts = [
        (str(zero), [f"layout.zero={zero}"]) for many, zero in PARTS_LAYOUTS if many == ranks
    ]
    if ranks == 2:
        layouts.append(("recomputed", ["layout.zero=3", CHECKPOINTING]))
    return [
        {
            "config": config,
            "overrides": [f"strategy={name}", *more, f"run.name={name}-{ranks}-{layout}"],
            "bare": True,
        }
        for name, config in PARTS.items()
        for layout, more in layouts
    ]


def _scored(ranks: int) -> list[dict[str, Any]]:
    """Scores of the unadapted base, which no training has touched."""
    overrides = ["data.eval=eval.jsonl", "train.steps=1", "train.evaluation_batch=4"]
    overrides += [f"run.name=scored-{ranks}", "layout.zero=0"]
    return [{"config": "config.yaml", "overrides": overrides, "bare": True}]


def _interrupted(ranks: int) -> list[dict[str, Any]]:
    """On so many processes, stopped half-way."""
    return [
        {
            "config": "config.yaml",
            "overrides": _moved(strategy, zero, start=ranks, now=zero, micro_batch=3),
            "stop_after": STEPS // 2,
        }
        for strategy in STRATEGIES
        for zero in STAGES
    ]


def _moved_to(ranks: int) -> list[dict[str, Any]]:
    """The same runs go on with another number of processes, at another stage."""
    start = next(before for before, after in MOVES if after == ranks)
    return [
        {
            "config": "config.yaml",
            "overrides": _moved(strategy, zero, start=start, now=(zero + 2) % 4, micro_batch=2),
        }
        for strategy in STRATEGIES
        for zero in STAGES
    ]


def _moved(strategy: str, zero: int, *, start: int, now: int, micro_batch: int) -> list[str]:
    return [
        f"strategy={strategy}",
        *STRATEGIES[strategy],
        f"layout.zero={now}",
        f"layout.micro_batch={micro_batch}",
        f"run.name=moved-{start}-{strategy}-{zero}",
    ]


def _stayed() -> list[dict[str, Any]]:
    """Stopped half-way and resumed as they were, beside runs that nothing disturbed."""
    stayed = []
    for zero in STAGES:
        job = _job(2, "lora", zero, 2)
        overrides = [*job["overrides"], f"run.name=stayed-{zero}"]
        once = {"config": "config.yaml", "overrides": overrides}
        stayed += [{**once, "stop_after": STEPS // 2}, once]
        whole = {"config": "config.yaml", "overrides": [*overrides, f"run.name=whole-{zero}"]}
        stayed.append(whole)
    for kind, more in KEPT.items():
        for name, stops in (("stayed", ({"stop_after": STEPS // 2}, {})), ("whole", ({},))):
            overrides = ["strategy=full", *more, f"run.name={name}-{kind}"]
            stayed += [{"config": "config.yaml", "overrides": overrides, **stop} for stop in stops]
    return stayed


def _phased() -> list[dict[str, Any]]:
    """One strategy after another; undisturbed, and stopped within the last phase and resumed."""
    jobs = []
    for name, phases in PHASES.items():
        of_each = {"lora": ", rank: 4, alpha: 8", "partial": ", top: 1"}
        listed = [f"{{name: {s}, length: {n}{of_each.get(s, '')}}}" for s, n in phases]
        for zero in PHASED_STAGES:
            overrides = [
                f"strategy=[{', '.join(listed)}]",
                f"layout.zero={zero}",
                "layout.micro_batch=3",
                "train.keep=1",
            ]
            for kind, stops in (("whole", ({},)), ("stayed", ({"stop_after": STEPS - 3}, {}))):
                named = [*overrides, f"run.name={kind}-{name}-{zero}"]
                jobs += [{"config": "config.yaml", "overrides": named, **stop} for stop in stops]
    return jobs


def _quantized(ranks: int) -> list[dict[str, Any]]:
    """An adapter on a base in 4 bits, and in 8."""

    def job(kind: str, zero: int, name: str = "", **more: Any) -> dict[str, Any]:
        overrides = ["strategy=lora", *STRATEGIES["lora"], f"train.steps={QUANTIZED_STEPS}"]
        overrides += [f"model.quantize={kind}", f"layout.zero={zero}"]
        overrides += ["layout.micro_batch=3", f"run.name={kind}{name}-{ranks}-{zero}"]
        return {"config": "config.yaml", "overrides": overrides, **more}

    whole = QUANTIZED_LAYOUTS[-1]
    jobs = [
        job("nf4", zero, bare=(many, zero) != whole)
        for many, zero in QUANTIZED_LAYOUTS
        if many == ranks
    ]
    for many, zero in LOFTQ_LAYOUTS:
        if many == ranks:
            loftq = job("nf4", zero, "-loftq", bare=True)
            jobs.append({**loftq, "overrides": [*loftq["overrides"], "strategy.init=loftq"]})
    if ranks == 1:
        return [*jobs, job("int8", 0, bare=True)]
    stopped = job("nf4", whole[1], "-stayed", stop_after=QUANTIZED_STEPS // 2)
    return [*jobs, stopped, job("nf4", whole[1], "-stayed"), job("int8", 2, bare=True)]


def _jumped() -> list[dict[str, Any]]:
    """The loss jumps in one step, beside runs that left out those batches from the beginning."""
    left_out = list(range(JUMP - JUMP_BACK + 1, JUMP + 1))
    jobs = []
    for zero in STAGES:
        overrides = [
            "strategy=full",
            f"layout.zero={zero}",
            f"train.steps={JUMP + 10}",
            "train.save_every=4",
            f"train.spike={{score: 20, window: 30, back: {JUMP_BACK}}}",
        ]
        for name, more in (("jumped", {"jump": JUMP}), ("spared", {"left_out": left_out})):
            named = [*overrides, f"run.name={name}-{zero}"]
            jobs.append({"config": "config.yaml", "overrides": named, **more})
    return jobs


def _stopped() -> list[dict[str, Any]]:
    """Stopped within a scoring and within the export, resumed; beside one that nothing disturbed.
    What is learnt makes the held-out text less likely, so the best step is not the last one."""
    overrides = [
        *("strategy=lora", "strategy.rank=4", "layout.zero=2", "optim.learning_rate=0.3"),
        *(
            "data.eval=numbers.jsonl",
            "train.steps=8",
            "train.evaluate_every=2",
            "train.export=best",
        ),
        *("train.evaluation_batch=16", "train.keep=1"),
    ]

    def job(name: str, **more: Any) -> dict[str, Any]:
        return {
            "config": "config.yaml",
            "overrides": [*overrides, f"run.name=stop-{name}"],
            **more,
        }

    return [
        job("nowhere"),
        job("unadapted", stop_at="evaluation, batch 2"),
        job("unadapted"),
        job("evaluation", stop_after=4),
        job("evaluation", stop_at="evaluation, batch 2"),
        job("evaluation"),
        *(job("export", stop_at=place) for place in EXPORT_PLACES),
        job("export"),
    ]


def _varied() -> list[dict[str, Any]]:
    """Half precision, recomputed activations, and the optimizer in main memory."""
    cases = [
        *((f"half-{zero}", "lora", [f"layout.zero={zero}", "model.dtype=bf16"]) for zero in STAGES),
        *(
            (f"recomputed-{zero}", "lora", [f"layout.zero={zero}", CHECKPOINTING])
            for zero in STAGES
        ),
        ("offloaded", "full", ["layout.zero=2", "layout.offload=optimizer"]),
    ]
    return [
        {
            "config": "config.yaml",
            "overrides": [
                f"strategy={strategy}",
                *STRATEGIES[strategy],
                *more,
                f"run.name=varied-{name}",
            ],
            "bare": True,
        }
        for name, strategy, more in cases
    ]


def _poisoned() -> list[dict[str, Any]]:
    """Two steps whose loss is NaN on one rank only."""
    return [
        {
            "config": "config.yaml",
            "overrides": ["strategy=full", f"layout.zero={zero}", f"run.name=poison-{zero}"],
            "bare": True,
            "poison": [4, 5],
        }
        for zero in STAGES
    ]


def _exported() -> list[dict[str, Any]]:
    """Runs that save and export under ZeRO-3."""
    return [
        {
            "config": config,
            "overrides": [*more, "layout.zero=3", "train.steps=3", f"run.name=export-{name}"],
        }
        for name, (config, more) in EXPORTED.items()
    ]


def _from_features(ranks: int) -> list[dict[str, Any]]:
    """With features that each layout makes for itself, and on one rank without."""
    jobs = [
        _featured(
            name,
            zero,
            True,
            f"run.name=features-{name}-{many}-{zero}",
            f"train.evaluation_batch={2 + many + zero}",
        )
        | {"bare": True}
        for name in FEATURES
        for many, zero in TEXT_LAYOUTS
        if many == ranks
    ]
    if ranks == 1:
        jobs += [
            _featured(name, 0, False, f"run.name=features-{name}-none") | {"bare": True}
            for name in FEATURES
        ]
    return jobs


def _features_interrupted() -> list[dict[str, Any]]:
    """Stopped while features are made, and in the second epoch, and resumed; beside one that
    nothing disturbed."""
    stayed = _featured("tags", 2, True, "run.name=features-stayed", "train.evaluation_batch=9")
    whole = _featured("tags", 2, True, "run.name=features-whole", "train.evaluation_batch=9")
    return [
        {**stayed, "stop_at": "features, batch 2"},
        {**stayed, "stop_after": FEATURE_STEPS - 2},
        stayed,
        whole,
    ]


def _featured(name: str, zero: int, cached: bool, *more: str) -> dict[str, Any]:
    """The size of an evaluation's batch is also that in which features are made: other ones are
    made anew."""
    strategy = f"strategy={{name: frozen, cache_features: {str(cached).lower()}}}"
    layout = [f"layout.zero={zero}", "layout.micro_batch=3"]
    overrides = [strategy, *layout, f"train.steps={FEATURE_STEPS}", *more]
    return {"config": FEATURES[name], "overrides": overrides}


def _lay_out_text_tasks(folder: Path) -> None:
    """Data of other kinds, and bases that have learnt a little of it."""
    (folder / "tags.yaml").write_text(TAGS)
    (folder / "summary.yaml").write_text(SUMMARY)
    (folder / "pairs.yaml").write_text(PAIRS)
    tiny.write_rows(folder / "pairs.jsonl", tiny.pairs(53, seed=1))
    tiny.write_rows(folder / "pairs_held_out.jsonl", tiny.pairs(TEXT_HELD_OUT, seed=2))
    tagged, summaries = tiny.tagged(53, seed=1), tiny.shortened(53, seed=1)
    for name, rows in {"tagged": tagged, "summaries": summaries}.items():
        tiny.write_rows(folder / f"{name}.jsonl", rows)
        # Six of these the base has seen, so that it is partly right.
        tiny.write_rows(folder / f"{name}_held_out.jsonl", rows[:TEXT_HELD_OUT])
    tiny.encoder(folder / "untaught-tagger")
    tiny.teach_tags(folder / "untaught-tagger", tagged[:6], folder / "tagger")
    tiny.t5(folder / "untaught-summariser")
    tiny.teach_summaries(folder / "untaught-summariser", summaries[:6], folder / "summariser")


def _text_tasks(ranks: int) -> list[dict[str, Any]]:
    jobs = [
        _text_task(
            task, strategy, f"layout.zero={zero}", f"run.name={task}-{strategy}-{many}-{zero}"
        )
        | {"bare": (many, zero) != TEXT_LAYOUTS[-1]}
        for task, strategy in TEXT_RUNS
        for many, zero in TEXT_LAYOUTS
        if many == ranks
    ]
    # An adapter and a whole head beside it, in half precision.
    half = ["layout.zero=3", "model.dtype=bf16", "run.name=tags-half"]
    return jobs + [_text_task("tags", "lora", *half) | {"bare": True}] * (ranks == 2)


def _text_task(task: str, strategy: str, *more: str) -> dict[str, Any]:
    overrides = [f"strategy={strategy}", *TEXT_STRATEGIES[strategy], *more]
    return {"config": f"{task}.yaml", "overrides": overrides}
