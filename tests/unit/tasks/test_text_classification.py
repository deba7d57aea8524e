"""What text_classification reads of a row, and its loss and scores."""

from __future__ import annotations

import json

import pytest
import torch
from pydantic import ValidationError

from dtl.config.schema import Model
from dtl.core.errors import DtlError
from dtl.data.sources.rows import Row
from dtl.models.pretrained_config import load_model_config
from dtl.tasks._classification.ranking import add_rankings, query_id
from tests import tiny
from tests.task_bench import make_bench, make_rows, make_task

TRUTH = [0, 0, 0, 1, 1, 2, 0, 2]
GUESS = [0, 0, 1, 1, 2, 2, 2, 0]
NAMES = ["a", "b", "c", "never seen"]


def test_classification_scores_by_hand_and_by_scikit_learn():
    """a: 2 of 3 and 2 of 4 (F1 4/7). b: 1 of 2 and 1 of 2 (1/2). c: 1 of 3 and 1 of 2 (2/5)."""
    from sklearn.metrics import accuracy_score, f1_score

    records = [
        {"loss": 0.5, "label": label, "predicted": predicted}
        for label, predicted in zip(TRUTH, GUESS, strict=True)
    ]
    scores = make_task("text_classification").score(records, {"labels": NAMES})
    assert scores["accuracy"] == 4 / 8 == accuracy_score(TRUTH, GUESS)
    assert scores["macro_f1"] == pytest.approx((4 / 7 + 1 / 2 + 2 / 5) / 3)
    assert scores["macro_f1"] == pytest.approx(f1_score(TRUTH, GUESS, average="macro"))
    assert scores["loss"] == 0.5
    assert scores["confusion/a/b"] == 1 and scores["confusion/c/a"] == 1
    assert scores["confusion/never seen/a"] == 0
    counts = sum(value for name, value in scores.items() if name.startswith("confusion/"))
    assert counts == 8


def test_classification_loss_is_that_of_transformers(encoder):
    bench = make_bench(encoder, "text_classification", 0)
    batch = bench.collate(bench.all)
    with torch.no_grad():
        mean = bench.model(**batch).loss.item()
    assert bench.loss(bench.all) == pytest.approx(mean * len(bench.all), rel=1e-5)


def test_labels_are_those_of_the_rows_in_order(encoder):
    task = make_task("text_classification")
    settings = load_model_config(Model(path=str(encoder)))
    rows = make_rows([{"text": "x", "label": label} for label in ("no", "yes", "maybe", "no")])
    dataset_stats = task.collect_dataset_stats(rows, settings)
    assert dataset_stats == {"labels": ["maybe", "no", "yes"]}
    head = task.head_config(dataset_stats)
    assert head["num_labels"] == 3
    assert head["id2label"] == {0: "maybe", 1: "no", 2: "yes"}
    assert head["label2id"] == {"maybe": 0, "no": 1, "yes": 2}
    given = make_task("text_classification", labels=("yes", "no", "maybe", "never"))
    assert given.collect_dataset_stats(rows, settings) == {
        "labels": ["yes", "no", "maybe", "never"]
    }


def test_a_base_that_knows_these_labels_keeps_its_order(encoder):
    """So that its head can go on with what it has learned."""
    settings = load_model_config(Model(path=str(encoder)))
    settings.id2label = {0: "yes", 1: "no"}
    rows = make_rows([{"text": "x", "label": label} for label in ("no", "yes")])
    assert make_task("text_classification").collect_dataset_stats(rows, settings) == {
        "labels": ["yes", "no"]
    }


def test_a_pair_of_texts_is_read_as_the_tokenizer_reads_pairs(encoder):
    task = make_task("text_classification")
    tokenizer = tiny.tokenizer()
    rows = make_rows([{"text": "a river", "text_pair": "the night", "label": "x"}])
    encode = task.encoder(
        tokenizer, {"labels": ["x", "y"]}, load_model_config(Model(path=str(encoder)))
    )
    encoded = encode(rows[0])
    assert encoded.values["input_ids"] == tokenizer("a river", "the night")["input_ids"]
    assert (encoded.targets, encoded.values["labels"]) == (1, 0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"text": "x"}, "the column `label` is missing"),
        ({"text": "x", "label": None}, "the label is missing"),
        ({"text": "x", "label": ["a"]}, "`label` is a list"),
        ({"text": "x", "label": "eraly"}, "did you mean 'early'?"),
        ({"text": "x", "label": "zzz"}, "the labels are early, late"),
        ({"text": 7, "label": "late"}, "`text` is int"),
        ({"text": "x", "text_pair": 0, "label": "late"}, "`text_pair` is int"),
        ({"label": "late"}, "the column `text` is missing"),
    ],
)
def test_a_labeled_row_at_fault_is_named(fields, message):
    task = make_task("text_classification", labels=("early", "late"))
    fault = task.find_row_fault(Row(4, "rows.jsonl:5", fields))
    assert fault.location == "rows.jsonl:5"
    assert message in str(fault)


def test_a_label_that_no_training_row_has_is_named():
    from dtl.core.errors import DtlError

    task = make_task("text_classification")
    encode = task.encoder(tiny.tokenizer(), {"labels": ["early", "late"]}, None)
    with pytest.raises(DtlError, match=r"^rows\.jsonl:5: the label 'eraly' .*did you mean 'early'"):
        encode(Row(4, "rows.jsonl:5", {"text": "x", "label": "eraly"}))


@pytest.mark.parametrize("text", ["", " "])
def test_a_text_without_tokens_is_left_out(text):
    """A tokenizer that splits at white space makes nothing of a blank."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({"[unk]": 0, "river": 1}, unk_token="[unk]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    words = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="[unk]")
    task = make_task("text_classification")
    encode = task.encoder(words, {"labels": ["early", "late"]}, None)
    assert encode(Row(0, "", {"text": text, "label": "late"})).reason == "empty text"
    assert encode(Row(0, "", {"text": "river", "label": "late"})).length == 1


def test_a_text_is_cut_to_what_the_tokenizer_says_its_model_can_read():
    """RoBERTa has 34 positions for 32 tokens: it counts them from 2."""
    from transformers import RobertaConfig, RobertaForSequenceClassification

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    settings = RobertaConfig(
        vocab_size=320, num_attention_heads=2, max_position_embeddings=34, pad_token_id=1, **sizes
    )
    tokenizer = tiny.tokenizer()
    tokenizer.model_max_length = 32
    encode = make_task("text_classification").encoder(tokenizer, {"labels": ["x", "y"]}, settings)
    encoded = encode(Row(0, "", {"text": "the river " * 50, "label": "x"}))
    assert encoded.length == 32
    RobertaForSequenceClassification(settings)(torch.tensor([encoded.values["input_ids"]]))


@pytest.mark.parametrize("labels", [["only"], []])
def test_one_label_is_not_a_choice(labels):
    from dtl.core.errors import DtlError

    rows = make_rows([{"text": "x", "label": label} for label in labels])
    with pytest.raises(DtlError, match="at least two labels"):
        make_task("text_classification").collect_dataset_stats(rows, None)


def rank(labels, similarities, queries, **options):
    """The scores of pairs with these labels, outputs and queries."""
    task = make_task("text_classification", ranking=True, **options)
    batch = {
        "labels": torch.tensor(labels),
        "query_ids": torch.tensor([query_id(query) for query in queries]),
    }
    logits = torch.tensor(similarities)
    records = add_rankings(task.head.eval_records(logits, batch), logits, batch)
    names = ["0", "1"] if task.has_classes else ["LABEL_0"]
    return task.score(json.loads(json.dumps(records)), {"labels": names})


def test_pairs_are_scored_as_rankings_as_by_scikit_learn():
    from sklearn.metrics import ndcg_score

    queries = ["a", "b", "a", "a", "b", "c"]
    labels = [[0.0], [1.0], [1.0], [0.5], [0.0], [0.0]]
    outputs = [[0.9], [0.2], [0.5], [0.1], [0.7], [0.3]]
    scores = rank(labels, outputs, queries, problem_type="regression")
    by_query = [([0, 1, 1], [0.9, 0.5, 0.1]), ([1, 0], [0.2, 0.7])]
    expected = [ndcg_score([relevant], [given], k=10) for relevant, given in by_query]
    assert scores["ndcg@10"] == pytest.approx(sum(expected) / 2)
    assert scores["mrr@10"] == pytest.approx((1 / 2 + 1 / 2) / 2)
    assert scores["recall@1"] == 0.0 and scores["recall@5"] == 1.0
    assert scores["queries"] == 2, "c has no relevant document"
    assert "pearson" in scores
    classes = [int(number > 0) for (number,) in labels]
    logits = [[0.0, number] for (number,) in outputs]
    ranked = rank(classes, logits, queries)
    same = ("ndcg@10", "mrr@10", "recall@1", "queries")
    assert [ranked[name] for name in same] == [scores[name] for name in same]
    assert "macro_f1" in ranked


def test_query_of_a_pair_is_its_first_text(encoder):
    rows = [{"text": q, "text_pair": d, "label": n} for q, d, n in (("a", "b", 0), ("a", "c", 1))]
    task = make_task("text_classification", ranking=True)
    settings = load_model_config(Model(path=str(encoder)))
    made = make_rows([*rows, {"text": "z", "text_pair": "b", "label": 1}])
    encode = task.encoder(tiny.tokenizer(), task.collect_dataset_stats(made, settings), settings)
    batch = task.collate([encode(row).values for row in made], pad_token_id=0)
    first, second, other = batch["query_ids"].tolist()
    assert first == second != other
    plain = make_task("text_classification")
    encode = plain.encoder(tiny.tokenizer(), {"labels": ["0", "1"]}, settings)
    assert "query_ids" not in plain.collate([encode(row).values for row in made], pad_token_id=0)


def test_ranking_needs_one_number_or_two_labels(encoder):
    settings = load_model_config(Model(path=str(encoder)))
    rows = make_rows([{"text": "x", "label": label} for label in "abc"])
    with pytest.raises(DtlError, match=r"task\.ranking: the head has 3 outputs \(expected 2\)"):
        make_task("text_classification", ranking=True).collect_dataset_stats(rows, settings)
    with pytest.raises(ValidationError, match="does not give one number"):
        make_task("text_classification", ranking=True, problem_type="multi_label_classification")
