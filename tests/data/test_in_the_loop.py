"""The training loop takes a text where it takes a task."""

import dataclasses
import json

import pytest

from armt_jax.config import resolve
from armt_jax.data import ContiguousStreams, Windows
from armt_jax.training.loop import train


@pytest.mark.parametrize("kind", [ContiguousStreams, Windows])
def test_training_on_text(make_corpus, tmp_path, kind):
    text = "the quick brown fox jumps over the lazy dog\n" * 20
    source = kind(make_corpus("characters", train=text, validation=text), 8, 3)
    raw = {
        "seed": 0,
        "backbone": {"name": "gpt2", "vocab_size": source.vocab_size, "num_layers": 1, "width": 16, "num_heads": 2, "max_positions": 32},
        "memory": {"name": "none"},
        "recurrence": {"segment_length": 8},
        "task": {"name": "copy", "length": 4},
        "train": {"batch_size": 4, "validate_every": 3, "validation_batches": 2, "log_every": 1, "stages": [{"steps": 3}]},
    }
    config = dataclasses.replace(resolve(raw | {"backbone": raw["backbone"] | {"vocab_size": 64}}), task=source, tasks=(source,))
    standing = train(config, raw, tmp_path / "run")
    assert standing.finished and standing.step == 3
    lines = [json.loads(line) for file in (tmp_path / "run").rglob("*.jsonl") for line in file.read_text().splitlines()]
    losses = [line["validation_loss"] for line in lines if "validation_loss" in line]
    assert losses and 0 < losses[-1] < 10
