"""Load a config: values, overrides, and the messages of faults."""

import json

import pytest

from dtl.config.json_schema import build_json_schema
from dtl.config.load import add_locations, load_config
from dtl.config.schema import RunConfig
from dtl.core.errors import DtlError, Fault

CONFIG = """\
model:
  path: mini:text
task: causal_lm
data:
  train: rows.jsonl
strategy: lora
train:
  steps: 5
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a config into the current folder and returns its name."""
    monkeypatch.chdir(tmp_path)

    def write(text, name="run.yaml"):
        (tmp_path / name).write_text(text, encoding="utf-8")
        return name

    return write


def load_faults(path, *overrides):
    with pytest.raises(DtlError) as caught:
        load_config(path, overrides)
    return [str(fault) for fault in caught.value.faults]


def test_the_shortest_config(write):
    config = load_config(write(CONFIG))
    assert config.run.name == "run"
    assert config.run.dir == "runs"
    assert config.model.path == "mini:text"
    assert config.task.name == "causal_lm"
    assert config.data.train.path == "rows.jsonl"
    assert config.strategy.options.rank == 16
    assert config.optim.warmup == 0.03
    assert config.layout.zero_stage is None


def test_a_config_survives_json(write):
    text = CONFIG.replace(
        "strategy: lora", "strategy: {name: lora, rank: 4, target_modules: [q, v]}"
    )
    config = load_config(write(text), ["optim.gradient_clip=null"])
    dumped = json.loads(json.dumps(config.model_dump(mode="json")))
    assert dumped["strategy"]["name"] == "lora"
    assert dumped["strategy"]["rank"] == 4
    assert RunConfig.model_validate(dumped) == config


def test_a_config_made_in_python(write):
    made = RunConfig.model_validate(
        {
            "run": {"name": "run"},
            "model": {"path": "mini:text"},
            "task": "causal_lm",
            "data": {"train": "rows.jsonl"},
            "strategy": "lora",
            "train": {"steps": 5},
        }
    )
    assert made == load_config(write(CONFIG))


def test_records_are_frozen(write):
    config = load_config(write(CONFIG))
    with pytest.raises(ValueError, match="frozen"):
        config.train.steps = 6


@pytest.mark.parametrize(
    ("text", "number"), [("1e-4", 1e-4), ("3.0E-5", 3e-5), ("1_0.5", 10.5), (".5", 0.5), ("1", 1.0)]
)
def test_number_formats(write, text, number):
    config = load_config(write(CONFIG + f"optim: {{learning_rate: {text}}}\n"))
    assert config.optim.learning_rate == number
    config = load_config("run.yaml", [f"optim.learning_rate={text}"])
    assert config.optim.learning_rate == number


def test_a_number_is_read_as_text_where_text_is_expected(write):
    text = CONFIG + "run: {name: 2024}\n"
    text = text.replace("rows.jsonl\n", "rows.jsonl\n  columns: {label: 1, text: 1e3}\n")
    config = load_config(write(text), ["model.revision=10"])
    assert config.run.name == "2024"
    assert config.data.columns == {"label": "1", "text": "1e3"}
    assert config.model.revision == "10"


@pytest.mark.parametrize("word", ["no", "off", "on", "yes", "2024-01-01", "12:30", "007"])
def test_words_are_read_as_text(write, word):
    assert load_config(write(CONFIG + f"run:\n  name: {word}\n")).run.name == word


@pytest.mark.parametrize("override", ["train.steps=null", "train.steps=~"])
def test_null_leaves_a_key_out(write, override):
    config = load_config(write(CONFIG), [override, "train.epochs=2"])
    assert config.train.steps is None
    assert config.train.epochs == 2.0


def test_null_is_the_default_unless_it_is_a_value(write):
    config = load_config(
        write(CONFIG),
        ["train.seed=null", "optim.gradient_clip=null", "strategy.rank=null", "run=null"],
    )
    assert config.train.seed == 0
    assert config.optim.gradient_clip is None
    assert config.strategy.options.rank == 16
    assert config.run.name == "run"


def test_overrides(write):
    config = load_config(
        write(CONFIG),
        [
            "strategy.rank=4",
            "data.train.limit=7",
            "data.columns={text: body}",
            "optim.betas=[0.9, 0.95]",
            "layout.processes_per_node=2",
            "layout.activation_checkpointing=true",
            "run.name=a=b",
            "train.seed=1",
            "train.seed=2",
        ],
    )
    assert config.strategy.name == "lora"
    assert config.strategy.options.rank == 4
    assert (config.data.train.path, config.data.train.limit) == ("rows.jsonl", 7)
    assert config.data.columns == {"text": "body"}
    assert config.optim.betas == (0.9, 0.95)
    assert config.layout.processes_per_node == 2
    assert config.layout.activation_checkpointing is True
    assert config.run.name == "a=b"
    assert config.train.seed == 2


def test_another_strategy_drops_the_options_of_the_old(write):
    text = CONFIG.replace("strategy: lora", "strategy: {name: lora, rank: 4}")
    config = load_config(write(text), ["strategy=full"])
    assert config.strategy.name == "full"


def test_all_faults_at_once_in_the_order_of_the_file(write):
    text = CONFIG.replace("steps: 5", "stpes: 5\n  steps: many").replace("path: mini", "pth: mini")
    messages = load_faults(
        write(text + "optim: {lr: 1}\n"), "train.seed=-1", "nothing", "train.stepz=1"
    )
    assert messages == [
        "command line: nothing: this is not of the form key=value. "
        "Fix: write key=value, such as train.steps=100",
        "run.yaml:1: model.path: this key is missing. "
        "Fix: add it (hub id, local folder, or mini:NAME for a base that dtl ships)",
        "run.yaml:2: model.pth: no such key. Fix: did you mean 'path'?",
        "run.yaml:8: train.stpes: no such key. Fix: did you mean 'steps'?",
        "run.yaml:9: train.steps: 'many' is not an integer. "
        "Fix: write an integer (optimizer steps to take)",
        "run.yaml:10: optim.lr: no such key. Fix: did you mean 'optim.learning_rate'?",
        "command line: train.seed=-1: train.seed: -1 is too small. "
        "Fix: write 0 or more (seed of all random numbers)",
        "command line: train.stepz=1: train.stepz: no such key. Fix: did you mean 'steps'?",
    ]


def test_a_missing_section_has_no_line(write):
    (message,) = load_faults(write(CONFIG.replace("model:\n  path: mini:text\n", "")))
    assert message == "run.yaml: model: this key is missing. Fix: add it (the pretrained model)"


def test_a_fault_of_a_flow_value_on_the_command_line(write):
    (message,) = load_faults(write(CONFIG), "train={stpes: 1, steps: 2}")
    assert message.startswith("command line: train={stpes: 1, steps: 2}: train.stpes: no such key.")


def test_a_fault_of_a_union_is_one_message(write):
    (message,) = load_faults(write(CONFIG), "strategy={name: lora, target_modules: {a: 1}}")
    assert message.partition(": strategy.target_modules: ")[2].startswith(
        "a section of keys does not fit. Fix: write text or a list in [ ]"
    )


def test_a_folder_is_not_a_config(write):
    write(CONFIG, "one.yaml")
    (message,) = load_faults(".")
    assert message == ".: this is a folder, not a config. Fix: use one of its files: one.yaml"


def test_aliases_are_read(write):
    text = CONFIG.replace("train: rows.jsonl", "train: &rows {path: a.jsonl}\n  eval: *rows")
    assert load_config(write(text)).data.eval.path == "a.jsonl"


def test_remote_code_needs_a_revision_unless_it_is_local(write, tmp_path):
    (message,) = load_faults(write(CONFIG), "model.path=some/model", "model.trust_remote_code=true")
    assert "set model.revision to a commit that you have read" in message
    for revision in ("main", "abc"):  # both may be moved
        moving = ["model.path=some/model", "model.trust_remote_code=true"]
        (message,) = load_faults(write(CONFIG), *moving, f"model.revision={revision}")
        assert "all 40 digits" in message
    pinned = [*moving, f"model.revision={'0a' * 20}"]
    assert load_config("run.yaml", pinned).model.trust_remote_code
    here = [f"model.path={tmp_path}", "model.trust_remote_code=true"]
    assert load_config("run.yaml", here).model.trust_remote_code


def test_the_schema_knows_plugins_and_short_forms():
    schema = build_json_schema()
    strategy = schema["$defs"]["StrategyConfig"]["anyOf"]
    assert "lora" in strategy[0]["enum"]
    lora = next(form for form in strategy[1:] if form["properties"]["name"]["const"] == "lora")
    assert lora["properties"]["rank"]["description"]
    assert lora["additionalProperties"] is False
    assert schema["$defs"]["Source"]["anyOf"][0] == {"type": "string"}
    assert schema["required"] == ["model", "task", "data", "strategy", "train"]


def test_every_key_is_described():
    def undescribed(schema, path):
        for name, key in schema.get("properties", {}).items():
            if not (key.get("description") or "const" in key):
                yield (*path, name)
        for part in schema.get("anyOf", []):
            yield from undescribed(part, path)

    schema = build_json_schema()
    missing = [*undescribed(schema, ())]
    for name, definition in schema["$defs"].items():
        missing += undescribed(definition, (name,))
    assert not missing


def test_later_faults_get_file_and_line(write):
    path, overrides = write(CONFIG), ["data.columns={text: body}"]
    error = DtlError(
        Fault("data.train", "is empty", "fill it"),
        Fault("data.columns.text", "is absent", "use another column"),
        Fault("rows.jsonl:3", "is no JSON", "fix it"),
        Fault("layout.zero_stage", "is planned", "set it"),
    )
    assert str(add_locations(error, path, overrides)).splitlines() == [
        "run.yaml:5: data.train: is empty. Fix: fill it",
        "command line: data.columns={text: body}: data.columns.text: is absent. "
        "Fix: use another column",
        "rows.jsonl:3: is no JSON. Fix: fix it",
        "layout.zero_stage: is planned. Fix: set it",
    ]
