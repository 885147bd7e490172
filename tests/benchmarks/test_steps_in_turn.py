"""Training steps of several runs in turns: a row for each, and what cannot be compared in one process."""

import copy
import json
import pathlib
import subprocess
import sys

import pytest

from tests.training.runs import CONFIG

ROOT = pathlib.Path(__file__).parents[2]


def workdir(folder, **sections):
    folder.mkdir()
    config = copy.deepcopy(CONFIG)
    for section, fields in sections.items():
        config[section] = fields
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def measured(*arguments):
    command = [sys.executable, "benchmarks/steps_in_turn.py", *arguments]
    return subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=600)


def test_a_row_for_every_run_in_the_order_given(tmp_path):
    runs = [workdir(tmp_path / "b"), workdir(tmp_path / "a", memory={"name": "none"})]
    done = measured(*runs, "--rounds=2", "--steps=1")
    assert done.returncode == 0, done.stderr[-2000:]
    armt, none = map(json.loads, done.stdout.splitlines())
    assert [armt["workdir"], none["workdir"]] == runs
    assert armt["parameters"] > none["parameters"] > 0 and armt["state_floats_a_row"] > none["state_floats_a_row"] == 0
    for row in (armt, none):
        assert 0 < row["slowest"] <= row["tokens_per_s"] <= row["fastest"] and row["temp_mb"] > 0


@pytest.mark.parametrize("arguments, word", [(("--rounds=0",), "at least 1"), ((), "no-such-run")])
def test_what_cannot_be_measured_is_refused(tmp_path, arguments, word):
    done = measured(str(tmp_path / "no-such-run"), *arguments)
    assert done.returncode != 0 and word in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_runs_on_other_numbers_of_devices_are_refused(tmp_path):
    done = measured(workdir(tmp_path / "one"), workdir(tmp_path / "two", mesh={"cpu_devices": 2}))
    assert done.returncode != 0 and "mesh.cpu_devices is 1 in one run and 2 in another" in done.stderr, done.stderr
