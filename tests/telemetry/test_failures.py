"""How commands end."""

import os
import signal

import pytest

from armt_jax.telemetry.failures import EXIT_PREEMPTED, leaving_at_sigterm


def test_sigterm_leaves_the_block_with_its_own_code_and_the_handler_goes_with_it():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as left, leaving_at_sigterm():
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("the handler has run by now: a signal to oneself is delivered before kill returns")
    assert left.value.code == EXIT_PREEMPTED and signal.getsignal(signal.SIGTERM) == before
