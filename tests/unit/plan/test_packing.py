"""Packing is planned where the model isolates and examples are uneven; each plan says why."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dtl.core.errors import DtlError
from dtl.plan.records import Hardware, Plan
from tests import tiny
from tests.unit.plan.test_planner import (
    EIGHT_GPUS,
    LAPTOP,
    configure,
    plan_for_lengths,
    reason,
    values,
)

UNEVEN = np.minimum(np.random.default_rng(0).lognormal(4.4, 1, 400).astype(int) + 8, 1024)
EVEN = np.full(400, 512)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: Any) -> Any:
    return tiny.decoder(tmp_path_factory.mktemp("decoder"))


def make(
    decoder: Any, lengths: np.ndarray = UNEVEN, hardware: Hardware = LAPTOP, **sections: Any
) -> Plan:
    return plan_for_lengths(configure(decoder, **sections), hardware, lengths)


FLASH = {"attention": "flash_attention_2", "dtype": "bf16"}


@pytest.mark.parametrize(
    ("hardware", "model"), [(LAPTOP, {}), (EIGHT_GPUS, FLASH)], ids=["cpu", "gpu"]
)
@pytest.mark.parametrize("strategy", ["lora", "full", "partial", ["lora", "full"]])
def test_packing_is_planned_for_uneven_texts(
    decoder: Any, strategy: Any, hardware: Hardware, model: dict[str, str]
) -> None:
    planned = make(decoder, hardware=hardware, strategy=strategy, model=model)
    assert values(planned)["packing"] == "on"
    assert "saves" in reason(planned, "packing")
    assert planned.layout.packed_positions is not None
    assert planned.layout.packed_positions >= UNEVEN.max()
    assert "padding" not in values(planned)


def test_cpu_takes_no_more_positions_than_it_needs(decoder: Any) -> None:
    planned = make(decoder, train={"global_batch": 32})
    assert planned.layout.packed_positions == 2048
    assert planned.layout.micro_batch == 2  # of the longest, for which memory is planned
    assert values(planned)["micro-batch"] == "2048 tokens"
    asked = make(decoder, train={"global_batch": 32}, layout={"micro_batch": 8})
    assert asked.layout.packed_positions == 8 * UNEVEN.max()


def test_token_batches_are_cut_by_the_sum_of_lengths(decoder: Any) -> None:
    planned = make(decoder, train={"global_batch": "4096 tokens"}, layout={"processes_per_node": 1})
    assert "x at most 2048 tokens, packed" in reason(planned, "accumulation")
    assert planned.layout.accumulation_steps <= 3  # 4096 are 2 or 3 micro-batches of 2048


OFF = {
    "equal lengths": ({}, EVEN, "little padding"),
    "requested": ({"train": {"packing": False}}, UNEVEN, "train.packing"),
    "eager attention": ({"model": {"attention": "eager"}}, UNEVEN, "all pairs"),
    "virtual tokens": ({"strategy": "prompt_tuning"}, UNEVEN, "virtual tokens"),
    "cached features": ({"strategy": "frozen"}, UNEVEN, "may cache the features"),
    "streamed rows": (
        {"data": {"train": {"path": "rows.jsonl", "streaming": True}}},
        UNEVEN,
        "streamed",
    ),
}


@pytest.mark.parametrize("case", OFF)
def test_plan_says_why_packing_is_off(decoder: Any, case: str) -> None:
    sections, lengths, why = OFF[case]
    planned = make(decoder, lengths, **sections)
    assert values(planned)["packing"] == "off"
    assert why in reason(planned, "packing")
    assert planned.layout.packed_positions is None


def test_packing_with_sdpa_on_a_gpu_is_on_where_it_is_requested(decoder: Any) -> None:
    planned = make(decoder, hardware=EIGHT_GPUS)
    assert values(planned)["packing"] == "off"
    assert "a kernel for each example" in reason(planned, "packing")
    asked = make(decoder, hardware=EIGHT_GPUS, train={"packing": True})
    assert values(asked)["packing"] == "on"


@pytest.mark.parametrize("case", ["virtual tokens", "cached features", "streamed rows"])
def test_requested_packing_is_refused_where_it_cannot_be(decoder: Any, case: str) -> None:
    sections, lengths, why = OFF[case]
    with pytest.raises(DtlError, match=r"train.packing: .*" + why):
        make(decoder, lengths, train={"packing": True}, **sections)


@pytest.mark.parametrize("case", ["equal lengths", "eager attention"])
def test_requested_packing_is_on_where_it_is_only_not_planned(decoder: Any, case: str) -> None:
    sections, lengths, _ = OFF[case]
    planned = make(decoder, lengths, train={"packing": True}, **sections)
    assert values(planned)["packing"] == "on"


def test_task_without_packing_is_refused(tmp_path: Any) -> None:
    encoder = tiny.encoder(tmp_path)
    planned = make(encoder, task="text_classification")
    assert "text_classification computes its loss on padded examples" in reason(planned, "packing")
    with pytest.raises(DtlError, match="text_classification computes"):
        make(encoder, task="text_classification", train={"packing": True})


def test_plan_is_stored_and_read_with_its_packing(decoder: Any) -> None:
    planned = make(decoder)
    assert Plan.from_dict(planned.to_dict()).layout == planned.layout
    older = planned.to_dict()
    del older["layout"]["packed_positions"]
    assert Plan.from_dict(older).layout.packed_positions is None
