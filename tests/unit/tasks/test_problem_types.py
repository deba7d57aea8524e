"""Several labels, numbers, class weights and focal loss, against transformers, scikit-learn and
SciPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from dtl.core.errors import DtlError
from tests.task_bench import CASES, make_bench, make_rows, make_task

MULTI = {"problem_type": "multi_label_classification"}
NUMBERS = {"problem_type": "regression"}


def index_of(task: str, **options: Any) -> int:
    """Return the index of the first case with these options."""
    cases = CASES[task]
    return next(
        index
        for index, case in enumerate(cases)
        if case.base == "encoder" and options == {key: case.options.get(key) for key in options}
    )


@pytest.mark.parametrize("options", [MULTI, NUMBERS], ids=["labels", "numbers"])
def test_loss_is_that_of_transformers(encoder, options) -> None:
    bench = make_bench(encoder, "text_classification", index_of("text_classification", **options))
    batch = bench.collate(bench.all)
    assert bench.model.config.problem_type == options["problem_type"]
    if bench.model.config.num_labels == 1:
        batch["labels"] = batch["labels"][:, 0]
    with torch.no_grad():
        mean = bench.model(**batch).loss.item()
    targets = sum(example.targets for example in bench.encoded)
    assert bench.loss(bench.all) / targets == pytest.approx(mean, rel=1e-5)


def make_weighted(task: Any, labels: list[Any], logits: torch.Tensor) -> tuple[Any, Any]:
    """Return the batch and the stats of training rows with these labels."""
    rows = make_rows([{"text": "x", "label": label} for label in labels])
    stats = task.collect_dataset_stats(rows, None)
    encode = task.head.target_encoder(stats)
    return task.head.collate([encode(row).values for row in rows]), stats


SINGLE_LABELS = ["a"] * 6 + ["b"] * 3 + ["c"]


@pytest.mark.parametrize("weights", ["balanced", {"a": 0.5, "c": 4.0}], ids=["balanced", "given"])
def test_weighted_loss_over_the_training_rows_is_torchs_weighted_mean(weights) -> None:
    from sklearn.utils.class_weight import compute_class_weight

    task = make_task("text_classification", class_weights=weights)
    logits = torch.randn(10, 3, generator=torch.Generator().manual_seed(0))
    batch, stats = make_weighted(task, SINGLE_LABELS, logits)
    classes = np.array(["a", "b", "c"])
    given = "balanced" if weights == "balanced" else {"b": 1.0, **weights}
    expected = torch.tensor(
        compute_class_weight(given, classes=classes, y=SINGLE_LABELS), dtype=torch.float32
    )
    labels = batch["labels"]
    mean = torch.nn.functional.cross_entropy(logits, labels, weight=expected)
    losses = task.head.losses(logits, batch)
    assert losses.sum().item() / 10 == pytest.approx(mean.item(), rel=1e-6)
    if weights == "balanced":
        assert stats["class_weights"] == pytest.approx(expected.tolist())
    total = torch.nn.functional.cross_entropy(
        logits[:4], labels[:4], weight=torch.tensor(stats["class_weights"]), reduction="sum"
    )
    assert losses[:4].sum().item() == pytest.approx(total.item(), rel=1e-6), "of any batch, too"


LABEL_SETS = [["a"], ["a", "b"], [], ["b"], ["a"], ["a", "c"]]


@pytest.mark.parametrize("weights", ["balanced", {"c": 3.0}], ids=["balanced", "given"])
def test_weights_of_labels_are_torchs_pos_weight(weights) -> None:
    task = make_task("text_classification", class_weights=weights, **MULTI)
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    batch, stats = make_weighted(task, LABEL_SETS, logits)
    positive = {"balanced": [2 / 4, 4 / 2, 5 / 1]}.get(str(weights), [1.0, 1.0, 3.0])
    assert stats["class_weights"] == positive
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        logits, batch["labels"], pos_weight=torch.tensor(positive), reduction="sum"
    )
    assert task.head.losses(logits, batch).sum().item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_loss_by_its_formula(gamma) -> None:
    """Written with probabilities, as in the paper; also its gradient."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(10, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    single = make_task("text_classification", focal_gamma=gamma)
    batch, _ = make_weighted(single, SINGLE_LABELS, logits)
    chosen = logits.softmax(-1).gather(1, batch["labels"][:, None])[:, 0]
    expected = (-((1 - chosen) ** gamma) * chosen.log()).sum()
    loss = single.head.losses(logits, batch).sum()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-9)
    (found,), (wanted,) = (torch.autograd.grad(each, logits) for each in (loss, expected))
    assert torch.allclose(found, wanted, rtol=1e-6)
    multi = make_task("text_classification", focal_gamma=gamma, **MULTI)
    batch, _ = make_weighted(multi, LABEL_SETS, logits[:6])
    shares = logits[:6].sigmoid()
    right = torch.where(batch["labels"] == 1, shares, 1 - shares)
    expected = (-((1 - right) ** gamma) * right.log()).sum()
    loss = multi.head.losses(logits[:6], {"labels": batch["labels"].double()}).sum()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_focal_loss_of_a_certain_prediction_has_a_finite_gradient() -> None:
    logits = torch.tensor([[200.0, -200.0]], requires_grad=True)
    task = make_task("text_classification", focal_gamma=0.5)
    task.head.losses(logits, {"labels": torch.tensor([0])}).sum().backward()
    assert logits.grad is not None and logits.grad.isfinite().all()


def label_set_records(count: int = 40, classes: int = 4) -> tuple[np.ndarray, np.ndarray, Any]:
    rng = np.random.default_rng(0)
    true = (rng.random((count, classes)) < 0.3).astype(int)
    true[:, -1] = 0  # a label that no example has
    scores = np.round(rng.normal(size=(count, classes)) + 1.5 * true, 1)  # with equal scores
    head = make_task("text_classification", threshold={"a": 0.7}, **MULTI).head
    records = head.eval_records(
        torch.tensor(scores), {"labels": torch.tensor(true, dtype=torch.float64)}
    )
    return true, scores, (head, records)


def test_scores_of_label_sets_are_those_of_scikit_learn() -> None:
    from sklearn.metrics import accuracy_score, average_precision_score, f1_score, log_loss

    true, scores, (head, records) = label_set_records()
    names = ["a", "b", "c", "never"]
    found = head.score(records, {"labels": names})
    shares = 1 / (1 + np.exp(-scores))
    predicted = (shares > [0.7, 0.5, 0.5, 0.5]).astype(int)
    assert found["micro_f1"] == f1_score(true, predicted, average="micro")
    assert found["macro_f1"] == pytest.approx(
        f1_score(true, predicted, average="macro", zero_division=0.0)
    )
    assert found["accuracy"] == accuracy_score(true, predicted)
    assert found["map"] == pytest.approx(
        average_precision_score(true[:, :3], shares[:, :3], average="macro")
    )
    each = [log_loss(true[:, c], shares[:, c], labels=[0, 1]) for c in range(4)]
    assert found["loss"] == pytest.approx(np.mean(each), rel=1e-6)
    assert found["f1/b"] == f1_score(true[:, 1], predicted[:, 1])
    assert found["support/never"] == 0 and "average_precision/never" not in found


def test_best_threshold_has_the_highest_f1_of_all_thresholds() -> None:
    from sklearn.metrics import f1_score

    true, scores, (head, records) = label_set_records()
    found = head.score(records, {"labels": ["a", "b", "c", "never"]})
    shares = 1 / (1 + np.exp(-scores))
    for column, name in enumerate("abc"):
        at_best = f1_score(true[:, column], shares[:, column] > found[f"best_threshold/{name}"])
        cuts = [0.0, *np.unique(shares[:, column])]
        assert at_best == max(f1_score(true[:, column], shares[:, column] > cut) for cut in cuts)


@pytest.mark.parametrize("size", [1, 3])
def test_scores_of_numbers_are_those_of_scipy_and_scikit_learn(size: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score

    rng = np.random.default_rng(1)
    true = np.round(1000 + rng.normal(size=(50, size)), 1)  # far from 0, with equal numbers
    predicted = np.round(true + rng.normal(size=(50, size)), 1)
    names = [f"n{index}" for index in range(size)]
    head = make_task("text_classification", labels=names, **NUMBERS).head
    records = head.eval_records(torch.tensor(predicted), {"labels": torch.tensor(true)})
    found = head.score(records, {"labels": names})
    pearson = [stats.pearsonr(true[:, k], predicted[:, k])[0] for k in range(size)]
    spearman = [stats.spearmanr(true[:, k], predicted[:, k])[0] for k in range(size)]
    assert found["pearson"] == pytest.approx(np.mean(pearson), rel=1e-9)
    assert found["spearman"] == pytest.approx(np.mean(spearman), rel=1e-9)
    assert found["loss"] == pytest.approx(mean_squared_error(true, predicted))
    assert found["rmse"] ** 2 == pytest.approx(found["loss"])
    assert found["mae"] == pytest.approx(mean_absolute_error(true, predicted))
    assert found["r2"] == pytest.approx(r2_score(true, predicted))
    if size > 1:
        assert found["pearson/n2"] == pytest.approx(pearson[2], rel=1e-9)


def test_correlation_with_equal_numbers_is_zero() -> None:
    head = make_task("text_classification", **NUMBERS).head
    predicted, numbers = torch.full((4, 1), 0.1), torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    records = head.eval_records(predicted, {"labels": numbers})
    found = head.score(records, {"labels": ["LABEL_0"]})
    assert (found["pearson"], found["spearman"]) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (None, "is missing"),
        ("", "is missing"),
        (float("nan"), "is missing"),
        ("NA", "is missing"),
        (float("inf"), "is missing"),
        ("3,5", "is not a number"),
        ("1_000", "is not a number"),
        (True, "is not a number"),
        ("high", "is not a number"),
        ([1.0, 2.0, 3.0], "has 3 numbers"),
        ([], "has 0 numbers"),
        ([1.0, None], "is missing"),
    ],
    ids=repr,
)
def test_a_label_that_is_no_number_is_an_invalid_row(label, message) -> None:
    task = make_task("text_classification", labels=("x", "y"), **NUMBERS)
    pair = label if isinstance(label, list) else [0.5, label]
    (row,) = make_rows([{"text": "x", "label": pair}])
    fault = task.find_row_fault(row)
    assert fault is not None and fault.location == "rows.jsonl:1" and message in fault.problem


def test_numbers_are_read_from_every_form_and_from_columns() -> None:
    task = make_task("text_classification", **NUMBERS)
    labels = (3, 3.0, "3", " 3.0 ", [3], "[3.0]", "3e0")
    rows = make_rows([{"text": "x", "label": label} for label in labels])
    assert [task.find_row_fault(row) for row in rows] == [None] * len(rows)
    stats = task.collect_dataset_stats(rows, None)
    assert stats["labels"] == ["LABEL_0"]
    encode = task.head.target_encoder(stats)
    assert [encode(row).values["labels"].tolist() for row in rows] == [[3.0]] * len(rows)
    columns = make_task("text_classification", label_columns=("valence", "arousal"), **NUMBERS)
    rows = make_rows([{"text": "x", "valence": 0.5, "arousal": "0.25"}])
    assert columns.find_row_fault(rows[0]) is None
    stats = columns.collect_dataset_stats(rows, None)
    assert stats["labels"] == ["valence", "arousal"]
    assert columns.head.target_encoder(stats)(rows[0]).values["labels"].tolist() == [0.5, 0.25]


def test_rows_with_other_numbers_of_numbers_are_named() -> None:
    rows = make_rows([{"text": "x", "label": label} for label in ([1.0], [1.0], [1.0, 2.0])])
    with pytest.raises(DtlError, match=r"rows\.jsonl:3: the label has 2 numbers"):
        make_task("text_classification", **NUMBERS).collect_dataset_stats(rows, None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 0.3}, "does not use it"),
        ({"label_separator": "|"}, "does not use it"),
        ({"label_columns": ("a", "b")}, "does not use it"),
        ({"class_weights": "balanced", **NUMBERS}, "does not use it"),
        ({"focal_gamma": 2.0, **NUMBERS}, "does not use it"),
        ({"labels": ("a", "a")}, "a name is repeated"),
        ({"labels": ("a", "b"), "class_weights": {"c": 2.0}}, "'c' is not a label"),
        ({"labels": ("a", "b"), "threshold": {"c": 0.1}, **MULTI}, "'c' is not a label"),
        ({"labels": ("a",), "label_columns": ("x", "y"), **MULTI}, "1 names are given for 2"),
    ],
    ids=str,
)
def test_options_that_do_not_fit_are_refused(options, message) -> None:
    with pytest.raises(ValidationError, match=message):
        make_task("text_classification", **options)


def test_weights_of_no_class_are_refused() -> None:
    task = make_task("text_classification", class_weights={"spma": 2.0})
    rows = make_rows([{"text": "x", "label": label} for label in ("spam", "ham")])
    with pytest.raises(DtlError, match=r"task\.class_weights: 'spma' is not a label"):
        task.collect_dataset_stats(rows, None)


def test_predictions_name_labels_and_numbers() -> None:
    multi = make_task("text_classification", threshold={"a": 0.9}, **MULTI)
    found = multi.head.predict(torch.tensor([[2.0, 2.0], [3.0, -1.0]]), {"labels": ["a", "b"]})
    assert [one["predicted"] for one in found] == [["b"], ["a"]]
    assert found[0]["probabilities"]["a"] == pytest.approx(0.8808, abs=1e-4)
    numbers = make_task("text_classification", **NUMBERS).head
    assert numbers.predict(torch.tensor([[2.5]]), {"labels": ["LABEL_0"]}) == [{"predicted": 2.5}]
    pair = numbers.predict(torch.tensor([[2.5, 1.0]]), {"labels": ["x", "y"]})
    assert pair == [{"predicted": {"x": 2.5, "y": 1.0}}]
