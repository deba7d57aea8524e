"""The optimizer's groups, steps and learning rates, against papers and hand-computed numbers."""

import math

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from dtl.config import registry
from dtl.config.optimizers import OPTIMIZERS
from dtl.config.schema.optim import Optim
from dtl.core.errors import DtlError
from dtl.engine.deepspeed import read_full_shape
from dtl.models.full_shape import register_shape_reader
from dtl.models.load import load_on_meta_device
from dtl.models.pretrained_config import HeadConfig
from dtl.models.structure.parameter_roles import hidden_matrix_ids, weight_decay_ids
from dtl.plan.parameter_groups import assign_update_rules, moment_bytes
from dtl.train import optim
from dtl.train import weight_averages as average
from tests import plain_optimizers as plain
from tests.architectures import ARCHITECTURES


class Net(nn.Module):
    """Two matrices and three vectors."""

    def __init__(self, *, bias=True):
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.norm = nn.LayerNorm(4)
        self.out = nn.Linear(4, 3, bias=bias)


def make_optimizer(model, *, learning_rate=0.1, new_parameters=frozenset(), **options):
    return optim.build_optimizer(
        model,
        Optim(**options),
        learning_rate=learning_rate,
        new_parameters=new_parameters,
    )


def decay_by_name(model, optimizer):
    decay = {
        id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]
    }
    return {name: decay[id(p)] for name, p in model.named_parameters() if id(p) in decay}


def test_norms_and_biases_do_not_decay():
    model = Net()
    assert decay_by_name(model, make_optimizer(model, weight_decay=0.1)) == {
        "embed.weight": 0.1,
        "out.weight": 0.1,
        "norm.weight": 0.0,
        "norm.bias": 0.0,
        "out.bias": 0.0,
    }


def test_frozen_parameters_are_in_no_group():
    model = Net()
    model.embed.requires_grad_(False)
    model.norm.requires_grad_(False)
    assert set(decay_by_name(model, make_optimizer(model))) == {"out.weight", "out.bias"}


@pytest.mark.parametrize(
    ("frozen", "left"), [(("norm",), "matrices"), (("embed", "out"), "vectors")]
)
def test_empty_groups_are_omitted(frozen, left):
    model = Net(bias=False)
    for name in frozen:
        getattr(model, name).requires_grad_(False)
    (group,) = make_optimizer(model, weight_decay=0.1).param_groups
    assert group["weight_decay"] == (0.1 if left == "matrices" else 0.0)
    assert all((p.ndim > 1) == (left == "matrices") for p in group["params"])


def test_partitioned_matrix_has_weight_decay():
    """An engine leaves a parameter without elements and registers how to read its shape."""
    register_shape_reader(read_full_shape)
    model = nn.Linear(4, 3)
    for parameter, shape in ((model.weight, (3, 4)), (model.bias, (3,))):
        parameter.data = torch.empty(0)
        parameter.ds_shape = torch.Size(shape)
    assert decay_by_name(model, make_optimizer(model, weight_decay=0.1)) == {
        "weight": 0.1,
        "bias": 0.0,
    }


def test_one_step_is_adamw_by_hand():
    """The first step moves each number by the rate against the sign of its gradient; a matrix
    first shrinks by rate x decay (arXiv:1711.05101, algorithm 2)."""
    model = nn.Linear(2, 1)
    nn.init.constant_(model.weight, 2.0)
    nn.init.constant_(model.bias, 2.0)
    optimizer = make_optimizer(model, weight_decay=0.5, betas=(0.8, 0.9), epsilon=1e-12)
    model.weight.grad = torch.tensor([[3.0, -0.01]])
    model.bias.grad = torch.tensor([7.0])
    optimizer.step()
    assert model.weight.tolist()[0] == pytest.approx([2 * 0.95 - 0.1, 2 * 0.95 + 0.1], abs=1e-6)
    assert model.bias.tolist() == pytest.approx([2 - 0.1], abs=1e-6)


# Steps ------------------------------------------------------------------------------------------


def small():
    """A model that learns from `lessons`, the same each time."""
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.LayerNorm(8), nn.Linear(8, 3))


def lessons(steps=20):
    draw = torch.Generator().manual_seed(4)
    return [torch.randn(12, 6, generator=draw) for _ in range(steps)]


def train_steps(model, *optimizers, penalty=lambda: 0.0):
    """The loss of each step, without the penalty."""
    losses = []
    for inputs in lessons():
        loss = (model(inputs) - inputs[:, :3].sin()).square().mean()
        model.zero_grad()
        (loss + penalty()).backward()
        for optimizer in optimizers:
            optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] * 0.9
    return losses


def by_decay(model, decay):
    """Matrices and vectors."""
    matrices = [each for each in model.parameters() if each.dim() > 1]
    vectors = [each for each in model.parameters() if each.dim() == 1]
    return [{"params": matrices, "weight_decay": decay}, {"params": vectors}]


@pytest.mark.parametrize(
    ("name", "rate", "reference", "near"),
    [
        ("adamw", 0.01, plain.Adam, 1e-6),
        ("lion", 0.003, plain.Lion, 1e-6),
        ("adafactor", 0.01, plain.Adafactor, 1e-6),
        # Tensors this small keep moments in fp32; the 8 bits are bitsandbytes' own.
        ("adamw_8bit", 0.01, plain.Adam, 1e-6),
        ("lion_8bit", 0.003, plain.Lion, 1e-6),
    ],
)
def test_twenty_steps_equal_those_of_the_paper(name, rate, reference, near):
    model, other = small(), small()
    found = train_steps(
        model, make_optimizer(model, name=name, learning_rate=rate, weight_decay=0.1)
    )
    expected = train_steps(other, reference(by_decay(other, 0.1), lr=rate))
    assert found == pytest.approx(expected, rel=near)


def test_muon_updates_the_hidden_matrices_and_adamw_all_others():
    model, other = (ARCHITECTURES_BY_NAME["BertForSequenceClassification"].build() for _ in "ab")
    other.load_state_dict(model.state_dict())
    inside = [
        module.weight
        for name, module in other.named_modules()
        if isinstance(module, nn.Linear) and not name.startswith("classifier")
    ]
    inner = {id(weight) for weight in inside}
    outside = [each for each in other.parameters() if id(each) not in inner]
    matrices = torch.optim.Muon(inside, lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    decaying = [each for each in outside if each.dim() > 1]
    fixed = {"params": [each for each in outside if each.dim() == 1], "weight_decay": 0.0}
    rest = torch.optim.AdamW([{"params": decaying}, fixed], lr=0.01, weight_decay=0.1, fused=True)
    mine = [make_optimizer(model, name="muon", learning_rate=0.01, weight_decay=0.1)]
    assert decaying
    labels = torch.tensor([0, 1])
    for learner, optimizers in ((model, mine), (other, [matrices, rest])):
        for step in range(20):
            learner.zero_grad()
            batch = {"input_ids": torch.arange(12).reshape(2, 6) + step}
            learner(**batch, labels=labels).loss.backward()
            for optimizer in optimizers:
                optimizer.step()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, other.get_parameter(name)), name


def test_l2_sp_is_the_penalty_of_the_paper():
    """arXiv:1802.01483: alpha / 2 times the squared distance from the start, in the loss."""
    model, other = small(), small()
    optimizer = make_optimizer(
        model,
        learning_rate=0.01,
        l2_sp=0.5,
        weight_decay=0.3,
        new_parameters=frozenset({"3.weight"}),
    )
    master_weights = [(group, each) for group in optimizer.param_groups for each in group["params"]]
    optimizer.register_step_pre_hook(optim.L2SPPenalty(master_weights))
    start = {name: each.detach().clone() for name, each in other.named_parameters()}

    def penalty():
        penalized = {name: each for name, each in other.named_parameters() if name != "3.weight"}
        return 0.25 * sum(((each - start[name]) ** 2).sum() for name, each in penalized.items())

    head = other.get_parameter("3.weight")
    others = [each for each in other.parameters() if each is not head]
    groups = [{"params": [head], "weight_decay": 0.3}, {"params": others}]
    expected = train_steps(other, plain.Adam(groups, lr=0.01), penalty=penalty)
    assert train_steps(model, optimizer) == pytest.approx(expected, rel=1e-5)
    unpenalized = train_steps(third := small(), plain.Adam(third.parameters(), lr=0.01))
    assert unpenalized != pytest.approx(expected, rel=1e-3), "the penalty has an effect"


def test_moving_average_equals_hand_computed_numbers():
    """From the start value on: 0.8 of the average and 0.2 of the new weight, at each step."""
    model = nn.Linear(2, 1, bias=False)
    nn.init.constant_(model.weight, 1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    master_weights = [(group, each) for group in optimizer.param_groups for each in group["params"]]
    optimizer.register_step_post_hook(average.MovingAverageHook(master_weights, decay=0.8))
    for _ in range(2):
        model.weight.grad = torch.ones(1, 2)
        optimizer.step()  # 1, 0.5, 0
    found = optimizer.state[model.weight]["average"]
    assert found.tolist()[0] == pytest.approx([0.8 * (0.8 + 0.1) + 0.0] * 2)


def test_mean_of_checkpoints_has_the_newest_buffers():
    class Checkpoint(dict):
        def read(self, name):
            return self[name]

    checkpoints = [
        Checkpoint({"weight/a": torch.tensor([value, 1.0]), "buffer/b": torch.tensor(value)})
        for value in (1.0, 2.0, 6.0)
    ]
    mean = average.MeanWeights(checkpoints)
    assert mean.read("weight/a").tolist() == [3.0, 1.0]
    assert mean.read("buffer/b").item() == 6.0
    assert "buffer/b" in mean
    assert "buffer/c" not in mean


# Groups -----------------------------------------------------------------------------------------

ARCHITECTURES_BY_NAME = {each.name: each for each in ARCHITECTURES}
KINDS = (
    *("LlamaForCausalLM", "BertForSequenceClassification", "T5ForConditionalGeneration"),
    *("Wav2Vec2ForCTC", "WhisperForConditionalGeneration", "ViTForImageClassification"),
    *("SwinForImageClassification", "ConvNextV2ForImageClassification"),
    "ResNetForImageClassification",
)


@pytest.mark.parametrize("name", KINDS)
def test_weight_decay_is_that_of_transformers_without_scales_and_single_vectors(name):
    from transformers.trainer_pt_utils import get_parameter_names

    with torch.device("meta"):
        model = ARCHITECTURES_BY_NAME[name].build()
    excluded = ["bias", "layernorm", "rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]
    theirs = set(get_parameter_names(model, [nn.LayerNorm], excluded))
    shapes = {name: tuple(each.shape) for name, each in model.named_parameters()}
    vectors = {name for name, shape in shapes.items() if sum(size > 1 for size in shape) == 1}
    ids = weight_decay_ids(model)
    mine = {name for name, each in model.named_parameters() if id(each) in ids}
    assert mine == (theirs & set(shapes)) - vectors
    assert mine


def test_norm_of_a_weight_normed_kernel_does_not_decay():
    from torch.nn.utils import parametrizations

    model = parametrizations.weight_norm(nn.Linear(4, 3))
    assert {
        name for name, each in model.named_parameters() if id(each) in weight_decay_ids(model)
    } == {"parametrizations.weight.original1"}


def adapted(folder, task, strategy, **options):
    """A model on the meta device with its strategy, and the names of its new parameters."""
    from dtl.config.schema import Model

    made = registry.load("tasks", task)
    plugin = made.Plugin(made.Options())
    dataset_stats = {"labels": ["early", "late", "never"]} if task == "text_classification" else {}
    loaded = load_on_meta_device(
        Model(path=str(folder)),
        head=HeadConfig(plugin.auto_class, plugin.head_config(dataset_stats)),
    )
    module = registry.load("strategies", strategy)
    with torch.device("meta"):
        model = module.Plugin(module.Options(**options)).apply(
            loaded.model, new_parameters=loaded.new_parameters
        )
    return model, loaded.new_parameters


def rates_by_name(model, new, *, learning_rate=1.0, **options):
    found = assign_update_rules(model, Optim(**options), learning_rate=learning_rate, new=new)
    return {name: update.learning_rate for name, update in found.items()}


def test_head_has_its_own_learning_rate(encoder):
    model, new = adapted(encoder, "text_classification", "full")
    found = rates_by_name(model, new, head_learning_rate=7.0)
    assert {name for name, rate in found.items() if rate == 7.0} == {
        "classifier.weight",
        "classifier.bias",
    }
    assert set(found.values()) == {1.0, 7.0}


def test_head_next_to_adapters_has_its_own_learning_rate(encoder):
    model, new = adapted(encoder, "text_classification", "lora")
    found = rates_by_name(model, new, head_learning_rate=7.0)
    for name, rate in found.items():
        assert rate == (7.0 if ".classifier." in name else 1.0), name
    assert any("lora_A" in name for name in found)


def test_new_parameters_count_as_head(encoder):
    model, _ = adapted(encoder, "text_classification", "lora", modules_to_save=("pooler",))
    new = frozenset({"bert.pooler.dense.weight", "bert.pooler.dense.bias"})
    found = rates_by_name(model, new, head_learning_rate=7.0)
    assert found["base_model.model.bert.pooler.modules_to_save.default.dense.weight"] == 7.0


def test_layer_decay_multiplies_the_rate_of_each_block(encoder):
    """2 blocks: the head is at height 3, and the embeddings three below it."""
    model, new = adapted(encoder, "text_classification", "full")
    found = rates_by_name(model, new, layer_decay=0.5)
    places = {"bert.embeddings.": 0.125, "layer.0.": 0.25, "layer.1.": 0.5, "classifier.": 1.0}
    for name, rate in found.items():
        (expected,) = [share for place, share in places.items() if place in name] or [1.0]
        assert rate == expected, name
    assert set(found.values()) == set(places.values())


def test_each_update_rule_is_one_group_with_its_peak_rate(encoder):
    model, _ = adapted(encoder, "text_classification", "full")
    optimizer = make_optimizer(model, layer_decay=0.5, head_learning_rate=0.7, weight_decay=0.1)
    groups = optimizer.param_groups
    found = sorted((group["peak_learning_rate"], group["weight_decay"]) for group in groups)
    rates = (0.0125, 0.025, 0.05, 0.1, 0.7)  # the pooler is above the blocks
    assert found == [(rate, decay) for rate in rates for decay in (0.0, 0.1)]


@pytest.mark.parametrize(
    ("strategy", "task", "options", "problem"),
    [
        ("lora", "causal_lm", {"head_learning_rate": 1.0}, "the head is not trained"),
        ("frozen", "text_classification", {"l2_sp": 1.0}, "no parameter of the base is trained"),
        (
            "frozen",
            "text_classification",
            {"name": "muon"},
            "no matrix that Muon could update is trained",
        ),
    ],
)
def test_option_that_applies_to_no_parameter_is_refused(decoder, strategy, task, options, problem):
    model, new = adapted(decoder, task, strategy)
    with pytest.raises(DtlError, match=problem):
        assign_update_rules(model, Optim(**options), learning_rate=1.0, new=new)


def test_adafactor_has_no_betas():
    with pytest.raises(ValidationError, match="adafactor has no betas"):
        Optim(name="adafactor", betas=(0.9, 0.99))


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
def test_planned_bytes_of_the_optimizer_equal_the_actual_ones(name):
    class Large(nn.Module):
        """A tensor large enough for 8-bit moments, and one with three dimensions."""

        base_model_prefix = "base"

        def __init__(self):
            super().__init__()
            self.base = nn.Sequential(nn.Linear(100, 50), nn.Conv1d(50, 4, 3), nn.Flatten(0))
            self.head = nn.Linear(4, 2)

        def forward(self, inputs):
            return self.head(self.base[2](self.base[1](self.base[0](inputs).T)).view(-1, 4))

    model = Large()
    optimizer = make_optimizer(model, name=name, learning_rate=1e-3)
    model(torch.randn(6, 100)).sum().backward()
    optimizer.step()
    actual = 0
    for state in optimizer.state.values():
        moments = {name: each for name, each in state.items() if isinstance(each, torch.Tensor)}
        shared = ("step", "qmap1", "qmap2", "RMS")
        actual += sum(each.nbytes for name, each in moments.items() if name not in shared)
    rules = assign_update_rules(model, Optim(name=name), learning_rate=1e-3, new=frozenset())
    planned = {key: moment_bytes(name, model.get_parameter(key), rules[key]) for key in rules}
    assert sum(planned.values()) == actual


def test_hidden_matrices_are_neither_embeddings_nor_head(encoder):
    model, _ = adapted(encoder, "text_classification", "full")
    inside = hidden_matrix_ids(model)
    names = {name for name, each in model.named_parameters() if id(each) in inside}
    assert "bert.encoder.layer.0.attention.self.query.weight" in names
    assert not any("embeddings" in name or "classifier" in name for name in names)


# Rates ------------------------------------------------------------------------------------------


def test_betas_and_epsilon_come_from_the_config():
    (group, *_) = make_optimizer(Net(), betas=(0.7, 0.95), epsilon=1e-5).param_groups
    assert (group["betas"], group["eps"], group["lr"]) == ((0.7, 0.95), 1e-5, 0.1)
    assert group["peak_learning_rate"] == 0.1
    assert make_optimizer(Net()).param_groups[0]["betas"] == (0.9, 0.999)
    assert make_optimizer(Net(), name="lion").param_groups[0]["betas"] == (0.9, 0.99)


def rates(steps, **options):
    return [
        optim.learning_rate_factor(step, steps=steps, options=Optim(**options))
        for step in range(1, steps + 1)
    ]


def test_linear_schedule_equals_hand_computed_numbers():
    """10 steps, 2 of warm-up: thirds up to 1 at step 3, then an eighth less each step."""
    expected = [1 / 3, 2 / 3, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]
    assert rates(10, schedule="linear", warmup=2.0) == pytest.approx(expected)


def test_cosine_schedule_is_one_half_in_the_middle():
    """8 steps after 2 of warm-up: cos 0, 45, 90, 135 degrees at steps 3, 5, 7, 9."""
    found = rates(10, schedule="cosine", warmup=2.0)
    assert found[:2] == pytest.approx([1 / 3, 2 / 3])
    root = 0.5**0.5
    assert found[2::2] == pytest.approx([1, (1 + root) / 2, 0.5, (1 - root) / 2])
    assert found[9] == pytest.approx(0.0380602, abs=1e-6)  # (1 + cos 157.5 degrees) / 2


def test_constant_schedule_is_constant_after_warmup():
    assert rates(5, schedule="constant", warmup=1.0) == pytest.approx([0.5, 1, 1, 1, 1])


def test_wsd_schedule_is_stable_and_decays_at_the_end():
    """10 steps, 1 of warm-up, the last 4 fall from 1: by quarters, or by roots of quarters."""
    quarters = [1, 0.75, 0.5, 0.25]
    found = rates(10, schedule="wsd", warmup=1.0, decay=0.4, decay_type="linear")
    assert found == pytest.approx([0.5, 1, 1, 1, 1, 1, *quarters])
    roots = [1 - math.sqrt(1 - quarter) for quarter in quarters]
    found = rates(10, schedule="wsd", warmup=1.0, decay=4.0)
    assert found == pytest.approx([0.5, 1, 1, 1, 1, 1, *roots])


def test_minimum_rate_is_a_share_of_the_peak():
    """Linear from 1 to 0.2 in 4 steps: a fifth less each; at inverse root it is a floor."""
    found = rates(4, schedule="linear", warmup=0.0, min_lr_ratio=0.2)
    assert found == pytest.approx([1, 0.8, 0.6, 0.4])
    found = rates(5, schedule="inverse_sqrt", warmup=1.0, min_lr_ratio=0.6)
    assert found == pytest.approx([0.5, 1, 0.5**0.5, 0.6, 0.6])


@pytest.mark.parametrize(
    ("theirs", "options"),
    [
        ("get_cosine_schedule_with_warmup", {"schedule": "cosine"}),
        ("get_linear_schedule_with_warmup", {"schedule": "linear"}),
        (
            "get_cosine_with_min_lr_schedule_with_warmup",
            {"schedule": "cosine", "min_lr_ratio": 0.1},
        ),
        ("get_inverse_sqrt_schedule", {"schedule": "inverse_sqrt"}),
        *(
            ("get_wsd_schedule", {"schedule": "wsd", "decay_type": shape, "min_lr_ratio": 0.1})
            for shape in ("linear", "cosine", "1-sqrt")
        ),
    ],
)
def test_rates_after_warmup_equal_those_of_transformers(theirs, options):
    import transformers

    given = {"num_warmup_steps": 5}
    if theirs != "get_inverse_sqrt_schedule":
        given["num_training_steps"] = 40
    if "min_lr_ratio" in options:
        given["min_lr_ratio" if "wsd" in theirs else "min_lr_rate"] = 0.1
    if "wsd" in theirs:
        given |= {"num_decay_steps": 12, "decay_type": options["decay_type"]}
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    scheduler = getattr(transformers, theirs)(optimizer, **given)
    expected = []
    for _ in range(40):
        expected.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    found = rates(40, warmup=5.0, decay=12.0, **options)
    assert found[5:] == pytest.approx(expected[5:], rel=1e-9)


ALL = ("linear", "cosine", "constant", "wsd", "inverse_sqrt")


@pytest.mark.parametrize("schedule", ALL)
def test_warmup_below_one_is_a_share_of_all_steps(schedule):
    assert rates(10, schedule=schedule, warmup=0.2) == rates(10, schedule=schedule, warmup=2.0)


@pytest.mark.parametrize("schedule", ALL)
@pytest.mark.parametrize("warmup", [0.0, 0.03, 0.5, 1.0, 3.0, 99.0])
@pytest.mark.parametrize("steps", [1, 2, 7, 30])
def test_rates_are_positive_and_at_most_the_peak(schedule, warmup, steps):
    found = rates(steps, schedule=schedule, warmup=warmup)
    assert all(0 < rate <= 1 for rate in found)


def test_without_warmup_the_first_step_has_the_peak():
    for schedule in ALL:
        assert rates(4, schedule=schedule, warmup=0.0)[0] == 1.0


def test_adamw_is_fused_on_a_cpu_and_has_the_numbers_of_the_plain_one():
    draws = torch.Generator().manual_seed(3)
    weights = [torch.randn(shape, generator=draws) for shape in ((33, 17), (65,), ())]
    ours, plain_ones = (
        [nn.Parameter(weight.clone()) for weight in weights],
        [nn.Parameter(weight.clone()) for weight in weights],
    )
    model = nn.ParameterList(ours)
    fused = make_optimizer(model, learning_rate=0.01)
    assert all(group["fused"] for group in fused.param_groups)
    reference = torch.optim.AdamW(plain_ones, lr=0.01, weight_decay=0.0, foreach=False)
    for _ in range(50):
        for one, two in zip(ours, plain_ones, strict=True):
            one.grad = torch.randn(one.shape, generator=draws)
            two.grad = one.grad.clone()
        fused.step()
        reference.step()
    for one, two in zip(ours, plain_ones, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-7)
