"""The full shape of a parameter, also where an engine has partitioned it."""

import torch
from torch import nn

from dtl.engine.deepspeed import read_full_shape
from dtl.models.full_shape import full_shape, register_shape_reader


def test_shape_of_a_plain_tensor_is_its_own():
    assert full_shape(torch.empty(2, 3)) == (2, 3)


def test_shape_of_a_partitioned_parameter_is_read_by_the_engine():
    register_shape_reader(read_full_shape)
    parameter = nn.Parameter(torch.empty(0))
    parameter.ds_shape = torch.Size((4, 5))
    assert full_shape(parameter) == (4, 5)
    assert full_shape(nn.Parameter(torch.empty(0))) == (0,)
