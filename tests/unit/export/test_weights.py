"""Merged models of many architectures compute the same after they were written and read back."""

import pytest
import torch

from dtl.export.weights import local_state_dict, write_model
from tests import tiny

TEXT = " ".join(tiny.WORDS[:10])


def logits_of_text(model, folder):
    from transformers import AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(folder)(TEXT, return_tensors="pt").input_ids
    with torch.no_grad():
        return model(input_ids=tokens).logits


def gpt2(folder):
    """Return a model whose linear layers are Conv1D, with transposed weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(7)
    config = GPT2Config(vocab_size=320, n_embd=32, n_layer=2, n_head=2, n_positions=64)
    config.eos_token_id = config.bos_token_id = 2
    return tiny._save(GPT2LMHeadModel(config), tiny.tokenizer(), folder)


def attach_adapter(base, auto_class, config_changes, **lora):
    """Return a base with an adapter and trainable modules, all with random values."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    model = get_peft_model(
        auto_class.from_pretrained(base, **config_changes), LoraConfig(r=2, **lora)
    )
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def merge_write_and_load(model, folder, dtype=torch.float32):
    from dtl.strategies.lora import Options, Plugin

    merged = Plugin(Options()).merge(model).eval()
    write_model(merged, local_state_dict(merged, trainable_only=False), folder, dtype=dtype)
    return type(merged).from_pretrained(folder).eval()


@pytest.mark.parametrize(
    ("base", "lora"),
    [
        ("decoder", {"target_modules": "all-linear"}),
        ("tied_decoder", {"target_modules": "all-linear"}),
        ("tied_decoder", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}),
        ("decoder", {"target_modules": ["q_proj", "embed_tokens"], "use_dora": True}),
        ("gpt2", {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    ],
    ids=["linear", "tied", "tied-trainable-embeddings", "dora-embeddings", "conv1d"],
)
@pytest.mark.filterwarnings("ignore::UserWarning:peft")  # PEFT unties trainable embeddings
def test_merged_language_model_gives_the_same_logits(base, lora, request, tmp_path):
    from transformers import AutoModelForCausalLM

    folder = gpt2(tmp_path / "gpt2") if base == "gpt2" else request.getfixturevalue(base)
    model = attach_adapter(folder, AutoModelForCausalLM, {}, task_type="CAUSAL_LM", **lora)
    expected = logits_of_text(model, folder)
    actual = logits_of_text(merge_write_and_load(model, tmp_path / "merged"), folder)
    assert torch.allclose(actual, expected, atol=1e-4)


def test_merged_model_has_added_tokens_and_tied_embeddings(tied_decoder, tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(tied_decoder)
    base.resize_token_embeddings(base.config.vocab_size + 5)
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"])).eval()
    tokens = torch.tensor([[3, base.config.vocab_size - 1, 4]])
    with torch.no_grad():
        expected = model(input_ids=tokens).logits
        loaded = merge_write_and_load(model, tmp_path / "merged")
        actual = loaded(input_ids=tokens).logits
    assert actual.shape[-1] == base.config.vocab_size and torch.allclose(
        actual, expected, atol=1e-5
    )
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


def test_merged_model_has_the_new_head(encoder, tmp_path):
    from transformers import AutoModelForSequenceClassification

    auto_class = AutoModelForSequenceClassification
    lora = {"modules_to_save": ["classifier"], "target_modules": ["query", "value"]}
    model = attach_adapter(encoder, auto_class, {"num_labels": 3}, task_type="SEQ_CLS", **lora)
    expected = logits_of_text(model, encoder)
    actual = logits_of_text(merge_write_and_load(model, tmp_path / "merged"), encoder)
    assert actual.shape == (1, 3) and torch.allclose(actual, expected, atol=1e-5)


def test_merged_model_has_convolutions_and_running_statistics(resnet, tmp_path):
    from transformers import AutoModelForImageClassification

    auto_class = AutoModelForImageClassification
    lora = {"target_modules": ["convolution"], "modules_to_save": ["classifier"]}
    model = attach_adapter(resnet, auto_class, {"num_labels": 3}, **lora)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.uniform_(-0.1, 0.1)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(pixel_values=images).logits
        actual = merge_write_and_load(model, tmp_path / "merged")(pixel_values=images).logits
    assert torch.allclose(actual, expected, atol=1e-4)
