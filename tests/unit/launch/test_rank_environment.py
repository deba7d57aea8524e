"""What a rank sets before torch starts."""

import subprocess
import sys

import pytest

from dtl.launch.rank_environment import ALLOCATOR_VARIABLES, set_allocator


def test_allocator_extends_its_segments():
    environment = {}
    set_allocator(environment)
    assert environment == {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}


@pytest.mark.parametrize("name", ALLOCATOR_VARIABLES)
def test_setting_of_the_user_is_not_changed(name):
    environment = {name: "max_split_size_mb:512"}
    set_allocator(environment)
    assert environment == {name: "max_split_size_mb:512"}


def test_worker_sets_it_before_it_imports_torch():
    code = "import sys, dtl.launch.worker; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
