"""BABILong by the two commands of its page, with any folder of text and nothing else: train.py, then eval.py over a sweep."""

import csv
import random

import pytest

from armt_jax.telemetry import jsonl
from tests.commands import ROOT, start

# Three of the shipped stages, the last among them: each is compiled.
CONFIG = """
import runpy
shipped = runpy.run_path({path!r})
def get_config(memory):
    config = shipped["get_config"](memory)
    config.train.stages = (*config.train.stages[:8:4], config.train.stages[-1])
    return config
"""
SWEEP = "def get_sweep():\n    return [{'evaluation.lengths': n} for n in (400, 900)]\n"


@pytest.fixture
def books(tmp_path):
    """Sentences of random words, no two alike. A small SentencePiece model has pieces enough for these and for the words of the stories."""
    rng = random.Random(0)
    words = "house river night under many great stood voice little morning until heard seemed upon letter window".split()
    folder = tmp_path / "books"
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.txt").write_text("\n".join(f"{' '.join(rng.choices(words, k=12)).capitalize()}." for _ in range(150)))
    return folder


def test_a_folder_of_text_is_all_that_is_needed(books, tmp_path):
    base, sweep, config = tmp_path / "runs", tmp_path / "sweep.py", tmp_path / "qa1.py"
    sweep.write_text(SWEEP)
    config.write_text(CONFIG.format(path=str(ROOT / "configs" / "babilong_qa1_cpu.py")))
    settings = {
        "task.background.path": books, "task.background.cache_dir": tmp_path / "cache", "task.background.vocab_size": 400,
        "backbone.num_layers": 3, "backbone.width": 16, "train.max_stage_steps": 1, "train.optimizer.warmup_steps": 0,
        "train.validation_batches": 1, "evaluation.samples": 3, "evaluation.batch_size": 2,
    }  # fmt: skip
    given = [f"--config.{name}={value}" for name, value in settings.items()]
    done = start("train.py", f"--config={config}:armt", f"--workdir={base}", *given)
    assert done.returncode == 0, done.stderr
    steps = [row for row in jsonl.read_lines(base / "metrics.jsonl") if "loss" in row]
    assert steps[-1]["stage"] == 3 and all(0 < row["loss"] < 20 for row in steps)
    done = start("eval.py", f"--workdir={base}", f"--sweep={sweep}", f"--out={tmp_path / 'out'}")
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out"
    rows = list(csv.DictReader((out / "results.csv").open()))
    assert [(r["label"], r["task"], r["length"], r["samples"], r["stories"]) for r in rows] == [
        ("armt", "qa1", "400", "3", "generated"), ("armt", "qa1", "900", "3", "generated"),
    ]  # fmt: skip
    assert all(r["trained_to"] == "4096" and 0 <= float(r["exact_match"]) <= float(r["repaired"]) <= 1 for r in rows)
    samples = list(jsonl.read_lines(out / "samples.jsonl"))
    assert len(samples) == 6
    for line in (out / "table.md").read_text().splitlines()[-1], done.stdout:
        assert "qa1" in line and "armt, generated stories" in line
    assert (out / "results.png").stat().st_size and (out / "heatmap.png").stat().st_size
