"""An evaluation that is killed, and what it had answered."""

import pytest

from armt_jax.evaluation import sweep as sweeps
from armt_jax.evaluation.streaming import Streams
from armt_jax.telemetry.jsonl import read_lines


class Killed(Exception):
    """Raised where a process is killed."""


def killed_at_save(number, monkeypatch, trained, points, directory):
    """An evaluation that ends behind so many saves."""
    saves, save = [], Streams.save

    def saving(self, path, identity):
        save(self, path, identity)
        saves.append(path)
        if len(saves) == number:
            raise Killed

    often = [{**point, "evaluation.save_every_s": 1e-9} for point in points]
    with monkeypatch.context() as patch:
        patch.setattr(Streams, "save", saving)
        with pytest.raises(Killed):
            sweeps.run_sweep(trained, often, directory)


def said(directory):
    return {(line["task"], line["length"], line["index"]): line["output"] for line in read_lines(directory / "samples.jsonl")}
