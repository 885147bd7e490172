"""Host work of the real loop: what is counted, by a clock that is told, and that the script runs."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def host_work(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from benchmarks import host_work

    return host_work


def test_idle_time_is_what_lies_between_a_steps_results_and_the_next_call(host_work):
    """Two steps measured after one. The second is called before the first has ended; the third 0.5 s after the second has."""
    clock = host_work.Clock(1, 3)
    clock.close()
    clock.called, clock.ready = [0.0, 9.0, 21.5, 30.0], [10.0, 21.0, 29.0, 40.0]
    clock.began, clock.ended = (10.0, 1.0), (30.0, 3.0)
    found = clock.shares()
    assert found["seconds_per_step"] == 10.0 and found["host"] == 0.1
    assert found["idle"] == pytest.approx((0.0 + 0.5 + 1.0) / 20), "the last log line waits for its step: 1 s until it is over"


def test_the_script_runs_the_loop():
    environ = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "benchmarks/host_work.py", "--shape=tiny", "--steps=4", "--warmup=2", "--log_every=2", "--json"]
    done = subprocess.run(command, env=environ, cwd=ROOT, text=True, capture_output=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["steps"] == 4 and found["seconds_per_step"] > 0
    assert all(0 <= found[share] < 1.01 for share in ("idle", "host", "data_wait")) and found["host"] > 0
