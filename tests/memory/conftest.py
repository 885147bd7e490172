"""Every memory system in turn."""

import functools

import pytest

from tests.memory.harness import Harness
from tests.memory.systems import SYSTEMS

of_system = functools.cache(Harness)  # with what it has compiled


@pytest.fixture(scope="module", params=SYSTEMS, ids=lambda s: s.name)
def harness(request):
    return of_system(request.param)
