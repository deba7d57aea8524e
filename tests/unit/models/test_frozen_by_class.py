"""What a model's class freezes stays frozen, on real weights and in the plan."""

import pytest
import torch
import transformers

from dtl.assembly.parts import assemble
from dtl.config.schema import RunConfig
from dtl.models.load import load_on_meta_device, load_pretrained
from dtl.models.pretrained_config import HeadConfig
from tests import architectures, tiny

HEAD = HeadConfig("AutoModelForSeq2SeqLM", {})
POSITIONS = {"model.encoder.embed_positions.weight", "model.decoder.embed_positions.weight"}


@pytest.fixture(scope="module")
def pegasus(tmp_path_factory):
    """A tiny Pegasus, whose class freezes its sinusoidal positions."""
    folder = tmp_path_factory.mktemp("pegasus")
    config = transformers.PegasusConfig(**architectures.SIDES | {"vocab_size": 320})
    torch.manual_seed(7)
    transformers.PegasusForConditionalGeneration(config).save_pretrained(folder)
    tiny.closing_tokenizer().save_pretrained(folder)
    return folder


def adapt(folder, strategy, *, on_meta_device):
    """Return the names of the trained and of the frozen parameters."""
    config = RunConfig.model_validate(
        {
            "model": {"path": str(folder)},
            "task": "seq2seq",
            "strategy": strategy,
            "data": {"train": "rows.jsonl"},
            "train": {"steps": 1},
        }
    )
    if on_meta_device:
        loaded = load_on_meta_device(config.model, head=HEAD)
    else:
        loaded = load_pretrained(
            config.model, head=HEAD, random_init=strategy == "scratch", seed=0, dtype="fp32"
        )
    model = assemble(config).apply_strategy(loaded)
    flags = {name: value.requires_grad for name, value in model.named_parameters()}
    return {name for name, is_on in flags.items() if is_on}, {n for n in flags if not flags[n]}


@pytest.mark.parametrize("on_meta_device", [True, False])
@pytest.mark.parametrize("strategy", ["full", "scratch", {"name": "partial", "top": 2}])
def test_positions_that_the_class_freezes_are_not_trained(pegasus, strategy, on_meta_device):
    trained, frozen = adapt(pegasus, strategy, on_meta_device=on_meta_device)
    assert frozen >= POSITIONS and trained
    if not isinstance(strategy, dict):
        assert frozen == POSITIONS


def test_named_positions_are_trained(pegasus):
    strategy = {"name": "partial", "parameter_names": ["*embed_positions*"]}
    trained, _ = adapt(pegasus, strategy, on_meta_device=False)
    assert trained >= POSITIONS


def test_transformers_itself_unfreezes_them_when_it_loads(pegasus):
    """If this fails, the record is no longer needed."""
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(pegasus)
    assert all(value.requires_grad for value in model.parameters())
