"""From the command to the first optimizer step: `dtl train` beside plain transformers and PEFT.

    python benchmarks/startup.py [--pairs 5] [--model FOLDER] [--write]

Both adapt the same base with LoRA to the same rows, 16 examples a step, in one process. They run in
turn; a pair's ratio is dtl's time over the plain script's, and the median of the pairs counts.
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
BAR = 1.2
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
    """Seconds to the first step, measured one right after the other."""

    plain: float
    dtl: float

    @property
    def ratio(self) -> float:
        return self.dtl / self.plain


@dataclass(frozen=True)
class Bed:
    """A folder with the rows and the config; every process works in it."""

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
        bed = _make_bed(Path(folder), options.model)
        _pair(bed, cold=True)  # reads all files from disk once; not counted
        pairs = {
            "cold": [_pair(bed, cold=True) for _ in range(options.pairs)],
            "warm": [_pair(bed, cold=False) for _ in range(options.pairs)],
        }
    report = "\n".join(_report(pairs)) + "\n"
    print(report)
    if options.write:
        RESULT.write_text(report, encoding="utf-8")
        print(f"written to {RESULT}")
    return 0 if all(_median(found) <= BAR for found in pairs.values()) else 1


def _make_bed(folder: Path, model: str | None) -> Bed:
    """The quickstart's rows as a plain file, so that neither side has to make them."""
    from dtl import mini

    bed = Bed(folder, str(Path(model or mini.base_folder("text")).absolute()))
    texts = mini.load_rows("graphs", "train")[:ROWS]
    bed.rows.write_text("".join(json.dumps(row) + "\n" for row in texts), encoding="utf-8")
    (folder / "config.yaml").write_text(CONFIG.format(model=bed.model, rows=bed.rows))
    return bed


def _pair(bed: Bed, *, cold: bool) -> Pair:
    """The plain script, then dtl. `cold`: dtl's cache of encoded data is empty."""
    shutil.rmtree(bed.folder / "runs", ignore_errors=True)
    mark = bed.folder / "mark"
    mark.unlink(missing_ok=True)
    plain = [str(HERE / "plain_lora.py"), bed.model, str(bed.rows), "--mark", str(mark)]
    taken = _seconds(plain, bed, until=lambda: mark.exists() and mark.stat().st_size > 0)
    if cold:
        shutil.rmtree(bed.cache, ignore_errors=True)
    metrics = bed.folder / "runs" / "config" / "metrics.jsonl"
    ours = ["-m", "dtl", "train", str(bed.folder / "config.yaml")]
    return Pair(
        taken,
        _seconds(ours, bed, until=lambda: metrics.exists() and b"train" in metrics.read_bytes()),
    )


def _seconds(arguments: list[str], bed: Bed, *, until: Callable[[], bool]) -> float:
    """From the start of the process until it is so; the process then ends by itself."""
    log = bed.folder / "log.txt"
    with log.open("w") as output:
        start = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=bed.folder,
            env={**_environment(), "DTL_CACHE": str(bed.cache)},
            stdout=output,
            stderr=output,
        )
        while not until() and process.poll() is None:
            time.sleep(0.002)
        taken = time.perf_counter() - start
        code = process.wait()
    if code or not until():
        raise SystemExit(f"{arguments} ended with {code}:\n{log.read_text()}")
    return taken


def _environment() -> dict[str, str]:
    """Ours, with Python's usual caching of compiled modules, whatever is set here."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def _report(pairs: dict[str, list[Pair]]) -> Iterator[str]:
    yield "# Command to first step"
    yield ""
    yield (
        "Seconds from the start of the command to the end of the first optimizer step, in one "
        "process, on the base and the first 200 rows of the quickstart: `dtl train` beside a "
        f"script of transformers and PEFT alone. The bar is a median ratio of {BAR}. "
        "Cold: dtl's cache of encoded data is empty."
    )
    yield ""
    yield "| cache | pair | plain script | dtl train | ratio |"
    yield "|---|---|---|---|---|"
    for cache, found in pairs.items():
        for number, pair in enumerate(found, start=1):
            yield f"| {cache} | {number} | {pair.plain:.2f} | {pair.dtl:.2f} | {pair.ratio:.2f} |"
        plain = statistics.median(pair.plain for pair in found)
        ours = statistics.median(pair.dtl for pair in found)
        yield f"| {cache} | **median** | {plain:.2f} | {ours:.2f} | **{_median(found):.2f}** |"
    yield ""
    yield f"- date: {date.today()}"
    yield f"- hardware: {_hardware()}"
    yield f"- versions: Python {platform.python_version()}, {_versions()}"
    yield f"- command: `python benchmarks/{Path(__file__).name} {' '.join(sys.argv[1:])}`"


def _median(pairs: list[Pair]) -> float:
    return statistics.median(pair.ratio for pair in pairs)


def _versions() -> str:
    return ", ".join(f"{name} {metadata.version(name)}" for name in STACK)


def _hardware() -> str:
    """Processor and number of cores."""
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if line.startswith("model name")
    ]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores"


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=5, help="pairs with each kind of cache")
    parser.add_argument("--model", help="folder of the base; left out: mini:text")
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.name}")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
