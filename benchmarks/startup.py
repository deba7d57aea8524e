"""Time to the first optimizer step: `dtl train` compared with plain transformers and PEFT.

    python benchmarks/startup.py [--pairs 5] [--model FOLDER] [--write]

Both adapt the same base with LoRA to the same rows, 16 examples per step, in one process. They
alternate. The ratio of a pair is the time of dtl over that of the plain script; the median of the
pairs counts.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from importlib import metadata
from pathlib import Path

HERE = Path(__file__).parent
RESULT = HERE / "results" / "startup.md"
MAX_RATIO = 1.2
ROWS = 200
STACK = ("dtl", "torch", "transformers", "peft", "accelerate")
CONFIG = """
model: {{path: {model}, dtype: fp32}}
task: {{name: causal_lm, max_length: 256}}
data: {{train: {rows}}}
strategy: {{name: lora, rank: 16, alpha: 32}}
optim: {{learning_rate: 0.002}}
train: {{steps: 1, global_batch: 16}}
layout: {{processes_per_node: 1, micro_batch: 16}}
"""


@dataclass(frozen=True)
class Pair:
    """Seconds to the first step, measured one after the other."""

    plain: float
    dtl: float

    @property
    def ratio(self) -> float:
        return self.dtl / self.plain


@dataclass(frozen=True)
class Setup:
    """A folder with the rows and the config, in which every process runs."""

    folder: Path
    model: str

    @property
    def rows(self) -> Path:
        return self.folder / "rows.jsonl"

    @property
    def cache(self) -> Path:
        return self.folder / "cache"


def main() -> int:
    options = _parse()
    with tempfile.TemporaryDirectory(prefix="dtl-startup-") as folder:
        setup = _create_setup(Path(folder), options.model)
        _measure_pair(setup, cold=True)  # reads all files from disk once; not counted
        pairs = {
            "cold": [_measure_pair(setup, cold=True) for _ in range(options.pairs)],
            "warm": [_measure_pair(setup, cold=False) for _ in range(options.pairs)],
        }
    report = "\n".join(_report(pairs)) + "\n"
    print(report)
    if options.write:
        RESULT.write_text(report, encoding="utf-8")
        print(f"written to {RESULT}")
    return 0 if all(_median_ratio(measured) <= MAX_RATIO for measured in pairs.values()) else 1


def _create_setup(folder: Path, model: str | None) -> Setup:
    """Write the rows of the quickstart to a file, so that neither side generates them."""
    from dtl import mini

    setup = Setup(folder, str(Path(model or mini.base_folder("text")).absolute()))
    texts = mini.load_rows("graphs", "train")[:ROWS]
    setup.rows.write_text("".join(json.dumps(row) + "\n" for row in texts), encoding="utf-8")
    (folder / "config.yaml").write_text(CONFIG.format(model=setup.model, rows=setup.rows))
    return setup


def _measure_pair(setup: Setup, *, cold: bool) -> Pair:
    """Measure the plain script, then dtl. `cold`: the cache of encoded data of dtl is empty."""
    shutil.rmtree(setup.folder / "runs", ignore_errors=True)
    mark = setup.folder / "mark"
    mark.unlink(missing_ok=True)
    plain = [str(HERE / "plain_lora.py"), setup.model, str(setup.rows), "--mark", str(mark)]
    plain_seconds = _measure_seconds(
        plain, setup, is_done=lambda: mark.exists() and mark.stat().st_size > 0
    )
    if cold:
        shutil.rmtree(setup.cache, ignore_errors=True)
    metrics = setup.folder / "runs" / "config" / "metrics.jsonl"
    command = ["-m", "dtl", "train", str(setup.folder / "config.yaml")]
    return Pair(
        plain_seconds,
        _measure_seconds(
            command, setup, is_done=lambda: metrics.exists() and b"train" in metrics.read_bytes()
        ),
    )


def _measure_seconds(arguments: list[str], setup: Setup, *, is_done: Callable[[], bool]) -> float:
    """Return the time from the start of the process until `is_done`; the process then ends."""
    log = setup.folder / "log.txt"
    with log.open("w") as output:
        start = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=setup.folder,
            env={**_environment(), "DTL_CACHE": str(setup.cache)},
            stdout=output,
            stderr=output,
        )
        while not is_done() and process.poll() is None:
            time.sleep(0.002)
        seconds = time.perf_counter() - start
        code = process.wait()
    if code or not is_done():
        raise SystemExit(f"{arguments} ended with {code}:\n{log.read_text()}")
    return seconds


def _environment() -> dict[str, str]:
    """Return the environment, with the default caching of compiled modules."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def _report(pairs: dict[str, list[Pair]]) -> Iterator[str]:
    yield "# Command to first step"
    yield ""
    yield (
        "Seconds from the start of the command to the end of the first optimizer step, in one "
        "process, on the base and the first 200 rows of the quickstart: `dtl train` compared with "
        f"a script of transformers and PEFT alone. The median ratio must be at most {MAX_RATIO}. "
        "Cold: the cache of encoded data of dtl is empty."
    )
    yield ""
    yield "| cache | pair | plain script | dtl train | ratio |"
    yield "|---|---|---|---|---|"
    for cache, measured in pairs.items():
        for number, pair in enumerate(measured, start=1):
            yield f"| {cache} | {number} | {pair.plain:.2f} | {pair.dtl:.2f} | {pair.ratio:.2f} |"
        plain = statistics.median(pair.plain for pair in measured)
        ratio = _median_ratio(measured)
        with_dtl = statistics.median(pair.dtl for pair in measured)
        yield f"| {cache} | **median** | {plain:.2f} | {with_dtl:.2f} | **{ratio:.2f}** |"
    yield ""
    yield f"- date: {date.today()}"
    yield f"- hardware: {_hardware()}"
    yield f"- versions: Python {platform.python_version()}, {_versions()}"
    yield f"- command: `python benchmarks/{Path(__file__).name} {' '.join(sys.argv[1:])}`"


def _median_ratio(pairs: list[Pair]) -> float:
    return statistics.median(pair.ratio for pair in pairs)


def _versions() -> str:
    return ", ".join(f"{name} {metadata.version(name)}" for name in STACK)


def _hardware() -> str:
    """Return processor and number of cores."""
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if line.startswith("model name")
    ]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores"


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=5, help="pairs per kind of cache")
    parser.add_argument("--model", help="folder of the base; default: mini:text")
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.name}")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
