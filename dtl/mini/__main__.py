"""How a shipped base is made: its folder, `dtl train configs/mini/NAME.yaml`, and its weights.

`python -m dtl.mini NAME FOLDER` writes the config and what reads the input; with `--weights EXPORT`
it adds the weights of an export, and its labels; those of mini:text in bf16 to stay small.
"""

import argparse
import shutil
from pathlib import Path

from dtl.mini.architecture import write_speech, write_text, write_vision

WRITERS = {"speech": write_speech, "text": write_text, "vision": write_vision}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m dtl.mini", description=__doc__)
    parser.add_argument("name", choices=WRITERS, help="the base, without mini:")
    parser.add_argument("folder", type=Path, help="where the base is written")
    parser.add_argument("--weights", type=Path, help="the export that the weights come from")
    given = parser.parse_args(arguments)
    given.folder.mkdir(parents=True, exist_ok=True)
    if given.weights is None:
        WRITERS[given.name](given.folder)
        print(f"wrote the architecture of mini:{given.name} to {given.folder}")
    else:
        pack(given.weights, given.folder, name=given.name)
        print(f"wrote the weights of mini:{given.name} to {given.folder}")
    return 0


def pack(export: Path, folder: Path, *, name: str) -> None:
    """Copy weights, and the config that knows the head's labels; a language model's in bf16."""
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
