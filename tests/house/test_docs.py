"""The pages are true: their commands run, their links lead somewhere, their code works."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml

from dtl.config import registry
from dtl.config.load import load_config
from dtl.data.sources.rows import Row
from tests.distributed import launching

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"(?:<!-- file: (\S+) -->\n)?^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
QUICKSTART = "dtl train configs/quickstart/text.yaml"
EXTERNAL_LAUNCHERS = {"accelerate launch": "--main_process_port", "torchrun": "--master-port"}


@dataclass(frozen=True)
class Block:
    """Code in a page. `file`: the name under which the page says to save it."""

    page: Path
    line: int
    file: str | None
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def _blocks(language: str) -> list[Block]:
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in BLOCK.finditer(text):
            line = text.count("\n", 0, match.start(2)) + 1
            found.append(Block(page, line, match[1], match[2], match[3]))
    return [block for block in found if block.language == language]


def _plugin(page: str) -> ModuleType:
    """The plugin that a page shows in full, imported as a module."""
    block = next(block for block in _blocks("python") if block.page.name == page)
    module = ModuleType(f"shown_in_{page.partition('.')[0].replace('-', '_')}")
    sys.modules[module.__name__] = module
    exec(compile(block.text, str(block), "exec"), module.__dict__)
    return module


def _script(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout after `make quickstart`: recipes, launch files, the pages' own files, a run."""
    folder = tmp_path_factory.mktemp("docs")
    for name in ("configs", "launch"):
        (folder / name).symlink_to(ROOT / name)
    for block in [*_blocks("json"), *_blocks("yaml")]:
        if block.file:
            (folder / block.file).write_text(block.text, encoding="utf-8")
    _run(_small(QUICKSTART, folder), folder)
    return folder


COMMANDS = [  # those of README in every `make test`, those of other pages in `make test-all`
    pytest.param(block, marks=[pytest.mark.slow] * (block.page.name != "README.md"))
    for block in _blocks("bash")
]


@pytest.mark.parametrize("block", COMMANDS, ids=str)
def test_commands_run(workdir: Path, block: Block) -> None:
    """Each line at small scale; what installs is only looked up."""
    for line in block.text.splitlines():
        tool, *rest = shlex.split(line)
        if tool == "make":
            assert rest[0] in _targets(), line
        elif line != QUICKSTART:
            _run(_small(line, workdir), workdir)


def test_make_quickstart_is_the_run_that_the_pages_speak_of() -> None:
    assert _targets()["quickstart"].strip() == f"$(BIN)/{QUICKSTART}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        if not link.startswith("https://"):
            assert (page.parent / link.partition("#")[0]).exists(), link


def test_every_page_is_reached_from_the_readme() -> None:
    linked = LINK.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    assert {page.relative_to(ROOT).as_posix() for page in PAGES[1:]} <= set(linked)


@pytest.mark.parametrize("block", _blocks("python"), ids=str)
def test_python_compiles_and_its_claims_hold(block: Block) -> None:
    code = compile(block.text, str(block), "exec")
    if "\nassert " in block.text:
        exec(code, {})


@pytest.mark.parametrize(
    "block", [block for block in _blocks("yaml") if "model:" in block.text], ids=str
)
def test_configs_load(tmp_path: Path, block: Block) -> None:
    file = tmp_path / (block.file or "shown.yaml")
    file.write_text(block.text, encoding="utf-8")
    assert load_config(file).run.name == file.stem


def test_config_page_is_that_of_the_schema() -> None:
    page = (ROOT / "docs" / "config.md").read_text(encoding="utf-8")
    assert page == _script("make_config_page").page(), "run: python docs/make_config_page.py"


def test_model_structure_page_is_that_of_the_models() -> None:
    page = (ROOT / "docs" / "model-structure.md").read_text(encoding="utf-8")
    assert page == _script("make_model_structure_page").page(), (
        "run: python -m docs.make_model_structure_page"
    )


def test_the_tables_of_adapters_are_those_of_the_strategies():
    page = (ROOT / "docs" / "peft.md").read_text(encoding="utf-8")
    assert page == _script("make_peft_tables").page(page), "run: python docs/make_peft_tables.py"


@pytest.mark.parametrize("name", ["slurm", "sites"])
def test_the_tables_of_sites_are_those_of_the_record_and_the_files(name):
    page = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
    assert page == _script("make_site_tables").page(page), "run: python docs/make_site_tables.py"


def test_floors_are_those_that_are_enforced() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    layers = settings["tool"]["importlinter"]["contracts"][0]["layers"]
    shown = [block for block in _blocks("text") if block.text.startswith("dtl.__main__")]
    assert [re.split(r"\s{2,}", line)[0] for line in shown[0].text.splitlines()] == layers


def test_picture_shows_what_was_printed() -> None:
    printed = "dtype       fp32  no GPU\nadapted: loss 3.1\n"
    drawn = _script("make_picture").picture(printed)
    words = "".join(ElementTree.fromstring(drawn).itertext()).replace("\xa0", " ")
    assert "dtype" in words and "no GPU" in words and "adapted: loss 3.1" in words
    assert "url(http" not in drawn, "a picture that asks other hosts is not shown on many pages"


def test_shown_strategy_is_the_one_in_the_folder(encoder: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    shown = next(block for block in _blocks("python") if block.page.name == "add-a-strategy.md")
    file = ROOT / "dtl" / "strategies" / "bitfit.py"
    assert shown.text == file.read_text(encoding="utf-8")
    module = _plugin("add-a-strategy.md")
    model = AutoModelForSequenceClassification.from_pretrained(encoder)
    new = frozenset({"classifier.weight", "classifier.bias"})
    model = module.Plugin(module.Options()).apply(model, new_parameters=new)
    learning = {name for name, value in model.named_parameters() if value.requires_grad}
    assert learning == new | {name for name, _ in model.named_parameters() if name[-5:] == ".bias"}


def test_strategies_page_tells_of_every_strategy() -> None:
    """One row each, with the learning rate and the kind of export that the plugin has."""
    page = (ROOT / "docs" / "strategies.md").read_text(encoding="utf-8")
    start = page.index("| strategy | trained parameters | learning rate | exported | paper |")
    rows = re.findall(
        r"^\| `(\w+)` \|[^|]+\| ([\d.e-]+) \| (\w+) \|",
        page[start : page.index("\n\n", start)],
        re.M,
    )
    plugins = {
        name: registry.load("strategies", name).Plugin for name in registry.list_names("strategies")
    }
    assert {name: (float(rate), kind) for name, rate, kind in rows} == {
        name: (plugin.learning_rate, plugin.export_kind) for name, plugin in plugins.items()
    }


def test_shown_task_does_what_it_says(encoder: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    module = _plugin("add-a-task.md")
    task = module.Plugin(module.Options())
    settings = task.head_config({})
    model = AutoModelForSequenceClassification.from_pretrained(encoder, **settings).eval()
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    encode = task.encoder(tokenizer, {}, model.config)
    rows = [{"text": "the old ship", "number": 2.5}, {"text": "a letter again", "number": -1}]
    examples = [encode(Row(i, "", dict(fields))).values for i, fields in enumerate(rows)]
    batch = task.collate(examples, pad_token_id=0)
    expected = 0.0
    for row in rows:
        inputs = tokenizer(row["text"], return_tensors="pt", return_token_type_ids=False)
        with torch.no_grad():
            expected += float((model(**inputs).logits[0, 0] - row["number"]) ** 2)
    with torch.no_grad():
        assert float(task.loss(model, batch)) == pytest.approx(expected, rel=1e-5)
        score = task.score(task.eval_records(model, batch, processor=tokenizer), {})
    assert score == {"squared_error": pytest.approx(expected / 2, rel=1e-5)}


def test_shown_backend_does_what_it_says(tmp_path: Path) -> None:
    from dtl.backends.base import Job

    module = _plugin("add-a-backend.md")
    backend = module.Plugin(module.Options(host="node7"))
    run = tmp_path / "a run"
    run.mkdir()
    line = backend.render(Job(run, ("printenv", "NAME"), {"NAME": "two words"}))
    reported = subprocess.run(["bash", "-c", f"{line}; wait"], capture_output=True, text=True)
    assert int(reported.stdout) > 0
    assert backend.log_files(Job(run, (), {}))[0].read_text() == "two words\n"


def test_the_first_command_installs_all_that_readme_shows():
    """The tests bring their own tools, and nothing else that dtl could be lacking."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = project["project"]["optional-dependencies"]
    assert "dtl[all]" in extras["test"] and "dtl[test]" in extras["dev"]
    own = [needed for needed in extras["test"] + extras["dev"] if not needed.startswith("dtl[")]
    tools = {re.match(r"[\w-]+", needed)[0].replace("-", "_") for needed in own}
    code = "\n".join(file.read_text("utf-8") for file in (ROOT / "dtl").rglob("*.py"))
    imported = set(re.findall(r"^ *(?:from|import) (\w+)", code, re.MULTILINE))
    assert len(tools) > 5 and not tools & imported
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(r"^\$\(VENV\)/.dtl-installed:.*\n.*\n\t.*'\.\[all\]'$", makefile, re.MULTILINE)


def _targets() -> dict[str, str]:
    """The Makefile's targets and the first line of their recipes."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    return dict(re.findall(r"^([a-z-]+):.*\n\t(.*)$", text, re.MULTILINE))


def _small(line: str, workdir: Path) -> str:
    """The same command with two steps and few held-out examples, on a port of its own."""
    for launcher, option in EXTERNAL_LAUNCHERS.items():
        if line.startswith(launcher):
            line = line.replace(launcher, f"{launcher} {option} {launching.port()}", 1)
            return f"{line} {_few_steps(line, workdir)}"
    if line.startswith("dtl train"):
        alone = "" if line == QUICKSTART else "layout.processes_per_node=1 layout.zero_stage=0"
        return f"{line} {_few_steps(line, workdir)} {alone}"
    if line.startswith("dtl compare configs/"):
        rates = "compare.learning_rates={scratch: 0.01, frozen: 0.01, full: 0.001, lp-ft: 0.001}"
        return f"{line} {_few_steps(line, workdir)} '{rates}' --train-sizes 1 --seeds 1"
    if line.startswith("dtl evaluate configs/"):
        return f"{line} {_few_steps(line, workdir)}"
    return line


def _few_steps(line: str, workdir: Path) -> str:
    """Overrides for the config that a command names."""
    name = next(word for word in line.split() if word.endswith(".yaml") and "launch/" not in word)
    data = yaml.safe_load((workdir / name).read_text(encoding="utf-8"))["data"]
    few = "train.epochs=null train.steps=2 train.global_batch=4"
    return f"{few} data.eval.limit=8" if "eval" in data else few


def _run(command: str, workdir: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    ended = subprocess.run(
        ["bash", "-c", command],
        cwd=workdir,
        env=launching.environment(PATH=path),
        capture_output=True,
        text=True,
        timeout=300,
    )
    # The doctor ends with 1 where it finds something missing, as it should.
    fine = (0, 1) if command == "dtl doctor" else (0,)
    assert ended.returncode in fine, f"{command}\n{ended.stdout[-3000:]}\n{ended.stderr[-6000:]}"
    # What libraries say is in the logs of runs, or of no use.
    assert not (command.startswith("dtl ") and ended.stderr), f"{command}\n{ended.stderr[-3000:]}"
