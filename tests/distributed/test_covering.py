"""The covering cases hold every pair of values, and are far fewer than the product."""

from itertools import combinations, product

from tests.distributed.covering import cases, covering

AXES = (("full", "lora", "frozen"), (1, 2), (0, 1, 2, 3), (1, 2, 4))


def test_every_pair_of_values_of_two_axes_is_in_some_case():
    chosen = covering(*AXES)
    for first, second in combinations(range(len(AXES)), 2):
        pairs = {(case[first], case[second]) for case in chosen}
        assert pairs == set(product(AXES[first], AXES[second]))
    assert len(chosen) <= 16


def test_a_pair_that_no_valid_case_has_is_not_asked_for():
    chosen = covering(*AXES, valid=lambda case: case[1] == 2 or case[2] == 0)
    assert chosen and all(case[1] == 2 or case[2] == 0 for case in chosen)


def test_strength_one_meets_each_value():
    chosen = covering(*AXES, strength=1)
    assert len(chosen) == 4
    assert all({case[axis] for case in chosen} == set(AXES[axis]) for axis in range(4))


def test_the_other_cases_are_left_to_test_all():
    every = cases(*AXES)
    assert len(every) == 72 == len({parameters.values for parameters in every})
    quick = [parameters.values for parameters in every if not parameters.marks]
    assert quick == covering(*AXES)
