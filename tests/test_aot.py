"""Compiling ahead of time: the real training step, from a config whose text is not there, and what is said about it."""

import dataclasses
import importlib.util
import os
import pathlib
import subprocess
import sys

import jax
import pytest

from armt_jax import aot
from armt_jax.parallel import topologies
from armt_jax.parallel.collectives import Traffic
from armt_jax.parallel.topologies import GIB
from armt_jax.training.step import model_flops

ROOT = pathlib.Path(__file__).parents[1]

RAW = {
    "backbone": {"name": "llama", "vocab_size": 256, "num_layers": 2, "width": 16, "num_heads": 2, "max_positions": 16},
    "memory": {"name": "armt", "num_memory_tokens": 1, "d_mem": 4, "value_std": 0.1},
    "recurrence": {"segment_length": 4, "schedule": "diagonal"},
    "data": {"dataset": "enwik8", "path": "/no/such/folder", "segments": 3, "resets_at": "documents"},
    "train": {"batch_size": 2, "stages": ({"steps": 2}, {"steps": 2, "batch_size": 4}, {"steps": 2}), "optimizer": {}},
}
FOUND = aot.Report(
    name="scale:x", topology="v5e:4x4", mesh="stage 4", chips=4, tokens=2**30, segments=5, arguments=6 * GIB, temporaries=9 * GIB,
    outputs=0, limit=16 * GIB, flops=10**15, traffic=(Traffic("all-reduce", 2, 3 * GIB, GIB),), utilisation=0.625, seconds=1.0,
)  # fmt: skip


def test_the_training_step_compiles_without_its_text():
    compiled, config, mesh, state, batch = aot.compile_step(RAW, jax.devices()[:1])
    assert state.carried is not None and batch.reset_BxS.shape == (4, 3) and mesh.size == 1, "the largest stage"
    memory = compiled.memory_analysis()
    held = sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(state))
    assert held <= memory.argument_size_in_bytes < held + 10_000, "parameters, moments and carried memory, and a small batch"
    assert memory.alias_size_in_bytes >= sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(state.params)), "the old state is donated"
    weights = sum(p.size for p in jax.tree.leaves(state.params["layers"]["block"])) + 16 * 256
    assert model_flops(config.model, config.task.num_answers, state, batch) > 6 * weights * batch.tokens_BxN.size


def test_what_a_report_says():
    said = aot.describe(FOUND)
    assert FOUND.exchanged_per_token == 12 and "12 bytes, all chips" in said and "| 62% | 12 | all-reduce 3.00 (1.00) |" in aot.row(FOUND)
    assert "stage 4" in said and "15.00 of 16.00" in said and "62.5%" in said and "all-reduce: 2 in the program, 3.00 GiB" in said
    assert FOUND.fits and not dataclasses.replace(FOUND, outputs=2 * GIB).fits
    assert "| scale:x | v5e:4x4 | stage 4 | 1,073,741,824 | 6.00 | 9.00 | 16.00 | yes |" in aot.row(FOUND)


def test_rows_gather_below_one_header(tmp_path):
    path = tmp_path / "aot.md"
    path.write_text("# Title\n\n")
    aot.add_row(path, aot.row(FOUND))
    error = aot.DoesNotFit("RESOURCE_EXHAUSTED: the total memory required for HLO temporaries (21.04G) exceeds available HBM (15.75G).")
    aot.add_row(path, aot.refused_row("scale:y", "v5e:4x4", error))
    text = path.read_text()
    assert text.startswith("# Title\n\n" + aot.HEADER) and text.count("| config |") == 1
    aot.add_row(tmp_path / "new" / "aot.md", aot.row(FOUND))
    assert (tmp_path / "new" / "aot.md").read_text() == aot.HEADER + aot.row(FOUND)
    assert "| 21.04G | 16.00 | no |" in text.splitlines()[-1]


def test_utilisation_is_the_share_of_cells_that_exist():
    from armt_jax.config import resolve_without_data

    model = resolve_without_data(RAW).model
    assert aot.utilisation(model, 6, 2) == 6 / 7
    sequential = dataclasses.replace(model, recurrence=dataclasses.replace(model.recurrence, schedule="sequential"))
    assert aot.utilisation(sequential, 6, 1) == 1.0 and aot.utilisation(sequential, 6, 2) == 0.5


def test_an_unknown_chip_is_named():
    with pytest.raises(ValueError, match="--topology=v9:4x4.*v5e.*h100"):
        topologies.chip_memory("v9:4x4")


@pytest.mark.parametrize("sizes", ["", "0", "8x", "2x4x8", "4,8"])
def test_what_is_no_number_of_gpus_is_named(sizes):
    with pytest.raises(ValueError, match=f"--topology=h100:{sizes}: '{sizes}' .*h100:4x8"):
        topologies.topology_devices(f"h100:{sizes}")


def test_gpus_that_are_not_there():
    """The real compiler: two hosts of two, and a step that is split over all four."""
    if not (importlib.util.find_spec("jax_plugins") and importlib.util.find_spec("jax_plugins.xla_cuda13")):
        with pytest.raises(ValueError, match="extra 'aot-gpu'"):
            topologies.topology_devices("h100:2x2")
        pytest.skip("JAX's CUDA plugin is not installed: pip install -e '.[aot-gpu]'")
    tiny = ("backbone.width=256", "backbone.num_heads=2", "data.segments=4", "recurrence.segment_length=128", "backbone.vocab_size=512")
    done = run_aot("--config=configs/scale.py:gpt2-pipeline", "--topology=h100:2x2", *(f"--config.{change}" for change in tiny))
    assert done.returncode == 0, done.stderr[-2000:]
    assert "mesh stage 4" in done.stdout and "collective-permute" in done.stdout and "of 79.65" in done.stdout, done.stdout


def run_aot(*arguments):
    command = [sys.executable, "-m", "armt_jax.aot", *arguments]
    environ = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    return subprocess.run(command, env=environ, cwd=ROOT, text=True, capture_output=True, timeout=1800)


def test_the_command_without_libtpu_says_what_to_install():
    if importlib.util.find_spec("libtpu"):
        pytest.skip("libtpu is installed")
    done = run_aot("--config=configs/scale.py", "--topology=v5e:4x4")
    assert done.returncode == 1 and "extra 'aot'" in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_a_tpu_slice_that_is_not_there():
    """The real compiler, on the pipeline of a tiny model."""
    if not importlib.util.find_spec("libtpu"):
        pytest.skip("libtpu is not installed: pip install -e '.[aot]'")
    tiny = ("backbone.width=256", "backbone.num_heads=2", "data.segments=4", "recurrence.segment_length=128", "backbone.vocab_size=512")
    done = run_aot("--config=configs/scale.py:gpt2-pipeline", "--topology=v5e:4x4", *(f"--config.{change}" for change in tiny))
    assert done.returncode == 0, done.stderr[-2000:]
    assert "data 4 x stage 4" in done.stdout and "collective-permute" in done.stdout, done.stdout
