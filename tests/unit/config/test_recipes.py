"""Recipes are found, described and copied."""

import pytest

from dtl.config.recipes import copy_recipe, list_recipes
from dtl.core.errors import DtlError


def test_the_quickstart_is_a_recipe():
    by_name = {recipe.name: recipe for recipe in list_recipes()}
    assert by_name["quickstart/text"].summary.endswith(".")


def test_copy_into_a_folder(tmp_path):
    copied = copy_recipe("quickstart/text", to=tmp_path)
    assert copied == tmp_path / "text.yaml"
    original = next(recipe for recipe in list_recipes() if recipe.name == "quickstart/text")
    assert copied.read_bytes() == original.path.read_bytes()


def test_a_file_that_is_there_stays(tmp_path):
    (tmp_path / "mine.yaml").write_text("mine")
    with pytest.raises(DtlError, match="the file exists already"):
        copy_recipe("quickstart/text", to=tmp_path / "mine.yaml")
    assert (tmp_path / "mine.yaml").read_text() == "mine"


def test_an_unknown_recipe_gets_a_hint(tmp_path):
    with pytest.raises(DtlError, match=r"did you mean 'quickstart/text'\?"):
        copy_recipe("quickstart/txt", to=tmp_path)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(DtlError, match="create the folder first"):
        copy_recipe("quickstart/text", to=tmp_path / "absent" / "mine.yaml")
