"""Show that a refactor changes no number: the old commit and this tree give bit-equal results.

    python scripts/prove_refactor.py OLD_COMMIT --old-results /tmp/old-results

Trains the same small runs with both, then compares losses, gradient norms, learning rates, scores,
the values of each held-out example, and every exported tensor. The exit code is 0 where all are
bit-equal, and 1 where something differs or is missing on one side.

Names are written as this tree has them. What the refactor renames goes into the tables below, from
old to new; they translate the runs for the old tree, and its results back. The old results are
stored under their old names, and stay valid for the same settings, packages and CPU.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml
from compare_results import Comparison, compare, print_table, read_results

RENAMED: dict[str, str] = {  # config keys ("train.old": "train.new") and paths of config files
    "data.holdout": "data.eval_fraction",
    "data.draw.labels": "data.subsample.size",
    "layout.processes": "layout.processes_per_node",
    "layout.zero": "layout.zero_stage",
    "task.generate_length": "task.max_new_tokens",
    "train.ema": "train.ema_decay",
}
RENAMED_VALUES: dict[str, str] = {}  # values of config keys: names of tasks, strategies, choices
RENAMED_OUTPUTS: dict[str, str] = {  # metrics, keys of results, files and folders of a run
    "cer_normalised": "cer_normalized",
    "evaluations/generated": "hypothesis",
    "evaluations/hits": "correct",
    "evaluations/likelier": "label_rank",
    "wer_normalised": "wer_normalized",
}

PACKAGES = ("torch", "deepspeed", "accelerate", "transformers", "peft", "datasets", "numpy")
REPOSITORY = Path(__file__).resolve().parents[1]
WHISPER_SECONDS = 5  # length of audio that the tiny Whisper reads

QUICKSTARTS = ("text", "speech", "vision")
QUICKSTART_SETTINGS = "{train: {steps: 4, evaluate_every: 2}, data: {eval: {limit: 8}}}"
CONFIGS = """
dpo:
  model: {path: mini:text}
  task: {name: dpo, max_length: 64}
  data: {train: {path: inputs/pairs.jsonl}, eval_fraction: 0.25}
  strategy: {name: lora, rank: 4}
  train: {steps: 4, evaluate_every: 2, global_batch: 8, export: best}
  layout: {micro_batch: 2}
whisper:
  model: {path: inputs/whisper}
  task: {name: asr_seq2seq, language: en, spec_augment: true, max_new_tokens: 16}
  data: {train: {path: mini:accents/train}, eval: {path: mini:accents/heldout, limit: 6}}
  strategy: {name: full}
  optim: {learning_rate: 0.001}
  train: {steps: 4, evaluate_every: 2, global_batch: 8}
  layout: {micro_batch: 4}
phased:
  model: {path: mini:text}
  task: {name: text_classification, max_length: 64}
  data:
    train: {path: mini:sentiment/train}
    subsample: {size: 8}
    eval: {path: mini:sentiment/heldout, limit: 16}
  strategy: [frozen, full]
  optim: {layer_decay: 0.9}
  train: {steps: 4, evaluate_every: 2, global_batch: 8}
zero-3:
  model: {path: mini:text}
  task: {name: causal_lm, max_length: 64}
  data:
    train: {path: mini:graphs/train, limit: 48}
    eval: {path: mini:graphs/heldout, limit: 8}
  strategy: {name: full}
  train:
    {steps: 4, evaluate_every: 2, global_batch: 512 tokens, group_by_length: true, ema_decay: 0.9}
  layout: {processes_per_node: 2, zero_stage: 3}
"""


@dataclass(frozen=True)
class Run:
    """A training run. `settings`: dotted key -> value. `config`: path in the tree of a config whose
    keys the settings override; None where the settings are the complete config."""

    name: str
    settings: Mapping[str, Any]
    config: str | None = None


@dataclass(frozen=True)
class Side:
    """One of the two trees, and the folder that its runs are written to."""

    tree: Path
    work: Path
    is_old: bool

    @property
    def environment(self) -> dict[str, str]:
        """Return the environment of a run: this tree's code, its own cache, one CPU thread."""
        paths = {"PYTHONPATH": str(self.tree), "DTL_CACHE": str(self.work / "cache")}
        device = {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        return {**os.environ, **paths, **device, "HF_HUB_OFFLINE": "1"}


# 1. The runs, as both trees name them


def list_runs(*, full: bool) -> list[Run]:
    """Return all runs; the quickstarts are short ones unless `full`."""
    settings = {} if full else flatten(yaml.safe_load(QUICKSTART_SETTINGS))
    suffix = "-full" if full else ""
    shipped = [
        Run(name + suffix, settings, f"configs/quickstart/{name}.yaml") for name in QUICKSTARTS
    ]
    written = yaml.safe_load(CONFIGS)
    return [*shipped, *(Run(name, flatten(config)) for name, config in written.items())]


def flatten(config: Any, *, prefix: str = "") -> dict[str, Any]:
    """Return dotted keys and values of nested mappings; a list is a value."""
    if not isinstance(config, dict):
        return {prefix.removesuffix("."): config}
    items = [flatten(value, prefix=f"{prefix}{key}.") for key, value in config.items()]
    return {key: value for item in items for key, value in item.items()}


def nest(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested mappings of dotted keys."""
    nested: dict[str, Any] = {}
    for key, value in settings.items():
        *sections, last = key.split(".")
        inner = nested
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[last] = value
    return nested


def old_name(name: str) -> str:
    """Return the old tree's name of a dotted key, or path of a config; the longest entry counts."""
    old_names = {new: old for old, new in RENAMED.items()}
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        if old := old_names.get(".".join(parts[:end])):
            return ".".join([old, *parts[end:]])
    return name


def old_value(value: Any) -> Any:
    """Return a config value, or list of values, by its name in the old tree."""
    if isinstance(value, list):
        return [old_value(item) for item in value]
    old_values = {new: old for old, new in RENAMED_VALUES.items()}
    return old_values.get(value, value) if isinstance(value, str) else value


def translate(run: Run, *, is_old: bool) -> Run:
    """Return the run as one of the trees names it, with its name and folder among the settings."""
    settings = {**run.settings, "run.name": run.name, "run.dir": "runs"}
    if not is_old:
        return Run(run.name, settings, run.config)
    settings = {old_name(key): old_value(value) for key, value in settings.items()}
    return Run(run.name, settings, old_name(run.config) if run.config else None)


# 2. Training


def check_import(side: Side) -> None:
    """Assert that a run of this side imports dtl from its own tree."""
    argv = [sys.executable, "-c", "import dtl; print(dtl.__file__)"]
    done = subprocess.run(
        argv, cwd=side.work, env=side.environment, check=True, stdout=subprocess.PIPE, text=True
    )
    imported = Path(done.stdout.strip()).resolve()
    assert imported.is_relative_to(side.tree.resolve()), f"{imported} is not in {side.tree}"


def train_arguments(run: Run, *, side: Side) -> list[str]:
    """Return CONFIG and KEY=VALUE of a translated run; writes the config where it has none."""
    if run.config is not None:
        overrides = [f"{key}={json.dumps(value)}" for key, value in run.settings.items()]
        return [str(side.tree / run.config), *overrides]
    path = side.work / f"{run.name}.yaml"
    path.write_text(yaml.safe_dump(nest(run.settings), sort_keys=False), encoding="utf-8")
    return [str(path)]


def train(run: Run, *, side: Side) -> bool:
    """Train a translated run; return whether it succeeded. Prints its time, or its last lines."""
    shutil.rmtree(side.work / "runs" / run.name, ignore_errors=True)
    argv = [sys.executable, "-m", "dtl", "train", *train_arguments(run, side=side)]
    log, started = side.work / f"{run.name}.log", time.monotonic()
    with log.open("wb") as file:
        code = subprocess.run(
            argv, cwd=side.work, env=side.environment, stdout=file, stderr=subprocess.STDOUT
        ).returncode
    tree = "old" if side.is_old else "new"
    print(f"{tree}  {run.name:12}  {time.monotonic() - started:5.1f} s", flush=True)
    if code != 0:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        print(f"exit code {code}; {log} ends with:", *lines[-8:], sep="\n  ", flush=True)
    return code == 0


def describe(run: Run) -> dict[str, Any]:
    """Return what a stored result depends on: the translated run, the packages, the CPU."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    cpu = next((line for line in lines if line.startswith("model name")), "unknown")
    return {
        **vars(run),
        "versions": {name: metadata.version(name) for name in PACKAGES},
        "cpu": cpu,
    }


def record_of(run: str, *, work: Path) -> Path:
    """Return the file that describes a stored result; it exists where the run succeeded."""
    return work / "runs" / f"{run}.json"


def is_stored(run: Run, *, work: Path) -> bool:
    """Return whether `work` has a valid result of a translated run."""
    record = record_of(run.name, work=work)
    return record.is_file() and json.loads(record.read_text(encoding="utf-8")) == describe(run)


def train_old(runs: Sequence[Run], *, commit: str, work: Path) -> None:
    """Train with the old commit those runs of which `work` has no valid result."""
    translated = [translate(run, is_old=True) for run in runs]
    missing = [run for run in translated if not is_stored(run, work=work)]
    print(
        f"old  {len(runs) - len(missing)} of {len(runs)} results are stored in {work}", flush=True
    )
    if not missing:
        return
    build_inputs(work / "inputs")
    with tempfile.TemporaryDirectory(prefix="dtl-old-tree-") as folder:
        side = Side(Path(folder), work, is_old=True)
        archive = subprocess.run(
            ["git", "-C", str(REPOSITORY), "archive", commit], check=True, stdout=subprocess.PIPE
        )
        with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
            files.extractall(folder, filter="data")
        check_import(side)
        for run in missing:
            record = record_of(run.name, work=work)
            record.unlink(missing_ok=True)
            if train(run, side=side):
                record.write_text(json.dumps(describe(run), indent=1) + "\n", encoding="utf-8")


# 3. Inputs that both trees use, and dtl does not ship


def build_inputs(folder: Path) -> None:
    """Write pairs.jsonl and a tiny Whisper, once."""
    if folder.is_dir():
        return
    staged = folder.with_name("inputs.incomplete")
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    (staged / "pairs.jsonl").write_text("".join(map(pair_line, range(32))), encoding="utf-8")
    build_whisper(staged / "whisper")
    staged.rename(folder)


def pair_line(row: int) -> str:
    """Return a prompt with a chosen and a rejected answer, of uneven lengths, as a JSON line."""
    words = ("graph", "node", "edge", "path", "weight", "tree", "cycle", "degree")
    prompt = " ".join(words[(row * step) % 8] for step in range(2, 5 + row % 5))
    chosen, rejected = f" {words[row % 7]} return", f" {words[row % 5]} None or raise"
    return json.dumps({"prompt": prompt, "chosen": chosen, "rejected": rejected}) + "\n"


def whisper_tokenizer() -> Any:
    """Return a WhisperTokenizer whose vocabulary is the 256 bytes and the special tokens."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import WhisperTokenizer
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    tokens = [*sorted(ByteLevel.alphabet()), "<|endoftext|>"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = WhisperTokenizer(vocab=vocabulary, merges=[], pad_token="<|endoftext|>")
    tasks = ("translate", "transcribe", "startoflm", "startofprev", "nospeech", "notimestamps")
    special = [f"<|{name}|>" for name in ("startoftranscript", *LANGUAGES, *tasks)]
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    tokenizer.set_prefix_tokens()
    return tokenizer


def build_whisper(folder: Path) -> None:
    """Write a multilingual Whisper of 2 layers a side with random weights and dropout."""
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(7)
    tokenizer = whisper_tokenizer()
    ids, end = tokenizer.get_vocab(), tokenizer.eos_token_id
    special = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end}
    special["decoder_start_token_id"] = ids["<|startoftranscript|>"]
    sizes = {"d_model": 32, "num_mel_bins": 16, "vocab_size": len(tokenizer)}
    for part in ("encoder", "decoder"):
        sizes |= {f"{part}_layers": 2, f"{part}_attention_heads": 2, f"{part}_ffn_dim": 64}
    sizes |= {"max_source_positions": 50 * WHISPER_SECONDS, "max_target_positions": 96}
    config = transformers.WhisperConfig(dropout=0.1, **sizes, **special)
    model = transformers.WhisperForConditionalGeneration(config)
    model.generation_config = transformers.GenerationConfig(
        **special,
        no_timestamps_token_id=ids["<|notimestamps|>"],
        is_multilingual=True,
        max_length=96,
        return_timestamps=False,
        lang_to_id={name: ids[name] for name in ("<|en|>", "<|de|>")},
        task_to_id={name: ids[f"<|{name}|>"] for name in ("translate", "transcribe")},
    )
    extractor = transformers.WhisperFeatureExtractor(16, chunk_length=WHISPER_SECONDS)
    for item in (model, tokenizer, extractor):
        item.save_pretrained(folder)


def parse_arguments() -> argparse.Namespace:
    """Return the command line's options; ends with exit code 2 where they are wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("old_commit", metavar="OLD_COMMIT", help="commit before the refactor")
    add("--full", action="store_true", help="train the quickstarts as they are, not 4 steps")
    add("--old-results", type=Path, metavar="DIR", help="store and reuse the old results")
    add("--runs", metavar="NAME,NAME", help="only these runs; left out: all")
    add("--tree", type=Path, default=REPOSITORY, help="tree after the refactor; left out: this one")
    options = parser.parse_args()
    runs = list_runs(full=options.full)
    wanted = options.runs.split(",") if options.runs else [run.name for run in runs]
    options.runs = [run for run in runs if run.name in wanted]
    if len(options.runs) != len(wanted):
        parser.error(f"--runs: there are {', '.join(run.name for run in runs)}")
    return options


def compare_run(run: Run, *, old_work: Path, new: Side) -> Comparison:
    """Train a run with the tree after the refactor, and compare it with the stored old result."""
    succeeded = {
        "old": record_of(run.name, work=old_work).is_file(),
        "new": train(translate(run, is_old=False), side=new),
    }
    return compare(
        old=read_results(old_work / "runs" / run.name, renamed=RENAMED_OUTPUTS),
        new=read_results(new.work / "runs" / run.name, renamed={}),
        failures=[f"the {tree} tree's run failed" for tree in succeeded if not succeeded[tree]],
    )


def main() -> int:
    """Train and compare all runs; return 0 where every value is bit-equal, else 1."""
    options = parse_arguments()
    argv = ["git", "-C", str(REPOSITORY), "rev-parse", "--verify", options.old_commit + "^{commit}"]
    commit = subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    temporary = Path(tempfile.mkdtemp(prefix="dtl-prove-"))
    old_work = (options.old_results or temporary / "old").resolve() / commit
    new = Side(options.tree.resolve(), temporary / "new", is_old=False)
    train_old(options.runs, commit=commit, work=old_work)
    shutil.copytree(old_work / "inputs", new.work / "inputs")
    check_import(new)
    comparisons = {run.name: compare_run(run, old_work=old_work, new=new) for run in options.runs}
    print_table(comparisons)
    if any(comparison.differences for comparison in comparisons.values()):
        print(f"the new results are left in {new.work}")
        return 1
    shutil.rmtree(temporary)
    return 0


if __name__ == "__main__":
    os.environ |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}  # before torch is imported
    sys.exit(main())
