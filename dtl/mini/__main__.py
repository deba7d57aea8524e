"""`python -m dtl.mini FOLDER`: write the folder that configs/mini/text.yaml starts from."""

import sys
from pathlib import Path

from dtl.mini.architecture import write_architecture


def main(arguments: list[str]) -> int:
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: python -m dtl.mini FOLDER", file=sys.stderr)
        return 2
    folder = Path(arguments[0])
    folder.mkdir(parents=True, exist_ok=True)
    write_architecture(folder)
    print(f"wrote config.json and the tokenizer to {folder}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
