"""seq2seq: supervised tokens, generated texts, scores and languages."""

from __future__ import annotations

import copy
import math
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from dtl.config.schema import Model
from dtl.core.errors import DtlError
from dtl.data.example import EncodedExample, Skip
from dtl.data.sources.rows import Row
from dtl.metrics.base import Metric
from dtl.models.pretrained_config import load_model_config
from dtl.models.processor import load_tokenizer
from dtl.tasks.seq2seq import Options, Plugin
from tests import tiny

FAMILIES = ("t5", "bart")
PAIRS = (
    ("the old ship carries a letter over the river", "old ship"),
    ("a stone", "a stone again"),
    ("the small house opens slowly under the light of the morning", "small house. light."),
    ("night follows", "night"),
)


def task(**options: Any) -> Plugin:
    return Plugin(Options(**options))


def row(source: Any, target: Any) -> Row:
    return Row(4, "rows.jsonl:5", {"source": source, "target": target})


def encode(tokenizer: Any, source: Any, target: Any, base: Any = None, **options: Any) -> Any:
    return task(**options).encoder(tokenizer, {}, base)(row(source, target))


def collate(plugin: Plugin, tokenizer: Any, base: Any = None) -> tuple[dict[str, Any], int]:
    encoder = plugin.encoder(tokenizer, {}, base)
    examples = [encoder(row(*pair)) for pair in PAIRS]
    targets = sum(example.targets for example in examples)  # type: ignore[union-attr]
    values = [example.values for example in examples]  # type: ignore[union-attr]
    return plugin.collate(values, pad_token_id=tokenizer.pad_token_id), targets


@cache
def overfitted_model(folder: Path) -> Any:
    """Return a model that reproduces the pairs, so that it generates more than noise."""
    from transformers import AutoModelForSeq2SeqLM

    model = AutoModelForSeq2SeqLM.from_pretrained(folder).train()
    tokenizer = load_tokenizer(Model(path=str(folder)))
    batch, targets = collate(task(), tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(80):
        (task().loss(model, batch) / targets).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_is_that_of_transformers(family: str, request: pytest.FixtureRequest) -> None:
    from transformers import AutoModelForSeq2SeqLM

    folder = request.getfixturevalue(family)
    model = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    batch, targets = collate(task(), load_tokenizer(Model(path=str(folder))))
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
    with torch.no_grad():
        mean = float(model(**inputs).loss)
        assert float(task().loss(model, batch)) == pytest.approx(mean * targets, rel=1e-5)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_generates_what_transformers_generates_row_by_row(
    family: str, beams: int, request: pytest.FixtureRequest
) -> None:
    """So padding changes nothing, and each text is that of its row."""
    folder = request.getfixturevalue(family)
    model, tokenizer = overfitted_model(folder), load_tokenizer(Model(path=str(folder)))
    plugin = task(num_beams=beams, max_new_tokens=20)
    batch, _ = collate(plugin, tokenizer)
    with torch.no_grad():
        records = plugin.eval_records(model, batch, processor=tokenizer)
    for record, (source, target) in zip(records, PAIRS, strict=True):
        alone = model.generate(
            **tokenizer(source, return_tensors="pt", return_token_type_ids=False),
            num_beams=beams,
            do_sample=False,
            max_length=None,
            max_new_tokens=20,
        )
        assert record["generated"] == tokenizer.decode(alone[0], skip_special_tokens=True).strip()
        assert record["reference"] == target
    assert [record["generated"] for record in records] == [target for _, target in PAIRS]


def test_rouge_is_that_of_rouge_score(t5: Path) -> None:
    from rouge_score.rouge_scorer import RougeScorer

    truth = ["The ships sail. They carry letters.", "a stone", "old house"]
    found = ["Ships carry a letter. The river.", "a stone", ""]
    records = [
        {"loss": 2.0, "targets": 4, "correct": 1, "reference": one, "generated": other}
        for one, other in zip(truth, found, strict=True)
    ]
    scores = task().score(records, {})
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL", "rougeLsum"], use_stemmer=True)
    split = [
        ("The ships sail.\nThey carry letters.", "Ships carry a letter.\nThe river."),
        *zip(truth[1:], found[1:], strict=True),
    ]
    for name in ("rouge1", "rouge2", "rougeL", "rougeLsum"):
        each = [scorer.score(*pair)[name].fmeasure for pair in split]
        assert scores[name] == math.fsum(each) / 3
    assert scores["rouge1"] == pytest.approx((2 * 4 / (6 + 6) + 1) / 3), "by hand: 4 of 6 words"
    assert scores["rougeLsum"] != scores["rougeL"], "sentences must matter here"
    assert (scores["loss"], scores["accuracy"]) == (0.5, 0.25)
    assert scores["perplexity"] == pytest.approx(math.exp(0.5))


def test_bleu_and_chrf_are_those_of_sacrebleu() -> None:
    import sacrebleu

    truth = ["the old ship carries a letter", "a stone in the river"]
    found = ["the old ship carries the letter", "stone in the river"]
    records = [
        {"loss": 1.0, "targets": 1, "correct": 0, "reference": one, "generated": other}
        for one, other in zip(truth, found, strict=True)
    ]
    scores = task(metric="bleu").score(records, {})
    assert scores["bleu"] == sacrebleu.corpus_bleu(found, [truth]).score > 40
    assert scores["chrf"] == sacrebleu.corpus_chrf(found, [truth]).score > 40


def test_without_a_metric_nothing_is_generated(t5: Path) -> None:
    plugin, tokenizer = task(metric="none"), load_tokenizer(Model(path=str(t5)))
    batch, _ = collate(plugin, tokenizer)
    records = plugin.eval_records(overfitted_model(t5), batch, processor=tokenizer)
    assert "generated" not in records[0]
    assert set(plugin.score(records, {})) == {"loss", "perplexity", "accuracy"}
    assert [task(metric=name).metric for name in ("rouge", "bleu", "none")] == [
        Metric("rougeLsum"),
        Metric("bleu"),
        Metric("loss", higher_is_better=False),
    ]


def test_min_length_of_the_generation_config_yields_to_a_shorter_limit(t5: Path) -> None:
    """bart-large-cnn asks for 56 tokens at least, which nobody wants of a headline."""
    model, tokenizer = copy.deepcopy(overfitted_model(t5)), load_tokenizer(Model(path=str(t5)))
    model.generation_config.update(min_length=56, max_length=142, num_beams=2)
    plugin = task(max_new_tokens=20)
    batch, _ = collate(plugin, tokenizer)
    records = plugin.eval_records(model, batch, processor=tokenizer)
    assert [record["generated"] for record in records] == [target for _, target in PAIRS]
    assert model.generation_config.min_length == 56, "the model's own settings stay"


def test_source_and_target_tokens_are_those_of_the_tokenizer(t5: Path) -> None:
    tokenizer = tiny.closing_tokenizer()
    encoded = encode(tokenizer, "the river", "a stone", source_prefix="shorten: ")
    assert isinstance(encoded, EncodedExample)
    assert encoded.values["input_ids"] == tokenizer("shorten: the river")["input_ids"]
    assert encoded.values["labels"] == tokenizer("a stone")["input_ids"]
    assert tokenizer.decode(encoded.values["labels"]) == "a stone</s>"
    assert encoded.targets == len(encoded.values["labels"])
    assert encoded.length == len(encoded.values["input_ids"]) + encoded.targets


def test_eos_is_appended_where_the_tokenizer_adds_none() -> None:
    tokenizer = tiny.tokenizer()
    labels = encode(tokenizer, "the river", "a stone").values["labels"]
    assert labels == [*tokenizer("a stone")["input_ids"], tokenizer.eos_token_id]
    truncated = encode(tokenizer, "the river", "a stone " * 9, max_target_length=5).values["labels"]
    assert len(truncated) == 5 and truncated[-1] == tokenizer.eos_token_id


def test_reference_is_the_full_target(bart: Path) -> None:
    """Against a cut reference, a model that generates less would score as if it had said all."""
    base = load_model_config(Model(path=str(bart)))
    target = "a stone in the river " * 40 + "äöü"
    encoded = encode(tiny.closing_tokenizer(), "x " * 300, target, base, max_target_length=512)
    assert len(encoded.values["input_ids"]) == 128, "as many as the model has positions"
    assert encoded.targets == 128
    plugin = task(metric="none")
    batch = plugin.collate([encoded.values], pad_token_id=0)
    records = plugin.eval_records(overfitted_model(bart), batch, processor=None)
    assert records[0]["reference"] == target


@pytest.mark.parametrize(("source", "target"), [("", "x"), ("x", " ")])
def test_empty_text_is_skipped(source: str, target: str) -> None:
    assert encode(tiny.closing_tokenizer(), source, target) == Skip("empty text")


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [(None, "x", "the column `source` is missing"), ("x", 5, "`target` is int")],
)
def test_a_row_at_fault_is_named(source: Any, target: Any, message: str) -> None:
    fault = task().find_row_fault(row(source, target))
    assert fault is not None and fault.location == "rows.jsonl:5"
    assert message in fault.problem and fault.fix
    assert task().find_row_fault(row("x", "y")) is None


# Languages --------------------------------------------------------------------------------------

PIECES = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
PIECES += [(f"▁{letter}", -2.0) for letter in "abcdefgh"] + [("▁", -3.0)]


def multilingual(name: str) -> tuple[Any, Any]:
    """A tokenizer and a tiny model of the family."""
    import transformers

    tokenizer = getattr(transformers, f"{name}Tokenizer")(vocab=PIECES)
    torch.manual_seed(1)
    model = transformers.MBartForConditionalGeneration(
        transformers.MBartConfig(
            vocab_size=len(tokenizer),
            d_model=16,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=16,
            decoder_ffn_dim=16,
            max_position_embeddings=64,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            decoder_start_token_id=tokenizer.eos_token_id,
        )
    )
    return tokenizer, model.eval()


@pytest.mark.parametrize(
    ("name", "source", "target", "starts"),
    [
        ("MBart", ["▁a", "▁b", "</s>", "en_XX"], ["▁c", "▁d", "</s>", "ro_RO"], ["ro_RO"]),
        (
            "MBart50",
            ["en_XX", "▁a", "▁b", "</s>"],
            ["ro_RO", "▁c", "▁d", "</s>"],
            ["</s>", "ro_RO"],
        ),
    ],
)
def test_a_translation_is_of_the_named_languages(
    name: str, source: list[str], target: list[str], starts: list[str]
) -> None:
    """The decoder reads in training what it starts from in generation."""
    tokenizer, model = multilingual(name)
    plugin = task(source_language="en_XX", target_language="ro_RO", max_new_tokens=4)
    encoded = plugin.encoder(tokenizer, {}, None)(row("a b", "c d"))
    assert isinstance(encoded, EncodedExample)
    assert tokenizer.convert_ids_to_tokens(encoded.values["input_ids"]) == source
    assert tokenizer.convert_ids_to_tokens(encoded.values["labels"]) == target
    seen = []
    model.get_decoder().register_forward_pre_hook(
        lambda _, given, named: seen.append(named["input_ids"][0].tolist()), with_kwargs=True
    )
    batch = plugin.collate([encoded.values], pad_token_id=tokenizer.pad_token_id)
    plugin.eval_records(model, batch, processor=tokenizer)
    teacher_forced = tokenizer.convert_ids_to_tokens(seen[0])
    generated = [tokenizer.convert_ids_to_tokens(tokens)[-1] for tokens in seen[1:]]
    assert teacher_forced[: len(starts)] == generated[: len(starts)] == starts


def test_unknown_languages_are_reported() -> None:
    tokenizer, _ = multilingual("MBart50")
    with pytest.raises(DtlError, match="reads several languages, and none is set"):
        task().encoder(tokenizer, {}, None)
    asked = task(source_language="en_XX", target_language="fr")
    with pytest.raises(DtlError, match="no language 'fr'"):
        asked.encoder(tokenizer, {}, None)
    with pytest.raises(DtlError, match="has no languages"):
        asked.encoder(tiny.closing_tokenizer(), {}, None)
