"""Writes the folder of a shipped base, before and after `dtl train configs/mini/NAME.yaml`.

`python -m dtl.mini NAME FOLDER` writes config and processor. With `--weights EXPORT` it adds the
weights and labels of an export; those of mini:text in bf16.
"""

import argparse
import shutil
from pathlib import Path

from dtl.mini.architecture import write_speech, write_text, write_vision

WRITERS = {"speech": write_speech, "text": write_text, "vision": write_vision}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m dtl.mini", description=__doc__)
    parser.add_argument("name", choices=WRITERS, help="the base, without mini:")
    parser.add_argument("folder", type=Path, help="folder to write")
    parser.add_argument("--weights", type=Path, help="export with the weights")
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.weights is None:
        WRITERS[options.name](options.folder)
        print(f"wrote the architecture of mini:{options.name} to {options.folder}")
    else:
        pack(options.weights, options.folder, name=options.name)
        print(f"wrote the weights of mini:{options.name} to {options.folder}")
    return 0


def pack(export: Path, folder: Path, *, name: str) -> None:
    """Copy the weights of an export, and its config with the labels of the head."""
    import torch
    from safetensors.torch import load_file, save_file

    weights = load_file(export / "model.safetensors")
    if name == "text":
        weights = {key: value.to(torch.bfloat16) for key, value in weights.items()}
    else:
        shutil.copyfile(export / "config.json", folder / "config.json")
    target = folder / "model.safetensors"
    save_file(weights, target, metadata={"format": "pt"})
    target.chmod(0o644)


if __name__ == "__main__":
    raise SystemExit(main())
