"""Models are located, checked and loaded; the head of an architecture is found."""

import json
import shutil

import pytest
import torch

from dtl.config.schema import Model
from dtl.core.errors import DtlError
from dtl.models.load import load_on_meta_device, load_pretrained
from dtl.models.locate import locate_model
from dtl.models.new_parameters import init_new_parameters
from dtl.models.pretrained_config import HeadConfig, load_model_config
from dtl.models.processor import load_tokenizer
from dtl.models.structure.head import head_module_names, head_modules, head_parameters

LM = "AutoModelForCausalLM"
CLASSIFIER = "AutoModelForSequenceClassification"
THREE = {"num_labels": 3}


def load(path, *, head=LM, changes=None, random=False, seed=0, dtype="fp32", **more):
    model = Model(path=str(path), **more)
    return load_pretrained(
        model,
        head=HeadConfig(head, changes or {}),
        random_init=random,
        seed=seed,
        dtype=dtype,
    )


def copied(base, folder):
    shutil.copytree(base, folder)
    return folder


def edit_json(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


# Locating ----------------------------------------------------------------------------------------


def test_folder_hub_id_and_mini_are_located(decoder):
    assert locate_model(Model(path=str(decoder))) == str(decoder)
    assert locate_model(Model(path="someone/some-model")) == "someone/some-model"
    assert locate_model(Model(path="gpt2")) == "gpt2"
    assert locate_model(Model(path="mini:text")).endswith("text")


@pytest.mark.parametrize("written", ["models/decodr", "./models/decodr", "{tmp}/models/decodr"])
def test_missing_folder_gets_a_similar_name_as_fix(decoder, tmp_path, monkeypatch, written):
    copied(decoder, tmp_path / "models" / "decoder")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DtlError) as caught:
        locate_model(Model(path=written.format(tmp=tmp_path)))
    (fault,) = caught.value.faults
    assert fault.location == "model.path"
    assert "there is no folder" in fault.problem and "decodr" in fault.problem
    assert fault.fix == "did you mean 'decoder'?"


def test_missing_parent_folder_is_reported(tmp_path):
    with pytest.raises(DtlError, match="there is no folder"):
        locate_model(Model(path=str(tmp_path / "no" / "such" / "place")))


def test_folder_without_config_is_rejected(tmp_path):
    with pytest.raises(DtlError, match=r"has no config\.json"):
        locate_model(Model(path=str(tmp_path)))


def test_unknown_mini_gets_a_similar_name_as_fix():
    with pytest.raises(DtlError, match="did you mean 'text'"):
        locate_model(Model(path="mini:texd"))


def test_config_that_is_not_json_raises_dtl_error(decoder, tmp_path):
    folder = copied(decoder, tmp_path / "model")
    (folder / "config.json").write_text("{")
    with pytest.raises(DtlError, match="cannot read the config"):
        load_model_config(Model(path=str(folder)))


# Rejecting ---------------------------------------------------------------------------------------


def test_pickled_weights_are_not_opened(decoder, tmp_path):
    """The pickle would write a file when it is opened."""
    folder = copied(decoder, tmp_path / "model")
    (folder / "model.safetensors").unlink()
    trap = tmp_path / "opened"

    class Trap:
        def __reduce__(self):
            return (open, (str(trap), "w"))

    torch.save({"lm_head.weight": Trap()}, folder / "pytorch_model.bin")
    with pytest.raises(DtlError, match="pickle") as caught:
        load(folder)
    assert "pytorch_model.bin" in str(caught.value)
    assert "safetensors" in caught.value.faults[0].fix
    assert not trap.exists()


def test_timm_model_is_rejected_before_timm_is_imported(tmp_path):
    """As timm writes it, and as transformers saves it again."""
    cfg = {"input_size": [3, 32, 32], "num_classes": 2}
    for number, kind in enumerate(({}, {"model_type": "timm_wrapper"})):
        folder = tmp_path / str(number)
        folder.mkdir()
        config = {"architecture": "resnet18", "num_classes": 2, "pretrained_cfg": cfg, **kind}
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(DtlError, match=r"is a timm model.*such as microsoft/resnet-50"):
            load_model_config(Model(path=str(folder)))


def test_pickle_next_to_safetensors_is_not_opened(decoder, tmp_path):
    folder = copied(decoder, tmp_path / "model")
    (folder / "pytorch_model.bin").write_bytes(b"not even a pickle")
    assert load(folder).new_parameters == frozenset()


def test_folder_without_weights_can_only_start_from_random(decoder, tmp_path):
    folder = copied(decoder, tmp_path / "model")
    (folder / "model.safetensors").unlink()
    with pytest.raises(DtlError, match=r"has no weights"):
        load(folder)
    assert load(folder, random=True).new_parameters == frozenset()


def test_truncated_weights_raise_dtl_error(decoder, tmp_path):
    folder = copied(decoder, tmp_path / "model")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(DtlError, match="cannot read the weights"):
        load(folder)


def test_weights_of_another_architecture_are_rejected(decoder, encoder, tmp_path):
    folder = copied(decoder, tmp_path / "model")
    shutil.copy(encoder / "model.safetensors", folder / "model.safetensors")
    with pytest.raises(
        DtlError, match=r"\d+ of \d+ parameters of LlamaForCausalLM are missing in the weight files"
    ):
        load(folder)
    with pytest.raises(DtlError, match="LlamaForSequenceClassification"):
        load(folder, head=CLASSIFIER, changes=THREE)


def test_model_without_class_for_the_task_is_rejected(tmp_path):
    from transformers import ViTConfig

    ViTConfig().save_pretrained(tmp_path)
    for random in (False, True):
        with pytest.raises(DtlError, match="which has no AutoModelForCausalLM class"):
            load(tmp_path, random=random)


# Tokenizers -------------------------------------------------------------------------------------


def test_tokenizer_uses_its_own_padding_token(decoder):
    assert load_tokenizer(Model(path=str(decoder))).pad_token == "<pad>"


def test_tokenizer_without_padding_token_pads_with_end_token(decoder, tmp_path):
    folder = copied(decoder, tmp_path / "model")
    edit_json(folder / "tokenizer_config.json", pad_token=None)
    tokenizer = load_tokenizer(Model(path=str(folder)))
    assert (
        tokenizer.pad_token_id == tokenizer.eos_token_id == tokenizer.convert_tokens_to_ids("</s>")
    )


def test_tokenizer_without_padding_and_end_token_is_rejected(decoder, tmp_path):
    folder = copied(decoder, tmp_path / "model")
    edit_json(folder / "tokenizer_config.json", pad_token=None, eos_token=None)
    with pytest.raises(DtlError, match="neither a padding nor an end token"):
        load_tokenizer(Model(path=str(folder)))


def test_folder_without_tokenizer_raises_dtl_error(decoder, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(decoder / name, folder)
    with pytest.raises(DtlError, match="cannot read the tokenizer"):
        load_tokenizer(Model(path=str(folder)))


# Loading ----------------------------------------------------------------------------------------


def test_loaded_weights_equal_the_files(decoder):
    from safetensors.torch import load_file

    stored = load_file(decoder / "model.safetensors")
    model = load(decoder).model
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, stored[name])


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("random", [False, True])
def test_weights_have_the_requested_dtype(decoder, dtype, random):
    expected = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    model = load(decoder, dtype=dtype, random=random).model
    assert {parameter.dtype for parameter in model.parameters()} == {expected}


def test_random_weights_depend_only_on_the_seed(decoder):
    from safetensors.torch import load_file

    stored = load_file(decoder / "model.safetensors")
    torch.manual_seed(1)
    first = load(decoder, random=True, seed=5).model.state_dict()
    torch.manual_seed(2)
    again = load(decoder, random=True, seed=5).model.state_dict()
    other = load(decoder, random=True, seed=6).model.state_dict()
    name = "model.layers.0.mlp.up_proj.weight"
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first[name], other[name])
    assert not torch.equal(first[name], stored[name])


def test_head_of_another_size_is_new(encoder, tmp_path):
    """A classifier of 5 labels, adapted to 3: its old head cannot be used."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    five = AutoModelForSequenceClassification.from_pretrained(encoder, num_labels=5)
    five.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(encoder).save_pretrained(tmp_path)
    head = {"classifier.weight", "classifier.bias"}
    changed = load(tmp_path, head=CLASSIFIER, changes=THREE)
    assert changed.new_parameters == head
    assert changed.model.classifier.weight.shape == (3, 32)
    planned = load_on_meta_device(Model(path=str(tmp_path)), head=HeadConfig(CLASSIFIER, THREE))
    assert planned.new_parameters == head
    same = load(tmp_path, head=CLASSIFIER, changes={"num_labels": 5})
    assert same.new_parameters == frozenset()
    assert torch.equal(same.model.classifier.weight, five.classifier.weight)


def test_loading_on_meta_device_prints_nothing(encoder, capfd):
    load_on_meta_device(Model(path=str(encoder)), head=HeadConfig(CLASSIFIER, THREE))
    assert capfd.readouterr() == ("", "")


def test_new_parameters_depend_only_on_seed_and_name(encoder):
    """Not on other random numbers. Matrices like the model's own (0.02), biases zero."""

    def head(seed, disturb):
        loaded = load(encoder, head=CLASSIFIER, changes={"num_labels": 50}, seed=seed)
        torch.manual_seed(disturb)
        init_new_parameters(
            loaded.model,
            loaded.new_parameters,
            seed=seed,
            write_parameter=lambda p, value: p.data.copy_(value),
        )
        return loaded.model.classifier

    first, again, other = head(3, 1), head(3, 2), head(4, 1)
    assert torch.equal(first.weight, again.weight)
    assert not torch.equal(first.weight, other.weight)
    assert first.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert first.weight.mean().item() == pytest.approx(0, abs=0.002)
    assert first.bias.tolist() == [0.0] * 50


# Heads ------------------------------------------------------------------------------------------

SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 4, "vocab_size": 40}
LLAMA = {**SMALL, "num_attention_heads": 2, "num_key_value_heads": 1}
BERT = {**SMALL, "num_attention_heads": 2, "max_position_embeddings": 32}
GPT_2 = {"n_embd": 16, "n_layer": 4, "n_head": 2, "vocab_size": 40, "n_positions": 32}
GPT_NEOX = {**SMALL, "num_attention_heads": 2}  # its files call the head `embed_out`
DISTILBERT = {"dim": 16, "hidden_dim": 32, "n_layers": 4, "n_heads": 2, "vocab_size": 40}
# Model class, settings, modules of the head, and the head's own parameters.
HEADS = [
    ("LlamaForCausalLM", LLAMA, "lm_head", "lm_head.weight"),
    ("LlamaForCausalLM", {**LLAMA, "tie_word_embeddings": True}, "lm_head", ""),
    ("LlamaForSequenceClassification", LLAMA, "score", "score.weight"),
    ("GPT2LMHeadModel", GPT_2, "lm_head", ""),
    ("GPT2ForSequenceClassification", GPT_2, "score", "score.weight"),
    ("BertForSequenceClassification", BERT, "classifier", "classifier.weight classifier.bias"),
    (
        "DistilBertForSequenceClassification",
        DISTILBERT,
        "pre_classifier classifier",
        "pre_classifier.weight pre_classifier.bias classifier.weight classifier.bias",
    ),
    (
        "RobertaForSequenceClassification",
        BERT,
        "classifier",
        "classifier.dense.weight classifier.dense.bias "
        "classifier.out_proj.weight classifier.out_proj.bias",
    ),
]


def build(name, settings):
    import transformers

    cls = getattr(transformers, name)
    return cls(cls.config_class(**settings, pad_token_id=0))


@pytest.mark.parametrize(
    ("name", "settings", "modules", "parameters"),
    HEADS,
    ids=[f"{row[0]}{'-tied' if 'tie_word_embeddings' in row[1] else ''}" for row in HEADS],
)
def test_head_modules_and_parameters_are_found(name, settings, modules, parameters):
    model = build(name, settings)
    assert head_module_names(model) == tuple(modules.split())
    assert head_modules(model) == [getattr(model, module) for module in modules.split()]
    assert head_parameters(model) == frozenset(parameters.split())


# A base as it comes, without a head for three labels; and its head once it has one.
BASES = [
    ("LlamaForCausalLM", LLAMA, "score.weight"),
    ("LlamaModel", LLAMA, "score.weight"),
    ("GPT2LMHeadModel", GPT_2, "score.weight"),
    ("GPT2Model", GPT_2, "score.weight"),
    ("GPTNeoXForCausalLM", GPT_NEOX, "score.weight"),
    ("BertModel", BERT, "classifier.weight classifier.bias"),
    (
        "BertForMaskedLM",
        BERT,
        "classifier.weight classifier.bias bert.pooler.dense.weight bert.pooler.dense.bias",
    ),
    ("DistilBertModel", DISTILBERT, HEADS[6][3]),
    ("DistilBertForMaskedLM", DISTILBERT, HEADS[6][3]),
    ("RobertaModel", BERT, HEADS[7][3]),
    ("RobertaForMaskedLM", BERT, HEADS[7][3]),
]


@pytest.mark.parametrize(("name", "settings", "head"), BASES, ids=[row[0] for row in BASES])
def test_new_parameters_are_the_same_on_meta_device_and_when_loaded(name, settings, head, tmp_path):
    base = build(name, settings)
    base.save_pretrained(tmp_path)
    loaded = load(tmp_path, head=CLASSIFIER, changes=THREE)
    assert loaded.new_parameters == frozenset(head.split())
    planned = load_on_meta_device(Model(path=str(tmp_path)), head=HeadConfig(CLASSIFIER, THREE))
    assert planned.new_parameters == loaded.new_parameters
    planned_shapes = {name: parameter.shape for name, parameter in planned.model.named_parameters()}
    assert planned_shapes == {
        name: parameter.shape for name, parameter in loaded.model.named_parameters()
    }
    assert {parameter.device.type for parameter in planned.model.parameters()} == {"meta"}


@pytest.mark.parametrize(
    ("name", "settings"),
    [("LlamaForCausalLM", LLAMA), ("GPT2LMHeadModel", GPT_2), ("GPTNeoXForCausalLM", GPT_NEOX)],
)
@pytest.mark.parametrize("tied", [False, True])
def test_causal_lm_has_no_new_parameters(name, settings, tied, tmp_path):
    build(name, {**settings, "tie_word_embeddings": tied}).save_pretrained(tmp_path)
    assert load(tmp_path).new_parameters == frozenset()
    assert (
        load_on_meta_device(Model(path=str(tmp_path)), head=HeadConfig(LM, {})).new_parameters
        == frozenset()
    )
