"""The evaluations in metrics.jsonl."""

from dtl.run.evaluations import LoggedEvaluation, read_evaluations


def test_only_evaluations_are_read_and_their_scores_exclude_kind_step_and_model():
    lines = [
        {"kind": "train", "step": 1, "loss": 2.0},
        {"kind": "eval", "step": 1, "model": "adapted", "loss": 1.5, "accuracy": 0.25},
        {"kind": "eval", "step": 2, "model": "ema", "loss": 1.0},
    ]
    assert list(read_evaluations(lines)) == [
        LoggedEvaluation(1, "adapted", {"loss": 1.5, "accuracy": 0.25}),
        LoggedEvaluation(2, "ema", {"loss": 1.0}),
    ]
