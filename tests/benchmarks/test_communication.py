"""What devices exchange at the shape `tiny`, read off the program."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


def rows(*arguments):
    environ = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "benchmarks/communication.py", "--shape=tiny", "--json", *arguments]
    done = subprocess.run(command, env=environ, cwd=ROOT, text=True, capture_output=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def by_mesh(found):
    return {tuple(row["mesh"].items()): row for row in found}


@pytest.mark.multiprocess
def test_what_one_process_and_two_read_off_the_program():
    """One test: compiling for five meshes is what it costs."""
    one, two = by_mesh(rows()), by_mesh(rows("--processes=2", "--axes=data,stage"))
    copies_exchange_every_gradient_once_a_step(one)
    assert {row["processes"] for row in two.values()} == {2} and set(two) == {(("data", 2),), (("stage", 2),)}
    assert all(row["kinds"] == one[mesh]["kinds"] for mesh, row in two.items())


def copies_exchange_every_gradient_once_a_step(found):
    assert set(found) == {(), (("data", 2),), (("fsdp", 2),), (("tensor", 2),), (("stage", 2),)}
    alone, copies = found[()], found[("data", 2),]
    assert alone["exchanged_bytes"] == 0 and alone["parameter_bytes"] == copies["parameter_bytes"] > 0
    assert copies["tokens"] == 2 * alone["tokens"] and copies["kinds"].keys() == {"all-reduce"}
    assert 0 <= copies["exchanged_bytes"] - copies["parameter_bytes"] < 200, "and a few sums: the loss, the weights"
    assert copies["kinds"]["all-reduce"]["in_loops"] == 0
    assert found[("fsdp", 2),]["ratio"] > 1
