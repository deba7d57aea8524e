"""Write docs/anatomy.md, the parts that dtl finds in many architectures, from tiny models of them:
`python -m docs.make_anatomy_page`."""

from __future__ import annotations

from pathlib import Path

from dtl.models.anatomy import find_anatomy
from tests.architectures import ARCHITECTURES

PAGE = Path(__file__).parent / "anatomy.md"
START = """# The parts of a model

<!-- Made by `python -m docs.make_anatomy_page` from tiny models. Do not edit. -->

What learns is said in terms of a model's parts: its embeddings (all that comes before the blocks,
such as the convolutions of wav2vec2), its blocks in the order in which they run, and its head.
`dtl` has no table of architectures. It finds a list of modules of repeated classes, and takes the
order from the source of `forward`, as OPT registers its last norm before its blocks and BART the
norm of its embeddings after them. So a model that is not in the table below is found as well, if it
keeps its blocks in a list.

The depth of a parameter is 0 in the embeddings, 1 to *n* in the blocks, and *n* + 1 above them (a
last norm, a pooler, the head).

- The encoder's blocks come before the decoder's; the norm after an encoder goes with its last
  block. The decoder's embeddings are embeddings.
- The blocks of a network in stages (Swin, ConvNeXt, ResNet) are those of all stages. What leads
  from one stage to the next goes with the block that it feeds.
- A tied weight is one parameter with one name, and stands where it is lowest: a head that is tied
  to the input embeddings has depth 0.
- What runs between blocks without being in one, as a convolution in DeBERTa v2 does, counts as
  embeddings.
- Prompts that PEFT puts before a model have depth 0; an adapter has the depth of its layer.
- A model that runs the same block many times (ALBERT), or keeps the parts of its blocks in lists of
  their own (XLM), is refused.

From Python:

```python
from transformers import BertConfig, BertForSequenceClassification
from dtl.models.anatomy import anatomy, depths

model = BertForSequenceClassification(BertConfig(num_hidden_layers=2, hidden_size=24))
assert anatomy(model).blocks == ("bert.encoder.layer.0", "bert.encoder.layer.1")
assert depths(model)["classifier.weight"] == 3
```

Each of these is built from a config and run by the tests, which hold the blocks to the order in
which they ran. The number of blocks is that of the tiny model.

| class | blocks | from | to | embeddings | head |
|---|---|---|---|---|---|
"""


def page() -> str:
    """The whole page as Markdown."""
    import torch

    lines = []
    for architecture in ARCHITECTURES:
        with torch.device("meta"):
            found = find_anatomy(architecture.build())
        cells = (
            architecture.name,
            str(len(found.blocks)),
            f"`{found.blocks[0]}`",
            f"`{found.blocks[-1]}`",
            ", ".join(f"`{name}`" for name in found.embeddings),
            ", ".join(f"`{name}`" for name in found.head),
        )
        lines.append("| " + " | ".join(cells) + " |")
    return START + "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")
