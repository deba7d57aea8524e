"""Write docs/model-structure.md, the parts that dtl finds in many architectures, from tiny models:
`python -m docs.make_model_structure_page`."""

from __future__ import annotations

from pathlib import Path

from dtl.models.structure.model_structure import find_structure
from tests.architectures import ARCHITECTURES

PAGE = Path(__file__).parent / "model-structure.md"
START = """# The parts of a model

<!-- Made by `python -m docs.make_model_structure_page` from tiny models. Do not edit. -->

```python
from transformers import BertConfig, BertForSequenceClassification
from dtl.models.structure.model_structure import find_structure, parameter_depths

model = BertForSequenceClassification(BertConfig(num_hidden_layers=2, hidden_size=24))
assert find_structure(model).blocks == ("bert.encoder.layer.0", "bert.encoder.layer.1")
assert parameter_depths(model)["classifier.weight"] == 3
```

Strategies select parameters by the parts of a model: its embeddings (all modules before the
blocks, such as the convolutions of wav2vec2), its blocks in forward order, and its head.

`dtl` has no table of architectures. It looks for a list of modules of repeated classes, and reads
the order from the source of `forward`: OPT registers its last norm before its blocks, and BART
the norm of its embeddings after them. So it also finds the parts of a model that is not in the
table below, if its blocks are in a list.

The depth of a parameter is 0 in the embeddings, 1 to *n* in the blocks, and *n* + 1 above them
(the last norm, the pooler, the head).

- The blocks of an encoder come before those of a decoder. The norm after an encoder has the depth
  of its last block. The embeddings of a decoder have depth 0.
- A network in stages (Swin, ConvNeXt, ResNet) has the blocks of all stages. Modules between two
  stages have the depth of the block that follows.
- A tied weight is one parameter with one name and has its lowest depth: a head that is tied to
  the input embeddings has depth 0.
- A module that runs between blocks without being in one, such as a convolution in DeBERTa v2,
  counts as embeddings.
- Prompts that PEFT puts before a model have depth 0. An adapter has the depth of its layer.
- A model that runs the same block many times (ALBERT), or has the parts of its blocks in separate
  lists (XLM), is rejected.

The tests build each of these from a config, run it, and compare the order of the blocks with the
order in which they ran. The number of blocks is that of the tiny model.

| class | blocks | from | to | embeddings | head |
|---|---|---|---|---|---|
"""


def page() -> str:
    """Return the page as Markdown."""
    import torch

    lines = []
    for architecture in ARCHITECTURES:
        with torch.device("meta"):
            structure = find_structure(architecture.build())
        cells = (
            architecture.name,
            str(len(structure.blocks)),
            f"`{structure.blocks[0]}`",
            f"`{structure.blocks[-1]}`",
            ", ".join(f"`{name}`" for name in structure.embeddings),
            ", ".join(f"`{name}`" for name in structure.head),
        )
        lines.append("| " + " | ".join(cells) + " |")
    return START + "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")
