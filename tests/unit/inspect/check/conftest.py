"""Fixtures of the data report."""

import pytest

from tests.unit.inspect.check.checker import DataChecker


@pytest.fixture(scope="module", autouse=True)
def shared_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DTL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def checker(tmp_path, request):
    return DataChecker(tmp_path, request.getfixturevalue)
