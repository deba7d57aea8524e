"""Kill each command at any moment: the same command then ends as if nothing had happened."""

from __future__ import annotations

from pathlib import Path

from benchmarks.chaos import commands
from benchmarks.chaos.any_file import _answers, _expected
from benchmarks.chaos.setup import Setup
from benchmarks.chaos.table import count_values
from benchmarks.chaos.trials import TrialResult

NAME = "verb kill"
REQUIREMENT = "the same command succeeds after a SIGKILL at any moment, with the same result"
SBATCH = '#!/bin/bash\ncase "$*" in *--test-only*) ;; *) echo 41;; esac\n'
CONFIG_VERBS = ("train", "plan", "check", "submit")
VERBS = {
    "train": commands.TRAIN,
    "plan": ("plan", "small.yaml"),
    "check": ("check", "small.yaml"),
    "submit": ("submit", "small.yaml", "run.name=run", "--cluster", "generic"),
    "resume": ("resume", "runs/run"),
    "predict": commands.PREDICT,
    "evaluate": commands.EVALUATE,
    "export": ("export", "runs/run", "--merge", "--to", "merged"),
    "compare": ("compare", "few.yaml"),
}


def run_trial(setup: Setup, number: int) -> TrialResult:
    """Kill a command after a part of the time that it takes, and run it again."""
    rng, verb = setup.rng(NAME, number), list(VERBS)[number % len(VERBS)]
    result = TrialResult(NAME, number, actions=[verb])
    folder = _prepare(setup, verb, setup.trial_folder("verb-kill", number))
    options = {"environment": {"PATH": f"{folder / 'bin'}:/usr/bin:/bin"}}
    delay = rng.random() * _usual_seconds(setup, verb)
    killed = commands.run(setup, folder, VERBS[verb], kill_after=delay, **options)
    result.injected = int(killed.codes == [None])
    result.measurements = {"verb": verb}
    result.actions.append(f"killed after {delay:.2f} s")
    if result.injected:  # else it had ended before
        result.violations += _check_again(setup, verb, folder, options)
    return result


def describe(trials: list[TrialResult]) -> str:
    """Return the text of the table."""
    return f"{len(trials)} kills of commands ({count_values(trials, 'verb')})"


def _check_again(setup: Setup, verb: str, folder: Path, options: dict[str, object]) -> list[str]:
    again = commands.run(setup, folder, VERBS[verb], **options)
    faults = list(again.violations)
    if again.codes != [0] and not (verb == "submit" and "is queued" in again.output):
        faults.append(f"the second {verb} ended with {again.codes}: {again.output[-300:]}")
    elif verb in ("train", "resume"):
        found = commands.read_result(folder)
        faults += commands.find_silent_differences(found, _expected(setup), output="")
    elif verb == "predict" and _answers(folder) != _answers(setup.folder / "templates/finished"):
        faults.append("SILENT: the answers differ")
    return faults


def _prepare(setup: Setup, verb: str, folder: Path) -> Path:
    template = "finished" if verb in ("predict", "evaluate", "export") else "empty"
    commands.copy_template(setup, "interrupted" if verb == "resume" else template, folder)
    (folder / "answers.jsonl").unlink(missing_ok=True)
    (folder / "bin").mkdir()
    for name, text in (("sbatch", SBATCH), ("squeue", "#!/bin/bash\n")):
        command = folder / "bin" / name
        command.write_text(text, encoding="utf-8")
        command.chmod(0o755)
    return folder


def _usual_seconds(setup: Setup, verb: str) -> float:
    """Return how long a command takes without a kill; it is measured once."""
    file = setup.folder / "templates" / f"seconds-{verb}"
    with setup.lock(f"seconds {verb}"):
        if not file.exists():
            folder = _prepare(setup, verb, setup.folder / "templates" / f"timing-{verb}")
            options = {"environment": {"PATH": f"{folder / 'bin'}:/usr/bin:/bin"}}
            answer = commands.run(setup, folder, VERBS[verb], **options)
            assert answer.codes == [0], answer
            file.write_text(str(answer.seconds), encoding="utf-8")
        return float(file.read_text(encoding="utf-8"))
