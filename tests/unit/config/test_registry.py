"""The plugin registry: one plugin for each file of a folder."""

import pytest

from dtl.config import registry
from dtl.config.schema.base import Record
from dtl.core.errors import DtlError


def test_the_files_of_a_folder_are_its_plugins():
    assert {"causal_lm", "text_classification"} <= set(registry.list_names("tasks"))
    assert {"full", "lora", "frozen", "scratch"} <= set(registry.list_names("strategies"))
    assert not [name for name in registry.list_names("tasks") if name.startswith("_")]


@pytest.mark.parametrize("folder", registry.FOLDERS)
def test_the_base_module_of_a_folder_is_not_a_plugin(folder):
    assert (registry.PACKAGE / folder / "base.py").is_file()
    assert "base" not in registry.list_names(folder)


def test_options_are_a_record():
    assert issubclass(registry.load_options("strategies", "lora"), Record)


def test_an_unknown_name_gets_a_hint_and_the_list():
    with pytest.raises(DtlError) as caught:
        registry.load("strategies", "lorra")
    message = str(caught.value)
    assert message.startswith("strategy: no strategy is named 'lorra'. Fix: did you mean 'lora'?")
    assert f"choose one of: {', '.join(registry.list_names('strategies'))})" in message


def test_the_summary_is_the_first_line_of_the_docstring():
    module = registry.load("strategies", "lora")
    assert registry.read_summary("strategies", "lora") == module.__doc__.splitlines()[0]
