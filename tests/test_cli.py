"""train.py and eval.py as people start them: exit codes, files, and what is said when something is wrong."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from armt_jax.evaluation.evaluate import load
from tests.commands import ROOT, one_line, start

CONFIG = """
from ml_collections import ConfigDict

RUNS = ("armt", "none")
SWEEP = {sweep!r}


def get_config(memory="armt"):
    c = ConfigDict()
    c.seed = 0
    c.backbone = dict(name="gpt2", vocab_size=128, num_layers=1, width=16, num_heads=2, max_positions=16)
    c.memory = dict(name="armt", num_memory_tokens=1, d_mem=4) if memory == "armt" else dict(name=memory)
    c.task = dict(name="associative_retrieval", mode="remember", pairs=2, num_keys=4)
    c.train = dict(batch_size=4, log_every=5, validate_every=4, validation_batches=1, stages=[dict(steps=6)])
    c.evaluation = dict(batch_size=4, batches=1)
    c.recurrence, c.mesh = dict(), dict()
    return c
"""
SWEEP = 'def get_sweep():\n    return [{"task.pairs": pairs} for pairs in (1, 2, 4)]\n'


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    (folder / "sweep.py").write_text(SWEEP)
    (folder / "tiny.py").write_text(CONFIG.format(sweep=str(folder / "sweep.py")))
    return folder / "tiny.py"


@pytest.fixture(scope="module")
def trained(config):
    """(base, the finished process) of the two runs of the config, with overrides of keys that it does and does not spell out."""
    base = config.parent / "runs"
    overrides = ("--config.train.log_every=2", "--config.train.accumulate=2", "--config.mesh.data=1", "--config.recurrence.gradient=remat")
    done = start("train.py", f"--config={config}", f"--workdir={base}", *overrides)
    assert done.returncode == 0, done.stderr
    return base, done


def test_an_override_into_a_section_the_file_lacks_is_one_clear_line(config, tmp_path):
    bare = tmp_path / "bare.py"
    bare.write_text(config.read_text().replace("c.recurrence, c.mesh = dict(), dict()", "pass"))
    line = one_line(start("train.py", f"--config={bare}", f"--workdir={tmp_path / 'run'}", "--config.mesh.data=1"))
    assert "--config.mesh.data=1" in line and "c.mesh = dict()" in line


def test_training_leaves_a_whole_workdir_per_variant(trained):
    base, _ = trained
    for name in ("armt", "none"):
        run = base / name
        saved = json.loads((run / "config.json").read_text())
        assert saved["memory"]["name"] == name and saved["train"]["stages"] == [{"steps": 6}]
        assert saved["train"]["log_every"] == 2 and saved["train"]["accumulate"] == 2
        assert saved["mesh"] == {"data": 1} and saved["recurrence"] == {"gradient": "remat"}
        assert any(path.name.startswith("events.") for path in (run / "tensorboard").iterdir())
        assert load(run, "last").step == 6 and load(run).step in (4, 6)
        assert all((run / "evaluation" / f"results.{kind}").stat().st_size for kind in ("csv", "jsonl", "png"))


def test_the_metrics_have_the_documented_keys(trained):
    rows = [json.loads(line) for line in (trained[0] / "armt" / "metrics.jsonl").read_text().splitlines()]
    logged = [row for row in rows if "loss" in row]
    validated = [row for row in rows if "validation_loss" in row]
    assert [row["step"] for row in logged] == [2, 4, 6] and [row["step"] for row in validated] == [4, 6]
    for row in logged:
        assert {"step", "stage", "size", "loss", "exact_match", "tokens_per_s", "data_wait", "seconds_per_step"} <= row.keys()
        assert row["stage"] == 1 and row["size"] == 2 and 0 < row["loss"] < 20 and 0 <= row["exact_match"] <= 1
        assert row["tokens_per_s"] > 0 and 0 <= row["data_wait"] <= 1
    assert all({"stage", "size", "validation_exact_match"} <= row.keys() for row in validated)


def test_the_main_job_ends_in_one_table_and_plot(trained):
    base, done = trained
    lines = done.stdout.splitlines()
    (head,) = [i for i, line in enumerate(lines) if line.split() == ["pairs", "1", "2", "4"]]
    assert [line.split()[0] for line in lines[head + 2 : head + 4]] == ["armt", "none"]
    rows = [json.loads(line) for line in (base / "results.jsonl").read_text().splitlines()]
    assert [(row["label"], row["pairs"]) for row in rows] == [(label, pairs) for label in ("armt", "none") for pairs in (1, 2, 4)]
    assert (base / "results.png").stat().st_size and (base / "training.png").stat().st_size
    assert "Traceback" not in done.stderr


def test_evaluation_of_one_run(trained, config):
    run, out = trained[0] / "armt", config.parent / "out"
    done = start("eval.py", f"--workdir={run}", f"--sweep={config.parent / 'sweep.py'}", f"--out={out}", "--checkpoint=last")
    assert done.returncode == 0, done.stderr
    assert "checkpoint of step 6, trained to 2 pairs" in done.stdout and str(out) in done.stdout
    assert sorted(path.name for path in out.iterdir()) == ["results.csv", "results.jsonl", "results.png"]
    found, by_training = ([json.loads(line) for line in (d / "results.jsonl").read_text().splitlines()] for d in (out, run / "evaluation"))
    assert [row["pairs"] for row in found] == [1, 2, 4] and {row["step"] for row in found} == {6}
    assert [row["pairs"] for row in by_training] == [1, 2, 4], "of the best checkpoint, where no other is asked for"
    assert all(f"{row['exact_match']:.3f}" in done.stdout for row in found)


def test_workers_that_share_a_sweep(trained, config):
    """The first worker leaves its rows, the second, the last to end, the report of both."""
    run, out = trained[0] / "armt", config.parent / "shared"
    arguments = (f"--workdir={run}", f"--sweep={config.parent / 'sweep.py'}", f"--out={out}", "--checkpoint=last")
    line = one_line(start("eval.py", *arguments, WORLD_SIZE="2"))
    assert "WORLD_SIZE=2" in line and "--share=I/N" in line
    first = start("eval.py", *arguments, "--share=0/2", WORLD_SIZE="2")
    assert first.returncode == 0 and "share 0 of 2 is done, others are not" in first.stdout, first.stderr
    assert "1 of the 3 points" in one_line(start("eval.py", *arguments, "--merge"))
    second = start("eval.py", *arguments, "--share=1/2")
    assert second.returncode == 0 and f"results: {out}/results.csv" in second.stdout, second.stderr
    assert [json.loads(line)["pairs"] for line in (out / "results.jsonl").read_text().splitlines()] == [1, 2, 4]


def test_a_run_that_diverges_exits_with_1_and_keeps_the_last_good_checkpoint(config):
    """The rate of the second stage throws the parameters out of range in the last step of the run."""
    path = config.parent / "diverging.py"
    text = config.read_text().replace("[dict(steps=6)]", "[dict(steps=2), dict(steps=1, learning_rate=1e38)], tensorboard=False")
    path.write_text(text)
    run = config.parent / "diverged"
    done = start("train.py", f"--config={path}:armt", f"--workdir={run}")
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert "NonFiniteLoss" in done.stderr and "step 3 (stage 2)" in done.stderr and "learning_rate" in done.stderr
    last = load(run, "last")
    assert last.step == 2 and all(np.isfinite(leaf).all() for leaf in map(np.asarray, _leaves(last.params)))


def test_a_full_disk_ends_a_run_with_one_line_and_the_same_command_goes_on(config):
    path, run = config.parent / "full.py", config.parent / "full"
    path.write_text(config.read_text().replace("[dict(steps=6)]", "[dict(steps=6)], tensorboard=False"))
    command = ("train.py", f"--config={path}:armt", f"--workdir={run}")
    done = start(*command, file_kb=32)
    assert done.returncode == 1, done.stderr
    *before, last = [line for line in done.stderr.splitlines() if "Error writing" in line]
    assert before == [] and "CheckpointError: Saving checkpoint" in last and "free space" in last and str(run) in last, done.stderr
    assert start(*command).returncode == 0 and load(run, "last").step == 6


def _leaves(tree):
    import jax

    return jax.tree.leaves(tree)


def test_an_unknown_key_gets_a_suggestion_and_starts_nothing(config, tmp_path):
    done = start("train.py", f"--config={config}:armt", f"--workdir={tmp_path / 'run'}", "--config.train.log_ever=1")
    line = one_line(done)
    assert "train.log_ever" in line and "did you mean 'log_every'?" in line and not (tmp_path / "run").exists()


def test_a_mistake_in_the_last_variant_is_found_before_the_first_is_trained(config, tmp_path):
    """The second memory has no tokens whose number could be set."""
    done = start("train.py", f"--config={config}", f"--workdir={tmp_path / 'run'}", "--config.memory.num_memory_tokens=2")
    assert "memory.num_memory_tokens" in one_line(done) and not (tmp_path / "run").exists()


def test_a_workdir_that_cannot_be_written(config, tmp_path):
    (tmp_path / "file").write_text("")
    line = one_line(start("train.py", f"--config={config}:armt", f"--workdir={tmp_path / 'file' / 'run'}"))
    assert "WorkdirError" in line and str(tmp_path / "file" / "run") in line and "--workdir" in line


def test_evaluation_of_an_empty_folder(tmp_path):
    line = one_line(start("eval.py", f"--workdir={tmp_path}"))
    assert "WorkdirError" in line and f"{tmp_path} is not a run's workdir" in line and not list(tmp_path.iterdir())


TEXT = """
from ml_collections import ConfigDict, config_dict


def get_config():
    c = ConfigDict()
    c.backbone = dict(name="transformer_xl", vocab_size=256, num_layers=1, width=16, num_heads=2, kernel_std=None)
    c.memory = dict(name="transformer_xl", cache_length=4)
    c.recurrence = dict(segment_length=4)
    c.data = dict(dataset="text", path=config_dict.placeholder(str), tokenizer="bytes", segments=2, cache_dir={cache!r})
    c.train = dict(batch_size=2, log_every=2, validate_every=2, validation_batches=1, stages=[dict(steps=4)])
    c.evaluation = dict(batch_size=2, batches=config_dict.placeholder(int))
    c.mesh = dict(cpu_devices=2)
    return c
"""


# One row is the whole text under one memory; the config's two devices cannot share it.
ONE_ROW = 'def get_sweep():\n    return [{"memory.cache_length": 6, "evaluation.batch_size": 1}]\n'


@pytest.fixture
def text(tmp_path):
    """(config file, folder of the corpus)."""
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for split in ("train", "validation", "test"):
        (corpus / f"{split}.txt").write_text("a few words, again and again\n" * 5)
    (tmp_path / "text.py").write_text(TEXT.format(cache=str(tmp_path / "cache")))
    return tmp_path / "text.py", corpus


def test_a_text_without_a_path_is_one_line_that_says_which_files(text, tmp_path):
    line = one_line(start("train.py", f"--config={text[0]}", f"--workdir={tmp_path / 'run'}"))
    assert "data.path is not set" in line and "train/*.txt" in line and not (tmp_path / "run").exists()


def test_a_text_is_trained_and_evaluated(text, tmp_path):
    path, corpus = text
    run = tmp_path / "run"
    done = start("train.py", f"--config={path}", f"--workdir={run}", f"--config.data.path={corpus}")
    assert done.returncode == 0, done.stderr
    assert "validation loss" in done.stderr and "perplexity" in done.stderr and "exact_match" not in done.stderr
    moved = corpus.rename(tmp_path / "moved")
    line = one_line(start("eval.py", f"--workdir={run}"))
    assert f"{corpus} does not exist" in line
    done = start("eval.py", f"--workdir={run}", f"--data_path={moved}", "--samples=1", "--sample_tokens=8")
    assert done.returncode == 0, done.stderr
    assert "stateful, memory off" in done.stdout and "bits_per_character" in done.stdout
    made = {path.name for path in (run / "evaluation").iterdir()}
    assert made == {
        "results.csv", "results.jsonl", "by_segment.csv", "by_segment.png", "by_position.csv", "by_position.png", "samples.txt"
    }  # fmt: skip
    first = (run / "evaluation" / "results.jsonl").read_text()
    (tmp_path / "sweep.py").write_text(ONE_ROW)
    done = start("eval.py", f"--workdir={run}", f"--data_path={moved}", f"--sweep={tmp_path / 'sweep.py'}", "--samples=0")
    assert done.returncode == 0, done.stderr
    assert "stateful, cache_length 6, batch_size 1" in done.stdout and "on 1 of 2 devices" in done.stderr
    assert (run / "evaluation" / "results.earlier.jsonl").read_text() == first and "results.earlier.jsonl" in done.stdout


IMPORT = """
import importlib, pkgutil, sys
import armt_jax
assert not {"torch", "tensorflow", "transformers"} & set(sys.modules)
names = [m.name for m in pkgutil.walk_packages(armt_jax.__path__, "armt_jax.")]
assert len(names) > 30, names
for name in names:
    importlib.import_module(name)
foreign = {"torch", "tensorflow", "transformers", "matplotlib", "tensorboardX"} & set(sys.modules)
assert not foreign, foreign
import jax
jax.config.update("jax_num_cpu_devices", 3)  # an error once a backend runs
assert jax.device_count() == 3
"""


def test_importing_needs_neither_torch_nor_tensorflow_and_starts_no_backend():
    environ = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES")}
    environ |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", IMPORT], env=environ, text=True, capture_output=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stderr
