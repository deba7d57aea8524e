"""Global batches of examples, tokens or seconds: whole, exact, and the same from any start."""

import itertools

import numpy as np
import pytest

from dtl.assembly.parts import assemble
from dtl.config.load import load_config
from dtl.config.schema import RunConfig
from dtl.config.schema.batch_size import BatchSize
from dtl.core.errors import DtlError
from dtl.data.batching import Batching
from dtl.data.cache.encoder import encode_rows
from dtl.data.example import EncodedExample
from dtl.data.order import count_padding, split_into_micro_batches
from dtl.data.sources.rows import Row

KINDS = tuple(itertools.product(("examples", "tokens"), (False, True)))  # unit, grouped


def skewed(examples, *, seed=0):
    """Many short ones and a few long ones, as texts are: half below 90, up to 1024."""
    drawn = np.random.default_rng(seed).lognormal(4.5, 0.8, examples)
    return np.clip(drawn, 4, 1024).astype(np.int64)


def batching(lengths, unit, grouped, *, most=None, seed=0):
    sizes = lengths if unit == "tokens" else None
    most = most or (1024 if unit == "tokens" else 16)
    return Batching(len(lengths), most, seed, sizes=sizes, lengths=lengths if grouped else None)


@pytest.mark.parametrize(("unit", "grouped"), KINDS)
@pytest.mark.parametrize("examples", [1, 2, 15, 16, 17, 333])
@pytest.mark.parametrize("seed", range(3))
def test_every_example_is_in_an_epoch_once_and_no_batch_is_too_large(unit, grouped, examples, seed):
    lengths = skewed(examples, seed=seed)
    for scale in (1, 4):
        most = scale * (1024 if unit == "tokens" else 5)
        formed = batching(lengths, unit, grouped, most=most, seed=seed)
        for epoch in range(3):
            batches = formed.epoch(epoch)
            assert sorted(np.concatenate(batches).tolist()) == list(range(examples))
            assert len(batches) == formed.steps_of(epoch)
            counted = lengths if unit == "tokens" else np.ones(examples, dtype=int)
            assert all(0 < counted[batch].sum() <= most for batch in batches)


def test_batches_of_tokens_by_hand():
    """The order of seed 0 is 0 7 8 6 9 5 1 3 2 4; example n has n + 1 tokens, a batch 12."""
    formed = Batching(10, 12, 0, sizes=np.arange(1, 11))
    found = [batch.tolist() for batch in formed.epoch(0)]
    assert found == [[0, 7], [8], [6], [9], [5, 1, 3], [2, 4]]


def test_a_batch_of_tokens_is_closed_only_where_the_next_example_does_not_fit():
    lengths = skewed(500)
    batches = batching(lengths, "tokens", False).epoch(0)
    for batch, after in itertools.pairwise(batches):
        assert lengths[batch].sum() + lengths[after[0]] > 1024


@pytest.mark.parametrize(("unit", "grouped"), KINDS)
def test_a_step_is_found_without_the_steps_before_it(unit, grouped):
    lengths = skewed(100)
    walked = batching(lengths, unit, grouped)
    steps = [(epoch, batch) for epoch in range(6) for batch in walked.epoch(epoch)]
    again = batching(lengths, unit, grouped)
    backwards = [again.of_step(step) for step in range(len(steps), 0, -1)][::-1]
    for step, (epoch, batch) in enumerate(steps, start=1):
        for found in (batching(lengths, unit, grouped).of_step(step), backwards[step - 1]):
            assert (found.epoch, found.examples.tolist()) == (epoch, batch.tolist())
    counts = [walked.steps_of(epoch) for epoch in range(6)]
    assert [walked.steps_in(epochs) for epochs in range(1, 7)] == list(itertools.accumulate(counts))
    half = walked.steps_in(2.5)
    assert abs(half - counts[0] - counts[1] - counts[2] / 2) <= 0.5
    assert walked.steps_in(0.001) == 1


def test_epochs_of_tokens_differ_in_steps_and_all_are_counted():
    """Otherwise the trials above would not show that the counting is exact."""
    formed = batching(skewed(100), "tokens", False)
    assert len({formed.steps_of(epoch) for epoch in range(6)}) > 1


@pytest.mark.parametrize(("unit", "grouped"), KINDS)
def test_seeds_and_epochs_differ_and_numpy_s_own_seed_does_not_matter(unit, grouped):
    lengths = skewed(200)

    def told(seed, epoch):
        return tuple(map(tuple, batching(lengths, unit, grouped, seed=seed).epoch(epoch)))

    assert len({told(seed, epoch) for seed in range(3) for epoch in range(3)}) == 9
    np.random.seed(99)
    assert told(1, 2) == told(1, 2)


def shares(lengths, formed, *, ranks):
    """Of what is read in an epoch: padding; and of the time of all ranks, where the slowest sets
    the pace: work."""
    turns = [
        turn
        for batch in formed.epoch(0)
        for turn in split_into_micro_batches(
            batch, lengths, data_parallel_size=ranks, micro_batch=8
        )
    ]
    positions, empty = count_padding(turns, lengths)
    held = [[len(one) * lengths[one].max() for one in turn if len(one)] for turn in turns]
    return empty / positions, positions / (ranks * sum(map(max, held)))


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("seed", range(3))
def test_grouped_by_length_little_is_padded_and_the_ranks_work_alike(ranks, seed):
    lengths = skewed(3000, seed=seed)
    plain, grouped = (
        shares(lengths, batching(lengths, "examples", on, most=32, seed=seed), ranks=ranks)
        for on in (False, True)
    )
    assert plain[0] > 0.3 and grouped[0] < 0.05
    assert grouped[1] > 0.85
    assert ranks == 1 or grouped[1] > plain[1] + 0.2


def test_grouped_batches_are_not_those_of_the_epoch_before_nor_sorted():
    lengths = skewed(3000)
    formed = batching(lengths, "examples", True, most=30)
    home = {int(one): place for place, batch in enumerate(formed.epoch(0)) for one in batch}
    met = [
        home[int(one)] == home[int(other)]
        for batch in formed.epoch(1)
        for one, other in itertools.combinations(batch, 2)
    ]
    assert 0 < np.mean(met) < 0.15
    means = [lengths[batch].mean() for batch in formed.epoch(0)]
    turns = sum((b - a) * (c - b) < 0 for a, b, c in zip(means, means[1:], means[2:], strict=False))
    assert turns > len(means) / 2, "short and long batches take turns, as in any order by chance"


def test_the_small_batch_that_is_left_is_not_always_of_the_longest():
    lengths = skewed(331)
    formed = batching(lengths, "examples", True, most=30)
    left = [min(formed.epoch(epoch), key=len) for epoch in range(20)]
    assert {len(batch) for batch in left} == {1}
    assert len({int(batch[0]) for batch in left}) > 10


def test_equal_lengths_are_grouped_by_chance_alone():
    lengths = np.full(40, 7)
    batches = batching(lengths, "examples", True, most=4).epoch(0)
    assert sorted(np.concatenate(batches).tolist()) == list(range(40))
    assert any(np.ptp(batch) > 10 for batch in batches)


# Sizes in a config ------------------------------------------------------------------------------


def config(**train):
    return RunConfig.model_validate(
        {
            "model": {"path": "mini:text"},
            "task": train.pop("task", "causal_lm"),
            "strategy": "full",
            "data": {"train": "rows.jsonl"},
            "train": {"steps": 3, **train},
        }
    )


@pytest.mark.parametrize(
    ("written", "number", "unit", "limit"),
    [
        (16, 16, "examples", 16),
        ("8192 tokens", 8192, "tokens", 8192),
        ("120 seconds", 120, "seconds", 120_000),
        ("1.001 seconds", 1.001, "seconds", 1001),
        ("12 examples", 12, "examples", 12),
    ],
)
def test_a_size_is_read_and_comes_back_from_json(written, number, unit, limit):
    read = config(global_batch=written)
    size = read.train.global_batch
    assert (size, size.limit) == (BatchSize(number, unit), limit)
    stored = read.model_dump(mode="json")
    assert RunConfig.model_validate(stored) == read
    assert stored["train"]["global_batch"] == (written if unit != "examples" else number)


@pytest.mark.parametrize(
    ("written", "problem", "fix"),
    [
        ("0", "0 is too small", "write 1 or more examples"),
        ("-3 tokens", "-3 tokens is too small", "write 1 or more tokens"),
        ("0 seconds", "0 seconds is too small", "write 1 or more seconds"),
        ("1.5 tokens", "1.5 tokens is not whole", "write whole tokens"),
        ("2.5", "2.5 is no size of a batch", "'8192 tokens' or '120 seconds'"),
        ("'16'", "'16' is no size of a batch", "write a number of examples, such as 16"),
        ("8 clips", "'8 clips' is no size of a batch", "write a number of examples"),
        ("true", "true is no size of a batch", "write a number of examples"),
        ("[8]", "[8] is no size of a batch", "write a number of examples"),
    ],
)
def test_what_is_no_size_is_refused_in_one_sentence(tmp_path, written, problem, fix):
    file = tmp_path / "run.yaml"
    file.write_text(
        "model: {path: mini:text}\ntask: causal_lm\ndata: {train: rows.jsonl}\nstrategy: full\n"
        f"train:\n  steps: 1\n  global_batch: {written}\n"
    )
    with pytest.raises(DtlError) as caught:
        load_config(file)
    (fault,) = caught.value.faults
    assert fault.location == f"{file}:7: train.global_batch"
    assert fault.problem == problem
    assert fix in fault.fix


@pytest.mark.parametrize(
    ("task", "train", "problem", "fix"),
    [
        ("causal_lm", {"global_batch": "9 seconds"}, "have no seconds", "write it in tokens, or"),
        ("asr_ctc", {"global_batch": "99 tokens"}, "have no tokens", "write it in seconds, or"),
        ("image_classification", {"global_batch": "9 tokens"}, "have no tokens", "write it as a"),
        (
            "image_classification",
            {"group_by_length": True},
            "all have the same length",
            "remove it",
        ),
    ],
)
def test_a_unit_that_the_task_does_not_have_is_refused(task, train, problem, fix):
    with pytest.raises(DtlError) as caught:
        assemble(config(task=task, **train))
    (fault,) = caught.value.faults
    assert fault.location == f"train.{next(iter(train))}"
    assert problem in fault.problem and fault.fix.startswith(fix)


class Hears:
    """A processor, or the part of one that reads sound."""

    sampling_rate = 16_000


class HearsAndWrites:
    feature_extractor = Hears()


@pytest.mark.parametrize(
    ("task", "processor", "seconds"),
    [
        ("asr_ctc", HearsAndWrites(), [1000, 2001, 30_000]),
        ("asr_seq2seq", HearsAndWrites(), [1000, 2001, 30_000]),
        ({"name": "audio_classification", "max_seconds": 2.5}, Hears(), [1000, 2001, 2500]),
    ],
)
def test_sound_is_counted_in_milliseconds_that_are_heard(cache, task, processor, seconds):
    """16 000 samples are a second, and 32 001 a little over two."""
    samples = [16_000, 32_001, 480_000]
    rows = [Row(number, f"made:{number}", {}) for number in range(3)]
    data = encode_rows(
        rows,
        lambda row: EncodedExample({"samples": np.zeros(samples[row.index], dtype=np.int16)}, 1, 1),
        key="sounds",
        place="data.train",
    )
    found = assemble(config(task=task)).task.example_sizes(data, processor=processor)
    assert found.tolist() == seconds
