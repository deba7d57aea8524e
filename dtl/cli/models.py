"""The commands for trained models: evaluate, predict, export, push."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from dtl.cli.arguments import Overrides, located_faults
from dtl.cli.output import print_table
from dtl.core.errors import DtlError

Model = Annotated[
    Path, typer.Argument(metavar="RUN|EXPORT", help="a finished run, or an exported model")
]


def evaluate(
    path: Annotated[
        Path, typer.Argument(metavar="RUN|CONFIG", help="a finished run, or a config for its base")
    ],
    overrides: Overrides = None,
    data: Annotated[
        str | None, typer.Option(help="rows to score on, as data.eval; optional for a config")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="folder to write to; default: RUN, if it is one")
    ] = None,
) -> None:
    """Score the export of a run on other data, or the unadapted base of a config."""
    from dtl import api

    is_config = api.is_config(path)
    with located_faults(path, overrides or ()) if is_config else nullcontext():
        scores = api.evaluate(path, data, overrides or (), out=out)
    print_table([(name, f"{value:.6g}") for name, value in scores.items()])


def predict(
    path: Model,
    inputs: Annotated[
        list[str],
        typer.Argument(metavar="INPUT...", help="texts, files of rows or lines, audio, images"),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="file to write, JSON lines or x.csv; default: the terminal"),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="rows in one forward pass")] = 16,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="longest generated text, in tokens")
    ] = None,
    truncate_prompts: Annotated[
        bool,
        typer.Option(
            "--truncate-prompts",
            help="cut the beginning of prompts that are longer than task.max_length",
        ),
    ] = False,
) -> None:
    """Print the model's prediction for each text, audio file, image or row, as JSON lines."""
    import json

    from dtl import api
    from dtl.core.csv_files import write_csv_rows
    from dtl.core.files import open_atomic

    predictions = api.predict(
        path,
        inputs,
        batch=batch,
        max_new_tokens=max_new_tokens,
        truncate_prompts=truncate_prompts,
    )
    rows = _report_missing(predictions)
    if out is not None and not out.parent.is_dir():
        raise DtlError.of("--out", f"there is no folder {out.parent}", "create it, or use another")
    if out is not None and out.suffix.lower() == ".csv":
        write_csv_rows(out, rows)
        return
    lines = (json.dumps(row, ensure_ascii=False, default=str) for row in rows)
    if out is None:
        for line in lines:
            print(line)
        return
    with open_atomic(out, sync=False) as file:
        file.writelines(f"{line}\n" for line in lines)


def _report_missing(predictions: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Pass predictions on; after the last, print how many there are without one, with a cut input
    or with a chat of which the template renders only a part."""
    missing = cut = dropped = total = 0
    for row in predictions:
        total += 1
        missing += "reason" in row and row.get("predicted") is None
        cut += "truncated_tokens" in row
        dropped += "dropped" in row
        yield row
    if missing:
        typer.echo(f"{missing} of {total} inputs have no prediction; see their reason", err=True)
    if cut:
        typer.echo(f"{cut} of {total} inputs were cut; see their truncated_tokens", err=True)
    if dropped:
        typer.echo(
            f"{dropped} of {total} inputs have something that the chat template does not render; "
            "see their dropped",
            err=True,
        )


def export(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="a finished run, or one with a checkpoint")
    ],
    merge: Annotated[bool, typer.Option("--merge", help="merge the adapter into its base")] = False,
    dtype: Annotated[
        Literal["fp32", "bf16", "fp16"] | None,
        typer.Option(help="number format; default: fp32 of an adapter, else the base's"),
    ] = None,
    shard_size: Annotated[str, typer.Option(help="largest size of one weight file")] = "5GB",
    to: Annotated[
        Path | None, typer.Option(help="folder to create; default: in RUN, as export-merged")
    ] = None,
    quantize: Annotated[
        Literal["int8", "nf4"] | None,
        typer.Option(help="linear layers in 8 or 4 bits, by bitsandbytes"),
    ] = None,
    form: Annotated[
        Literal["safetensors", "onnx", "gguf"],
        typer.Option("--format", help="onnx and gguf merge an adapter first"),
    ] = "safetensors",
    converter: Annotated[
        Path | None, typer.Option(help="llama.cpp's convert_hf_to_gguf.py, for gguf")
    ] = None,
) -> None:
    """Write the trained model in another format, and compare it with the trained model."""
    from dtl import api

    options: dict[str, Any] = {
        "merge": merge,
        "dtype": dtype,
        "shard_size": shard_size,
        "target": to,
        "quantize": quantize,
        "format": form,
        "converter": converter,
    }
    api.export(run, **options)


def push(
    path: Model,
    repository: Annotated[str, typer.Argument(metavar="REPO", help="as name, or owner/name")],
    private: Annotated[
        bool, typer.Option("--private", help="visible only to you and your organization")
    ] = False,
    revision: Annotated[str | None, typer.Option(help="branch to upload to; default: main")] = None,
) -> None:
    """Upload an export to the Hugging Face hub, with the token of `hf auth login` or HF_TOKEN."""
    from dtl import api

    print(api.push(path, repository, private=private, revision=revision))
