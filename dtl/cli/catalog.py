"""The commands that list what a config may contain: list, schema, recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dtl.cli.output import print_json, print_table
from dtl.core.errors import DtlError, near

recipes_app = typer.Typer(help="Configs that run without changes.", no_args_is_help=True)


def list_plugins(
    kind: Annotated[
        str | None, typer.Argument(metavar="[tasks|strategies|backends]", help="default: all")
    ] = None,
) -> None:
    """List the names that a config may contain: tasks, strategies and backends."""
    from dtl.config import registry

    if kind is not None and kind not in registry.FOLDERS:
        choices = f"choose one of: {', '.join(registry.FOLDERS)}"
        fix = near(kind, registry.FOLDERS) or choices
        raise DtlError.of("command line", f"there is nothing called '{kind}' to list", fix)
    for folder in registry.FOLDERS if kind is None else (kind,):
        if kind is None:
            print(f"{folder}:")
        rows = [(name, registry.read_summary(folder, name)) for name in registry.list_names(folder)]
        print_table(rows, indent="  " if kind is None else "")


def schema() -> None:
    """Print the JSON schema of a config, for editors that complete YAML."""
    import gc

    gc.disable()  # the imports of all plugins create little garbage; to look for it takes longer
    from dtl.config.json_schema import build_json_schema

    print_json(build_json_schema())


@recipes_app.command("list")
def list_all_recipes() -> None:
    """List the recipes, with what each of them trains."""
    from dtl.config.recipes import list_recipes

    print_table([(recipe.name, recipe.summary) for recipe in list_recipes()])


@recipes_app.command("copy")
def copy(
    name: Annotated[str, typer.Argument(metavar="NAME", help="as `dtl recipes list` shows it")],
    to: Annotated[Path, typer.Argument(metavar="[TO]", help="file or folder")] = Path(),
) -> None:
    """Copy a recipe, to change it and train with it."""
    from dtl.config.recipes import copy_recipe

    path = copy_recipe(name, to=to)
    print(f"copied to {path}; train with: dtl train {path}")
