"""Attention implementations: the names of transformers, planned anywhere, run where there is a
GPU."""

import re

import pytest
import torch
from pydantic import ValidationError

from dtl.config.schema import Model
from dtl.config.schema.model import ATTENTIONS
from dtl.core.errors import DtlError
from dtl.models.attention import check_attention_runs_here, needs_gpu
from dtl.models.load import load_on_meta_device, load_pretrained
from dtl.models.pretrained_config import HeadConfig

HEAD = HeadConfig("AutoModelForCausalLM", {})
FLASH = ["flash_attention_2", "flash_attention_3", "flash_attention_4"]
KERNELS = ["kernels-community/flash-attn2", "kernels-community/vllm-flash-attn3@v1:varlen"]


def test_every_name_that_transformers_registers_is_accepted():
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    known = {
        name for name in ALL_ATTENTION_FUNCTIONS.valid_keys() if not re.search("paged|^dtl_", name)
    }
    assert {name for name in known if "/" not in name} <= set(ATTENTIONS)
    assert all(Model(path="x", attention=name).attention == name for name in ATTENTIONS)


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_of_the_hub_are_accepted(name):
    assert Model(path="x", attention=name).attention == name


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("flash_attention2", "did you mean 'flash_attention_2'?"),
        ("somebody/flash-attn2", "or a kernel as kernels-community/NAME"),
        ("sdp", "did you mean 'sdpa'?"),
    ],
)
def test_other_names_and_code_of_other_owners_are_rejected(name, hint):
    with pytest.raises(ValidationError) as fault:
        Model(path="x", attention=name)
    assert hint in str(fault.value)


@pytest.mark.parametrize("name", [*FLASH, *KERNELS])
@pytest.mark.parametrize("quantize", [None, "nf4"])
def test_planner_builds_the_model_without_a_gpu(decoder, name, quantize):
    def shapes(attention):
        model = Model(path=str(decoder), attention=attention, quantize=quantize)
        loaded = load_on_meta_device(model, head=HEAD).model
        return {key: value.shape for key, value in loaded.named_parameters()}

    assert shapes(name) == shapes(None)


@pytest.mark.parametrize("name", FLASH)
def test_planner_rejects_it_for_an_architecture_that_does_not_support_it(t5, name):
    head = HeadConfig("AutoModelForSeq2SeqLM", {})
    with pytest.raises(DtlError, match=f"T5ForConditionalGeneration does not support {name}"):
        load_on_meta_device(Model(path=str(t5), attention=name), head=head)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("name", [*FLASH, KERNELS[0]])
def test_machine_that_cannot_run_it_says_so_before_weights_are_read(decoder, name, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = Model(path=str(decoder), attention=name)
    expected = f"model.attention: {name} cannot run here .*Fix: install what it needs"
    with pytest.raises(DtlError, match=expected):
        check_attention_runs_here(model, HEAD)
    monkeypatch.setattr("dtl.models.load._read_weights", None)
    with pytest.raises(DtlError, match=expected):
        load_pretrained(model, head=HEAD, random_init=False, seed=0, dtype="bf16")


@pytest.mark.parametrize("name", [None, "sdpa", "eager", "flex_attention"])
def test_what_torch_itself_has_needs_no_gpu(decoder, name):
    assert not needs_gpu(name)
    check_attention_runs_here(Model(path=str(decoder), attention=name), HEAD)
