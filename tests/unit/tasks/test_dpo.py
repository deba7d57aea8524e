"""The DPO loss of the paper, compared with plain PyTorch and PEFT."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from dtl.assembly.parts import assemble
from dtl.config.schema import RunConfig
from dtl.core.errors import DtlError
from dtl.data.example import EncodedExample, Skip
from dtl.data.sources.rows import Row
from dtl.tasks._preference import base_mode, compute_likelihoods
from dtl.tasks.dpo import Options, Plugin
from tests import tiny

ROWS = (
    {"prompt": "the old ship", "chosen": " carries a letter", "rejected": " sends"},
    {"prompt": "night", "chosen": " follows", "rejected": " finds the small stone again"},
    {"prompt": "a house in the morning", "chosen": " opens", "rejected": " breaks quietly"},
)


HELLO = {"role": "user", "content": "the river"}
YES, NO = ({"role": "assistant", "content": text} for text in (" keeps light", " sends"))
EARLIER = [HELLO, NO, {"role": "user", "content": "a stone again"}]


def encode(fields: dict[str, Any], tokenizer: Any = None, **options: Any) -> Any:
    encoder = Plugin(Options(**options)).encoder(tokenizer or tiny.tokenizer(), {}, None)
    return encoder(Row(4, "rows.jsonl:5", fields))


def make_adapted_model(folder: Path, *, dropout: float = 0.0, **settings: float) -> Any:
    """Return a model whose adapter changes its logits, by plain PEFT."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(5)
    lora = LoraConfig(r=4, target_modules="all-linear", lora_dropout=dropout, task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(folder, **settings), lora)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def log_likelihood(model: Any, tokenizer: Any, prompt: str, response: str) -> torch.Tensor:
    """Return the log-likelihood of one response alone, token by token."""
    start, tokens = (tokenizer(text)["input_ids"] for text in (prompt, response))
    complete = torch.tensor([[*start, *tokens, tokenizer.eos_token_id]])
    logs = model(input_ids=complete).logits[0].log_softmax(-1)
    return sum(
        logs[position - 1, complete[0, position]]
        for position in range(len(start), complete.shape[1])
    )  # type: ignore[return-value]


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_loss_and_gradient_are_those_of_the_formula(decoder: Path, smoothing: float) -> None:
    tokenizer, beta = tiny.tokenizer(), 0.3
    model = make_adapted_model(decoder).train()
    expected: Any = 0.0
    margins = []
    for row in ROWS:
        texts = [(row["prompt"], row["chosen"]), (row["prompt"], row["rejected"])]
        chosen, rejected = (log_likelihood(model, tokenizer, *pair) for pair in texts)
        with torch.no_grad(), model.disable_adapter():
            chosen_base, rejected_base = (log_likelihood(model, tokenizer, *pair) for pair in texts)
        margin = beta * ((chosen - chosen_base) - (rejected - rejected_base))
        margins.append(margin.item())
        expected = expected - (1 - smoothing) * torch.sigmoid(margin).log()
        expected = expected - smoothing * torch.sigmoid(-margin).log()
    expected.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()

    task = Plugin(Options(beta=beta, label_smoothing=smoothing))
    encoder = task.encoder(tokenizer, {}, None)
    examples = [encoder(Row(index, "", dict(row))) for index, row in enumerate(ROWS)]
    assert [example.targets for example in examples] == [1, 1, 1]  # type: ignore[union-attr]
    batch = task.collate([example.values for example in examples], pad_token_id=0)  # type: ignore[union-attr]
    loss = task.loss(model, batch)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert abs(float(loss.detach()) - 3 * math.log(2)) > 0.05, "the adapter must change the loss"
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert torch.allclose(parameter.grad, gradients[name], rtol=1e-4, atol=1e-6), name

    with torch.no_grad():
        scores = task.score(task.eval_records(model, batch, processor=tokenizer), {})
    assert scores["margin"] == pytest.approx(sum(margins) / 3, rel=1e-4)
    assert scores["accuracy"] == sum(margin > 0 for margin in margins) / 3
    assert scores["loss"] == pytest.approx(float(expected.detach()) / 3, rel=1e-5)
    difference = scores["chosen_reward"] - scores["rejected_reward"]
    assert difference == pytest.approx(scores["margin"], rel=1e-4)


def test_base_runs_without_dropout_and_training_mode_is_restored(decoder: Path) -> None:
    model = make_adapted_model(decoder, dropout=0.5, attention_dropout=0.5).train()
    task = Plugin(Options())
    batch = task.collate([encode(dict(row)).values for row in ROWS], pad_token_id=0)
    with base_mode(model):
        first, second = (compute_likelihoods(model, batch).sums_BP for _ in range(2))
    assert torch.equal(first, second) and not first.requires_grad
    assert all(module.training for module in model.modules())
    assert task.loss(model, batch).item() != task.loss(model, batch).item(), "dropout is on"


def test_scores_by_hand() -> None:
    records = [
        {"loss": 0.5, "chosen_reward": 1.0, "rejected_reward": -1.0},
        {"loss": 0.9, "chosen_reward": 0.0, "rejected_reward": 0.0},  # undecided is not right
    ]
    assert Plugin(Options()).score(records, {}) == pytest.approx(
        {
            "loss": 0.7,
            "accuracy": 0.5,
            "margin": 1.0,
            "chosen_reward": 0.5,
            "rejected_reward": -0.5,
        }
    )


def test_only_responses_are_supervised_and_they_end_with_eos() -> None:
    tokenizer = tiny.tokenizer()
    encoded = encode(dict(ROWS[0]), tokenizer)
    assert isinstance(encoded, EncodedExample)
    assert tokenizer.decode(encoded.values["chosen"]) == "the old ship carries a letter</s>"
    assert tokenizer.decode(encoded.values["rejected"]) == "the old ship sends</s>"
    assert encoded.values["prompt"] == [len(tokenizer("the old ship")["input_ids"])] * 2
    batch = Plugin(Options()).collate([encoded.values], pad_token_id=0)
    labels = batch["labels"][0, 1]
    assert tokenizer.decode(labels[labels >= 0]) == " sends</s>"


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": EARLIER, "chosen": [YES], "rejected": [NO]},
        {"prompt": EARLIER, "chosen": YES["content"], "rejected": [NO]},
        {"prompt": EARLIER, "chosen": [*EARLIER, YES], "rejected": [*EARLIER, NO]},
        {"chosen": [*EARLIER, YES], "rejected": [*EARLIER, NO]},
        {"prompt": "a stone again", "chosen": [*EARLIER, YES], "rejected": [*EARLIER, NO]},
    ],
    ids=[
        "explicit",
        "response as text",
        "prompt repeated",
        "implicit",
        "implicit with a text prompt",
    ],
)
def test_likelihood_of_chat_responses_is_that_of_transformers(
    decoder: Path, fields: dict[str, Any]
) -> None:
    """Of the answer and its end-of-turn mark, after the template's own prompt, token by token."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(decoder)
    model = AutoModelForCausalLM.from_pretrained(decoder).eval()
    expected = []
    for answer in (YES, NO):
        prompt = tokenizer.apply_chat_template(EARLIER, add_generation_prompt=True, tokenize=False)
        complete = tokenizer.apply_chat_template([*EARLIER, answer], tokenize=False)
        start, tokens = (
            tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, complete)
        )
        assert tokens[: len(start)] == start and tokens[-1] == tokenizer.eos_token_id
        with torch.no_grad():
            logs = model(input_ids=torch.tensor([tokens])).logits[0].log_softmax(-1)
        expected.append(
            sum(float(logs[at - 1, tokens[at]]) for at in range(len(start), len(tokens)))
        )
    task, row = Plugin(Options()), Row(4, "rows.jsonl:5", fields)
    assert task.find_row_fault(row) is None
    assert YES["content"] == task.preview(row).target
    encoded = encode(fields, tokenizer)
    batch = task.collate([encoded.values], pad_token_id=0)
    with torch.no_grad():
        found = compute_likelihoods(model, batch).sums_BP[0].tolist()
    assert found == pytest.approx(expected, rel=1e-5)
    parts = [tokenizer.decode(part.tokens) for part in task.token_spans(encoded.values)]
    assert parts[1:] == [" keeps light</s>", " sends</s>"] and "again" in parts[0]


@pytest.mark.parametrize(
    ("fields", "options", "reason"),
    [
        ({"chosen": [HELLO, YES], "rejected": [HELLO, YES]}, {}, "both responses are the same"),
        ({"chosen": [YES], "rejected": [NO]}, {}, "no prompt"),
        (
            {"prompt": [HELLO], "chosen": [YES], "rejected": [NO]},
            {"max_length": 4},
            "no response left after truncation",
        ),
    ],
)
def test_chat_without_a_preference_is_skipped(
    fields: dict[str, Any], options: dict[str, int], reason: str
) -> None:
    tokenizer = tiny.tokenizer(chat=True)
    assert Plugin(Options()).find_row_fault(Row(4, "", fields)) is None
    assert encode(fields, tokenizer, **options) == Skip(reason)
    with pytest.raises(DtlError, match=r"^rows\.jsonl:5: .* has no chat template"):
        encode({"prompt": [HELLO], "chosen": [YES], "rejected": [NO]})


@pytest.mark.parametrize(
    ("change", "options", "reason"),
    [
        ({"rejected": " carries a letter"}, {}, "both responses are the same"),
        ({"prompt": ""}, {}, "no prompt"),
        ({}, {"max_length": 2}, "no response left after truncation"),
    ],
)
def test_pair_without_a_preference_is_skipped(
    change: dict[str, str], options: dict[str, int], reason: str
) -> None:
    assert encode(ROWS[0] | change, **options) == Skip(reason)


@pytest.mark.parametrize("is_chat", [False, True])
def test_pair_that_differs_only_beyond_the_limit_is_skipped(is_chat: bool) -> None:
    """Its loss would be log 2, with no gradient."""
    tokenizer, longer = tiny.tokenizer(chat=is_chat), " keeps light again"
    fields: dict[str, Any] = {"prompt": "the river", "chosen": " keeps light", "rejected": longer}
    if is_chat:
        answers = [YES, {"role": "assistant", "content": longer}]
        fields = {"prompt": [HELLO], "chosen": answers[:1], "rejected": answers[1:]}
    start = encode(fields, tokenizer).values["prompt"][0]
    reason = "both responses are the same after truncation"
    assert encode(fields, tokenizer, max_length=start + 1) == Skip(reason)
    assert isinstance(encode(fields, tokenizer, max_length=start + 12), EncodedExample)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chosen": None}, "the column `chosen` is missing"),
        ({"prompt": ["x"]}, "`prompt` is not a list of chat messages"),
        ({"chosen": ["x"]}, "`chosen` is not a list of chat messages"),
        ({"chosen": [HELLO]}, "only `chosen` has messages"),
        ({"chosen": [HELLO, YES], "rejected": [HELLO, YES, HELLO]}, "(it has assistant, user)"),
        ({"prompt": [HELLO], "chosen": []}, "`chosen` is not a list of chat messages"),
        ({"prompt": [HELLO], "chosen": [HELLO]}, "(it has none)"),
    ],
)
def test_a_row_at_fault_is_named(change: dict[str, Any], message: str) -> None:
    fault = Plugin(Options()).find_row_fault(Row(4, "rows.jsonl:5", ROWS[0] | change))
    assert fault is not None and fault.location == "rows.jsonl:5"
    assert message in fault.problem and fault.fix
    assert Plugin(Options()).find_row_fault(Row(4, "", dict(ROWS[0]))) is None


@pytest.mark.parametrize("strategy", ["full", "frozen", "scratch", {"name": "lora", "bias": "all"}])
def test_strategy_that_changes_the_base_is_rejected(strategy: Any) -> None:
    with pytest.raises(DtlError, match="take strategy lora with bias none"):
        assemble(_config(strategy))
    assert assemble(_config("lora")).task.compares_with_base


def _config(strategy: Any) -> RunConfig:
    return RunConfig.model_validate(
        {
            "run": {"name": "x"},
            "model": {"path": "base"},
            "task": "dpo",
            "strategy": strategy,
            "data": {"train": "rows.jsonl"},
            "train": {"steps": 1, "global_batch": 2},
        }
    )
