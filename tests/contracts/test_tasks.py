"""The trials that every task passes. A new file in dtl/tasks/ needs a line in CASES."""

from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dtl.config import registry
from dtl.config.schema import Model
from dtl.data.cache.encoder import convert_to_stored_dtypes, encode_rows
from dtl.data.example import EncodedExample
from dtl.data.sources.rows import Row
from dtl.models.anatomy import batch_norms, head_modules
from dtl.models.load import load_pretrained
from dtl.models.new_parameters import init_new_parameters
from dtl.models.pretrained_config import HeadConfig, load_model_config
from dtl.models.processor import get_pad_token_id, load_processor
from tests import tiny, tiny_sound, tiny_speech, tiny_vision, tiny_whisper


@dataclass(frozen=True)
class Case:
    """A tiny model and rows for a task. `base`: a fixture; `rows`: uneven in length, and the last
    one is the longest; `classes`: between how many a head of zeros is undecided, or None where the
    loss is not that of a choice."""

    base: str
    rows: tuple[dict[str, Any], ...]
    classes: int | None
    options: dict[str, Any]


def texts(count: int) -> tuple[dict[str, Any], ...]:
    draw = random.Random(3)
    rows = [{"text": tiny.sentence(draw, 12)} for _ in range(count - 1)]
    return (*rows, {"text": " ".join(tiny.WORDS[:20])})


def labelled(count: int) -> tuple[dict[str, Any], ...]:
    labels = ["early", "late", "never"]
    return tuple(
        {"text": f"{labels[place % 3]} {row['text']}", "label": labels[place % 3]}
        for place, row in enumerate(texts(count))
    )


def tagged(count: int) -> tuple[dict[str, Any], ...]:
    return tuple(tiny.tag(row["text"]) for row in texts(count))


def shortened(count: int) -> tuple[dict[str, Any], ...]:
    return tuple(tiny.shorten(row["text"]) for row in texts(count))


def preferred(count: int) -> tuple[dict[str, Any], ...]:
    return tuple(
        {"prompt": row["text"], "chosen": f" {word} again", "rejected": f" {other} and {word}"}
        for row, word, other in zip(texts(count), tiny.WORDS, tiny.WORDS[9:], strict=False)
    )


ANSWERS = tuple(
    {"prompt": f"{row['text']} ?", "completion": f" {tiny.WORDS[place]} {row['text']}"}
    for place, row in enumerate(texts(9))
)
CASES: dict[str, list[Case]] = {
    "asr_ctc": [
        Case("wav2vec2", tuple(tiny_speech.transcribed(9)), classes=None, options={}),
        Case("wav2vec2_bert", tuple(tiny_speech.transcribed(9)), classes=None, options={}),
    ],
    "audio_classification": [
        Case("wav2vec2", tuple(tiny_sound.tones(9)), classes=3, options={}),
        Case("spectrogram", tuple(tiny_sound.tones(9)), classes=3, options={}),
    ],
    "causal_lm": [
        Case("decoder", texts(9), classes=320, options={}),
        Case("tied_decoder", ANSWERS, classes=None, options={"max_length": 64}),
    ],
    "dpo": [
        Case("decoder", preferred(9), classes=2, options={"beta": 1.0}),
        Case("tied_decoder", preferred(9), classes=None, options={"beta": 1.0}),
    ],
    "text_classification": [
        Case("encoder", labelled(9), classes=3, options={}),
        Case("decoder", labelled(9), classes=3, options={}),
    ],
    "token_classification": [
        Case("encoder", tagged(9), classes=4, options={}),
        Case("decoder", tagged(9), classes=5, options={"label_all_tokens": True}),
    ],
    "image_classification": [
        Case("vit", tuple(tiny_vision.pictures(9)), classes=3, options={}),
        Case("resnet", tuple(tiny_vision.pictures(9)), classes=3, options={}),
    ],
    "seq2seq": [
        Case("t5", shortened(9), classes=320, options={"max_new_tokens": 24}),
        Case("bart", shortened(9), classes=None, options={"metric": "bleu", "num_beams": 2}),
    ],
    "asr_seq2seq": [
        Case("whisper", tiny_whisper.spoken(9), classes=None, options={"language": "de"}),
        Case("english_whisper", tiny_whisper.spoken(9), classes=None, options={"num_beams": 2}),
        Case("speech_to_text", tiny_whisper.spoken(9), classes=320, options={}),
    ],
}
TRIALS = [(name, place) for name in CASES for place in range(len(CASES[name]))]


@dataclass(frozen=True)
class Bench:
    """A task with its model, and its examples as the cache would give them."""

    task: Any
    model: Any
    dataset_stats: dict[str, Any]
    processor: Any
    encoded: list[EncodedExample]
    longest: int

    def collate(self, places: list[int]) -> dict[str, torch.Tensor]:
        shown = [
            self.task.transform(self.encoded[place].values, processor=self.processor, rng=None)
            for place in places
        ]
        return self.task.collate(shown, pad_token_id=get_pad_token_id(self.processor) or 0)

    def loss(self, places: list[int]) -> float:
        with torch.no_grad():
            return self.task.loss(self.model, self.collate(places)).item()

    def outcomes(self, places: list[int]) -> list[dict[str, Any]]:
        with torch.no_grad():
            return self.task.eval_records(
                self.model, self.collate(places), processor=self.processor
            )

    @property
    def all(self) -> list[int]:
        return list(range(len(self.encoded)))


def make_task(name: str, **options: Any) -> Any:
    module = registry.load("tasks", name)
    return module.Plugin(module.Options(**options))


def numbered(fields: tuple[dict[str, Any], ...] | list[dict[str, Any]]) -> list[Row]:
    return [Row(place, f"rows.jsonl:{place + 1}", row) for place, row in enumerate(fields)]


@cache
def set_up(folder: Path, name: str, place: int) -> Bench:
    case = CASES[name][place]
    task = make_task(name, **case.options)
    source = Model(path=str(folder))
    processor, settings = load_processor(source, task.processor_kind), load_model_config(source)
    rows = numbered(case.rows)
    processor, dataset_stats = task.adapt_processor(
        processor, task.collect_dataset_stats(rows, settings)
    )
    assert json.loads(json.dumps(dataset_stats)) == dataset_stats
    loaded = load_pretrained(
        source,
        head=HeadConfig(task.auto_class, task.head_config(dataset_stats)),
        random_init=False,
        seed=0,
        dtype="fp32",
    )
    init_new_parameters(
        loaded.model,
        loaded.new_parameters,
        seed=0,
        write_parameter=lambda p, value: p.data.copy_(value),
    )
    if (padding := get_pad_token_id(processor)) is not None:
        loaded.model.config.pad_token_id = padding
    task.configure_model(loaded.model, processor=processor)
    model = adapted(loaded.model) if task.compares_with_base else loaded.model
    encode = task.encoder(processor, dataset_stats, settings)
    encoded = [encode(row) for row in rows]
    assert all(isinstance(example, EncodedExample) for example in encoded)
    longest = task.max_length(processor, dataset_stats, settings)
    return Bench(task, model.eval(), dataset_stats, processor, encoded, longest)


def adapted(model: Any) -> Any:
    """A small adapter, for tasks that compare with the base beside it."""
    torch.manual_seed(0)
    lora = registry.load("strategies", "lora")
    return lora.Plugin(lora.Options(rank=4)).apply(model, new_parameters=frozenset())


@pytest.fixture(params=TRIALS, ids=lambda trial: f"{trial[0]}-{CASES[trial[0]][trial[1]].base}")
def trial(request) -> tuple[Case, Bench]:
    name, place = request.param
    case = CASES[name][place]
    return case, set_up(request.getfixturevalue(case.base), name, place)


@pytest.fixture
def bench(trial) -> Bench:
    return trial[1]


def test_every_task_has_a_case():
    missing = [name for name in registry.list_names("tasks") if name not in CASES]
    assert not missing, (
        f"no trial for the tasks {missing}: add to CASES in {Path(__file__).name} a tiny model (a "
        "fixture of tests/conftest.py) and nine rows of uneven length, the longest one last"
    )


# What every task owes ---------------------------------------------------------------------------


def test_the_loss_of_a_batch_is_the_sum_over_its_parts(bench):
    whole = bench.loss(bench.all)
    assert whole == pytest.approx(bench.loss([0, 1, 2]) + bench.loss(bench.all[3:]), rel=1e-5)
    assert whole == pytest.approx(sum(bench.loss([place]) for place in bench.all), rel=1e-5)


def test_the_loss_is_one_number_in_fp32(bench):
    loss = bench.task.loss(bench.model, bench.collate([0, 1]))
    assert (loss.shape, loss.dtype, loss.requires_grad) == ((), torch.float32, True)


def test_no_example_is_longer_than_the_longest_there_may_be(bench):
    assert 0 < max(example.length for example in bench.encoded) <= bench.longest


def test_an_example_that_is_not_written_is_what_would_be_read_back(bench, cache):
    """Bitwise, in what the model is shown of it."""
    rows = [Row(place, "", {}) for place in bench.all]
    data = encode_rows(rows, lambda row: bench.encoded[row.index], key="k", place="data.train")
    for number in bench.all:
        one, other = (
            bench.task.collate(
                [bench.task.transform(values, processor=bench.processor, rng=None)], pad_token_id=0
            )
            for values in (data[number], convert_to_stored_dtypes(bench.encoded[number].values))
        )
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_more_padding_changes_nothing(bench):
    """Beside the longest example, the others are padded to its length; pictures are not."""
    narrow = bench.collate([0, 1])
    wide = {name: tensor[:2] for name, tensor in bench.collate([0, 1, bench.all[-1]]).items()}
    if bench.task.processor_kind in ("tokenizer", "processor"):
        assert any(wide[name].shape != tensor.shape for name, tensor in narrow.items())
    with torch.no_grad():
        losses = [bench.task.loss(bench.model, batch).item() for batch in (narrow, wide)]
        first, second = [
            bench.task.eval_records(bench.model, batch, processor=bench.processor)
            for batch in (narrow, wide)
        ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for one, other in zip(first, second, strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            near = pytest.approx(value, rel=1e-5) if isinstance(value, float) else value
            assert other[name] == near


def test_targets_are_those_that_the_loss_counts(trial):
    """A head of zeros is undecided between all classes: each target then costs log(classes)."""
    case, bench = trial
    assert all(example.targets > 0 for example in bench.encoded)
    if case.classes is None:
        return
    heads = [parameter for module in head_modules(bench.model) for parameter in module.parameters()]
    kept = [parameter.detach().clone() for parameter in heads]
    try:
        for parameter in heads:
            parameter.data.zero_()
        for place, example in enumerate(bench.encoded):
            expected = example.targets * math.log(case.classes)
            assert bench.loss([place]) == pytest.approx(expected, rel=1e-5)
    finally:
        for parameter, value in zip(heads, kept, strict=True):
            parameter.data.copy_(value)


def test_lengths_are_what_the_model_reads(bench):
    """A decoder beside the encoder reads as many tokens as it is to write."""
    if "attention_mask" not in bench.collate([0]):
        pytest.skip("the model always reads as much")
    two = getattr(bench.model.config, "is_encoder_decoder", False)
    for place, example in enumerate(bench.encoded):
        read = positions(bench.model, bench.collate([place])["attention_mask"])
        assert read + two * example.targets == example.length


def positions(model: Any, mask: torch.Tensor) -> int:
    """Of the encoder, which may read several frames as one position; Whisper also reads silence."""
    kind = model.config.model_type
    if kind == "whisper":
        return model.config.max_source_positions
    frames = mask.sum()
    if kind == "speech_to_text":
        return int(model.get_encoder()._get_feat_extract_output_lengths(frames))
    if hasattr(model, "_get_feat_extract_output_lengths"):  # of samples
        return int(model._get_feat_extract_output_lengths(frames))
    return int(frames)


def test_outcomes_of_any_split_score_the_same(bench):
    """However the examples are dealt out; and in any order, to the last digit."""
    whole = bench.outcomes(bench.all)
    assert len(whole) == len(bench.all)
    assert json.loads(json.dumps(whole)) == whole
    read = [bench.task.describe_prediction(outcome, bench.dataset_stats) for outcome in whole]
    assert all(isinstance(text, str | None) for one in read for text in (one.expected, one.said))
    scores = bench.task.score(whole, bench.dataset_stats)
    for size in (1, 2, 5):
        parts = [bench.all[start : start + size] for start in range(0, len(bench.all), size)]
        joined = [outcome for part in parts for outcome in bench.outcomes(part)]
        assert bench.task.score(joined, bench.dataset_stats) == pytest.approx(scores, rel=1e-5)
    shuffled = random.Random(1).sample(whole, len(whole))
    assert bench.task.score(shuffled, bench.dataset_stats) == scores
    assert all(type(value) in (int, float) for value in scores.values())


def test_the_best_score_is_one_that_is_given(bench):
    scores = bench.task.score(bench.outcomes(bench.all), bench.dataset_stats)
    assert bench.task.best.removeprefix("-") in scores


def test_the_best_score_is_a_function_of_sums(bench):
    """Also of every sample of examples that a bootstrap draws, all at once."""
    outcomes, name = bench.outcomes(bench.all), bench.task.best.removeprefix("-")
    counts = bench.task.metric_counts(outcomes, bench.dataset_stats)
    assert counts.dtype == np.float64 and len(counts) == len(outcomes)
    whole = bench.task.metric_from_counts(counts.sum(0))
    assert float(whole) == pytest.approx(
        bench.task.score(outcomes, bench.dataset_stats)[name], rel=1e-9
    )
    weights = np.random.default_rng(0).multinomial(9, [1 / 9] * 9, size=(2, 3))
    values = bench.task.metric_from_counts(weights @ counts)
    assert values.shape == (2, 3)
    for value, times in zip(values.flat, weights.reshape(6, 9), strict=True):
        sample = [outcomes[place] for place in range(9) for _ in range(times[place])]
        expected = bench.task.score(sample, bench.dataset_stats)[name]
        assert float(value) == pytest.approx(expected, rel=1e-9)


def test_rows_without_answers_get_a_prediction(trial):
    """Of a row with its answer taken out; alone or among others, it is the same one."""
    case, bench = trial
    answers = {"label", "tags", "target", "completion"} | (
        {"text"} if bench.task.media_column else set()
    )
    bare = [{key: row[key] for key in row.keys() - answers} for row in case.rows]
    rows = numbered(
        [bench.task.with_placeholder_target(fields, bench.dataset_stats) for fields in bare]
    )
    assert [bench.task.find_row_fault(row) for row in rows] == [None] * len(rows)
    encode = bench.task.prompt_encoder(bench.processor, bench.dataset_stats, bench.model.config)
    values = [encode(row).values for row in rows]

    def predict(some: list[Any]) -> list[dict[str, Any]]:
        shown = [bench.task.transform(one, processor=bench.processor, rng=None) for one in some]
        batch = bench.task.collate(shown, pad_token_id=get_pad_token_id(bench.processor) or 0)
        how = {"processor": bench.processor, "dataset_stats": bench.dataset_stats, "longest": 6}
        with torch.no_grad():
            return bench.task.predict(bench.model, batch, **how)

    together = predict(values)
    assert json.loads(json.dumps(together)) == together
    alone = [found for one in values for found in predict([one])]
    assert [one["predicted"] for one in alone] == [one["predicted"] for one in together]


def test_the_scores_loss_is_that_of_training(bench):
    targets = sum(example.targets for example in bench.encoded)
    scores = bench.task.score(bench.outcomes(bench.all), bench.dataset_stats)
    assert scores["loss"] == pytest.approx(bench.loss(bench.all) / targets, rel=1e-5)


def test_forty_steps_on_four_examples_overfit(bench):
    import copy

    model = copy.deepcopy(bench.model).train()
    for module in batch_norms(model):
        module.eval()  # as in a run
    batch = bench.collate([0, 1, 2, 3])
    targets = sum(bench.encoded[place].targets for place in range(4))
    aligns = (
        bench.task.auto_class == "AutoModelForCTC"
    )  # for which CTC needs more and gentler steps
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3 if aligns else 1e-2)
    losses = []
    for _ in range(240 if aligns else 40):
        loss = bench.task.loss(model, batch) / targets
        loss.backward()
        if aligns:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]
    with torch.no_grad():
        outcomes = bench.task.eval_records(model.eval(), batch, processor=bench.processor)
    scores = bench.task.score(outcomes, bench.dataset_stats)
    assert scores.get("accuracy", 1 - scores.get("cer", 0)) > 0.95


# causal_lm --------------------------------------------------------------------------------------


def learnt(encoded: EncodedExample) -> list[int]:
    """The tokens that count, as `labels` has them; the first is never a target."""
    tokens, labels = encoded.values["input_ids"], encoded.values["labels"]
    assert len(tokens) == len(labels) == encoded.length
    assert all(label in (-100, token) for token, label in zip(tokens, labels, strict=True))
    counted = [label for label in labels[1:] if label != -100]
    assert len(counted) == encoded.targets
    return counted


def encode_with(tokenizer: Any, fields: dict[str, Any], **options: Any) -> Any:
    task = make_task("causal_lm", **options)
    return task.encoder(tokenizer, {}, None)(Row(0, "rows.jsonl:1", fields))


def without_padding_token(tokenizer: Any) -> Any:
    """As dtl does it for models without one: the end token pads."""
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def with_start_token(tokenizer: Any) -> Any:
    """As Llama has it: the tokenizer itself puts the start token before a text."""
    from tokenizers.processors import TemplateProcessing

    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    return tokenizer


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# It strips what people write, puts no newline between turns, and has a mark before each answer.
STRIPPING = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] "
    "{{ m['content'] | trim }} [/INST]{% else %} {{ m['content'] | trim }}{{ eos_token }}"
    "{% endif %}{% endfor %}"
)
# An answer is only a turn of the model's once the next question follows.
REWRITING = (
    "{% for m in messages %}{% if m['role'] == 'assistant' and not loop.last %}(answered)"
    "{% else %}{{ m['content'] }}{% endif %}\n{% endfor %}"
)
TALK = [
    {"role": "system", "content": "be old"},
    {"role": "user", "content": "the river"},
    {"role": "assistant", "content": " keeps light"},
    {"role": "user", "content": "again </s>"},
    {"role": "assistant", "content": "over the stone "},
]


@pytest.mark.parametrize("base", ["decoder", "tied_decoder"])
def test_causal_lm_loss_is_that_of_transformers(base, request):
    bench = set_up(request.getfixturevalue(base), "causal_lm", 0)
    model = request.getfixturevalue(base)
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    batch = bench.collate(bench.all)
    targets = sum(example.targets for example in bench.encoded)
    with torch.no_grad():
        mean = theirs(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            labels=batch["labels"],
        ).loss.item()
        ours = bench.task.loss(theirs, batch).item()
    assert ours == pytest.approx(mean * targets, rel=1e-5)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (tiny.TEMPLATE, " keeps light</s>over the stone </s>"),
        (CHATML, " keeps light<|im_end|>over the stone <|im_end|>"),
    ],
    ids=["tiny", "chatml"],
)
@pytest.mark.parametrize("change", [lambda t: t, without_padding_token, with_start_token])
def test_of_a_chat_exactly_the_answers_and_their_end_marks_are_learnt(template, expected, change):
    tokenizer = change(tiny.tokenizer(chat=True))
    tokenizer.chat_template = template
    encoded = encode_with(tokenizer, {"messages": TALK})
    assert tokenizer.decode(learnt(encoded)) == expected
    whole = tokenizer.apply_chat_template(TALK, tokenize=False)
    assert tokenizer.decode(encoded.values["input_ids"]) == whole


def test_a_template_without_a_mark_for_the_answer_works_too():
    tokenizer = tiny.tokenizer(chat=True)
    tokenizer.chat_template = STRIPPING
    encoded = encode_with(tokenizer, {"messages": TALK[1:]})
    assert tokenizer.decode(learnt(encoded)) == " keeps light</s> over the stone</s>"
    assert encoded.values["input_ids"].count(tokenizer.bos_token_id) == 1


def test_a_chat_may_be_learnt_whole():
    tokenizer = tiny.tokenizer(chat=True)
    encoded = encode_with(tokenizer, {"messages": TALK}, train_on="all")
    assert learnt(encoded) == encoded.values["input_ids"][1:]


@pytest.mark.parametrize(
    ("change", "start"),
    [(lambda t: t, ""), (without_padding_token, ""), (with_start_token, "<s>")],
)
def test_of_prompt_and_completion_the_completion_and_the_end_are_learnt(change, start):
    tokenizer = change(tiny.tokenizer())
    row = {"prompt": "the old ship", "completion": " carries a letter"}
    encoded = encode_with(tokenizer, row)
    assert tokenizer.decode(learnt(encoded)) == " carries a letter</s>"
    assert tokenizer.decode(encoded.values["input_ids"]) == (
        f"{start}the old ship carries a letter</s>"
    )
    open_end = encode_with(tokenizer, row, append_eos=False)
    assert tokenizer.decode(learnt(open_end)) == " carries a letter"
    everything = encode_with(tokenizer, row, train_on="all")
    assert learnt(everything) == everything.values["input_ids"][1:]


@pytest.mark.parametrize("change", [lambda t: t, without_padding_token, with_start_token])
def test_plain_text_is_learnt_whole_with_its_end(change):
    tokenizer = change(tiny.tokenizer())
    encoded = encode_with(tokenizer, {"text": "the river turns"})
    body = tokenizer("the river turns", add_special_tokens=False)["input_ids"]
    end = [tokenizer.eos_token_id]
    start = [tokenizer.bos_token_id] if change is with_start_token else []
    assert encoded.values["input_ids"] == start + body + end
    assert learnt(encoded) == (start + body + end)[1:]


def test_the_end_token_counts_in_a_padded_batch_where_it_is_also_the_padding(decoder):
    """Padding is told by length: the loss of a padded example is that of the example alone."""
    from transformers import AutoModelForCausalLM

    tokenizer = without_padding_token(tiny.tokenizer())
    task = make_task("causal_lm")
    rows = [encode_with(tokenizer, {"text": text}) for text in ("a river", " ".join(tiny.WORDS))]
    batch = task.collate([row.values for row in rows], pad_token_id=tokenizer.pad_token_id)
    assert batch["attention_mask"].sum(1).tolist() == [row.length for row in rows]
    assert (batch["labels"][0] == tokenizer.eos_token_id).sum() == 1
    model = AutoModelForCausalLM.from_pretrained(decoder, dtype=torch.float32).eval()
    with torch.no_grad():
        found = [
            outcome["loss"] for outcome in task.eval_records(model, batch, processor=tokenizer)
        ]
        for row, loss in zip(rows, found, strict=True):
            tokens = torch.tensor([row.values["input_ids"]])
            alone = model(input_ids=tokens, labels=tokens).loss.item() * row.targets
            assert loss == pytest.approx(alone, rel=1e-5)


def test_what_is_cut_off_is_not_counted():
    tokenizer = tiny.tokenizer()
    row = {"prompt": "the old ship", "completion": " carries a letter"}
    prompt = len(tokenizer("the old ship")["input_ids"])
    cut = encode_with(tokenizer, row, max_length=prompt + 1)
    assert (cut.length, cut.targets) == (prompt + 1, 1)
    nothing = encode_with(tokenizer, row, max_length=prompt)
    assert nothing.reason == "no target left after truncation"
    assert encode_with(tokenizer, {"text": ""}).reason == "empty text"


def test_a_row_is_cut_to_what_the_model_can_read(decoder):
    """128 positions, though max_length allows 512."""
    task = make_task("causal_lm")
    settings = load_model_config(Model(path=str(decoder)))
    encode = task.encoder(tiny.tokenizer(), {}, settings)
    assert encode(Row(0, "", {"text": "the river " * 200})).length == 128


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"messages": "hello"}, "is not a list of turns"),
        ({"messages": []}, "is not a list of turns"),
        ({"messages": ["hello"]}, "is not a list of turns"),
        ({"messages": [{"role": "user"}]}, "is not a list of turns"),
        ({"messages": [{"role": "user", "content": 7}]}, "is not a list of turns"),
        ({"text": 5}, "`text` is int"),
        ({"prompt": "x", "completion": ["y"]}, "`completion` is list"),
        ({"text": None}, "the row has 'text'"),
        ({"title": "x", "body": "y"}, "the row has 'title', 'body'"),
        ({"prompt": "x"}, "the task reads"),
        ({}, "the row has nothing"),
    ],
)
def test_a_row_at_fault_is_named(fields, told):
    fault = make_task("causal_lm").find_row_fault(Row(0, "rows.jsonl:1", fields))
    assert fault.location == "rows.jsonl:1"
    assert told in fault.problem
    assert fault.fix


def test_a_chat_needs_a_template():
    from dtl.core.errors import DtlError

    with pytest.raises(DtlError, match=r"^rows\.jsonl:1: .* has no chat template"):
        encode_with(tiny.tokenizer(), {"messages": TALK})


def test_a_template_that_rewrites_earlier_turns_is_not_guessed_at():
    from dtl.core.errors import DtlError

    tokenizer = tiny.tokenizer(chat=True)
    tokenizer.chat_template = REWRITING
    with pytest.raises(DtlError, match="rewrites earlier turns"):
        encode_with(tokenizer, {"messages": TALK})
    assert encode_with(tokenizer, {"messages": TALK}, train_on="all").targets > 0


def test_a_template_that_refuses_a_row_says_why():
    from dtl.core.errors import DtlError

    tokenizer = tiny.tokenizer(chat=True)
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(DtlError, match="roles must alternate"):
        encode_with(tokenizer, {"messages": TALK})


def test_scores_of_a_language_model_by_hand():
    """3 nats over 4 targets, 3 guessed right: exp(0.75) = 2.117."""
    outcomes = [{"loss": 1.0, "targets": 3, "hits": 2}, {"loss": 2.0, "targets": 1, "hits": 1}]
    scores = make_task("causal_lm").score(outcomes, {})
    assert scores == pytest.approx({"loss": 0.75, "perplexity": 2.1170000, "accuracy": 0.75})
    hopeless = make_task("causal_lm").score([{"loss": 1e6, "targets": 1, "hits": 0}], {})
    assert math.isfinite(hopeless["perplexity"])


# text_classification ----------------------------------------------------------------------------

TRUTH = [0, 0, 0, 1, 1, 2, 0, 2]
GUESS = [0, 0, 1, 1, 2, 2, 2, 0]
NAMES = ["a", "b", "c", "never seen"]


def test_classification_scores_by_hand_and_by_scikit_learn():
    """a: 2 of 3 and 2 of 4 (F1 4/7). b: 1 of 2 and 1 of 2 (1/2). c: 1 of 3 and 1 of 2 (2/5)."""
    from sklearn.metrics import accuracy_score, f1_score

    outcomes = [
        {"loss": 0.5, "label": label, "predicted": predicted}
        for label, predicted in zip(TRUTH, GUESS, strict=True)
    ]
    scores = make_task("text_classification").score(outcomes, {"labels": NAMES})
    assert scores["accuracy"] == 4 / 8 == accuracy_score(TRUTH, GUESS)
    assert scores["macro_f1"] == pytest.approx((4 / 7 + 1 / 2 + 2 / 5) / 3)
    assert scores["macro_f1"] == pytest.approx(f1_score(TRUTH, GUESS, average="macro"))
    assert scores["loss"] == 0.5
    assert scores["confusion/a/b"] == 1 and scores["confusion/c/a"] == 1
    assert scores["confusion/never seen/a"] == 0
    counts = sum(value for name, value in scores.items() if name.startswith("confusion/"))
    assert counts == 8


def test_classification_loss_is_that_of_transformers(encoder):
    bench = set_up(encoder, "text_classification", 0)
    batch = bench.collate(bench.all)
    with torch.no_grad():
        mean = bench.model(**batch).loss.item()
    assert bench.loss(bench.all) == pytest.approx(mean * len(bench.all), rel=1e-5)


def test_labels_are_those_of_the_rows_in_order(encoder):
    task = make_task("text_classification")
    settings = load_model_config(Model(path=str(encoder)))
    rows = numbered([{"text": "x", "label": label} for label in ("no", "yes", "maybe", "no")])
    dataset_stats = task.collect_dataset_stats(rows, settings)
    assert dataset_stats == {"labels": ["maybe", "no", "yes"]}
    head = task.head_config(dataset_stats)
    assert head["num_labels"] == 3
    assert head["id2label"] == {0: "maybe", 1: "no", 2: "yes"}
    assert head["label2id"] == {"maybe": 0, "no": 1, "yes": 2}
    given = make_task("text_classification", labels=("yes", "no", "maybe", "never"))
    assert given.survey(rows, settings) == {"labels": ["yes", "no", "maybe", "never"]}


def test_a_base_that_knows_these_labels_keeps_its_order(encoder):
    """So that its head can go on with what it has learnt."""
    settings = load_model_config(Model(path=str(encoder)))
    settings.id2label = {0: "yes", 1: "no"}
    rows = numbered([{"text": "x", "label": label} for label in ("no", "yes")])
    assert make_task("text_classification").collect_dataset_stats(rows, settings) == {
        "labels": ["yes", "no"]
    }


def test_a_pair_of_texts_is_read_as_the_tokenizer_reads_pairs(encoder):
    task = make_task("text_classification")
    tokenizer = tiny.tokenizer()
    rows = numbered([{"text": "a river", "text_pair": "the night", "label": "x"}])
    encode = task.encoder(
        tokenizer, {"labels": ["x", "y"]}, load_model_config(Model(path=str(encoder)))
    )
    encoded = encode(rows[0])
    assert encoded.values["input_ids"] == tokenizer("a river", "the night")["input_ids"]
    assert (encoded.targets, encoded.values["labels"]) == (1, 0)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"text": "x"}, "there is no `label`"),
        ({"text": "x", "label": None}, "there is no `label`"),
        ({"text": "x", "label": ["a"]}, "`label` is a list"),
        ({"text": "x", "label": "eraly"}, "did you mean 'early'?"),
        ({"text": "x", "label": "zzz"}, "the labels are early, late"),
        ({"text": 7, "label": "late"}, "`text` is int"),
        ({"text": "x", "text_pair": 0, "label": "late"}, "`text_pair` is int"),
        ({"label": "late"}, "there is no `text`"),
    ],
)
def test_a_labelled_row_at_fault_is_named(fields, told):
    task = make_task("text_classification", labels=("early", "late"))
    fault = task.find_row_fault(Row(4, "rows.jsonl:5", fields))
    assert fault.location == "rows.jsonl:5"
    assert told in str(fault)


def test_a_label_that_no_training_row_has_is_named():
    from dtl.core.errors import DtlError

    task = make_task("text_classification")
    encode = task.encoder(tiny.tokenizer(), {"labels": ["early", "late"]}, None)
    with pytest.raises(DtlError, match=r"^rows\.jsonl:5: label 'eraly' .*did you mean 'early'"):
        encode(Row(4, "rows.jsonl:5", {"text": "x", "label": "eraly"}))


def test_every_row_of_the_trials_passes_its_check(trial):
    case, bench = trial
    assert [bench.task.find_row_fault(row) for row in numbered(case.rows)] == [None] * len(
        case.rows
    )


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

    rows = numbered([{"text": "x", "label": label} for label in labels])
    with pytest.raises(DtlError, match="at least two labels"):
        make_task("text_classification").collect_dataset_stats(rows, None)
