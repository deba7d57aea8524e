"""The inputs with which a trained model and its export are compared."""

import torch

from dtl.export.sample_inputs import load_inputs, save_inputs
from dtl.export.sample_logits import compute_logits


def test_saved_inputs_are_loaded_in_order_and_give_the_same_logits(tmp_path, decoder):
    from transformers import AutoModelForCausalLM

    inputs = [
        {"input_ids": torch.tensor([[3 + index, 4]]), "use_cache": False} for index in range(12)
    ]
    save_inputs(inputs, tmp_path / "inputs")
    loaded = load_inputs(tmp_path / "inputs")
    assert [arguments["use_cache"] for arguments in loaded] == [False] * 12
    model = AutoModelForCausalLM.from_pretrained(decoder).eval()
    assert all(map(torch.equal, compute_logits(model, inputs), compute_logits(model, loaded)))
