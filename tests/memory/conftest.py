"""Every memory system in turn."""

import pytest

from tests.memory.harness import Harness
from tests.memory.systems import SYSTEMS


@pytest.fixture(scope="module", params=SYSTEMS, ids=lambda s: s.name)
def harness(request):
    return Harness(request.param)
