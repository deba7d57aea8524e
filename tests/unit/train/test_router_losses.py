"""Losses of routers: those of transformers on one batch, and the same for any split of it."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from dtl.core.errors import DtlError
from dtl.losses.router import (
    balance_loss_share,
    count_assignments,
    sequence_balance_sum,
    z_loss_sum,
)
from dtl.models.router_outputs import (
    RouterRecorder,
    Routing,
    disable_router_outputs,
    find_router_losses,
    restore_router_outputs,
)
from dtl.train.router_losses import RouterLosses
from tests import tiny_experts

FAMILIES = sorted(tiny_experts.FAMILIES)


class OneProcess:
    """What RouterLosses needs of an engine."""

    device = torch.device("cpu")

    def all_reduce_sum(self, *values):
        return [float(value) for value in values]


def make_losses(model, config, requested=None):
    settings = find_router_losses(config, requested)
    recorder = RouterRecorder(model, top_k=settings.top_k, skips_evaluation=False)
    return RouterLosses(settings, recorder, OneProcess())


def add_up(losses, batches, run):
    """The sum of the shares of micro-batches, as the loop adds them."""
    losses.begin_step([1.0] * len(batches), lambda index: run(batches[index]))
    shares = []
    for batch in batches:
        with losses.recorder.recording() as routings:
            run(batch)
        shares.append(losses.loss_share(routings, 1.0))
    return torch.stack(shares).sum()


def padded(rows, columns, *, lengths, seed=3):
    tokens = torch.randint(3, 300, (rows, columns), generator=torch.Generator().manual_seed(seed))
    mask = (torch.arange(columns) < torch.tensor(lengths)[:, None]).long()
    return {"input_ids": tokens * mask, "attention_mask": mask}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_and_its_gradient_are_those_of_transformers(family, tmp_path):
    """One batch with padding, at once and in micro-batches, against transformers at once."""
    folder = tiny_experts.experts(tmp_path, family, output_router_logits=True)
    model = AutoModelForCausalLM.from_pretrained(folder)
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    config = AutoConfig.from_pretrained(folder)
    disable_router_outputs(model)
    losses = make_losses(model, config)
    batch = padded(4, 12, lengths=[12, 5, 9, 7])
    expected = losses.settings.balance_coefficient * theirs(**batch).aux_loss
    expected.backward()
    parts = [
        {name: tensor[rows] for name, tensor in batch.items()}
        for rows in (slice(0, 1), slice(1, 3), slice(3, 4))
    ]
    for split in ([batch], parts):
        model.zero_grad()
        total = add_up(losses, split, lambda part: model(**part))
        torch.testing.assert_close(total, expected, rtol=1e-5, atol=1e-7)
        total.backward()
        for mine, plain in zip(model.parameters(), theirs.parameters(), strict=True):
            if plain.grad is not None:
                torch.testing.assert_close(mine.grad, plain.grad, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("make", [tiny_experts.switch, tiny_experts.nllb_moe])
def test_an_encoder_and_a_decoder_are_those_of_transformers(make, tmp_path):
    folder = make(tmp_path)
    model = AutoModelForSeq2SeqLM.from_pretrained(folder)
    losses = make_losses(model, AutoConfig.from_pretrained(folder))
    tokens = torch.randint(3, 300, (4, 9), generator=torch.Generator().manual_seed(3))
    batch = {
        "input_ids": tokens,
        "attention_mask": torch.ones_like(tokens),
        "labels": tokens[:, :6].contiguous(),
    }
    with torch.no_grad():
        found = model(**batch, output_router_logits=True)
        balance, settings = found.encoder_aux_loss + found.decoder_aux_loss, losses.settings
        expected = settings.balance_coefficient * balance
        if make is tiny_experts.switch:
            expected = expected + 0.001 * (found.encoder_z_loss + found.decoder_z_loss)
        parts = [{name: tensor[i : i + 2] for name, tensor in batch.items()} for i in (0, 2)]
        for split in ([batch], parts):
            total = add_up(losses, split, lambda part: model(**part))
            torch.testing.assert_close(total, expected, rtol=1e-5, atol=1e-7)


def test_padding_of_a_decoder_is_no_token(tmp_path):
    """Its mask is that of the labels, so that the loss does not depend on who shares a batch."""
    model = AutoModelForSeq2SeqLM.from_pretrained(tiny_experts.nllb_moe(tmp_path))
    losses = make_losses(model, model.config)
    batch = padded(2, 8, lengths=[8, 8]) | {
        "labels": torch.tensor([[5, 6, 7, 8], [9, 4, -100, -100]])
    }
    single = [{name: tensor[i : i + 1] for name, tensor in batch.items()} for i in (0, 1)]
    single[1]["labels"] = single[1]["labels"][:, :2].contiguous()
    with torch.no_grad():
        complete = add_up(losses, [batch], lambda part: model(**part))
        alone = add_up(losses, single, lambda part: model(**part))
    torch.testing.assert_close(complete, alone, rtol=1e-5, atol=1e-7)


def test_hand_worked_losses():
    """Two tokens, two experts: both go to the first, with probability 3/4 and 9/10."""
    logits = torch.log(torch.tensor([[3.0, 1.0], [9.0, 1.0], [1.0, 7.0]]))
    routing = Routing((logits,), torch.tensor([[1, 1, 0]]), top_k=1)
    counts = count_assignments(routing)
    assert counts.tolist() == [2.0, 0.0, 2.0]
    assert balance_loss_share(routing, counts).item() == pytest.approx(2 * 1.0 * (0.75 + 0.9) / 2)
    by_sequence = Routing((logits[None],), torch.tensor([[1, 1, 0]]), top_k=1)
    assert sequence_balance_sum(by_sequence).item() == pytest.approx(1.65)
    log4, log10 = torch.log(torch.tensor(4.0)).item(), torch.log(torch.tensor(10.0)).item()
    assert z_loss_sum(routing).item() == pytest.approx(log4**2 + log10**2, rel=1e-5)


def test_the_config_decides_and_an_option_overrides_it(tmp_path):
    asks, silent = (
        AutoConfig.for_model("mixtral", output_router_logits=flag, router_aux_loss_coef=0.02)
        for flag in (True, False)
    )
    assert find_router_losses(asks, None).balance_coefficient == 0.02
    assert find_router_losses(silent, None) is None
    assert find_router_losses(silent, 0.5).balance_coefficient == 0.5
    assert find_router_losses(asks, 0.0) is None
    assert find_router_losses(AutoConfig.for_model("llama"), None) is None
    with pytest.raises(DtlError, match=r"router_aux_loss_coef: llama has no routers.*remove"):
        find_router_losses(AutoConfig.for_model("llama"), 0.1)


def test_the_model_generates_and_its_config_is_saved_as_it_was(tmp_path):
    """transformers computes the loss in generation, where the mask does not fit."""
    folder = tiny_experts.experts(tmp_path / "base", "mixtral", output_router_logits=True)
    model = AutoModelForCausalLM.from_pretrained(folder)
    disable_router_outputs(model)
    model.generate(**padded(2, 8, lengths=[8, 8]), max_new_tokens=3, do_sample=False)
    restore_router_outputs(model)
    model.save_pretrained(tmp_path / "again")
    assert AutoConfig.from_pretrained(tmp_path / "again").output_router_logits is True
