"""The comparison with PyTorch runs, and refuses to compare what differs. Skipped where PyTorch is not installed."""

import argparse
import json
import pathlib
import subprocess
import sys

import pytest

from benchmarks import against_pytorch

ROOT = pathlib.Path(__file__).parents[2]


def test_the_command_compares_both_sides():
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    words = ["--shape=tiny", "--runs=2", "--sides=jax,torch-eager", "--threads=1", "--peak_size=64", "--json"]
    done = subprocess.run([sys.executable, "benchmarks/against_pytorch.py", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(r["what"], r["side"]) for r in rows] == [(w, s) for w in ("forward", "train") for s in ("jax", "torch-eager")]
    for row in rows:
        # Two rows of 24 tokens.
        assert row["shape"] == "tiny" and row["tokens_per_s"] * row["seconds"] == pytest.approx(48, rel=0.1) and "peak_mb" in row
        assert row["gflops_per_s"] > 0 and row["share_of_peak"] > 0
    assert rows[1]["ratio_to_torch"] == rows[3]["ratio_to_torch"] == 1.0


class Answering:
    """Stands in for a side's process."""

    def __init__(self, name, losses):
        self.name, self.losses, self.facts, self.error, self.killed = name, losses, {}, None, False

    def ask(self, **question):
        if self.losses is None:
            raise against_pytorch.Failed("no compiler")
        return {"losses": self.losses, "peak_mb": 1.0, "how": ""}

    def kill(self):
        self.killed = True


def test_sides_that_compute_something_else_are_not_timed():
    with pytest.raises(against_pytorch.Failed, match="losses of torch-eager and jax differ by 1.0e-03.*do not compute the same"):
        against_pytorch.warm_up([Answering("jax", [2.0, 2.0]), Answering("torch-eager", [2.0, 2.002])], "train")
    with pytest.raises(against_pytorch.Failed, match="differ by nan"):
        against_pytorch.warm_up([Answering("jax", [2.0]), Answering("torch-eager", [float("nan")])], "forward")


def test_a_compiler_that_is_not_there_is_told_in_the_row():
    every = [Answering("jax", [2.0]), Answering("torch-eager", [2.0]), Answering("torch-compile", None)]
    sides = list(every)
    against_pytorch.warm_up(sides, "forward")
    assert [side.name for side in sides] == ["jax", "torch-eager"] and every[2].killed
    for side in every:
        side.seconds = {"forward": [0.5] if side in sides else []}
    found = against_pytorch.rows("ar", "forward", every, 100, 10**9, 10**10)
    assert found[2] == {"shape": "ar", "what": "forward", "side": "torch-compile", "error": "no compiler"}
    args = argparse.Namespace(shape="ar", device="cpu", threads=2, runs=1)
    assert "not measured: no compiler" in against_pytorch.table(found, args)
    with pytest.raises(against_pytorch.Failed, match="no compiler"):
        against_pytorch.warm_up([Answering("torch-eager", None)], "forward")
