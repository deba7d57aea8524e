"""Subsamples are nested, the same for every strategy, and disjoint from the validation rows."""

import numpy as np
import pytest

from dtl.assembly.parts import assemble
from dtl.config.load import load_config
from dtl.config.schema import Subsample
from dtl.core.errors import DtlError
from dtl.data.subsample import MAX_VALIDATION_ROWS, draw_subsample
from dtl.prepare.prepared_data import prepare_data
from tests import tiny_vision

CLASSES = {"a": list(range(0, 300, 3)), "b": list(range(1, 90, 3)), "c": [2, 5]}


def test_smaller_subsample_is_part_of_a_larger_one_with_equal_classes():
    before = frozenset()
    for labels in (1, 5, 20, None):
        subsample = draw_subsample(CLASSES, Subsample(size=labels, seed=4, validation_fraction=0.2))
        assert before < subsample.training_rows
        assert not subsample.training_rows & subsample.validation_rows
        if labels == 5:
            each = [len(subsample.training_rows & set(numbers)) for numbers in CLASSES.values()]
            assert each == [5, 5, 1]  # the last class has one row that is not in validation
        before = subsample.training_rows
    assert before | subsample.validation_rows == frozenset().union(*CLASSES.values())


def test_seed_changes_training_rows_and_not_validation_rows():
    one, other, again = (
        draw_subsample(CLASSES, Subsample(size=5, seed=seed, validation_fraction=0.2))
        for seed in (0, 1, 0)
    )
    assert one == again
    assert one.training_rows != other.training_rows
    assert one.validation_rows == other.validation_rows
    assert len(one.validation_rows) == 20 + 6 + 1


def test_validation_rows_are_limited():
    subsample = draw_subsample({"": list(range(10_000))}, Subsample(validation_fraction=0.5))
    assert len(subsample.validation_rows) == MAX_VALIDATION_ROWS
    assert len(subsample.training_rows) == 9_500


def test_largest_class_is_set_if_size_exceeds_it():
    assert draw_subsample(CLASSES, Subsample(size=101)).largest_class == 100
    assert draw_subsample(CLASSES, Subsample(size=100)).largest_class is None


@pytest.fixture(scope="module")
def bed(tmp_path_factory):
    """A config with 30 images of three colors, and 9 held-out images."""
    folder = tmp_path_factory.mktemp("bed")
    tiny_vision.resnet(folder / "base")
    tiny_vision.write_folder(folder / "train", 30)
    tiny_vision.write_folder(folder / "eval", 9, seed=2)
    (folder / "run.yaml").write_text(
        f"model: {{path: {folder}/base}}\n"
        "task: image_classification\n"
        f"data: {{train: {folder}/train, eval: {folder}/eval}}\n"
        "strategy: frozen\n"
        "train: {steps: 2}\n",
        encoding="utf-8",
    )
    return folder / "run.yaml"


def prepared(bed, *overrides):
    config = load_config(bed, overrides)
    return prepare_data(config, assemble(config))


def image_set(data):
    return {np.asarray(data[n]["pixels"]).tobytes() for n in range(len(data))}


def test_run_trains_on_the_subsample_and_evaluates_on_the_configured_rows(bed):
    all_rows = prepared(bed)
    few = prepared(bed, "data.subsample={size: 2, validation_fraction: 0.2, seed: 3}")
    validated = prepared(
        bed, "data.subsample={size: 2, validation_fraction: 0.2, seed: 3, evaluate_on: validation}"
    )
    assert sorted(few.train[n]["labels"] for n in range(len(few.train))) == [0, 0, 1, 1, 2, 2]
    assert image_set(few.train) < image_set(all_rows.train)
    assert image_set(few.held_out) == image_set(all_rows.held_out)
    assert image_set(validated.train) == image_set(few.train)
    assert len(validated.held_out) == 6
    assert image_set(validated.held_out) < image_set(all_rows.train) - image_set(few.train)


def test_labels_outside_the_subsample_are_known(bed):
    """One row of no class in particular: it has the head of all three."""
    one = prepared(bed, "data.subsample={size: 1}", "data.train.limit=30")
    assert one.dataset_stats["labels"] == ["blue", "green", "red"]


def test_subsample_larger_than_every_class_is_an_error(bed):
    with pytest.raises(
        DtlError, match=r"no class has 11 labeled rows .* at most 10. Fix: set it to 10"
    ):
        prepared(bed, "data.subsample.size=11")
    with pytest.raises(DtlError, match="evaluate_on"):
        load_config(bed, ["data.subsample.evaluate_on=validation"])
    with pytest.raises(DtlError, match=r"2 is smaller than data\.subsample\.size \(3\)"):
        load_config(bed, ["data.subsample={size: 3, feature_cache_size: 2}"])
    with pytest.raises(DtlError, match=r"2 is smaller than data\.subsample\.size \(all\)"):
        load_config(bed, ["data.subsample.feature_cache_size=2"])
