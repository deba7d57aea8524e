"""A saved model as a GGUF file, by llama.cpp's converter."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from dtl.core.errors import DtlError, RunFailed

SCRIPT = "convert_hf_to_gguf.py"
VARIABLE = "DTL_GGUF_CONVERTER"
TYPES = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}


def find_converter(given: Path | None) -> Path:
    """The script that was named, or that the environment names, or that is on PATH.
    Raises DtlError."""
    named = given or os.environ.get(VARIABLE)
    if named is not None:
        script = Path(named).expanduser()
        if not script.is_file():
            place = "--converter" if given else VARIABLE
            raise DtlError.of(place, f"there is no file {script}", f"name llama.cpp's {SCRIPT}")
        return script
    found = shutil.which(SCRIPT) or find_on_path()
    if found is None:
        raise DtlError.of(
            "--format",
            f"gguf needs llama.cpp's {SCRIPT}, which is not on PATH",
            "git clone https://github.com/ggml-org/llama.cpp, pip install its "
            "requirements/requirements-convert_hf_to_gguf.txt, and name the script with "
            f"--converter or {VARIABLE}",
        )
    return Path(found)


def find_on_path() -> Path | None:
    """Also where the script is not marked as a program."""
    folders = os.environ.get("PATH", "").split(os.pathsep)
    return next((file for one in folders if (file := Path(one) / SCRIPT).is_file()), None)


def convert_to_gguf(converter: Path, model: Path, file: Path, *, dtype: str) -> None:
    """Raises RunFailed with the converter's last words where it fails."""
    file.parent.mkdir(parents=True, exist_ok=True)
    argv = [sys.executable, str(converter), str(model)]
    argv += ["--outfile", str(file), "--outtype", TYPES[dtype]]
    ended = subprocess.run(argv, capture_output=True, text=True, errors="replace", check=False)
    if ended.returncode != 0 or not file.is_file() or file.stat().st_size == 0:
        said = (ended.stderr or ended.stdout).strip().splitlines() or ["it wrote nothing"]
        raise RunFailed.of(
            str(converter),
            f"ended with exit code {ended.returncode} ({said[-1][:300]})",
            "llama.cpp may not know this kind of model; export safetensors with --merge",
        )
