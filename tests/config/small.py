"""A small config, and what is said about one that may not be."""

import pytest

from armt_jax.config import override, resolve

SMALL = {
    "seed": 3,
    "backbone": {"name": "gpt2", "vocab_size": 128, "num_layers": 1, "width": 16, "num_heads": 2, "max_positions": 16},
    "memory": {"name": "armt", "num_memory_tokens": 1, "d_mem": 4},
    "recurrence": {"segment_length": 4},
    "dtype": "float32",
    "task": {"name": "associative_retrieval", "mode": "remember", "pairs": 2, "num_keys": 4},
    "train": {
        "batch_size": 4,
        "validate_every": 2,
        "optimizer": {"learning_rate": 1e-2},
        "stages": [{"steps": 8}, {"steps": 6, "task": {"pairs": 3}}],
    },
    "evaluation": {"batch_size": 4, "batches": 1},
    "mesh": {"data": 1},
}


def changed(**changes):
    """SMALL with keys changed; `train__stages` stands for train.stages."""
    return override(SMALL, {key.replace("__", "."): value for key, value in changes.items()})


def without(section):
    return {name: value for name, value in SMALL.items() if name != section}


def refuses(config, *parts):
    """resolve(config) raises one ValueError that says all of this."""
    with pytest.raises(ValueError) as error:
        resolve(config)
    for part in parts:
        assert str(part) in str(error.value), f"{part!r} is not in: {error.value}"
