"""A list of strategies: the steps of each, the parameters counted, and the faults."""

import pytest

from dtl.config.load import load_config
from dtl.config.schema import RunConfig
from dtl.config.schema.plugins import Phase
from dtl.core.errors import DtlError
from dtl.models.pretrained_config import load_model_config
from dtl.plan.phases import compute_last_steps
from tests import tiny
from tests.unit.plan.test_planner import configure, plan

CONFIG = """
model: {path: mini:text}
task: causal_lm
data: {train: rows.jsonl}
train: {steps: 10}
strategy:
  - {name: frozen, length: 0.3, learning_rate: 1e-3}
  - {name: full}
"""


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phases") / "base"
    tiny.decoder(folder)
    return folder


def phases_of(*lengths):
    return [Phase.model_validate({"name": "full", "length": length}) for length in lengths]


@pytest.mark.parametrize(
    ("lengths", "steps", "ends"),
    [
        ((None,), 7, [7]),
        ((None, None), 7, [3, 7]),
        ((0.3, None), 10, [3, 10]),
        ((4, None, None), 10, [4, 7, 10]),
        ((None, 6), 10, [4, 10]),
        ((0.5, 0.25, 0.25), 9, [4, 6, 9]),
        ((0.34, 0.33, 0.33), 10, [3, 6, 10]),
        ((3, 7), 10, [3, 10]),
    ],
)
def test_the_steps_of_each_phase(lengths, steps, ends):
    assert compute_last_steps(phases_of(*lengths), steps=steps) == ends


@pytest.mark.parametrize(
    ("lengths", "steps"),
    [((8, None), 8), ((3, 4), 10), ((8, 4), 10), ((0.01, None), 10), ((0.2, 0.3), 100)],
)
def test_lengths_that_do_not_add_up_are_a_fault(lengths, steps):
    with pytest.raises(DtlError, match="the lengths of its phases") as caught:
        compute_last_steps(phases_of(*lengths), steps=steps)
    assert "train.steps" in str(caught.value)


def test_each_phase_has_its_own_learning_rate_and_counts(decoder):
    listed = [{"name": "frozen", "length": 4}, {"name": "full", "learning_rate": 0.5}]
    config = configure(decoder, strategy=listed)
    planned, base = plan(config), load_model_config(config.model)
    probe, full = planned.phases
    assert (probe.strategy, probe.start_step, probe.last_step) == ("frozen", 0, 4)
    assert (full.strategy, full.start_step, full.last_step) == ("full", 4, 10)
    assert (probe.learning_rate, full.learning_rate) == (1e-3, 0.5)
    assert probe.parameters.trainable == base.vocab_size * base.hidden_size, "the head"
    assert planned.parameters == full.parameters, "memory is planned for the larger one"
    assert full.parameters.frozen == 0
    assert [planned.phase_index(step) for step in (0, 3, 4, 9, 10)] == [0, 0, 1, 1, 1]


def test_only_the_first_phase_that_trains_it_has_a_new_head(decoder):
    listed = ["frozen", {"name": "lora", "length": 4}]
    config = configure(decoder, task="text_classification", strategy=listed)
    assert [phase.head_learning_rate for phase in plan(config).phases] == [8e-3, None]


def test_learning_rate_of_optim_is_that_of_all_phases(decoder):
    config = configure(decoder, strategy=["frozen", "full"], optim={"learning_rate": 0.25})
    assert [phase.learning_rate for phase in plan(config).phases] == [0.25, 0.25]


@pytest.mark.parametrize(
    ("listed", "problem"),
    [
        (["frozen", "scratch"], "strategy.1: scratch starts from random weights"),
        (["full", "lora"], "strategy.1: the run would export an adapter"),
        (["lora", "lora"], "strategy.1: the run would export an adapter"),
    ],
)
def test_strategy_that_cannot_follow_is_a_fault(decoder, listed, problem):
    with pytest.raises(DtlError, match=problem):
        plan(configure(decoder, strategy=listed))


def test_dpo_needs_one_base_in_all_phases(decoder):
    config = configure(decoder, task="dpo", strategy=["lora", "lora"])
    with pytest.raises(DtlError, match="each phase would have another base"):
        plan(config)


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(CONFIG)
    return path


def test_list_survives_json(written):
    config = load_config(written)
    assert [(phase.name, phase.length, phase.learning_rate) for phase in config.phases] == [
        ("frozen", 0.3, 1e-3),
        ("full", None, None),
    ]
    assert RunConfig.model_validate(config.model_dump(mode="json")) == config


def test_override_changes_an_item_of_the_list(written):
    config = load_config(written, ["strategy.0.length=4", "strategy.1=lora", "strategy.1.rank=2"])
    assert (config.phases[0].length, config.phases[1].options.rank) == (4, 2)
    assert len(load_config(written, ["strategy=full"]).phases) == 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("strategy.2=full", "strategy is a list of 2, without an item '2'. Fix: count from 0"),
        (
            "strategy.length=3",
            "strategy is a list of 2, without an item 'length'. Fix: count from 0",
        ),
        ("strategy.1.lenght=3", "strategy.1.lenght: no such key. Fix: did you mean 'length'?"),
        ("strategy.0.length=2.5", "2.5 is neither a share nor a number of steps"),
        ("strategy=[frozen, ful]", "strategy.1: no strategy is named 'ful'"),
        ("strategy=[]", "strategy: the list is empty"),
        ("strategy.1.length=0.8", "the lengths of the phases sum to 1.1 of the run"),
    ],
)
def test_fault_in_a_list_has_its_location(written, override, message):
    with pytest.raises(DtlError) as caught:
        load_config(written, [override])
    assert message in str(caught.value)
