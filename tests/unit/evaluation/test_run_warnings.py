"""Warnings at the end of a run: what is said, and that a good run says nothing."""

import numpy as np
import pytest
from sklearn.metrics import f1_score

from dtl.evaluation.run_warnings import TrainingRecord, find_run_warnings, score_majority_class
from dtl.metrics.base import Metric
from dtl.metrics.classification import classification_scores

ACCURACY, WER = Metric("accuracy"), Metric("wer", higher_is_better=False)
FALLING, FLAT, RISING = (
    list(np.linspace(start, end, 40)) for start, end in ((2.0, 0.5), (2.0, 1.999), (2.0, 3.0))
)
GOOD = {
    "metric": ACCURACY,
    "learning_rate": 2e-4,
    "losses": FALLING,
    "evaluations": [(20, {"accuracy": 0.8}), (40, {"accuracy": 0.79})],
    "base": {"accuracy": 0.4},
    "final": {"accuracy": 0.79},
    "majority": 0.5,
}


def test_a_good_run_has_no_warning():
    assert find_run_warnings(TrainingRecord(**GOOD)) == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"losses": FLAT}, ("did not fall", "0.002", "more steps")),
        ({"losses": RISING}, ("did not fall", "optim.learning_rate to 2e-05")),
        ({"losses": [None, *FLAT]}, ("did not fall",)),
        ({"base": {"accuracy": 0.79}}, ("no better than the unadapted base", "0.0006")),
        ({"base": {"accuracy": 0.9}}, ("no better than the unadapted base", "0.9")),
        ({"majority": 0.8}, ("most frequent class", "0.8")),
        (
            {"evaluations": [(20, {"accuracy": 0.8}), (40, {"accuracy": 0.6})]},
            ("far worse than step 20", "set train.export to best"),
        ),
        (
            {
                "metric": WER,
                "base": None,
                "majority": None,
                "evaluations": [(40, {"wer": 1.09})],
                "final": {"wer": 1.09},
            },
            ("no better than no text at all", "1.09"),
        ),
    ],
    ids=["flat", "rising", "not finite", "base", "below base", "majority", "decline", "wer"],
)
def test_each_doubt_is_one_warning_with_what_to_try(change, says):
    (warning,) = find_run_warnings(TrainingRecord(**{**GOOD, **change}))
    assert "Fix: " in warning
    assert all(part in warning for part in says), warning


@pytest.mark.parametrize(
    "change",
    [
        {"losses": FLAT[:9]},
        {"final": None},
        {"final": {"accuracy": 1.0}, "base": {"accuracy": 1.0}},
        {"base": None, "majority": None},
        {"evaluations": [(20, {"accuracy": 0.8}), (40, {"accuracy": 0.77})]},
    ],
    ids=["few steps", "nothing held out", "perfect before", "no baseline", "small decline"],
)
def test_what_says_little_is_no_warning(change):
    assert find_run_warnings(TrainingRecord(**{**GOOD, **change})) == []


def test_score_of_the_majority_class_is_that_of_scikit_learn():
    truth = [0, 0, 0, 1, 2, 0]
    records = [{"label": each, "predicted": 1, "loss": 1.0, "label_rank": 0} for each in truth]
    found = score_majority_class(
        records, lambda some: classification_scores(some, ["a", "b", "c"]), Metric("macro_f1")
    )
    assert found == pytest.approx(f1_score(truth, [0] * 6, average="macro"))
    assert score_majority_class([{"loss": 1.0}], lambda _: {}, ACCURACY) is None
    assert score_majority_class(records[:2], lambda _: {}, ACCURACY) is None
