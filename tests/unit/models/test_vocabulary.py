"""Rows of the embeddings: new ones, and tokens that have none."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from dtl.config.schema import Model
from dtl.core.errors import DtlError
from dtl.models.load import load_on_meta_device, load_pretrained
from dtl.models.pretrained_config import HeadConfig
from dtl.models.processor import load_tokenizer
from dtl.models.vocabulary import (
    check_token_ids,
    check_vocabulary,
    embedding_parameters,
    find_new_rows,
    get_new_rows,
)
from dtl.strategies.lora import Options, Plugin
from tests import tiny

ADDED = ("<call>", "zebra")


def load(model, auto_class="AutoModelForCausalLM"):
    head = HeadConfig(auto_class, {})
    return load_pretrained(model, head=head, random_init=False, seed=0, dtype="fp32").model


def test_an_added_token_is_one_token_and_a_special_one_is_not_decoded(decoder):
    made = load_tokenizer(Model(path=str(decoder), add_tokens=ADDED, add_special_tokens=("<end>",)))
    ids = made("the<call>river zebra<end>", add_special_tokens=False)["input_ids"]
    assert [made.convert_tokens_to_ids(text) for text in (*ADDED, "<end>")] == [320, 321, 322]
    assert {320, 321, 322} < set(ids)
    assert made.decode(ids, skip_special_tokens=True) == "the<call>river zebra"


@pytest.mark.parametrize("tokens", [("</s>",), ("river", "zebra", "zebra"), ("s",)])
def test_a_token_that_exists_already_is_refused(decoder, tokens):
    problem = rf"model\.add_tokens: '{tokens[-1]}' is a token .* already.*remove"
    with pytest.raises(DtlError, match=problem):
        load_tokenizer(Model(path=str(decoder), add_tokens=tokens))


def test_an_output_that_the_files_do_not_tie_stays_untied(t5):
    """The config of a T5 ties its output also where its files have one that differs."""
    network = load(Model(path=str(t5), add_tokens=ADDED), "AutoModelForSeq2SeqLM")
    plain = AutoModelForSeq2SeqLM.from_pretrained(t5)
    assert torch.equal(network.lm_head.weight[:320], plain.lm_head.weight)
    assert torch.equal(network.shared.weight[:320], plain.shared.weight)
    assert network.config.tie_word_embeddings == plain.config.tie_word_embeddings
    tokens = torch.tensor([[3, 5, 7, 2]])
    logits = [m(input_ids=tokens, labels=tokens).logits[..., :320] for m in (network, plain)]
    torch.testing.assert_close(*logits)


@pytest.mark.parametrize("base", ["decoder", "tied_decoder"])
def test_new_rows_are_the_mean_of_the_others_which_stay(base, request):
    folder = request.getfixturevalue(base)
    plain = embedding_parameters(AutoModelForCausalLM.from_pretrained(folder))
    network = load(Model(path=str(folder), add_tokens=ADDED))
    assert get_new_rows(network) == (320, 321)
    assert network.config.vocab_size == 322
    resized = embedding_parameters(network)
    assert len(resized) == len(plain) == (1 if base == "tied_decoder" else 2)
    for before, after in zip(plain, resized, strict=True):
        assert torch.equal(after[:320], before)
        mean = before.double().mean(0).float()
        assert torch.equal(after[320], mean) and torch.equal(after[321], mean)


def test_an_added_token_takes_a_row_that_no_token_had(tmp_path):
    folder = tiny.decoder(tmp_path)
    network = AutoModelForCausalLM.from_pretrained(folder)
    network.resize_token_embeddings(352, mean_resizing=False)
    network.save_pretrained(folder)
    model = Model(path=str(folder), add_tokens=ADDED)
    assert find_new_rows(model, load_tokenizer(model), rows=352).numbers == (320, 321)
    assert load(model).config.vocab_size == 352


def test_resize_embeddings_adds_rows_for_every_token_without_one(tmp_path):
    folder = tiny.decoder(tmp_path)
    made = AutoTokenizer.from_pretrained(folder)
    made.add_tokens(["<a>", "<b>", "<c>"])
    made.save_pretrained(folder)
    network = load(Model(path=str(folder), resize_embeddings=True))
    assert get_new_rows(network) == (320, 321, 322)
    assert network.get_input_embeddings().weight.shape[0] == 323


def test_the_plan_has_the_shapes_of_the_run(decoder):
    model = Model(path=str(decoder), add_tokens=ADDED)
    planned = load_on_meta_device(model, head=HeadConfig("AutoModelForCausalLM", {})).model
    shapes = [
        {name: value.shape for name, value in m.named_parameters()} for m in (planned, load(model))
    ]
    assert shapes[0] == shapes[1]


def test_a_padding_token_without_a_row_is_refused_with_the_key_that_helps(tmp_path):
    folder = tiny.decoder(tmp_path)
    made = AutoTokenizer.from_pretrained(folder)
    made.add_special_tokens({"pad_token": "[PAD]"})
    made.save_pretrained(folder)
    model = Model(path=str(folder))
    config = AutoModelForCausalLM.from_pretrained(folder).config
    with pytest.raises(DtlError, match=r"'\[PAD\]' .* id 320.*320 rows.*resize_embeddings=true"):
        check_vocabulary(model, load_tokenizer(model), config)
    resized = model.model_copy(update={"resize_embeddings": True})
    check_vocabulary(resized, load_tokenizer(resized), config)


def test_a_row_with_a_token_that_has_no_row_is_named(decoder):
    made = AutoTokenizer.from_pretrained(decoder)
    made.add_tokens(["<a>"])
    with pytest.raises(DtlError, match=r"data:3: the token '<a>' has id 320, .* 320 rows"):
        check_token_ids([4, 320, 5], rows=320, tokenizer=made, location="data:3")
    check_token_ids([4, 319, 5], rows=320, tokenizer=made, location="data:3")


@pytest.mark.parametrize("base", ["decoder", "tied_decoder", "bart", "t5"])
def test_new_rows_beside_lora_are_those_of_plain_peft(base, request, tmp_path):
    """Forward and gradients equal those of PEFT's own layer, which copies the embedding."""
    from peft import LoraConfig, get_peft_model

    auto_class = "AutoModelForSeq2SeqLM" if base in ("bart", "t5") else "AutoModelForCausalLM"
    folder = tiny.t5(tmp_path, tied=True) if base == "t5" else request.getfixturevalue(base)
    model = Model(path=str(folder), add_tokens=ADDED)
    ours = Plugin(Options(rank=4)).apply(load(model, auto_class), new_parameters=frozenset())
    config = LoraConfig(
        r=4,
        lora_alpha=32,
        target_modules="all-linear",
        task_type=ours.peft_config["default"].task_type,
        trainable_token_indices=ours.peft_config["default"].trainable_token_indices,
    )
    theirs = get_peft_model(load(model, auto_class), config)
    generator = torch.Generator().manual_seed(1)
    for (name, mine), (other, plain) in zip(
        ours.named_parameters(), theirs.named_parameters(), strict=True
    ):
        assert name == other and mine.requires_grad == plain.requires_grad
        if mine.requires_grad:
            value = torch.randn(mine.shape, generator=generator) * 0.1
            mine.data, plain.data = value.clone(), value.clone()
    tokens = torch.tensor([[3, 320, 17, 321], [321, 5, 6, 7]])
    logits = []
    for adapted in (ours.eval(), theirs.eval()):
        found = adapted(input_ids=tokens, labels=tokens)
        found.loss.backward()
        logits.append(found.logits)
    torch.testing.assert_close(*logits, rtol=1e-5, atol=1e-5)
    for mine, plain in zip(ours.parameters(), theirs.parameters(), strict=True):
        if mine.requires_grad:
            torch.testing.assert_close(mine.grad, plain.grad, rtol=1e-4, atol=1e-6)


def test_without_its_adapter_the_model_reads_the_rows_of_the_base(decoder):
    model = Model(path=str(decoder), add_tokens=ADDED)
    adapted = Plugin(Options()).apply(load(model), new_parameters=frozenset())
    base, tokens = load(model), torch.tensor([[3, 320, 321]])
    for name, parameter in adapted.named_parameters():
        if "trainable_tokens_delta" in name:
            torch.nn.init.normal_(parameter)
    with adapted.disable_adapter():
        assert torch.equal(adapted(input_ids=tokens).logits, base(input_ids=tokens).logits)
    assert not torch.allclose(adapted(input_ids=tokens).logits, base(input_ids=tokens).logits)


@pytest.mark.parametrize("strategy", ["ia3", "vera", "prompt_tuning"])
def test_an_adapter_that_cannot_train_rows_is_refused(decoder, strategy):
    from dtl.config import registry

    module = registry.load("strategies", strategy)
    network = load(Model(path=str(decoder), add_tokens=ADDED))
    with pytest.raises(DtlError, match=f"{strategy} does not train the rows of added tokens.*lora"):
        module.Plugin(module.Options()).apply(network, new_parameters=frozenset())


def test_an_embedding_that_several_modules_share_is_refused_beside_lora(t5):
    network = load(Model(path=str(t5), add_tokens=ADDED), "AutoModelForSeq2SeqLM")
    with pytest.raises(DtlError, match=r"several modules .* share the embedding.*strategy full"):
        Plugin(Options()).apply(network, new_parameters=frozenset())
