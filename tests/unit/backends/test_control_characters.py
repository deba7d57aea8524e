"""A line break in any value of a site or a job is an error, never a line of the job script."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from dtl.backends._slurm.site import Container
from dtl.backends.base import Job
from dtl.backends.slurm import Options, Plugin
from dtl.config.load import load_config
from dtl.core.errors import DtlError, Fault

CONFIG = """
model: {path: mini:text}
task: causal_lm
data: {train: rows.jsonl}
strategy: lora
train: {steps: 1}
"""
COMMAND = "x\ntouch /tmp/hurt"
TEXTS = {
    name: field
    for name, field in Options.model_fields.items()
    if "str" in str(field.annotation) and "Literal" not in str(field.annotation)
}
SITE = {"description": "test", "account_needed": False}
FORMS = (COMMAND, [COMMAND], {"NAME": COMMAND}, {COMMAND: "value"})


def test_most_fields_of_a_site_are_texts():
    assert len(TEXTS) > 15


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("form", FORMS, ids=["text", "list", "value", "key"])
def test_line_break_in_a_site_is_refused(name, form):
    with pytest.raises(ValidationError):
        Options.model_validate({**SITE, name: form})


@pytest.mark.parametrize("name", ["account", "qos", "memory", "setup", "environment", "sbatch"])
def test_fault_names_the_control_character(name):
    form = {"account": COMMAND, "qos": COMMAND, "memory": COMMAND, "environment": {"A": COMMAND}}
    with pytest.raises(ValidationError, match=r"has the control character '\\n'"):
        Options.model_validate({**SITE, name: form.get(name, [COMMAND])})


@pytest.mark.parametrize("name", ["image", "mounts", "options"])
def test_line_break_in_a_container_is_refused(name):
    value = COMMAND if name == "image" else [COMMAND]
    container = {"kind": "pyxis", "image": "an image", name: value}
    assert Container.model_validate(container)
    with pytest.raises(ValidationError, match="control character"):
        Options.model_validate({**SITE, "container": container})


@pytest.mark.parametrize("name", ["partition", "account", "qos", "constraint", "memory"])
def test_script_with_a_line_break_in_a_flag_is_not_rendered(name):
    options = Options.model_validate(SITE).model_copy(update={name: COMMAND})
    with pytest.raises(DtlError, match="control character"):
        Plugin(options).render(Job(Path("/data/run"), ("python",), {}))


@pytest.mark.parametrize("name", ["run_folder", "working_dir", "name"])
def test_line_break_in_a_job_is_no_line_of_its_script(name):
    fields = {"run_folder": Path("/data/run"), "argv": ("python",), "environment": {}}
    fields[name] = COMMAND if name == "name" else Path(f"/data/{COMMAND}")
    try:
        script = Plugin(Options.model_validate(SITE)).render(Job(**fields))
    except DtlError as refused:
        assert "control character" in str(refused)
    else:
        assert not any(line.startswith("touch") for line in script.splitlines())


@pytest.mark.parametrize("key", ["run.name", "run.dir"])
@pytest.mark.parametrize("character", ["\n", "\r", "\x00", "\x1b", "\u2028"])
def test_control_character_in_the_run_folder_is_one_message_of_one_line(tmp_path, key, character):
    config = tmp_path / "run.yaml"
    config.write_text(CONFIG)
    with pytest.raises(DtlError) as refused:
        load_config(config, [f"{key}=a{character}b"])
    (line,) = str(refused.value).splitlines()
    assert line.isprintable() and key in line


def test_message_shows_control_characters_as_escapes():
    shown = str(Fault("run.name=a\nb", "bad \x1b[31m", "remove it"))
    assert shown == "run.name=a\\nb: bad \\x1b[31m. Fix: remove it"
