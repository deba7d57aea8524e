"""Fixtures of the row formats."""

import pytest


@pytest.fixture(autouse=True)
def _temporary_folder(tmp_path, monkeypatch):
    """Tests run in their own folder, so that paths are written as users write them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DTL_CACHE", str(tmp_path / "cache"))
