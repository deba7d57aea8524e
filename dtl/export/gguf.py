"""Convert a saved model to a GGUF file, with llama.cpp's converter."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from dtl.core.errors import DtlError, RunFailed, shorten_message

CONVERTER = "convert_hf_to_gguf.py"
CONVERTER_VARIABLE = "DTL_GGUF_CONVERTER"
OUTPUT_TYPES = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}


def find_converter(option: Path | None) -> Path:
    """Return the script that `--converter` or the environment variable names, or that is on PATH.

    Raises DtlError.
    """
    path = option or os.environ.get(CONVERTER_VARIABLE)
    if path is not None:
        script = Path(path).expanduser()
        if not script.is_file():
            location = "--converter" if option else CONVERTER_VARIABLE
            raise DtlError.of(
                location, f"there is no file {script}", f"use llama.cpp's {CONVERTER}"
            )
        return script
    on_path = shutil.which(CONVERTER) or _find_in_path_folders()
    if on_path is None:
        raise DtlError.of(
            "--format",
            f"gguf needs llama.cpp's {CONVERTER}, which is not on PATH",
            "run `git clone https://github.com/ggml-org/llama.cpp`, pip install its "
            "requirements/requirements-convert_hf_to_gguf.txt, and set the script with "
            f"--converter or {CONVERTER_VARIABLE}",
        )
    return Path(on_path)


def _find_in_path_folders() -> Path | None:
    """Return the script in a folder of PATH, even if it is not executable."""
    folders = os.environ.get("PATH", "").split(os.pathsep)
    files = (Path(folder) / CONVERTER for folder in folders)
    return next((file for file in files if file.is_file()), None)


def convert_to_gguf(converter: Path, model: Path, file: Path, *, dtype: str) -> None:
    """Write `file` from the model in a folder. Raises RunFailed with the converter's last line."""
    file.parent.mkdir(parents=True, exist_ok=True)
    argv = [sys.executable, str(converter), str(model)]
    argv += ["--outfile", str(file), "--outtype", OUTPUT_TYPES[dtype]]
    completed = subprocess.run(argv, capture_output=True, text=True, errors="replace", check=False)
    if completed.returncode != 0 or not file.is_file() or file.stat().st_size == 0:
        lines = (completed.stderr or completed.stdout).strip().splitlines() or ["it wrote no file"]
        raise RunFailed.of(
            str(converter),
            f"exit code {completed.returncode} ({shorten_message(lines[-1])})",
            "check that llama.cpp supports this model, or export safetensors with --merge",
        )
