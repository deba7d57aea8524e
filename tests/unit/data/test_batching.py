"""Global batches of examples, tokens or seconds: complete, exact, and the same from any start."""

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
from dtl.data.micro_batches import count_padding, split_into_micro_batches
from dtl.data.sources.rows import Row

UNITS_AND_GROUPING = tuple(
    itertools.product(("examples", "tokens"), (False, True))
)  # unit, group_by_length


def skewed_lengths(examples, *, seed=0):
    """Many short lengths and a few long ones, as of texts: half below 90, up to 1024."""
    lengths = np.random.default_rng(seed).lognormal(4.5, 0.8, examples)
    return np.clip(lengths, 4, 1024).astype(np.int64)


def create_batching(lengths, unit, group_by_length, *, max_size=None, seed=0):
    sizes = lengths if unit == "tokens" else None
    max_size = max_size or (1024 if unit == "tokens" else 16)
    return Batching(
        len(lengths), max_size, seed, sizes=sizes, lengths=lengths if group_by_length else None
    )


@pytest.mark.parametrize(("unit", "group_by_length"), UNITS_AND_GROUPING)
@pytest.mark.parametrize("examples", [1, 2, 15, 16, 17, 333])
@pytest.mark.parametrize("seed", range(3))
def test_epoch_has_every_example_once_and_no_batch_above_max_size(
    unit, group_by_length, examples, seed
):
    lengths = skewed_lengths(examples, seed=seed)
    for scale in (1, 4):
        max_size = scale * (1024 if unit == "tokens" else 5)
        batching = create_batching(lengths, unit, group_by_length, max_size=max_size, seed=seed)
        for epoch in range(3):
            batches = batching.form_epoch(epoch)
            assert sorted(np.concatenate(batches).tolist()) == list(range(examples))
            assert len(batches) == batching.count_steps_in_epoch(epoch)
            counted = lengths if unit == "tokens" else np.ones(examples, dtype=int)
            assert all(0 < counted[batch].sum() <= max_size for batch in batches)


def test_token_batches_match_a_worked_example():
    """The order of seed 0 is 0 7 8 6 9 5 1 3 2 4; example n has n + 1 tokens, a batch 12."""
    batching = Batching(10, 12, 0, sizes=np.arange(1, 11))
    batches = [batch.tolist() for batch in batching.form_epoch(0)]
    assert batches == [[0, 7], [8], [6], [9], [5, 1, 3], [2, 4]]


def test_token_batch_ends_only_if_the_next_example_does_not_fit():
    lengths = skewed_lengths(500)
    batches = create_batching(lengths, "tokens", False).form_epoch(0)
    for batch, after in itertools.pairwise(batches):
        assert lengths[batch].sum() + lengths[after[0]] > 1024


@pytest.mark.parametrize(("unit", "group_by_length"), UNITS_AND_GROUPING)
def test_batch_for_step_does_not_depend_on_earlier_calls(unit, group_by_length):
    lengths = skewed_lengths(100)
    batching = create_batching(lengths, unit, group_by_length)
    steps = [(epoch, batch) for epoch in range(6) for batch in batching.form_epoch(epoch)]
    again = create_batching(lengths, unit, group_by_length)
    backwards = [again.batch_for_step(step) for step in range(len(steps), 0, -1)][::-1]
    for step, (epoch, batch) in enumerate(steps, start=1):
        for found in (
            create_batching(lengths, unit, group_by_length).batch_for_step(step),
            backwards[step - 1],
        ):
            assert (found.epoch, found.examples.tolist()) == (epoch, batch.tolist())
    counts = [batching.count_steps_in_epoch(epoch) for epoch in range(6)]
    assert [batching.count_steps(epochs) for epochs in range(1, 7)] == list(
        itertools.accumulate(counts)
    )
    half = batching.count_steps(2.5)
    assert abs(half - counts[0] - counts[1] - counts[2] / 2) <= 0.5
    assert batching.count_steps(0.001) == 1


def test_token_epochs_differ_in_number_of_steps():
    """Without this, the test above would not show that the counting is exact."""
    batching = create_batching(skewed_lengths(100), "tokens", False)
    assert len({batching.count_steps_in_epoch(epoch) for epoch in range(6)}) > 1


@pytest.mark.parametrize(("unit", "group_by_length"), UNITS_AND_GROUPING)
def test_batches_depend_on_seed_and_epoch_and_not_on_numpy_global_seed(unit, group_by_length):
    lengths = skewed_lengths(200)

    def form(seed, epoch):
        return tuple(
            map(tuple, create_batching(lengths, unit, group_by_length, seed=seed).form_epoch(epoch))
        )

    assert len({form(seed, epoch) for seed in range(3) for epoch in range(3)}) == 9
    np.random.seed(99)
    assert form(1, 2) == form(1, 2)


def measure_efficiency(lengths, batching, *, ranks):
    """Return the fraction of padding in an epoch, and the fraction of all ranks' time that is work,
    if each step takes as long as its slowest rank."""
    steps = [
        step
        for batch in batching.form_epoch(0)
        for step in split_into_micro_batches(
            batch, lengths, data_parallel_size=ranks, micro_batch=8
        )
    ]
    positions, empty = count_padding(steps, lengths)
    sizes = [[len(one) * lengths[one].max() for one in step if len(one)] for step in steps]
    return empty / positions, positions / (ranks * sum(map(max, sizes)))


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("seed", range(3))
def test_group_by_length_reduces_padding_and_balances_ranks(ranks, seed):
    lengths = skewed_lengths(3000, seed=seed)
    plain, group_by_length = (
        measure_efficiency(
            lengths, create_batching(lengths, "examples", on, max_size=32, seed=seed), ranks=ranks
        )
        for on in (False, True)
    )
    assert plain[0] > 0.3 and group_by_length[0] < 0.05
    assert group_by_length[1] > 0.85
    assert ranks == 1 or group_by_length[1] > plain[1] + 0.2


def test_grouped_batches_differ_between_epochs_and_are_not_sorted():
    lengths = skewed_lengths(3000)
    batching = create_batching(lengths, "examples", True, max_size=30)
    home = {int(one): place for place, batch in enumerate(batching.form_epoch(0)) for one in batch}
    met = [
        home[int(one)] == home[int(other)]
        for batch in batching.form_epoch(1)
        for one, other in itertools.combinations(batch, 2)
    ]
    assert 0 < np.mean(met) < 0.15
    means = [lengths[batch].mean() for batch in batching.form_epoch(0)]
    steps = sum((b - a) * (c - b) < 0 for a, b, c in zip(means, means[1:], means[2:], strict=False))
    assert steps > len(means) / 2, "short and long batches alternate, as in a random order"


def test_smaller_last_batch_has_random_lengths():
    lengths = skewed_lengths(331)
    batching = create_batching(lengths, "examples", True, max_size=30)
    left = [min(batching.form_epoch(epoch), key=len) for epoch in range(20)]
    assert {len(batch) for batch in left} == {1}
    assert len({int(batch[0]) for batch in left}) > 10


def test_equal_lengths_are_grouped_randomly():
    lengths = np.full(40, 7)
    batches = create_batching(lengths, "examples", True, max_size=4).form_epoch(0)
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
def test_batch_size_round_trips_through_json(written, number, unit, limit):
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
        ("1.5 tokens", "1.5 tokens is not an integer", "write an integer number of tokens"),
        ("2.5", "2.5 is not a batch size", "'8192 tokens' or '120 seconds'"),
        ("'16'", "'16' is not a batch size", "write a number of examples, such as 16"),
        ("8 clips", "'8 clips' is not a batch size", "write a number of examples"),
        ("true", "true is not a batch size", "write a number of examples"),
        ("[8]", "[8] is not a batch size", "write a number of examples"),
    ],
)
def test_invalid_batch_size_has_one_fault(tmp_path, written, problem, fix):
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
def test_batch_unit_of_another_task_is_an_error(task, train, problem, fix):
    with pytest.raises(DtlError) as caught:
        assemble(config(task=task, **train))
    (fault,) = caught.value.faults
    assert fault.location == f"train.{next(iter(train))}"
    assert problem in fault.problem and fault.fix.startswith(fix)


class FakeFeatureExtractor:
    """A feature extractor, or the one of a processor."""

    sampling_rate = 16_000


class FakeProcessor:
    feature_extractor = FakeFeatureExtractor()


@pytest.mark.parametrize(
    ("task", "processor", "seconds"),
    [
        ("asr_ctc", FakeProcessor(), [1000, 2001, 30_000]),
        ("asr_seq2seq", FakeProcessor(), [1000, 2001, 30_000]),
        (
            {"name": "audio_classification", "max_seconds": 2.5},
            FakeFeatureExtractor(),
            [1000, 2001, 2500],
        ),
    ],
)
def test_audio_is_counted_in_milliseconds(cache, task, processor, seconds):
    """16 000 samples are a second, and 32 001 a little over two."""
    samples = [16_000, 32_001, 480_000]
    rows = [Row(number, f"made:{number}", {}) for number in range(3)]
    data = encode_rows(
        rows,
        lambda row: EncodedExample({"samples": np.zeros(samples[row.index], dtype=np.int16)}, 1, 1),
        key="audio",
        location="data.train",
    )
    sizes = assemble(config(task=task)).task.example_sizes(data, processor=processor)
    assert sizes.tolist() == seconds
