"""Image classification: reading, augmentation, batch norm statistics, scores and a run."""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dtl import api
from dtl.assembly.parts import Parts
from dtl.config.load import load_config
from dtl.config.schema import Model, Source
from dtl.core.errors import DtlError
from dtl.core.parallel_dims import ParallelDims
from dtl.data.batching import Batching
from dtl.data.cache.encoded import EncodedData
from dtl.data.cache.encoder import encode_rows
from dtl.data.loader import Loader
from dtl.data.modalities.image import find_image_fault, load_image
from dtl.data.row_formats.base import RowInput
from dtl.data.sources.rows import Row, open_rows
from dtl.metrics.classification import classification_records, classification_scores
from dtl.models.load import load_pretrained
from dtl.models.pretrained_config import HeadConfig, load_model_config
from dtl.models.processor import load_processor
from dtl.models.structure.module_kinds import batch_norms
from dtl.strategies import frozen, full, scratch
from dtl.tasks.image_classification import Options, Plugin
from tests import tiny_vision

DATASET_STATS = {"labels": ["blue", "green", "red"], "size": [32, 32]}


def row(value: Any, *, label: str = "red", folder: Path = Path()) -> Row:
    return Row(0, "rows:1", {"image": value, "label": label}, folder)


def task(**options: Any) -> Plugin:
    return Plugin(Options(**options))


def processor_of(folder: Path) -> Any:
    return load_processor(Model(path=str(folder)), "image_processor")


# Reading ----------------------------------------------------------------------------------------


def saved(picture: Image.Image, kind: str, **how: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, format=kind, **how)
    return file.getvalue()


def test_pixels_of_a_plain_picture_are_its_own():
    pixels = tiny_vision.pixels("red", seed=3)
    assert np.array_equal(load_image(row(tiny_vision.png(pixels))), pixels)
    assert np.array_equal(load_image(row({"bytes": tiny_vision.png(pixels)})), pixels)


def test_transparent_pixels_become_white():
    picture = Image.new("RGBA", (4, 3), (255, 0, 0, 0))
    picture.putpixel((1, 2), (10, 20, 30, 255))
    found = load_image(row(saved(picture, "PNG")))
    assert found.shape == (3, 4, 3)
    assert tuple(found[2, 1]) == (10, 20, 30) and tuple(found[0, 0]) == (255, 255, 255)
    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 0, 0, 9, 8, 7])
    palette.putpixel((1, 0), 1)
    found = load_image(row(saved(palette, "PNG", transparency=0)))
    assert found[0].tolist() == [[255, 255, 255], [9, 8, 7]]


def test_exif_orientation_is_applied():
    picture = Image.fromarray(tiny_vision.pixels("blue", seed=1))
    how = Image.Exif()
    how[0x0112] = 6  # the camera was turned to the right
    turned = load_image(row(saved(picture, "PNG", exif=how)))
    assert np.array_equal(turned, np.rot90(np.asarray(picture), k=-1))


def test_sixteen_bits_and_grey_become_eight_bits_and_three_channels():
    deep = np.array([[0, 257, 65535]], dtype=np.uint16)
    assert load_image(row(saved(Image.fromarray(deep), "PNG")))[0].tolist() == [
        [0, 0, 0],
        [1, 1, 1],
        [255, 255, 255],
    ]
    grey = Image.fromarray(np.array([[7, 200]], dtype=np.uint8))
    assert load_image(row(saved(grey, "PNG")))[0].tolist() == [[7, 7, 7], [200, 200, 200]]


def test_large_image_is_downscaled():
    found = load_image(row(tiny_vision.png(np.zeros((400, 300, 3), np.uint8))), max_short_side=64)
    assert found.shape == (85, 64, 3)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "the column `image` is missing"),
        (3, "`image` is int"),
        ("nowhere.png", "image file not found"),
        (b"no picture", "cannot be decoded"),
    ],
)
def test_row_fault_is_found_without_a_model(value, message, tmp_path):
    fault = find_image_fault(row(value, folder=tmp_path))
    assert fault is not None and fault.location == "rows:1" and message in fault.problem


def test_truncated_image_is_reported_with_its_row():
    truncated = tiny_vision.png(tiny_vision.pixels("red", seed=3))[:900]
    assert find_image_fault(row(truncated)) is None, "its header is intact"
    with pytest.raises(DtlError, match=r"rows:1: `image` cannot be decoded"):
        load_image(row(truncated))


# Folders ----------------------------------------------------------------------------------------


def opened(folder: Path, split: str | None = None) -> list[Row]:
    source = Source(path=str(folder), split=split)
    return list(open_rows(source, {}, check=task().find_row_fault, reads=RowInput(media="image")))


def test_a_folder_a_class(tmp_path):
    tiny_vision.write_folder(tmp_path / "all", 9)
    rows = opened(tmp_path / "all")
    assert [one.fields["label"] for one in rows] == ["blue"] * 3 + ["green"] * 3 + ["red"] * 3
    assert load_image(rows[0]).shape[2] == 3
    tiny_vision.write_folder(tmp_path / "split" / "train", 6)
    tiny_vision.write_folder(tmp_path / "split" / "test", 3, seed=2)
    assert [len(opened(tmp_path / "split", part)) for part in ("train", "test")] == [6, 3]


def test_a_folder_with_a_metadata_file(tmp_path):
    (tmp_path / "a.png").write_bytes(tiny_vision.png(tiny_vision.pixels("red", seed=3)))
    (tmp_path / "metadata.csv").write_text("file_name,label\na.png,red\n")
    (only,) = opened(tmp_path)
    assert only.fields == {"image": "a.png", "label": "red"}
    assert np.array_equal(load_image(only), tiny_vision.pixels("red", seed=3))


def test_another_picture_under_the_same_name_is_other_data(tmp_path):
    tiny_vision.write_folder(tmp_path, 3)

    def fingerprint() -> str:
        return open_rows(Source(path=str(tmp_path)), {}, reads=RowInput(media="image")).fingerprint

    before = fingerprint()
    assert fingerprint() == before
    picture = next(tmp_path.rglob("*.png"))
    picture.write_bytes(tiny_vision.png(tiny_vision.pixels("red", seed=99)))
    assert fingerprint() != before


# Model input ----------------------------------------------------------------------------------


@pytest.mark.parametrize("base", ["vit", "resnet"])
def test_evaluation_input_is_that_of_the_models_own_processor(base, request):
    processor = processor_of(request.getfixturevalue(base))
    pixels = tiny_vision.pixels("green", seed=5)
    plugin = task()
    fitted, dataset_stats = plugin.adapt_processor(processor, {"labels": DATASET_STATS["labels"]})
    assert dataset_stats == DATASET_STATS
    encoded = plugin.encoder(fitted, dataset_stats, None)(row(tiny_vision.png(pixels)))
    shown = plugin.transform(encoded.values, processor=fitted, rng=None)
    theirs = processor(Image.fromarray(pixels), return_tensors="pt")["pixel_values"]
    batch = plugin.collate([shown], pad_token_id=0)
    assert torch.equal(batch["pixel_values"], theirs)
    assert batch["labels"].tolist() == [2]


def test_processor_with_several_sizes_is_rejected(vit):
    processor = processor_of(vit)
    processor.size = type(processor.size)(shortest_edge=32)
    with pytest.raises(DtlError, match="images of several sizes"):
        task().adapt_processor(processor, {})


def test_model_of_one_channel_is_rejected(vit):
    base = load_model_config(Model(path=str(vit)))
    base.num_channels = 1
    with pytest.raises(DtlError, match="reads 1 channels"):
        task().collect_dataset_stats([], base)


def data_of(folder: Path, plugin: Plugin, cache: Path) -> EncodedData:
    encoder = plugin.encoder(processor_of(folder), DATASET_STATS, None)
    rows = [Row(n, f"rows:{n}", fields) for n, fields in enumerate(tiny_vision.pictures(9))]
    return encode_rows(rows, encoder, key="pictures", location="data.train")


def views(folder: Path, data: EncodedData, plugin: Plugin, *, ranks: int, micro: int, step: int):
    """Return the pixel values of each example in a step."""
    found = {}
    for rank in range(ranks):
        loader = Loader(
            data,
            partial(plugin.collate, pad_token_id=0),
            batching=Batching(len(data), 4, 5),
            micro_batch=micro,
            parallel_dims=ParallelDims(ranks, rank),
            transform=partial(plugin.transform, processor=processor_of(folder)),
        )
        for batch in loader.load_step(step).batches:
            found |= dict(zip(batch.ids, batch.tensors["pixel_values"], strict=False))
    return found


def test_training_varies_pictures_the_same_on_every_layout(vit, cache):
    plugin = task()
    data = data_of(vit, plugin, cache)
    one = views(vit, data, plugin, ranks=1, micro=4, step=2)
    other = views(vit, data, plugin, ranks=2, micro=1, step=2)
    assert one.keys() == other.keys() and len(one) == 4
    assert all(torch.equal(view, other[number]) for number, view in one.items())
    again = [views(vit, data, plugin, ranks=1, micro=4, step=step) for step in range(1, 7)]
    first, second = ({n: v for part in again[i : i + 3] for n, v in part.items()} for i in (0, 3))
    assert first.keys() == second.keys() and len(first) == 9
    assert not any(torch.equal(first[number], second[number]) for number in first), (
        "each epoch anew"
    )


def test_augmentation_can_be_turned_off(vit, cache):
    plugin = task(min_crop_scale=1.0, horizontal_flip=False)
    data = data_of(vit, plugin, cache)
    processor = processor_of(vit)
    for number, view in views(vit, data, plugin, ranks=1, micro=4, step=1).items():
        plain = plugin.transform(data[number], processor=processor, rng=None)["pixel_values"]
        assert np.array_equal(view.numpy(), plain)


def test_crops_have_the_requested_area_and_half_are_mirrored(vit):
    plugin, full = task(min_crop_scale=0.5), np.arange(40 * 60 * 3).reshape(40, 60, 3)
    draws = [np.random.default_rng(seed) for seed in range(400)]
    parts = [plugin._augment(full, rng=draw) for draw in draws]
    shares = [part.shape[0] * part.shape[1] / (40 * 60) for part in parts]
    assert 0.45 < min(shares) < 0.55 and max(shares) > 0.9
    mirrored = [part[0, 0, 0] > part[0, -1, 0] for part in parts]
    assert 150 < sum(mirrored) < 250


# Batch normalization ----------------------------------------------------------------------------


def statistics(model: Any) -> list[torch.Tensor]:
    return [module.running_mean.clone() for module in batch_norms(model)]


@pytest.mark.parametrize(("strategy", "moves"), [(frozen, False), (full, False), (scratch, True)])
def test_statistics_of_a_pretrained_base_stay(resnet, strategy, moves):
    plugin = task()
    parts = Parts(plugin, (strategy.Plugin(strategy.Options()),))
    loaded = load_pretrained(
        Model(path=str(resnet)),
        head=HeadConfig(plugin.auto_class, plugin.head_config(DATASET_STATS)),
        random_init=strategy is scratch,
        seed=0,
        dtype="fp32",
    )
    model = parts.apply_strategy(loaded)
    parts.set_training_mode(model)
    before = statistics(model)
    assert len(before) > 3
    batch = {"pixel_values": torch.randn(4, 3, 32, 32), "labels": torch.tensor([0, 1, 2, 0])}
    plugin.loss(model, batch).backward()
    assert all(
        torch.equal(old, new) != moves for old, new in zip(before, statistics(model), strict=True)
    )


# Scores -----------------------------------------------------------------------------------------


def test_scores_are_scikit_learns():
    from sklearn.metrics import accuracy_score, f1_score, top_k_accuracy_score

    torch.manual_seed(0)
    logits, labels = torch.randn(200, 9), torch.randint(9, (200,))
    names = [f"class {number}" for number in range(9)]
    records = classification_records(logits, labels, torch.zeros(200))
    found = classification_scores(records, names)
    guess = logits.argmax(-1)
    assert found["accuracy"] == accuracy_score(labels, guess)
    assert found["macro_f1"] == f1_score(labels, guess, average="macro")
    assert found["top_5"] == top_k_accuracy_score(labels, logits, k=5)
    assert sum(value for name, value in found.items() if name.startswith("confusion/")) == 200


def test_with_many_classes_only_the_most_frequent_confusions_are_listed():
    torch.manual_seed(0)
    logits, labels = torch.randn(500, 40), torch.randint(40, (500,))
    records = classification_records(logits, labels, torch.zeros(500))
    found = classification_scores(records, [str(number) for number in range(40)])
    cells = {name: value for name, value in found.items() if name.startswith("confusion/")}
    assert len(cells) == 100 and min(cells.values()) >= 1
    assert all(name.split("/")[1] != name.split("/")[2] for name in cells)


# From data to predictions -----------------------------------------------------------------------


def test_run_trains_and_its_export_is_opened_by_transformers(resnet, tmp_path, cache):
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    tiny_vision.write_folder(tmp_path / "train", 30)
    tiny_vision.write_folder(tmp_path / "heldout", 9, seed=2)
    config = tmp_path / "config.yaml"
    config.write_text(
        f"run: {{dir: {tmp_path / 'runs'}, name: colours}}\nmodel: {{path: {resnet}}}\n"
        f"task: image_classification\nstrategy: full\noptim: {{learning_rate: 0.01}}\n"
        f"data: {{train: {tmp_path / 'train'}, eval: {tmp_path / 'heldout'}}}\n"
        "train: {steps: 15, global_batch: 10}\nlayout: {processes_per_node: 1, zero_stage: 0}\n"
    )
    outcome = api.train(load_config(config), print_line=lambda _: None)
    assert outcome.exit_code == 0
    scores = outcome.run.result["scores"]["adapted"]
    assert scores["accuracy"] == 1.0
    model = AutoModelForImageClassification.from_pretrained(outcome.run.export)
    processor = AutoImageProcessor.from_pretrained(outcome.run.export)
    for one in opened(tmp_path / "heldout"):
        shown = processor(Image.fromarray(load_image(one)), return_tensors="pt")
        with torch.no_grad():
            guess = model(**shown).logits.argmax(-1).item()
        assert model.config.id2label[guess] == one.fields["label"]
