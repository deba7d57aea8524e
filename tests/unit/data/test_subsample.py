"""Few labels lie within more, are those of every strategy, and never those that are kept apart."""

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


def test_few_labels_lie_within_more_and_each_class_has_as_many():
    before = frozenset()
    for labels in (1, 5, 20, None):
        found = draw_subsample(CLASSES, Subsample(size=labels, seed=4, validation_fraction=0.2))
        assert before < found.learnt
        assert not found.learnt & found.apart
        if labels == 5:
            each = [len(found.learnt & set(numbers)) for numbers in CLASSES.values()]
            assert each == [5, 5, 1]  # the last class has one row that is not kept apart
        before = found.learnt
    assert before | found.apart == frozenset().union(*CLASSES.values())


def test_the_seed_changes_what_is_learnt_and_not_what_is_kept_apart():
    one, other, again = (
        draw_subsample(CLASSES, Subsample(size=5, seed=seed, validation_fraction=0.2))
        for seed in (0, 1, 0)
    )
    assert one == again
    assert one.learnt != other.learnt
    assert one.apart == other.apart
    assert len(one.apart) == 20 + 6 + 1


def test_no_more_is_kept_apart_than_is_of_use():
    found = draw_subsample({"": list(range(10_000))}, Subsample(validation_fraction=0.5))
    assert len(found.apart) == MAX_VALIDATION_ROWS
    assert len(found.learnt) == 9_500


def test_too_many_labels_are_told():
    assert draw_subsample(CLASSES, Subsample(size=101)).short == 100
    assert draw_subsample(CLASSES, Subsample(size=100)).short is None


@pytest.fixture(scope="module")
def bed(tmp_path_factory):
    """A config over 30 pictures of three colours, and 9 held-out ones."""
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


def pictures(data):
    return {np.asarray(data[n]["pixels"]).tobytes() for n in range(len(data))}


def test_a_run_learns_from_what_is_drawn_and_is_scored_on_what_is_asked(bed):
    whole = prepared(bed)
    few = prepared(bed, "data.subsample={size: 2, validation_fraction: 0.2, seed: 3}")
    apart = prepared(
        bed, "data.subsample={size: 2, validation_fraction: 0.2, seed: 3, evaluate_on: validation}"
    )
    assert sorted(few.train[n]["labels"] for n in range(len(few.train))) == [0, 0, 1, 1, 2, 2]
    assert pictures(few.train) < pictures(whole.train)
    assert pictures(few.held_out) == pictures(whole.held_out)
    assert pictures(apart.train) == pictures(few.train)
    assert len(apart.held_out) == 6
    assert pictures(apart.held_out) < pictures(whole.train) - pictures(few.train)


def test_labels_are_known_that_are_in_no_drawn_row(bed):
    """One row of no class in particular: it has the head of all three."""
    one = prepared(bed, "data.subsample={size: 1}", "data.train.limit=30")
    assert one.dataset_stats["labels"] == ["blue", "green", "red"]


def test_more_labels_than_there_are_is_refused(bed):
    with pytest.raises(
        DtlError, match=r"no class has 11 labeled rows .* at most 10. Fix: set it to 10"
    ):
        prepared(bed, "data.subsample.size=11")
    with pytest.raises(DtlError, match="no rows are kept apart"):
        load_config(bed, ["data.subsample.score_on=apart"])
    with pytest.raises(DtlError, match="3 labels do not lie within 2"):
        load_config(bed, ["data.subsample={size: 3, feature_cache_size: 2}"])
    with pytest.raises(DtlError, match="all labels do not lie within 2"):
        load_config(bed, ["data.subsample.feature_cache_size=2"])
