"""How long a text may be by a model's config, which families write in different ways."""

import pytest
import torch
from transformers import AutoConfig, AutoModel

from dtl.data.modalities.text import count_positions, limit_to_positions

PAD = 1
SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "max_position_embeddings": 26,
    "pad_token_id": PAD,
}
TABLE_OF_POSITIONS = {  # families that cannot read one token more: what differs from SIZES
    "bert": {},
    "electra": {},
    "deberta-v2": {},
    "roberta": {},
    "xlm-roberta": {},
    "xlm-roberta-xl": {},
    "camembert": {},
    "data2vec-text": {},
    "roberta-prelayernorm": {},
    "mpnet": {},
    "ibert": {},
    "luke": {"entity_vocab_size": 8, "entity_emb_size": 8},
    "longformer": {"attention_window": [8]},
    "xmod": {"languages": ["en"], "default_language": "en"},
    "gpt2": {},
}


def run(kind, length):
    torch.manual_seed(3)
    config = AutoConfig.for_model(kind, **SIZES | TABLE_OF_POSITIONS[kind])
    tokens = torch.arange(2, 2 + length)[None]
    with torch.no_grad():
        AutoModel.from_config(config).eval()(
            input_ids=tokens, attention_mask=torch.ones_like(tokens)
        )


@pytest.mark.parametrize("kind", TABLE_OF_POSITIONS)
def test_the_longest_text_is_the_one_that_the_model_can_read(kind):
    config = AutoConfig.for_model(kind, **SIZES | TABLE_OF_POSITIONS[kind])
    positions = count_positions(config)
    assert positions in (26, 26 - PAD - 1)
    run(kind, positions)
    with pytest.raises((IndexError, RuntimeError)):
        run(kind, positions + 1)


def test_minus_one_and_nothing_are_no_limit():
    xlnet, t5 = AutoConfig.for_model("xlnet"), AutoConfig.for_model("t5")
    assert xlnet.max_position_embeddings == -1
    assert count_positions(xlnet) is None and count_positions(t5) is None
    assert limit_to_positions(512, xlnet) == limit_to_positions(512, t5) == 512
