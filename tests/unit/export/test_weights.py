"""Merged models of many architectures compute the same after they were written and read back."""

import torch

from tests import tiny

TEXT = " ".join(tiny.WORDS[:10])


def logits_of_text(model, folder):
    from transformers import AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(folder)(TEXT, return_tensors="pt").input_ids
    with torch.no_grad():
        return model(input_ids=tokens).logits
