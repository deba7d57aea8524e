"""Hub datasets: names, splits, class names and no network."""

from dtl.data.sources import hub
from tests import tiny_vision
from tests.unit.data.sources.source_files import ROWS, get_error, read_rows


def test_hub_dataset_is_loaded_by_name(monkeypatch):
    import datasets

    def load_dataset(path, name, split):
        assert (path, name, split) == ("owner/name", "en", "train")
        return datasets.Dataset.from_list(ROWS, split=datasets.Split.TRAIN)

    monkeypatch.setattr(hub, "hub_is_reachable", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    rows = read_rows("owner/name", name="en", split="train", limit=3)
    assert [row.fields for row in rows] == ROWS[:3]
    assert rows[0].location == "owner/name (train): row 1"


def test_hub_dataset_has_class_names_and_encoded_images(monkeypatch):
    import datasets
    from datasets import ClassLabel, Features, Image, List, Value

    names = ["cat", "dog"]
    features = Features(
        image=Image(),
        label=ClassLabel(names=names),
        tags=List(ClassLabel(names=names)),
        n=Value("int64"),
    )
    picture = tiny_vision.png(tiny_vision.pixels("red", seed=1))
    rows = [
        {"image": {"bytes": picture, "path": None}, "label": 1, "tags": [0, 1], "n": 1},
        {"image": {"bytes": picture, "path": None}, "label": None, "tags": None, "n": 1},
    ]
    table = datasets.Dataset.from_list(rows, features=features, split=datasets.Split.TRAIN)
    monkeypatch.setattr(hub, "hub_is_reachable", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: table)
    first, second = read_rows("owner/name", split="train")
    assert (
        first.fields["label"] == "dog" and first.fields["tags"] == names and first.fields["n"] == 1
    )
    assert second.fields["label"] is None and second.fields["tags"] is None
    assert first.fields["image"]["bytes"] == picture


def test_hub_dataset_with_several_splits_needs_one(monkeypatch):
    import datasets

    splits = datasets.DatasetDict(
        {name: datasets.Dataset.from_list(ROWS) for name in ("train", "test")}
    )
    monkeypatch.setattr(hub, "hub_is_reachable", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: splits)
    assert str(get_error("owner/name")) == (
        "data.train.split: 'owner/name' has several splits. Fix: set it to 'train' or 'test'"
    )


def test_hub_without_network_fails_at_once(monkeypatch):
    import time

    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "hub_is_reachable", lambda: False)
    start = time.monotonic()
    message = str(get_error("owner/name-that-nobody-has"))
    assert time.monotonic() - start < 5
    assert message.startswith("data.train.path: 'owner/name-that-nobody-has' is not a local file")
    assert "with network access" in message
