"""Taggers and summarizers: one loss on every layout, and scores of the reference libraries."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import tiny
from tests.distributed import launching
from tests.distributed.layouts import BATCH, LAYOUTS, RATE, zero
from tests.distributed.runs import Run, needs
from tests.distributed.text_tasks import (
    PREFERENCE_TASKS,
    TEXT_HELD_OUT,
    TEXT_STEPS,
    write_text_tasks,
)

STRATEGIES = {
    "full": ("strategy=full",),
    "lora": ("strategy=lora", "strategy.rank=4", "strategy.alpha=8"),
}
TASKS = ("tags", "summary", "pairs")
CLASSIFIERS = {"label_sets": "full", "numbers": "lora"}
RUNS = [
    (task, strategy)
    for task in TASKS
    for strategy in STRATEGIES
    if (task, strategy) != ("pairs", "full")  # preferences are learned by an adapter
]
TRAINED_BASES = ("tags", "summary")  # tasks whose base has learned a little


@pytest.fixture(scope="module", autouse=True)
def text_tasks(folder: Path) -> None:
    """Write the data and bases."""
    write_text_tasks(folder)


def text_run(task: str, strategy: str, processes: int, stage: int) -> Run:
    """Return the run of a task on a layout; the last layout exports."""
    return Run(
        f"{task}-{strategy}-{processes}-{stage}",
        processes,
        (*STRATEGIES[strategy], zero(stage)),
        f"{task}.yaml",
        bare=(processes, stage) != LAYOUTS[-1],
    )


def all_layouts(task: str, strategy: str) -> list[Run]:
    """Return the runs of a task on every layout, the first on one process."""
    return [text_run(task, strategy, *layout) for layout in LAYOUTS]


# Each is compared with one process; where it is exported, in every `make test`.
EXPORTED = LAYOUTS[-1]
CASES = [
    pytest.param(
        *run,
        layout,
        marks=[pytest.mark.slow] * (layout != EXPORTED and number % 2 == index),
    )
    for number, run in enumerate(RUNS)
    for index, layout in enumerate(LAYOUTS[1:])
]
# Of each preference task, one layout in every `make test`, another one for each task.
CASES += [
    pytest.param(task, strategy, layout, marks=[pytest.mark.slow] * (number % 3 != index))
    for number, (task, strategy) in enumerate(PREFERENCE_TASKS.items())
    for index, layout in enumerate(LAYOUTS[1:])
]
CASES += [
    pytest.param(*run, layout, marks=[pytest.mark.slow] * (layout != EXPORTED))
    for run in CLASSIFIERS.items()
    for layout in LAYOUTS[1:]
]
SCORED_CASES = [case for case in CASES if case.values[0] != "reward"]  # its base has no head


def compared(task: str, strategy: str, layout: tuple[int, int]) -> list[Run]:
    """Return the run on one process and that on a layout."""
    return [text_run(task, strategy, *LAYOUTS[0]), text_run(task, strategy, *layout)]


def exported(task: str, strategy: str = "full") -> Run:
    """Return the run under ZeRO-3, which exports."""
    return text_run(task, strategy, *EXPORTED)


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def eval_records(run: Path, step: int) -> list[dict[str, Any]]:
    return rows(run / "evaluations" / f"step-{step:08d}.jsonl")


def scores(run: Path, model: str) -> dict[str, Any]:
    lines = [line for line in rows(run / "metrics.jsonl") if line["kind"] == "eval"]
    return next(line for line in lines if line["model"] == model)


@pytest.mark.parametrize(("task", "strategy", "layout"), CASES)
@needs(compared)
def test_loss_is_one_on_every_layout(
    bed: Path, task: str, strategy: str, layout: tuple[int, int]
) -> None:
    expected, losses = (run.losses(bed) for run in compared(task, strategy, layout))
    assert len(expected) == TEXT_STEPS and expected[-1] != expected[0]
    assert losses[:2] == pytest.approx(expected[:2], rel=1e-5)
    # Adam divides a gradient near 0 by its own size, so another order of sums shows later on.
    assert losses == pytest.approx(expected, rel=5e-5)


# An adapter and a full head next to it, in half precision.
BF16 = Run("tags-bf16", 2, (*STRATEGIES["lora"], zero(3), "model.dtype=bf16"), "tags.yaml")


@needs(BF16, text_run("tags", "lora", 1, 0))
def test_an_adapter_and_a_head_train_in_half_precision_too(bed: Path) -> None:
    plain, half = text_run("tags", "lora", 1, 0).losses(bed), BF16.losses(bed)
    assert half != plain and half == pytest.approx(plain, rel=1e-2)


@pytest.mark.parametrize("task", TRAINED_BASES)
@needs(lambda task: [exported(task)])
def test_the_first_loss_is_that_of_plain_transformers(bed: Path, task: str) -> None:
    """Row by row over the first global batch, with labels made here."""
    import numpy as np

    name = {"tags": "tagged", "summary": "summaries"}[task]
    data = rows(bed / f"{name}.jsonl")
    order = np.random.Generator(np.random.Philox(key=[0, 0])).permutation(len(data))[:12]
    total = targets = 0.0
    for row in order:
        loss, count = _single_row(bed, task, data[row])
        total, targets = total + loss * count, targets + count
    found = exported(task).lines(bed)[0]
    assert found["targets"] == targets
    assert found["loss"] == pytest.approx(total / targets, rel=1e-5)


def _single_row(bed: Path, task: str, row: dict[str, Any]) -> tuple[float, int]:
    """Return the mean loss that the model itself gives for one row, and its number of targets."""
    import torch
    from transformers import (
        AutoModelForSeq2SeqLM,
        AutoModelForTokenClassification,
        AutoTokenizer,
    )

    if task == "summary":
        model = AutoModelForSeq2SeqLM.from_pretrained(bed / "summarizer").eval()
        tokenizer = AutoTokenizer.from_pretrained(bed / "summarizer")
        ids = tokenizer("shorten: " + row["source"])["input_ids"]
        labels = tokenizer(row["target"])["input_ids"]
    else:
        model = AutoModelForTokenClassification.from_pretrained(bed / "tagger").eval()
        tokenizer = AutoTokenizer.from_pretrained(bed / "tagger")
        ids, labels = [], []
        for index, (word, tag) in enumerate(zip(row["tokens"], row["tags"], strict=True)):
            pieces = tokenizer(" " * bool(index) + word)["input_ids"]
            ids += pieces
            first = int(tokenizer.convert_ids_to_tokens(pieces[0]) == "Ġ")  # a blank alone
            labels += [-100] * first + [model.config.label2id[tag]]
            labels += [-100] * (len(pieces) - first - 1)
        ids, labels = ids[:48], labels[:48]
    with torch.no_grad():
        loss = model(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss
    return float(loss), sum(label != -100 for label in labels)


@pytest.mark.parametrize(("task", "strategy", "layout"), SCORED_CASES)
@needs(compared)
def test_scores_are_identical_on_every_layout(
    bed: Path, task: str, strategy: str, layout: tuple[int, int]
) -> None:
    """Of the base, which no training has changed; a rank has nothing to score at the end."""
    first, second = (run.path(bed) for run in compared(task, strategy, layout))
    expected, found = eval_records(first, 0), eval_records(second, 0)
    assert [record["row"] for record in expected] == list(range(TEXT_HELD_OUT))
    for one, two in zip(expected, found, strict=True):
        assert two.pop("loss") == pytest.approx(one["loss"], rel=1e-5)
        assert two == {name: value for name, value in one.items() if name != "loss"}
    for name in scores(first, "unadapted").keys() - {"loss", "perplexity"}:
        assert scores(second, "unadapted")[name] == scores(first, "unadapted")[name]


@needs(exported("tags"))
def test_scores_of_a_tagger_are_those_of_seqeval_over_the_full_rows(bed: Path) -> None:
    from seqeval.metrics import classification_report, f1_score
    from transformers import AutoConfig

    run = exported("tags").path(bed)
    names = AutoConfig.from_pretrained(bed / "tagger").id2label
    truth = [row["tags"] for row in rows(bed / "tagged_held_out.jsonl")]
    predicted = [record["predicted"] for record in eval_records(run, 0)]
    assert any(None in row for row in predicted), "some row must be cut, or nothing is proven"
    guess = [["O" if tag is None else names[tag] for tag in row] for row in predicted]
    found = scores(run, "unadapted")
    assert found["f1"] == f1_score(truth, guess)
    assert 0.2 < found["f1"] < 1
    report = classification_report(truth, guess, output_dict=True)
    assert {name for name in report if name.isupper()} == {"PLACE", "THING"}
    for kind in ("PLACE", "THING"):
        assert found[f"f1/{kind}"] == report[kind]["f1-score"]
        assert found[f"support/{kind}"] == report[kind]["support"]


@pytest.mark.parametrize(("task", "strategy"), CLASSIFIERS.items())
@needs(lambda task, strategy: [exported(task, strategy)])
def test_export_of_a_classifier_has_the_outputs_and_config_of_the_run(
    bed: Path, task: str, strategy: str
) -> None:
    """Trained under ZeRO-3, opened by plain transformers and PEFT."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    run = exported(task, strategy).path(bed)
    if strategy == "lora":
        base = AutoModelForSequenceClassification.from_pretrained(bed / "regressor")
        model = PeftModel.from_pretrained(base, run / "export").eval()
    else:
        model = AutoModelForSequenceClassification.from_pretrained(run / "export").eval()
        assert model.config.problem_type == "multi_label_classification"
        assert list(model.config.id2label.values()) == sorted(tiny.LABELS)
    tokenizer = AutoTokenizer.from_pretrained(run / "export")
    records = eval_records(run, TEXT_STEPS)
    for row, record in zip(rows(bed / f"{task}_held_out.jsonl"), records, strict=True):
        with torch.no_grad():
            logits = model(**tokenizer(row["text"], return_tensors="pt")).logits[0].tolist()
        name = "scores" if task == "label_sets" else "predicted"
        assert record[name] == pytest.approx(logits, rel=1e-4, abs=1e-5)
    first, last = (eval_records(run, step)[0]["loss"] for step in (0, TEXT_STEPS))
    assert first != last, "training moved what was exported"


@needs(exported("summary"))
def test_scores_of_a_summarizer_are_those_of_rouge_score_over_plain_generation(bed: Path) -> None:
    from rouge_score.rouge_scorer import RougeScorer
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    run = exported("summary").path(bed)
    model = AutoModelForSeq2SeqLM.from_pretrained(bed / "summarizer").eval()
    tokenizer = AutoTokenizer.from_pretrained(bed / "summarizer")
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL", "rougeLsum"], use_stemmer=True)
    found = eval_records(run, 0)
    each = []
    for row, record in zip(rows(bed / "summaries_held_out.jsonl"), found, strict=True):
        ids = tokenizer(f"shorten: {row['source']}", return_tensors="pt")["input_ids"]
        tokens = model.generate(input_ids=ids, max_length=None, max_new_tokens=16)[0]
        assert record["generated"] == tokenizer.decode(tokens, skip_special_tokens=True).strip()
        assert record["reference"] == row["target"]
        each.append(scorer.score(record["reference"], record["generated"]))
    lengths = {len(record["generated"].split()) for record in found}
    assert len(lengths) > 1, "ranks must end at different steps"
    for name, value in scores(run, "unadapted").items():
        if name.startswith("rouge"):
            assert value == math.fsum(score[name].fmeasure for score in each) / TEXT_HELD_OUT
            assert 0.2 < value < 1


@needs(*(text_run("pairs", "lora", *layout) for layout in LAYOUTS))
def test_preferences_are_learned_as_in_plain_pytorch_and_peft(bed: Path) -> None:
    """Pair by pair, answer by answer, without Accelerate, DeepSpeed or dtl."""
    import numpy as np
    import torch
    from peft import LoraConfig, get_peft_model
    from torch.nn.functional import logsigmoid
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(bed / "base")
    model = AutoModelForCausalLM.from_pretrained(bed / "base")
    torch.manual_seed(0)
    settings = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(model, settings)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=RATE, weight_decay=0.0)

    def log_likelihood(prompt: str, answer: str) -> Any:
        start, tokens = (tokenizer(text)["input_ids"] for text in (prompt, answer))
        ids = torch.tensor([[*start, *tokens, tokenizer.eos_token_id]])
        logs = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        return logs.gather(1, ids[0, 1:, None])[len(start) - 1 :].sum()

    def margin(row: dict[str, str]) -> Any:
        texts = [(row["prompt"], row["chosen"]), (row["prompt"], row["rejected"])]
        with torch.no_grad(), model.disable_adapter():
            base = [log_likelihood(*pair) for pair in texts]
        chosen, rejected = (log_likelihood(*pair) - b for pair, b in zip(texts, base, strict=True))
        return 0.5 * (chosen - rejected)

    data, held_out = rows(bed / "pairs.jsonl"), rows(bed / "pairs_held_out.jsonl")
    order = np.random.Generator(np.random.Philox(key=[0, 0])).permutation(len(data))
    losses = []
    for step in range(TEXT_STEPS):
        rate = RATE * 0.5 * (1 + math.cos(math.pi * step / TEXT_STEPS))
        optimizer.param_groups[0]["lr"] = rate
        batch = [data[row] for row in order[step * BATCH : (step + 1) * BATCH]]
        loss = -sum(logsigmoid(margin(row)) for row in batch) / len(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[0] == pytest.approx(math.log(2), rel=1e-6)
    assert losses[-1] < 0.9 * losses[0], "the reference does not learn: nothing is proven"
    with torch.no_grad():
        margins = [float(margin(row)) for row in held_out]
    for layout in LAYOUTS:
        run = text_run("pairs", "lora", *layout)
        assert run.losses(bed) == pytest.approx(losses, rel=1e-5), run.name
        adapted = scores(run.path(bed), "adapted")
        assert adapted["margin"] == pytest.approx(sum(margins) / TEXT_HELD_OUT, rel=1e-4)
        assert adapted["accuracy"] == sum(value > 0 for value in margins) / TEXT_HELD_OUT


# All examples of a step in one micro-batch of one process, and three micro-batches of each rank.
COMPLETE_BATCH = Run("embedding-single", 1, ("layout.micro_batch=12",), "embedding.yaml")
MICRO_BATCHES = Run("embedding-parts", 2, (zero(0), "layout.micro_batch=2"), "embedding.yaml")


@needs(COMPLETE_BATCH, MICRO_BATCHES)
def test_embeddings_are_learned_as_in_plain_pytorch_over_the_global_batch(bed: Path) -> None:
    """Text by text, without Accelerate, DeepSpeed or dtl."""
    import numpy as np
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(bed / "encoder")
    model = AutoModel.from_pretrained(bed / "encoder", add_pooling_layer=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)

    def embed(text: str) -> Any:
        ids = torch.tensor([tokenizer(text)["input_ids"][:16]])
        return torch.nn.functional.normalize(model(ids).last_hidden_state[0].mean(0), dim=0)

    data = rows(bed / "searched.jsonl")
    order = np.random.Generator(np.random.Philox(key=[0, 0])).permutation(len(data))
    losses = []
    for step in range(TEXT_STEPS):
        rate = RATE * 0.5 * (1 + math.cos(math.pi * step / TEXT_STEPS))
        optimizer.param_groups[0]["lr"] = rate
        batch = [data[row] for row in order[step * BATCH : (step + 1) * BATCH]]
        assert len({row["anchor"] for row in batch}) == BATCH, "else rows share documents"
        texts = [row["positive"] for row in batch]
        texts += [row["negative"] for row in batch if "negative" in row]
        queries = torch.stack([embed(row["anchor"]) for row in batch])
        similarities = queries @ torch.stack([embed(text) for text in texts]).T / 0.1
        loss = torch.nn.functional.cross_entropy(similarities, torch.arange(BATCH))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0], "the reference does not learn: nothing is proven"
    for run in (COMPLETE_BATCH, MICRO_BATCHES):
        assert run.losses(bed)[:2] == pytest.approx(losses[:2], rel=1e-5), run.name
        assert run.losses(bed) == pytest.approx(losses, rel=5e-5), run.name


# Opens an export without dtl and scores the held-out rows: a loss a row, and what is generated.
REOPEN = """
import json, sys
import torch
from transformers import AutoModelForSeq2SeqLM, AutoModelForTokenClassification, AutoTokenizer

export, base, rows, kind = sys.argv[1:]
auto = AutoModelForSeq2SeqLM if kind == "summary" else AutoModelForTokenClassification
if base == "-":
    model = auto.from_pretrained(export)
else:
    from peft import PeftModel
    model = PeftModel.from_pretrained(auto.from_pretrained(base), export)
    assert model.peft_config["default"].task_type == (
        "SEQ_2_SEQ_LM" if kind == "summary" else "TOKEN_CLS"
    )
model.eval()
tokenizer = AutoTokenizer.from_pretrained(export)
found = []
for row in map(json.loads, open(rows)):
    with torch.no_grad():
        if kind == "summary":
            ids = torch.tensor([tokenizer("shorten: " + row["source"])["input_ids"]])
            labels = torch.tensor([tokenizer(row["target"])["input_ids"]])
            loss = model(input_ids=ids, labels=labels).loss * labels.numel()
            text = tokenizer.decode(
                model.generate(input_ids=ids, max_length=None, max_new_tokens=16)[0],
                skip_special_tokens=True,
            ).strip()
            found.append([float(loss), text])
        else:
            pieces = [tokenizer(" " * bool(i) + word) for i, word in enumerate(row["tokens"])]
            ids = [piece for word in pieces for piece in word["input_ids"]][:48]
            first = []
            for word in pieces:
                blank = int(tokenizer.convert_ids_to_tokens(word["input_ids"][0]) == "\u0120")
                first += [0] * blank + [1] + [0] * (len(word["input_ids"]) - blank - 1)
            first = first[:48]
            best = model(input_ids=torch.tensor([ids])).logits[0].argmax(-1).tolist()
            found.append([tag for tag, begins in zip(best, first) if begins])
print(json.dumps(found))
"""


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("task", TRAINED_BASES)
@needs(lambda task, strategy: [exported(task, strategy)])
def test_export_answers_as_the_trained_model(bed: Path, task: str, strategy: str) -> None:
    """Trained under ZeRO-3, opened by plain transformers and PEFT in a fresh process."""
    run = exported(task, strategy).path(bed)
    base = {"tags": "tagger", "summary": "summarizer"}[task]
    held_out = {"tags": "tagged_held_out.jsonl", "summary": "summaries_held_out.jsonl"}[task]
    reopened = subprocess.run(
        [
            sys.executable,
            "-c",
            REOPEN,
            str(run / "export"),
            str(bed / base) if strategy == "lora" else "-",
            str(bed / held_out),
            task,
        ],
        env=launching.environment(),
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    found = json.loads(reopened.splitlines()[-1])
    trained = eval_records(run, TEXT_STEPS)
    assert [record["loss"] for record in trained] != [
        record["loss"] for record in eval_records(run, 0)
    ], "training moved what was exported"
    if task == "summary":
        assert [text for _, text in found] == [record["generated"] for record in trained]
        losses = [record["loss"] for record in trained]
        assert [loss for loss, _ in found] == pytest.approx(losses, rel=1e-5)
    else:
        assert found == [
            [tag for tag in record["predicted"] if tag is not None] for record in trained
        ]
