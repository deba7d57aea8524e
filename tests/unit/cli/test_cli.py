"""The `dtl` command: output and exit codes."""

import json
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from dtl import __version__, api
from dtl.cli.app import main
from dtl.config.recipes import list_recipes
from dtl.core.errors import DtlError, RunFailed

CONFIG = """\
model: {path: "mini:text"}
task: causal_lm
data: {train: rows.jsonl}
strategy: lora
train: {steps: 5}
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(CONFIG)
    return str(path)


@dataclass
class ApiCall:
    """What the command passes to the Python API."""

    config: object = None


@pytest.fixture
def trained(monkeypatch):
    """Replace training by a function that stores its config and ends with `code`."""

    def replace_train(code):
        call = ApiCall()

        def train(config, *, can_fork):
            call.config = config
            if isinstance(code, Exception):
                raise code
            return SimpleNamespace(exit_code=code, run=SimpleNamespace(state="interrupted"))

        monkeypatch.setattr(api, "train", train)
        return call

    return replace_train


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"dtl {__version__}\n"


@pytest.mark.parametrize("columns", ["80", "120"])
def test_help_texts_are_uncut_and_fit_the_terminal(capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= int(columns)
    assert not any(line.endswith("...") for line in lines if "Usage" not in line)
    assert (
        "Check the config, plan, launch on this machine, train, evaluate and export."
        in " ".join(" ".join(lines).split())
    )


def test_a_shell_completes_commands(capsys, monkeypatch):
    for name, value in {
        "_DTL_COMPLETE": "complete_bash",
        "COMP_WORDS": "dtl tr",
        "COMP_CWORD": "1",
    }.items():
        monkeypatch.setenv(name, value)
    assert main([]) == 0
    assert capsys.readouterr().out.split() == ["train", "track"]


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["train", "--help"]])
def test_help(capsys, arguments):
    assert main(arguments) == 0
    assert "Usage: dtl" in capsys.readouterr().out


@pytest.mark.parametrize("code", [0, 1, 2, 75])
def test_the_exit_code_of_train_is_that_of_the_run(config, trained, code):
    call = trained(code)
    assert main(["train", config, "train.steps=7", "strategy.rank=4"]) == code
    assert call.config.train.steps == 7
    assert call.config.strategy.options.rank == 4


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DtlError.of("here", "is wrong", "fix it"), 2),
        (RunFailed.of("here", "is wrong", "fix it"), 1),
    ],
)
def test_a_fault_of_the_user_is_printed_without_traceback(config, trained, capsys, error, code):
    trained(error)
    assert main(["train", config]) == code
    printed = capsys.readouterr()
    assert printed.err == "here: is wrong. Fix: fix it\n"
    assert printed.out == ""


def test_a_bug_is_not_hidden(config, trained):
    trained(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        main(["train", config])


def test_an_interrupt_has_its_own_exit_code(config, monkeypatch):
    def interrupt(config, *, can_fork):
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "train", interrupt)
    assert main(["train", config]) == 130


def test_an_unknown_command_is_a_fault_of_the_user(capsys):
    assert main(["trian"]) == 2
    assert "trian" in capsys.readouterr().err


def test_plan_as_text_and_as_json(config, monkeypatch, capsys):
    planned = SimpleNamespace(
        format_lines=lambda *, width: ["one", "two"], to_dict=lambda: {"layout": {"zero_stage": 2}}
    )
    monkeypatch.setattr(api, "plan", lambda config: planned)
    assert main(["plan", config]) == 0
    assert capsys.readouterr().out == "one\ntwo\n"
    assert main(["plan", config, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"layout": {"zero_stage": 2}}


def test_list(capsys):
    assert main(["list", "strategies"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert names == sorted(names)
    assert "lora" in names
    assert main(["list"]) == 0
    assert "tasks:" in capsys.readouterr().out


def test_list_of_something_else(capsys):
    assert main(["list", "task"]) == 2
    assert "did you mean 'tasks'?" in capsys.readouterr().err


def test_recipes(capsys, tmp_path):
    assert main(["recipes", "list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(list_recipes())
    assert main(["recipes", "copy", "quickstart/text", str(tmp_path)]) == 0
    assert (tmp_path / "text.yaml").is_file()


def test_schema_is_json(capsys):
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out)["type"] == "object"


def test_doctor_exits_with_0_only_if_nothing_is_missing(monkeypatch, capsys):
    from dtl.inspect import doctor

    monkeypatch.setattr(doctor, "examine", lambda: [doctor.Finding("ok", "all")])
    assert main(["doctor"]) == 0
    monkeypatch.setattr(doctor, "examine", lambda: [doctor.Finding("missing", "it", "get it")])
    assert main(["doctor"]) == 1
    assert "missing  it. Fix: get it\n\n1 missing\n" in capsys.readouterr().out
