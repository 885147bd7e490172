"""The script of the speed tables: what it prints for programs."""

import json
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]


def test_a_row_for_every_variant_asked_for():
    only = "sequential/store,diagonal/reversible"
    command = [sys.executable, "benchmarks/train_step.py", "--shape=tiny", "--runs=1", "--json", f"--only={only}"]
    environ = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environ, cwd=ROOT, text=True, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [f"{row['schedule']}/{row['gradient']}" for row in rows] == only.split(",")
    numbers = {"forward_tokens_per_s", "tokens_per_s", "temp_mb", "compile_s"}
    for row in rows:
        assert set(row) == {"shape", "schedule", "gradient"} | numbers and row["shape"] == "tiny"
        assert all(row[name] > 0 for name in numbers), row
