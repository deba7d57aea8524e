"""LoRA's training, options and files, compared with plain PEFT."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dtl.core.errors import DtlError
from tests.contracts.strategy_bench import Bench, adamw, make_bench, trainable


def plain_peft(bench: Bench, **settings: Any) -> Any:
    """Return the same model made with plain PEFT, from the files alone."""
    import transformers
    from peft import LoraConfig, get_peft_model

    head = bench.dataset_stats and {"num_labels": len(bench.dataset_stats["labels"])}
    base = getattr(transformers, bench.task.auto_class).from_pretrained(
        bench.folder, dtype=torch.float32, **head
    )
    base.config.pad_token_id = 0
    torch.manual_seed(0)
    return get_peft_model(base, LoraConfig(**settings))


@pytest.mark.parametrize(("rank", "alpha"), [(4, 8.0), (16, 32.0), (3, 1.0)])
@pytest.mark.parametrize("target", ["all-linear", ("q_proj", "v_proj")])
def test_lora_trains_as_plain_peft(decoder, rank, alpha, target):
    """5 steps of AdamW on the same batches, with the loss that transformers itself computes."""
    bench = make_bench(decoder, "causal_lm", "lora", rank=rank, alpha=alpha, target_modules=target)
    model = bench.apply(bench.load())
    theirs = plain_peft(
        bench,
        r=rank,
        lora_alpha=alpha,
        target_modules=target if isinstance(target, str) else list(target),
        task_type="CAUSAL_LM",
    )
    batch = bench.batch()
    targets = int((batch["labels"][:, 1:] != -100).sum())
    bench.set_training_mode(model)
    theirs.train()
    ours_optimizer = torch.optim.AdamW(trainable(model).values(), lr=1e-2)
    their_optimizer = torch.optim.AdamW(trainable(theirs).values(), lr=1e-2)
    ours, expected = trainable(model), trainable(theirs)
    assert ours.keys() == expected.keys()
    for _ in range(5):
        losses = bench.task.loss(model, batch) / targets, theirs(**batch).loss
        for loss in losses:
            loss.backward()
        assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-6)
        for name, value in expected.items():
            assert torch.allclose(ours[name].grad, value.grad, atol=1e-6, rtol=0), name
        for optimizer in (ours_optimizer, their_optimizer):
            optimizer.step()
            optimizer.zero_grad()
    # AdamW divides a gradient near 0 by its own size, so that rounding shows in a few weights.
    for name, value in expected.items():
        assert torch.allclose(ours[name], value, atol=1e-4, rtol=0), name
    assert any(value.abs().max() > 1e-3 for name, value in ours.items() if "lora_B" in name)
    assert torch.allclose(bench.logits(model), bench.logits(theirs), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        (
            {"layers_to_transform": (1,), "target_modules": ("q_proj", "up_proj")},
            {"layers_to_transform": [1], "target_modules": ["q_proj", "up_proj"]},
        ),
        ({"target_modules": r".*\.0\..*_proj"}, {"target_modules": r".*\.0\..*_proj"}),
        ({"exclude_modules": ("down_proj",)}, {"exclude_modules": ["down_proj"]}),
        ({"use_rslora": True}, {"use_rslora": True}),
        ({"use_dora": True}, {"use_dora": True}),
        ({"modules_to_save": ("embed_tokens",)}, {"modules_to_save": ["embed_tokens"]}),
        ({"dropout": 0.3}, {"lora_dropout": 0.3}),
    ],
    ids=lambda value: next(iter(value)),
)
def test_lora_options_equal_those_of_peft(decoder, options, settings):
    bench = make_bench(decoder, "causal_lm", "lora", rank=4, alpha=8.0, **options)
    model = bench.apply(bench.load())
    arguments = {"target_modules": "all-linear"} | settings
    theirs = plain_peft(bench, r=4, lora_alpha=8, task_type="CAUSAL_LM", **arguments)
    assert {name: p.shape for name, p in trainable(model).items()} == {
        name: p.shape for name, p in trainable(theirs).items()
    }
    for lora in (model, theirs):
        torch.manual_seed(1)
        for name, parameter in lora.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter)
    assert torch.allclose(bench.logits(model), bench.logits(theirs), atol=1e-6, rtol=0)


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_lora_biases_equal_those_of_peft(encoder, bias):
    bench = make_bench(encoder, "text_classification", "lora", bias=bias)
    model = bench.apply(bench.load())
    theirs = plain_peft(
        bench, r=16, lora_alpha=32, bias=bias, target_modules="all-linear", task_type="SEQ_CLS"
    )
    assert trainable(model).keys() == trainable(theirs).keys()


def test_lora_of_a_classifier_saves_its_new_head_as_peft(encoder, tmp_path):
    """Plain PEFT loads it over the plain base: the head is in the adapter's file."""
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    bench = make_bench(encoder, "text_classification", "lora")
    model = bench.apply(bench.load())
    bench.set_training_mode(model)
    optimizer = adamw(model)
    for _ in range(3):
        bench.step(model, optimizer, bench.batch())
    model.save_pretrained(tmp_path)
    base = AutoModelForSequenceClassification.from_pretrained(encoder, num_labels=3)
    assert torch.equal(bench.logits(PeftModel.from_pretrained(base, tmp_path)), bench.logits(model))


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"target_modules": ("no_such_proj",)}, "no module has a name that ends with"),
        (
            {"target_modules": ("q_proj",), "layers_to_transform": (7,)},
            "there is no block 7; the last one is 1",
        ),
    ],
)
def test_lora_on_missing_layers_is_rejected(decoder, options, problem):
    bench = make_bench(decoder, "causal_lm", "lora", **options)
    with pytest.raises(DtlError, match=problem) as caught:
        bench.apply(bench.load())
    assert caught.value.faults[0].fix


def test_layers_to_transform_without_list_of_target_modules_is_rejected(tmp_path):
    from dtl.config.load import load_config
    from dtl.core.errors import DtlError

    file = tmp_path / "run.yaml"
    file.write_text(
        "model: {path: mini:text}\ntask: causal_lm\ndata: {train: rows.jsonl}\n"
        "train: {steps: 1}\nstrategy:\n  name: lora\n  layers_to_transform: [0, 1]\n"
    )
    with pytest.raises(DtlError) as caught:
        load_config(file)
    (fault,) = caught.value.faults
    assert fault.location == f"{file}:7: strategy.layers_to_transform"
    assert "'all-linear'" in fault.problem
    assert fault.fix == "list the layers, such as target_modules: [q_proj, v_proj]"
