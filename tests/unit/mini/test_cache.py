"""Generated data is written once and completely."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from dtl.mini import cache


def test_failed_generation_leaves_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("DTL_CACHE", str(tmp_path))

    def generate_invalid_row():
        return {"train": [{"text": "a"}], "heldout": [{"text": object()}]}

    with pytest.raises(TypeError):
        cache.ensure_generated("data", splits=("train", "heldout"), generate=generate_invalid_row)
    assert list((tmp_path / "mini").iterdir()) == []


def test_concurrent_generation_leaves_one_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("DTL_CACHE", str(tmp_path))

    def generate(_):
        return cache.ensure_generated(
            "data", splits=("train",), generate=lambda: {"train": [{"text": "a"}]}
        )

    with ThreadPoolExecutor(8) as pool:
        folders = set(pool.map(generate, range(8)))
    assert len(folders) == 1
    assert [path.name for path in (tmp_path / "mini").iterdir()] == [folders.pop().name]


def test_existing_folder_is_not_generated_again(monkeypatch, tmp_path):
    monkeypatch.setenv("DTL_CACHE", str(tmp_path))
    first = cache.ensure_generated(
        "data", splits=("train",), generate=lambda: {"train": [{"text": "a"}]}
    )
    second = cache.ensure_generated(
        "data", splits=("train",), generate=lambda: pytest.fail("generated again")
    )
    assert first == second
