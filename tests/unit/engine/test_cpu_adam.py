"""The optimizer in main memory is built before the model is loaded, or the run ends with a fix."""

import pytest

from dtl.core.errors import DtlError
from dtl.engine import cpu_adam


class Builder:
    """A builder of DeepSpeed. `fault`: with which the build ends."""

    def __init__(self, fault=None):
        self.fault, self.loads = fault, 0

    def load(self, *, verbose):
        self.loads += 1
        if self.fault is not None:
            raise self.fault


class OneOfTwoRanks:
    """An engine of two nodes. `problems`: what the other node has gathered."""

    def __init__(self, *problems):
        self.problems = problems

    def all_gather_object(self, values):
        return [*values, *self.problems]


@pytest.fixture
def builder(monkeypatch):
    """Return a function that replaces DeepSpeed's builder."""

    def install(fault=None):
        made = Builder(fault)
        monkeypatch.setattr(cpu_adam, "_create_builder", lambda: made)
        return made

    return install


def test_failed_build_is_a_fault_with_the_reason_of_the_compiler(builder):
    builder(RuntimeError("Error building extension 'cpu_adam':\n  g++: not found"))
    expected = (
        r"layout.offload: DeepSpeed cannot build .*'cpu_adam': g\+\+: not found.*Fix: install"
    )
    with pytest.raises(DtlError, match=expected):
        cpu_adam.build_on_every_node(OneOfTwoRanks(None))


def test_failure_of_another_node_ends_every_rank(builder):
    made = builder()
    with pytest.raises(DtlError, match="no compiler on node 2"):
        cpu_adam.build_on_every_node(OneOfTwoRanks("no compiler on node 2"))
    assert made.loads == 1


def test_only_the_first_process_of_a_node_builds(builder, monkeypatch):
    made = builder()
    monkeypatch.setenv("LOCAL_RANK", "3")
    cpu_adam.build_on_every_node(OneOfTwoRanks(None))
    assert made.loads == 0


def test_deepspeed_has_the_builder():
    pytest.importorskip("deepspeed")
    assert cpu_adam._create_builder().NAME == "cpu_adam"
