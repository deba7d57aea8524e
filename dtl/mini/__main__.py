"""How `mini:text` is made: its folder before `dtl train configs/mini/text.yaml`, its weights after.

`python -m dtl.mini FOLDER` writes config and tokenizer; with `--weights EXPORT` it adds the weights
of an export, in bf16 to stay small.
"""

import argparse
from pathlib import Path

from dtl.mini.architecture import write_architecture


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m dtl.mini", description=__doc__)
    parser.add_argument("folder", type=Path, help="where the base is written")
    parser.add_argument("--weights", type=Path, help="the export that the weights come from")
    given = parser.parse_args(arguments)
    given.folder.mkdir(parents=True, exist_ok=True)
    if given.weights is None:
        write_architecture(given.folder)
        print(f"wrote config.json and the tokenizer to {given.folder}")
    else:
        pack(given.weights / "model.safetensors", given.folder / "model.safetensors")
        print(f"wrote model.safetensors to {given.folder}")
    return 0


def pack(source: Path, target: Path) -> None:
    """Copy weights, rounded to bf16."""
    import torch
    from safetensors.torch import load_file, save_file

    weights = {name: value.to(torch.bfloat16) for name, value in load_file(source).items()}
    save_file(weights, target, metadata={"format": "pt"})


if __name__ == "__main__":
    raise SystemExit(main())
