"""One file is one plugin, and every shipped config is read."""

import ast
from pathlib import Path

import pytest

from dtl.config import registry
from dtl.config.load import load_config
from dtl.config.recipes import list_recipes
from dtl.config.schema.base import Record

PACKAGE = Path(registry.__file__).parents[1]
PLUGINS = [(folder, name) for folder in registry.FOLDERS for name in registry.list_names(folder)]
RECIPES = list_recipes()


@pytest.mark.parametrize(("folder", "name"), PLUGINS, ids=lambda part: part)
def test_a_file_is_one_plugin(folder, name):
    tree = ast.parse((PACKAGE / folder / f"{name}.py").read_text(encoding="utf-8"))
    classes = [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
    assert classes.count("Plugin") == 1
    assert classes.count("Options") == 1


@pytest.mark.parametrize(("folder", "name"), PLUGINS, ids=lambda part: part)
def test_a_plugin_says_what_it_is(folder, name):
    assert registry.read_summary(folder, name).endswith(".")


@pytest.mark.parametrize(("folder", "name"), PLUGINS, ids=lambda part: part)
def test_options_are_described(folder, name):
    options = registry.load_options(folder, name)
    assert issubclass(options, Record)
    assert all(field.description for field in options.model_fields.values())


def test_there_are_recipes():
    assert RECIPES


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_every_recipe_loads(recipe):
    assert load_config(recipe.path).run.name
    assert recipe.summary
