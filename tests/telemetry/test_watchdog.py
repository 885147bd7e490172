"""A run that stands still is seen, and ended where that was asked for. The clock is in C, so each case is a process of its own."""

import pathlib
import subprocess
import sys
import time

import pytest

from armt_jax.telemetry.watchdog import StallWatchdog

ROOT = pathlib.Path(__file__).parents[2]
HANGS = """
import sys, threading
from armt_jax.telemetry.watchdog import StallWatchdog

def waits_for_a_peer():
    threading.Event().wait(20)

watchdog = StallWatchdog(0.3, end={end})
threading.Thread(target=waits_for_a_peer, daemon=True).start()
threading.Event().wait(1.0)
watchdog.close()
threading.Event().wait(0.6)
print("went on")
"""


def run(program):
    return subprocess.run([sys.executable, "-c", program], cwd=ROOT, text=True, capture_output=True, timeout=60)


def test_a_stall_shows_the_stacks_of_all_threads_until_the_watchdog_is_closed():
    done = run(HANGS.format(end=False))
    assert done.returncode == 0 and done.stdout == "went on\n"
    assert 2 <= done.stderr.count("Timeout (") <= 3 and "waits_for_a_peer" in done.stderr and "<module>" in done.stderr


def test_a_stall_ends_the_process_where_asked():
    done = run(HANGS.format(end=True))
    assert done.returncode == 1 and not done.stdout and "waits_for_a_peer" in done.stderr


def test_beats_keep_it_quiet():
    done = run(
        "import time\nfrom armt_jax.telemetry.watchdog import StallWatchdog\n"
        "with StallWatchdog(1.0, end=True) as watchdog:\n    end = time.monotonic() + 2\n"
        "    while time.monotonic() < end:\n        list(watchdog.each(range(3)))\n"
    )
    assert done.returncode == 0 and not done.stderr


def test_off_and_refused():
    off = StallWatchdog()
    began = time.monotonic()
    for _ in range(1000):
        off.beat()
    off.close()
    assert time.monotonic() - began < 1
    with pytest.raises(ValueError, match="-1"):
        StallWatchdog(-1)
