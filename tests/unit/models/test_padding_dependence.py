"""Whether a family's output depends on padding: the table says what the models do."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers

from dtl.data.batching import Batching
from dtl.models.padding_dependence import FAMILIES, explain_padding_dependence
from dtl.plan.micro_batch import _choose_padded
from tests.zoo.tiny_configs import make_config

UNEVEN = np.array([9, 30])
TEXT = ["fnet", "nystromformer", "bert", "roberta", "llama"]
SOUND = ["data2vec-audio", "sew", "wav2vec2-conformer", "wav2vec2", "hubert"]


def moves_with_padding(model_type, *, norm=None):
    """Return whether 200 padded positions move the mean output of the real ones."""
    torch.manual_seed(3)
    config = make_config(model_type, vocab_size=48)
    if norm is not None:
        config.feat_extract_norm = norm
    model = transformers.AutoModel.from_config(config).eval()
    with torch.no_grad():
        for value in model.parameters():
            value += 0.05 * torch.randn_like(value)
    is_sound = model_type in SOUND
    values = torch.randn(1, 4000) if is_sound else torch.arange(3, 19)[None]
    padded = torch.nn.functional.pad(values, (0, 3200 if is_sound else 16))
    mask = torch.zeros_like(padded, dtype=torch.long)
    mask[:, : values.shape[1]] = 1
    ones = torch.ones_like(values, dtype=torch.long)
    name = "input_values" if is_sound else "input_ids"
    arguments = {} if model_type == "fnet" else {"attention_mask": ones}
    longer = {} if model_type == "fnet" else {"attention_mask": mask}
    with torch.no_grad():
        alone = model(**{name: values}, **arguments).last_hidden_state
        beside = model(**{name: padded}, **longer).last_hidden_state[:, : alone.shape[1]]
    return not torch.allclose(alone, beside, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model_type", [*TEXT, *SOUND])
def test_table_says_which_families_read_padding(model_type):
    norm = "layer" if model_type in SOUND else None
    assert moves_with_padding(model_type, norm=norm) == (model_type in FAMILIES)


def test_group_norm_reads_padding():
    config = transformers.Wav2Vec2Config(feat_extract_norm="group")
    assert moves_with_padding("wav2vec2", norm="group")
    assert "group norm" in explain_padding_dependence(config, UNEVEN)


def test_examples_of_one_length_are_padded_alike():
    config = transformers.FNetConfig()
    assert explain_padding_dependence(config, UNEVEN) == FAMILIES["fnet"]
    assert explain_padding_dependence(config, np.array([30, 30])) is None
    assert explain_padding_dependence(None, UNEVEN) is None
    assert explain_padding_dependence(transformers.BertConfig(), UNEVEN) is None


def plan_micro_batch(*, requested=None, padding="it reads padding"):
    """Return the planned micro-batch of 8 examples, and its reason."""
    request = SimpleNamespace(
        batching=Batching(8, 8, 0),
        padding_dependence=padding,
        config=SimpleNamespace(layout=SimpleNamespace(micro_batch=requested)),
    )
    planned = _choose_padded(request, 8, 8, 1)
    return planned.examples, planned.reason


def test_plan_takes_one_example_where_the_output_depends_on_padding():
    planned, reason = plan_micro_batch()
    assert planned == 1 and "it reads padding" in reason


def test_requested_micro_batch_is_used_with_a_warning():
    planned, reason = plan_micro_batch(requested=4)
    assert planned == 4 and "warning" in reason and "it reads padding" in reason
