"""A small run on BABILong, with initial weights: their answers are as good as any to tell readings apart."""

import json
import random

import pytest

from armt_jax.checkpoint import Checkpoints
from armt_jax.config import override, resolve
from armt_jax.evaluation.evaluate import load
from armt_jax.parallel.mesh import make_mesh
from armt_jax.training import step as steps
from armt_jax.training.optimizer import make_optimizer
from armt_jax.training.step import TrainState
from armt_jax.training.workdir import claim

CONFIG = {
    "seed": 3,
    "backbone": {
        "name": "gpt2", "vocab_size": 260, "num_layers": 1, "width": 16, "num_heads": 2, "max_positions": 40, "kernel_std": None,
        "embedding_std": 1.0, "tie_embeddings": False,
    },
    "memory": {"name": "armt", "num_memory_tokens": 2, "d_mem": 8, "key_norm": "l2", "value_std": None},
    "recurrence": {"segment_length": 32},
    "task": {"name": "babilong", "max_facts": 4, "background": {"tokenizer": "bytes"}},
    "train": {
        "batch_size": 4, "log_every": 2, "validate_every": 2, "validation_batches": 1, "checkpoint_every": 2, "tensorboard": False,
        "stages": [{"steps": 2, "task": {"segments": [5, 6]}}, {"steps": 2, "task": {"segments": 7, "question": "apart"}}],
    },
    "evaluation": {"batch_size": 4, "samples": 6, "lengths": 300, "new_tokens": 9, "segments_at_once": 4},
    "mesh": {"data": 1},
}  # fmt: skip


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("books"), random.Random(0)
    words = ["".join(rng.choices("abcdefgh", k=rng.randint(1, 5))) for _ in range(30)]
    for split in ("train", "validation", "test"):
        (folder / split).mkdir()
        sentences = [" ".join(rng.choices(words, k=6)).capitalize() + "." for _ in range(40)]
        (folder / split / "book.txt").write_text(" ".join(sentences))
    return override(CONFIG, {"task.background.path": str(folder), "task.background.cache_dir": str(folder / "cache")})


@pytest.fixture(scope="module")
def workdir(config, tmp_path_factory):
    """A run whose checkpoint holds initial weights: their answers are as good as any to tell readings apart."""
    made = tmp_path_factory.mktemp("run")
    raw = json.loads(json.dumps(config))
    raw["train"]["stages"] = [{"steps": 2, "task": {"segments": 6}}]
    claim(made, raw)
    resolved = resolve(raw)
    mesh = make_mesh(resolved.mesh)
    params = steps.create_params(resolved.model, 3, mesh)
    state = TrainState(params, steps.create_opt_state(make_optimizer(resolved.train.optimizer, 2), params, mesh))
    standing = {"step": 2, "stage": 0, "stage_step": 2, "best": 0.0, "best_step": 2, "waited": 0, "finished": True}
    with Checkpoints(made / "checkpoints") as checkpoints:
        meta = {"standing": standing, "seed": 3, "window": [], "data": resolved.task.fingerprint, "config": raw}
        checkpoints.save(2, state, meta, rank=0.0, wait=True)
    return made


@pytest.fixture(scope="module")
def trained(workdir):
    return load(workdir)
