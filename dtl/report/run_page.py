"""What the page of one run says."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import yaml

from dtl.config import registry
from dtl.core.lock import is_held
from dtl.core.units import format_bytes, format_count, format_seconds
from dtl.evaluation.groups import groups_in
from dtl.export.evidence import Evidence, evidence_of
from dtl.plan.memory import checkpoint_bytes
from dtl.plan.records import Plan
from dtl.report.charts import Axis, Bars, Groups, Level, Line, Mark, Matrix, Plot, smoothed
from dtl.report.page import Block, Charts, Code, Examples, Page, Section, Table, Text, Tile
from dtl.report.worst_examples import LARGEST_MEDIA, worst_of
from dtl.run.folder import RunFolder, Scored
from dtl.tasks.base import Classification, EvalRecord, Task
from dtl.train.usage import launches

LABELS_SHOWN = 20  # of a confusion matrix
GROUPS_SHOWN = 40
LISTED = 30  # skipped rows and confusions
SMOOTH_FROM = 100  # steps; a shorter curve is drawn as it is
STEPS = Axis("step")


@dataclass(frozen=True)
class Story:
    """All that a run folder tells, read once."""

    folder: RunFolder
    task: Task
    lines: tuple[dict[str, Any], ...]

    @classmethod
    def of(cls, folder: RunFolder) -> Story:
        options = folder.config.task
        task = registry.load("tasks", options.name).Plugin(options.options)
        return cls(folder, task, tuple(folder.metrics()))

    def kind(self, kind: str) -> list[dict[str, Any]]:
        """The lines of the log of one kind."""
        return [line for line in self.lines if line["kind"] == kind]

    @cached_property
    def steps(self) -> list[dict[str, Any]]:
        return self.kind("train")

    @cached_property
    def plan(self) -> Plan:
        return self.folder.plan

    @cached_property
    def scored(self) -> Scored | None:
        return self.folder.scored

    @cached_property
    def outcomes(self) -> list[EvalRecord]:
        """Under the weights whose scores are the run's."""
        at = self.scored
        return [] if at is None else self.folder.outcomes(at.step, of=at.of)

    @cached_property
    def scores(self) -> dict[str, dict[str, float]]:
        """By model, as the result has them, or the newest ones."""
        if self.folder.state == "finished":
            return dict(self.folder.result["scores"])
        return {line["model"]: _values(line) for line in self.kind("eval")}

    @cached_property
    def evidence(self) -> Evidence:
        at = self.scored or Scored(0, "unadapted")
        return evidence_of(self.folder, self.task, self.folder.facts, step=at.step, weights=at.of)

    @property
    def best(self) -> str:
        """The name of the score that tells which model is best."""
        return self.task.best.removeprefix("-")

    @property
    def last_step(self) -> int:
        return self.steps[-1]["step"] if self.steps else 0


def page_of(folder: RunFolder) -> Page:
    """The page of a run, whether it is finished, running or stopped."""
    story, config = Story.of(folder), folder.config
    strategy = ", then ".join(phase.name for phase in config.phases)
    sections = (
        Section("Scores", tuple(_scores(story))),
        Section("Learning", tuple(_curves(story))),
        *_optional("Confusion", _confusion(story)),
        *_optional(f"By {config.task.group_by}", _groups(story)),
        *_optional("Worst examples", _worst(story)),
        Section("Plan and actual", tuple(_plan(story))),
        Section("What happened", tuple(_events(story))),
        Section("Config and versions", tuple(_config(story))),
    )
    return Page(
        title=str(config.run.name),
        state=_state(folder),
        about=f"{config.task.name} · {strategy} · base {config.model.path} · "
        f"learnt from {config.data.train.path}",
        tiles=tuple(_tiles(story)),
        sections=sections,
        made=f"dtl report, {time.strftime('%Y-%m-%d %H:%M:%S %z')}, from {folder.path}",
    )


def _optional(title: str, blocks: list[Block]) -> list[Section]:
    return [Section(title, tuple(blocks))] if blocks else []


def _state(folder: RunFolder) -> str:
    if folder.state == "finished":
        return "finished"
    return "running" if is_held(folder.path) else "stopped early"


def _values(line: dict[str, Any]) -> dict[str, float]:
    return {key: value for key, value in line.items() if key not in ("kind", "step", "model")}


def _tiles(story: Story) -> list[Tile]:
    tiles = []
    scores, best = story.scores, story.best
    shown = [model for model in scores if model != "unadapted"] or list(scores)
    if shown:
        model = shown[-1] if story.folder.state != "finished" else "adapted"
        note = [f"{low:.4g} to {high:.4g}" for low, high in _interval(story, model)]
        if "unadapted" in scores and model != "unadapted":
            note.append(f"unadapted {scores['unadapted'][best]:.4g}")
        tiles.append(Tile(f"{best} ({model})", f"{scores[model][best]:.4g}", "; ".join(note)))
    tiles.append(Tile("steps", f"{story.last_step:,}", f"of {story.plan.steps:,}"))
    if story.steps:
        loss = next((line["loss"] for line in reversed(story.steps) if line["loss"]), None)
        tiles.append(Tile("training loss", Axis("").text(loss), "at the last step"))
        tiles.append(Tile("peak memory", format_bytes(_peak(story)), f"of {_whose_memory(story)}"))
    if story.evidence.usage is not None:
        seconds = story.evidence.usage.seconds
        tiles.append(
            Tile("time", format_seconds(seconds), ", ".join(story.evidence.usage.hardware))
        )
    counts = story.plan.parameters
    tiles.append(
        Tile(
            "learning parameters",
            format_count(counts.learning),
            f"{counts.learning / counts.total:.2%} of {format_count(counts.total)}",
        )
    )
    return tiles


def _interval(story: Story, model: str) -> list[tuple[float, float]]:
    """One or none."""
    found = story.evidence.intervals.get("unadapted" if model == "unadapted" else "adapted")
    return [] if found is None else [found]


def _peak(story: Story) -> int:
    return int(max(line["memory_bytes"] for line in story.steps))


def _whose_memory(story: Story) -> str:
    return "the first GPU" if story.plan.layout.device == "cuda" else "the first process"


def _scores(story: Story) -> list[Block]:
    if not story.scores:
        return [Text("Nothing has been scored: there is no held-out data, or not yet a scoring.")]
    blocks: list[Block] = []
    at = story.scored
    if at is not None:
        many = f"{len(story.outcomes):,} held-out examples" if story.outcomes else "held-out data"
        blocks.append(
            Text(
                f"Scored on {many} after step {at.step:,}; {_better(story)} {story.best} is better."
            )
        )
    if "unadapted" not in story.scores:
        blocks.append(Text("The untouched base was not scored: it has no head for this task."))
    blocks.append(_score_table(story))
    chart = _score_chart(story)
    return [*blocks, Charts((chart,))] if chart is not None else blocks


def _score_table(story: Story) -> Table:
    """A row a score, the one that tells which model is best first, with its interval."""
    known = dict.fromkeys(name for scores in story.scores.values() for name in scores)
    names = [story.best, *(name for name in known if "/" not in name and name != story.best)]
    rows = []
    for name in names:
        cells = [
            f"{scores[name]:.4g}" if name in scores else "-" for scores in story.scores.values()
        ]
        if name == story.best:
            intervals = (_interval(story, model) for model in story.scores)
            ends = (
                "".join(f" ({low:.4g} to {high:.4g})" for low, high in one) for one in intervals
            )
            cells = [cell + end for cell, end in zip(cells, ends, strict=True)]
        rows.append((name, *cells))
    caption = f"Held-out scores; of {story.best} with a 95 % interval (bootstrap over examples)"
    return Table(caption, ("score", *story.scores), tuple(rows))


def _better(story: Story) -> str:
    return "less" if story.task.best.startswith("-") else "more"


def _score_chart(story: Story) -> Plot | None:
    evaluated: dict[str, list[tuple[int, float]]] = {}
    for line in story.kind("eval"):
        if line["model"] != "unadapted":
            evaluated.setdefault(line["model"], []).append((line["step"], line[story.best]))
    if not evaluated:
        return None
    lines = tuple(
        Line(
            model,
            [step for step, _ in points],
            [value for _, value in points],
            style="linked points",
        )
        for model, points in evaluated.items()
    )
    base = story.scores.get("unadapted")
    first, last = (evaluated[next(iter(evaluated))][place] for place in (0, -1))
    told = f"From {first[1]:.4g} after step {first[0]:,} to {last[1]:.4g} after step {last[0]:,}"
    levels = () if base is None else (Level(base[story.best], "unadapted base"),)
    told += "." if base is None else f"; the unadapted base has {base[story.best]:.4g}."
    return Plot(
        "score",
        f"Held-out {story.best}",
        told,
        STEPS,
        Axis(story.best),
        lines,
        _marks(story),
        levels,
    )


def _curves(story: Story) -> list[Block]:
    if not story.steps:
        return [Text("No step has been taken yet.")]
    x = [line["step"] for line in story.steps]
    unit = "frames" if story.task.media_column == "audio" else story.task.length_unit
    charts = [
        _curve(story, "loss", "Training loss", "loss", Axis("loss")),
        _over_time(story),
        _rates(story, x),
        _curve(story, "gradient_norm", "Gradient norm, before clipping", "norm", Axis("norm")),
        _curve(
            story,
            "tokens_per_second",
            "Throughput",
            f"{unit} a second",
            Axis(f"{unit} a second", from_zero=True),
            key="throughput",
        ),
        _curve(
            story,
            "memory_bytes",
            f"Peak memory of {_whose_memory(story)}",
            "memory",
            Axis("memory", "bytes", from_zero=True),
            key="memory",
        ),
    ]
    return [Charts(tuple(charts))]


def _curve(
    story: Story, name: str, title: str, what: str, axis: Axis, *, key: str | None = None
) -> Plot:
    """One value of each step; of a long run with its mean over some steps before."""
    x = [line["step"] for line in story.steps]
    y = [line[name] for line in story.steps]
    lines: tuple[Line, ...] = (Line(what, x, y),)
    window = len(x) // 50
    if len(x) >= SMOOTH_FROM and axis.unit != "bytes":
        means = smoothed(y, window=window)
        lines = (
            Line(f"mean of {window} steps", x, means),
            Line("each step", x, y, style="faint"),
        )
    known = [(step, value) for step, value in zip(x, y, strict=True) if value is not None]
    told = "No step has one."
    if known:
        (first, start), (last, end) = known[0], known[-1]
        told = (
            f"{axis.text(start)} at step {first:,}, {axis.text(end)} at step {last:,}; "
            f"lowest {axis.text(min(v for _, v in known))}, "
            f"highest {axis.text(max(v for _, v in known))}."
        )
    return Plot(key or name, title, told, STEPS, axis, lines, _marks(story))


def _over_time(story: Story) -> Plot:
    """Each step's seconds added up: without what lies between the steps."""
    seconds, total = [], 0.0
    for line in story.steps:
        total += line["seconds"]
        seconds.append(total)
    losses = [line["loss"] for line in story.steps]
    window = max(1, len(losses) // 50)
    return Plot(
        "loss_over_time",
        "Training loss over time",
        f"{format_seconds(total)} in {len(seconds):,} steps, "
        f"{format_seconds(total / len(seconds))} a step; not loading, scoring and saving.",
        Axis("time in steps", "seconds", from_zero=True),
        Axis("loss"),
        (Line("loss", seconds, smoothed(losses, window=window)),),
    )


def _rates(story: Story, x: list[int]) -> Plot:
    names = {"learning_rate": "learning rate", "head_learning_rate": "of the head"}
    lines = tuple(
        Line(words, x, [line.get(name) for line in story.steps])
        for name, words in names.items()
        if name in story.steps[0]
    )
    highest = max(line["learning_rate"] for line in story.steps)
    told = f"At most {highest:.3g}, {story.folder.config.optim.schedule}."
    axis = Axis("learning rate", from_zero=True)
    return Plot("learning_rate", "Learning rate", told, STEPS, axis, lines, _marks(story))


def _marks(story: Story) -> tuple[Mark, ...]:
    """Where phases begin, steps were skipped, and spikes were left out."""
    steps = {line["step"] for line in story.steps}
    phases = [
        Mark(phase.before, f"phase {number}: {phase.strategy}")
        for number, phase in enumerate(story.plan.phases[1:], start=2)
        if phase.before in steps
    ]
    spikes = [
        Mark(spike["step"], f"spike at step {spike['step']}")
        for spike in story.folder.spikes
        if spike["step"] in steps
    ]
    skips = [
        Mark(line["step"], f"step {line['step']} was skipped")
        for line in story.kind("skip")[:LISTED]
    ]
    return (*phases, *spikes, *skips)


def _confusion(story: Story) -> list[Block]:
    if not isinstance(story.task, Classification) or not story.outcomes:
        return []
    labels = story.folder.facts["labels"]
    found = Counter((one["label"], one["predicted"]) for one in story.outcomes)
    wrong = Counter({pair: n for pair, n in found.items() if pair[0] != pair[1]})
    shown = list(range(len(labels)))
    note: list[Block] = []
    if len(labels) > LABELS_SHOWN:
        weight: Counter[int] = Counter()
        for (actual, guess), count in wrong.items():
            weight[actual] += count
            weight[guess] += count
        order = sorted(shown, key=lambda label: (-weight[label], label))
        shown = sorted(order[:LABELS_SHOWN])
        note = [Text(f"The {LABELS_SHOWN} of {len(labels)} labels that are confused most.")]
    right = sum(count for (actual, guess), count in found.items() if actual == guess)
    matrix = Matrix(
        "confusion",
        "Label (row) and what it was held to be (column)",
        f"{right:,} of {len(story.outcomes):,} are right; a cell is as strong as its share of "
        "the row.",
        tuple(labels[label] for label in shown),
        [[found[actual, guess] for guess in shown] for actual in shown],
    )
    rows = tuple(
        (labels[actual], labels[guess], f"{count:,}")
        for (actual, guess), count in wrong.most_common(LISTED)
    )
    common = Table("Commonest confusions", ("label", "held to be", "examples"), rows, folded=True)
    return [*note, Charts((matrix,)), *([common] if rows else [])]


def _groups(story: Story) -> list[Block]:
    column = story.folder.config.task.group_by
    if column is None:
        return []
    of_model = {model: groups_in(scores, column) for model, scores in story.scores.items()}
    of_model = {model: groups for model, groups in of_model.items() if groups}
    if not of_model:
        return []
    last = list(of_model)[-1]
    less = story.task.best.startswith("-")
    worst = sorted(of_model[last], key=lambda one: one.value, reverse=less)[:GROUPS_SHOWN]
    names = [one.group for one in worst]
    bars = []
    for model, groups in of_model.items():
        by_name = {one.group: one for one in groups}
        chosen = [by_name[name] for name in names if name in by_name]
        if len(chosen) == len(names):
            values, low, high = (
                [getattr(one, key) for one in chosen] for key in ("value", "low", "high")
            )
            bars.append(Bars(model, values, low, high))
    scores = story.scores[last]
    told = (
        f"Worst {scores[f'group/{column}/worst']:.4g} ({names[0]}), mean over groups "
        f"{scores[f'group/{column}/macro']:.4g} ({last}); the lines are 95 % intervals."
    )
    chart = Groups(
        "groups",
        f"Held-out {story.best} by {column}, the worst first",
        told,
        Axis(story.best),
        tuple(names),
        tuple(one.examples for one in worst),
        tuple(bars),
    )
    return [Charts((chart,))]


def _worst(story: Story) -> list[Block]:
    if not story.outcomes or "loss" not in story.outcomes[0]:
        return []
    found = worst_of(story.folder, story.task, story.outcomes)
    limit = format_bytes(LARGEST_MEDIA)
    words = "The held-out examples with the highest loss a target (nats)."
    if story.task.media_column is not None:
        words += f" Sounds and pictures are in the page where they take no more than {limit}."
    blocks: list[Block] = [Text(words)]
    if found.unread is not None:
        blocks.append(Text(f"What they are cannot be shown: {found.unread}"))
    return [*blocks, Examples(found.examples)]


def _plan(story: Story) -> list[Block]:
    plan, saves = story.plan, story.kind("save")
    counts = plan.parameters
    state = ", ".join(f"{name} {format_bytes(size)}" for name, size in plan.model_state.items())
    rows = [("steps", f"{plan.steps:,}", f"{story.last_step:,}")]
    if story.steps:
        rows.append(
            (
                "memory",
                f"model state a rank: {format_bytes(plan.model_state_bytes)} ({state})",
                f"peak of {_whose_memory(story)}, with activations and libraries: "
                f"{format_bytes(_peak(story))}",
            )
        )
    if saves:
        rows.append(
            (
                "a checkpoint",
                format_bytes(checkpoint_bytes(counts)),
                format_bytes(saves[-1]["bytes"]),
            )
        )
    rows.append(("time", story.folder.config.train.wall_time or "no limit", _time(story)))
    usage = story.evidence.usage
    if usage is not None:
        rows.append(("hardware", _wanted(plan), ", ".join(usage.hardware)))
        energy = "not counted" if usage.energy is None else f"{usage.energy / 3.6e6:.3g} kWh"
        rows.append(("energy of the GPUs", "-", energy))
    choices = tuple((one.key, one.value, one.reason) for one in plan.choices)
    return [
        Table("", ("", "planned", "actual"), tuple(rows)),
        Table("What the plan chose, and why", ("key", "value", "reason"), choices, folded=True),
    ]


def _wanted(plan: Plan) -> str:
    layout = plan.layout
    return f"{layout.ranks} x {layout.device}, ZeRO {layout.zero}, {layout.dtype}"


def _time(story: Story) -> str:
    steps = sum(line["seconds"] for line in story.steps)
    saves = sum(line["seconds"] for line in story.kind("save"))
    told = f"{format_seconds(steps)} in steps, {format_seconds(saves)} in saves"
    usage = story.evidence.usage
    return told if usage is None else f"{format_seconds(usage.seconds)} in all; {told}"


def _events(story: Story) -> list[Block]:
    folder = story.folder
    blocks: list[Block] = []
    launched = launches(folder.usage)
    rows = tuple(
        (
            time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(note["began"])),
            format_seconds(note["seconds"]),
            ", ".join(f"{n} x {name}" for name, n in note["devices"].items()),
        )
        for note in launched
    )
    words = f"Launches: {len(launched)}." if launched else "No launch has come as far as a save."
    blocks.append(Text(words))
    if rows:
        blocks.append(Table("Launches, each up to its last save", ("began", "took", "on"), rows))
    if len(story.plan.phases) > 1:
        phases = tuple(
            (
                f"{number}",
                phase.strategy,
                f"{phase.before + 1:,} to {phase.last:,}",
                f"{phase.learning_rate:g}",
                format_count(phase.parameters.learning),
            )
            for number, phase in enumerate(story.plan.phases, start=1)
        )
        head = ("phase", "strategy", "steps", "highest learning rate", "learning parameters")
        blocks.append(Table("Phases", head, phases))
    spikes = tuple(
        tuple(str(spike.get(name, "-")) for name in ("step", "back_to", "loss"))
        for spike in folder.spikes
    )
    if spikes:
        blocks.append(
            Table("Spikes whose batch is left out", ("step", "went back to", "loss"), spikes)
        )
    skips = tuple((f"{line['step']:,}", str(line["reason"])) for line in story.kind("skip"))
    if skips:
        blocks.append(Table("Steps that were not taken", ("step", "why"), skips[:LISTED]))
    saves = story.kind("save")
    if saves:
        took = format_seconds(sum(line["seconds"] for line in saves) / len(saves))
        blocks.append(Text(f"Checkpoints written: {len(saves):,}, {took} each on average."))
    return [*blocks, *_skipped(folder)]


def _skipped(folder: RunFolder) -> list[Block]:
    rows = list(folder.skipped_rows())
    if not rows:
        return [Text("No row was left out.")]
    shown = tuple((row["source"], row["place"], row["reason"]) for row in rows[:LISTED])
    caption = f"Rows that were left out: {len(rows):,}" + (
        f"; the first {LISTED}, all are in skipped_rows.jsonl" if len(rows) > LISTED else ""
    )
    return [Table(caption, ("source", "row", "why"), shown)]


def _config(story: Story) -> list[Block]:
    folder = story.folder
    text = yaml.safe_dump(folder.config.model_dump(mode="json"), sort_keys=False)
    versions = tuple((name, str(number)) for name, number in folder.versions.items() if number)
    data = tuple(
        (place, f"{source['rows']:,}", source["sha256"])
        for place, source in folder.data.get("sources", {}).items()
    )
    return [
        Text(
            f"Git commit {folder.commit or 'unknown'}; base {folder.data.get('base', 'unknown')}."
        ),
        Code("The whole config", text),
        Table("Versions", ("package", "version"), versions, folded=True),
        Table("Data", ("source", "rows", "SHA-256"), data, folded=True),
    ]
