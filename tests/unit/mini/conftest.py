"""Fixtures for generated text data."""

import os

import pytest

from dtl import mini
from dtl.mini import docstrings, prose

QUICK_DATA = ("graphs", "sentiment")


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    """The rows of the data that is quick to generate: {(name, split): rows}."""
    before = os.environ.get("DTL_CACHE")
    os.environ["DTL_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    try:
        yield {
            (name, split): mini.load_rows(name, split)
            for name in QUICK_DATA
            for split in mini.SPLITS[name]
        }
    finally:
        os.environ.pop("DTL_CACHE")
        if before is not None:
            os.environ["DTL_CACHE"] = before


@pytest.fixture
def small_source(monkeypatch):
    """The source from one package and the topics."""
    monkeypatch.setattr(prose, "PACKAGES", ("accelerate",))
    iterate_all = docstrings.iterate_docstrings

    def without_the_standard_library(folder, *, name, exclude=()):
        return iter(()) if name == "python" else iterate_all(folder, name=name, exclude=exclude)

    monkeypatch.setattr(docstrings, "iterate_docstrings", without_the_standard_library)
    return prose.generate()
