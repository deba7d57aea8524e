"""The `dtl` command. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from dtl import __version__
from dtl.core.errors import DtlError, near
from dtl.core.signals import STOPPED, ignore_signals

app = typer.Typer(
    help="Adapt a pretrained model to a new task, on this machine or on many.",
    epilog="Begin with: dtl recipes list, dtl recipes copy quickstart/text, dtl train text.yaml",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
recipes_app = typer.Typer(help="Configs that run as they stand.", no_args_is_help=True)
app.add_typer(recipes_app, name="recipes")

Config = Annotated[
    Path, typer.Argument(metavar="CONFIG", help="the YAML file that says what to do")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="changes to the config, as train.steps=100"),
]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    0 done, 1 the run failed, 2 the user's fault, 75 stopped early but resumable, 130 interrupted.
    """
    _leave_out_what_libraries_say_to_each_other()
    code = _run(arguments)
    if code == STOPPED:
        ignore_signals()
    return code


def _leave_out_what_libraries_say_to_each_other() -> None:
    """PEFT asks transformers under old names, and imports bitsandbytes, which then tells of kernels
    that nothing but 4 bits on a CPU would use."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|peft")


def _run(arguments: Sequence[str] | None) -> int:
    try:
        app(args=arguments, prog_name="dtl")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except DtlError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Show the version and stop.")] = False,
) -> None:
    if version:
        print(f"dtl {__version__}")
        raise typer.Exit


@app.command()
def train(config: Config, overrides: Overrides = None) -> None:
    """Check the config, plan, launch on this machine, train, evaluate and export."""
    from dtl import api

    loaded = api.load_config(config, overrides or ())
    with _places_of(config, overrides or ()):
        outcome = api.train(loaded, fork=True)
    raise typer.Exit(outcome.exit_code)


@app.command()
def launch(
    config: Config,
    overrides: Overrides = None,
    node_rank: Annotated[
        int, typer.Option(min=0, help="which of the machines this is, from 0")
    ] = 0,
    master: Annotated[
        str, typer.Option(metavar="HOST[:PORT]", help="the first machine, as the others reach it")
    ] = "",
) -> None:
    """Start this machine's part of a run over layout.nodes machines; give it on each of them."""
    from dtl import api
    from dtl.launch.torchrun import parse_rendezvous

    loaded = api.load_config(config, overrides or ())
    rendezvous = parse_rendezvous(node_rank, loaded.layout.nodes, master)
    with _places_of(config, overrides or ()):
        outcome = api.launch(config, overrides or (), rendezvous=rendezvous)
    raise typer.Exit(outcome.exit_code)


@app.command()
def resume(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="the run folder, as runs/text")],
    overrides: Overrides = None,
    allow_change: Annotated[
        str, typer.Option(metavar="KEYS", help="keys that may change the result, with commas")
    ] = "",
    here: Annotated[
        bool, typer.Option("--here", help="go on with a submitted run on this machine")
    ] = False,
    nodes: Annotated[int | None, typer.Option(min=1, help="of a submitted run: machines")] = None,
    time: Annotated[str | None, typer.Option(help="of a submitted run: limit, as 4h")] = None,
) -> None:
    """Continue an interrupted run from its newest checkpoint, on another layout if you like.

    A submitted run goes into its queue again."""
    from dtl import api

    allowed = [key for key in allow_change.split(",") if key]
    outcome = api.resume(
        run,
        overrides or (),
        allow_change=allowed,
        here=here,
        nodes=nodes,
        time=time,
        fork=True,
    )
    raise typer.Exit(outcome.exit_code)


@app.command()
def submit(
    config: Config,
    cluster: Annotated[str, typer.Option(metavar="SITE", help="a site's name, or its YAML file")],
    overrides: Overrides = None,
    nodes: Annotated[int | None, typer.Option(min=1, help="machines")] = None,
    gpus_per_node: Annotated[
        int | None, typer.Option(min=0, help="GPUs, and processes, of each; 0: on CPUs")
    ] = None,
    time: Annotated[str | None, typer.Option(help="limit of one job, as 4:00:00 or 4h")] = None,
    chain: Annotated[
        int, typer.Option(min=1, help="jobs that follow one another until the run is done")
    ] = 1,
    after: Annotated[
        str | None, typer.Option(metavar="JOB", help="id of a job that must have succeeded before")
    ] = None,
    account: Annotated[str | None, typer.Option(help="project that pays")] = None,
    partition: Annotated[str | None, typer.Option(help="queue")] = None,
    grid: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE,VALUE", help="a run for each value; may be repeated"),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the job script, and do no more.")
    ] = False,
) -> None:
    """Check, plan, and put the run into the queue of a Slurm cluster."""
    from dtl import api

    with _places_of(config, overrides or ()):
        api.submit(
            config,
            overrides or (),
            cluster=cluster,
            nodes=nodes,
            gpus_per_node=gpus_per_node,
            time=time,
            chain=chain,
            after=after,
            account=account,
            partition=partition,
            grid=tuple(grid or ()),
            dry_run=dry_run,
            say=partial(print, end="") if dry_run else print,
        )


@app.command()
def status(
    run: Annotated[
        Path | None, typer.Argument(metavar="[RUN]", help="a run, or a grid; left out: all runs")
    ] = None,
    folder: Annotated[Path, typer.Option("--dir", help="folder in which runs are")] = Path("runs"),
) -> None:
    """Say where runs are: in the queue, at which step, with which loss, how long they will take."""
    from dtl.cluster.status import HEADINGS, query_runs

    rows = [HEADINGS, *(status.row() for status in query_runs(run or folder))]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    for row in rows:
        print(
            "  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip()
        )


@app.command()
def logs(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="the run folder")],
    rank: Annotated[
        int | None, typer.Option(min=0, help="what this process's libraries said")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="until the run ends")] = False,
) -> None:
    """Print what a run has said."""
    from dtl.cluster.run_log import iter_log_lines

    for line in iter_log_lines(run, rank=rank, follow=follow):
        print(line, end="", flush=True)


@app.command()
def cancel(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="a run, or a grid of runs")],
) -> None:
    """Have a run save and end, wherever it runs."""
    from dtl import api

    api.cancel(run)


@app.command()
def evaluate(
    path: Annotated[
        Path, typer.Argument(metavar="RUN|CONFIG", help="a finished run, or a config for its base")
    ],
    overrides: Overrides = None,
    data: Annotated[
        str | None,
        typer.Option(help="rows to score on, as data.eval; a config may leave it out"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="folder to write to; left out: RUN, if it is one")
    ] = None,
) -> None:
    """Score the export of a run on other data, or the unadapted base of a config."""
    from dtl import api

    of_config = api.is_config(path)
    with _places_of(path, overrides or ()) if of_config else nullcontext():
        scores = api.evaluate(path, data, overrides or (), out=out)
    _print_table([(name, f"{value:.6g}") for name, value in scores.items()], indent="")


@app.command()
def compare(
    path: Annotated[
        Path, typer.Argument(metavar="CONFIG|FOLDER", help="a config, or a comparison to continue")
    ],
    overrides: Overrides = None,
    strategies: Annotated[
        str | None, typer.Option(help="with commas, as scratch,frozen,lora,partial,full,lp-ft")
    ] = None,
    train_sizes: Annotated[
        str | None,
        typer.Option(help="labeled rows per class, or rows; with commas, as 5,20,100,all"),
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="runs per strategy and size")] = None,
    time_budget: Annotated[
        str | None, typer.Option(metavar="TIME", help="total time limit, as 45min or 2h")
    ] = None,
    ood_data: Annotated[
        str | None, typer.Option(metavar="DATA", help="out-of-distribution rows to score on")
    ] = None,
    source_data: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="rows that the base was trained for: forgetting"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="folder to write to; left out: comparisons/NAME")
    ] = None,
    cell: Annotated[int | None, typer.Option(min=1, help="run only this number of --list")] = None,
    only_list: Annotated[bool, typer.Option("--list", help="list the runs and run none")] = False,
    cluster: Annotated[
        str | None, typer.Option(metavar="SITE", help="submit all runs to a Slurm cluster")
    ] = None,
    time: Annotated[str | None, typer.Option(help="time limit per job, as 45min")] = None,
    account: Annotated[str | None, typer.Option(help="Slurm account")] = None,
    partition: Annotated[str | None, typer.Option(help="Slurm partition")] = None,
    job: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    """Compare transfer strategies with each other and with training from scratch."""
    from dtl.compare import terminal

    given = {
        "strategies": strategies and f"[{strategies}]",
        "train_sizes": train_sizes and f"[{train_sizes}]",
        "seeds": seeds,
        "time_budget": time_budget,
        "ood_data": ood_data,
        "source_data": source_data,
    }
    flags = [f"compare.{key}={value}" for key, value in given.items() if value is not None]
    is_partial = flags or overrides or only_list or cell or job
    comparison = terminal.load_if_finished(path) if not is_partial else None
    if comparison is None:
        from dtl.compare.cluster import QueueOptions
        from dtl.compare.start import StartOptions, start

        queue = None if cluster is None else QueueOptions(cluster, time, account, partition)

        options = StartOptions(out=out, cell=cell, only_list=only_list, queue=queue, job=job)
        changes = [*(overrides or ()), *flags]
        with _places_of(path, changes) if path.is_file() else nullcontext():
            comparison = start(path, changes, options)
    if comparison is not None:
        print("\n".join(terminal.format_comparison(comparison)))


@app.command()
def predict(
    path: Annotated[
        Path, typer.Argument(metavar="RUN|EXPORT", help="a finished run, or an export")
    ],
    inputs: Annotated[
        list[str],
        typer.Argument(metavar="INPUT...", help="texts, files of rows or lines, sounds, pictures"),
    ],
    out: Annotated[Path | None, typer.Option(help="file to write; left out: the terminal")] = None,
    batch: Annotated[int, typer.Option(min=1, help="rows at a time")] = 16,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="longest generated text, in tokens")
    ] = None,
) -> None:
    """Say of each text, sound, picture or row what the model makes of it, as JSON lines."""
    import json

    from dtl import api

    found = api.predict(path, inputs, batch=batch, max_new_tokens=max_new_tokens)
    lines = (json.dumps(row, ensure_ascii=False, default=str) for row in found)
    if out is None:
        for line in lines:
            print(line)
        return
    if not out.parent.is_dir():
        raise DtlError.of("--out", f"there is no folder {out.parent}", "make it, or name another")
    staged = out.with_name(f".{out.name}.part")
    try:
        with staged.open("w", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines)
        staged.replace(out)
    finally:
        staged.unlink(missing_ok=True)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="a finished run, or one with a save")],
    merge: Annotated[
        bool, typer.Option("--merge", help="the adapter merged into its base")
    ] = False,
    dtype: Annotated[
        Literal["fp32", "bf16", "fp16"] | None,
        typer.Option(help="number format; left out: fp32 of an adapter, else the base's"),
    ] = None,
    shard_size: Annotated[str, typer.Option(help="of one weight file, at most")] = "5GB",
    to: Annotated[
        Path | None, typer.Option(help="folder to make; left out: in RUN, as export-merged")
    ] = None,
    quantize: Annotated[
        Literal["int8", "nf4"] | None,
        typer.Option(help="linear layers in 8 or 4 bits, by bitsandbytes"),
    ] = None,
    form: Annotated[
        Literal["safetensors", "onnx", "gguf"],
        typer.Option("--format", help="the last two merge an adapter first"),
    ] = "safetensors",
    converter: Annotated[
        Path | None, typer.Option(help="llama.cpp's convert_hf_to_gguf.py, for gguf")
    ] = None,
) -> None:
    """Write what a run has learnt in another form, and hold it to the trained model."""
    from dtl import api

    api.export(
        run,
        merge=merge,
        dtype=dtype,
        shard_size=shard_size,
        to=to,
        quantize=quantize,
        form=form,
        converter=converter,
    )


@app.command()
def push(
    path: Annotated[
        Path, typer.Argument(metavar="RUN|EXPORT", help="a finished run, or an export")
    ],
    repository: Annotated[str, typer.Argument(metavar="REPO", help="as name, or owner/name")],
    private: Annotated[
        bool, typer.Option("--private", help="only you and your organisation see it")
    ] = False,
    revision: Annotated[
        str | None, typer.Option(help="branch to upload to; left out: main")
    ] = None,
) -> None:
    """Upload an export to the Hugging Face hub, with the token of `hf auth login` or HF_TOKEN."""
    from dtl import api

    print(api.push(path, repository, private=private, revision=revision))


@app.command()
def audit(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="the run folder")],
    other: Annotated[
        Path | None, typer.Argument(metavar="[OTHER]", help="a run to compare it with")
    ] = None,
) -> None:
    """Prove from the log that each example was read exactly once an epoch, in the planned order."""
    from dtl.api import load_run
    from dtl.inspect.audit import audit_run as hold_to_order
    from dtl.inspect.audit import find_data_difference

    runs = [load_run(path) for path in (run, other) if path is not None]
    found = [hold_to_order(folder) for folder in runs]
    for folder, result in zip(runs, found, strict=True):
        print(result.line(str(folder.path)))
    differs = find_data_difference(*runs) if len(runs) == 2 else None
    if len(runs) == 2:
        print(differs or "both read the same examples in the same order")
    raise typer.Exit(1 if differs or any(result.fault for result in found) else 0)


@app.command()
def report(
    path: Annotated[
        Path, typer.Argument(metavar="RUN|COMPARISON", help="its folder, finished or not")
    ],
    png: Annotated[
        bool | None,
        typer.Option("--png/--no-png", help="charts as PNG too; left out: if matplotlib is here"),
    ] = None,
) -> None:
    """Write report.html: scores, curves, worst examples; or what a comparison has found."""
    from dtl.report.write import write

    written = write(path, png=png)
    print(f"{written.page}\ncharts: {written.charts}")
    if png is None and not written.drawn:
        print("no PNG: matplotlib is not installed; pip install 'dtl[report]'")


@app.command()
def diff(
    first: Annotated[Path, typer.Argument(metavar="RUN_A", help="a run folder")],
    second: Annotated[Path, typer.Argument(metavar="RUN_B", help="another one")],
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Show what differs between two runs; as diff does, end with 0 if nothing does, else with 1."""
    from dtl.api import load_run
    from dtl.inspect.diff import diff_runs, diff_to_dict, format_diff_table

    found = diff_runs(load_run(first), load_run(second))
    if as_json:
        _print_json(diff_to_dict(found))
    elif found:
        print("\n".join(format_diff_table(found, (str(first), str(second)))))
    else:
        print("nothing differs")
    raise typer.Exit(1 if found else 0)


@app.command()
def track(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="a run folder, finished or not")],
    to: Annotated[
        Literal["tensorboard", "wandb", "mlflow", "trackio"] | None,
        typer.Option(help="tracker; left out: those of the run's config, or tensorboard"),
    ] = None,
) -> None:
    """Send what a run has written to metrics.jsonl to a tracker, as a new run there."""
    from dtl.api import load_run
    from dtl.jobs.track import send_to_trackers as send

    folder = load_run(run)
    names = [to] if to is not None else folder.config.tracking or ["tensorboard"]
    for name in send(folder, names):
        print(f"sent to {name}")


@app.command()
def plan(
    config: Config,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """Show what `dtl train` would launch, and why."""
    from dtl import api

    loaded = api.load_config(config, overrides or ())
    with _places_of(config, overrides or ()):
        planned = api.plan(loaded)
    if as_json:
        _print_json(planned.to_dict())
    else:
        print("\n".join(planned.format_lines()))


@app.command()
def check(
    config: Config,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Look through the data: what would waste a run, where it stands and how to fix it."""
    from dtl import api

    loaded = api.load_config(config, overrides or ())
    with _places_of(config, overrides or ()):
        report = api.check(loaded)
    if as_json:
        _print_json(report.to_dict())
    else:
        print("\n".join(report.format_lines(color=sys.stdout.isatty())))
    raise typer.Exit(report.exit_code)


@app.command("list")
def list_plugins(
    kind: Annotated[
        str | None, typer.Argument(metavar="[tasks|strategies|backends]", help="left out: all")
    ] = None,
) -> None:
    """List what a config may name: tasks, strategies and backends."""
    from dtl.config import registry

    if kind is not None and kind not in registry.FOLDERS:
        choose = f"choose one of: {', '.join(registry.FOLDERS)}"
        fix = near(kind, registry.FOLDERS) or choose
        raise DtlError.of("command line", f"there is nothing called '{kind}' to list", fix)
    for folder in registry.FOLDERS if kind is None else (kind,):
        if kind is None:
            print(f"{folder}:")
        indent = "  " if kind is None else ""
        rows = [(name, registry.read_summary(folder, name)) for name in registry.list_names(folder)]
        _print_table(rows, indent=indent)


@recipes_app.command("list")
def list_recipes() -> None:
    """List the recipes."""
    from dtl.config.recipes import list_recipes

    _print_table([(recipe.name, recipe.summary) for recipe in list_recipes()], indent="")


@recipes_app.command("copy")
def copy(
    name: Annotated[str, typer.Argument(metavar="NAME", help="as `dtl recipes list` shows it")],
    to: Annotated[Path, typer.Argument(metavar="[TO]", help="file or folder")] = Path(),
) -> None:
    """Copy a recipe, to change it and train with it."""
    from dtl.config.recipes import copy_recipe

    path = copy_recipe(name, to=to)
    print(f"copied to {path}; train with: dtl train {path}")


@app.command()
def schema() -> None:
    """Print the JSON schema of a config, for editors that complete YAML."""
    import gc

    gc.disable()  # all plugins are imported and little is thrown away: looking for it takes longer
    from dtl.config.json_schema import build_json_schema

    _print_json(build_json_schema())


@app.command()
def doctor(
    cluster: Annotated[
        bool, typer.Option("--cluster", help="draft a site file for this Slurm cluster instead")
    ] = False,
    partition: Annotated[
        str | None, typer.Option(help="with --cluster; left out: the default one")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="with --cluster: file to write; left out: the terminal")
    ] = None,
) -> None:
    """Say which versions and devices are here, what is missing and how to get it."""
    if cluster:
        _draft_site(partition, out)
        return
    for option, value in {"--partition": partition, "--out": out}.items():
        if value is not None:
            raise DtlError.of(option, "it goes with --cluster only", "add --cluster")
    from dtl.inspect.doctor import examine

    findings = list(examine())
    for finding in findings:
        print(finding)
    missing = sum(finding.state == "missing" for finding in findings)
    print(f"\n{missing} missing" if missing else "\nnothing is missing")
    raise typer.Exit(1 if missing else 0)


def _draft_site(partition: str | None, out: Path | None) -> None:
    from dtl.cluster.site_draft import draft_site_file

    text = draft_site_file(partition=partition)
    if out is None:
        print(text, end="")
        return
    try:
        with out.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise DtlError.of("--out", f"{out} is there already", "name another") from None
    except OSError as error:
        problem = f"{out} cannot be written ({error.strerror})"
        raise DtlError.of("--out", problem, "name another place") from None
    print(f"written to {out}; look through it before you use it")


@contextmanager
def _places_of(config: Path, overrides: Sequence[str]) -> Iterator[None]:
    """Faults that name a config key also say where in the file, or on the command line, it is."""
    from dtl.config.load import add_locations

    try:
        yield
    except DtlError as error:
        raise add_locations(error, config, overrides) from None


def _print_table(rows: Sequence[tuple[str, str]], *, indent: str) -> None:
    width = max((len(name) for name, _ in rows), default=0)
    for name, summary in rows:
        print(f"{indent}{name:<{width}}  {summary}".rstrip())


def _print_json(value: object) -> None:
    import json

    print(json.dumps(value, indent=2))
