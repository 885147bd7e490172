"""Batches made by other processes: the same ones, in order; and processes that end with the one they work for."""

import dataclasses
import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest

from armt_jax.tasks.associative_retrieval import AssociativeRetrieval
from armt_jax.tasks.workers import IN_PROCESS, BatchMaker, WorkerDied

SOURCE = AssociativeRetrieval(mode="rewrite", pairs=(2, 3), num_keys=4)
WANTED = dict(seed=5, split="train", batch_size=6, rows=slice(2, 5))


@dataclasses.dataclass(frozen=True)
class FailsAtThree(AssociativeRetrieval):
    def batch(self, seed, step, *args):
        if step == 3:
            raise ValueError(f"no batch for step {step}")
        return super().batch(seed, step, *args)


@pytest.fixture(scope="module")
def two():
    maker = BatchMaker(2)
    yield maker
    maker.close()


def test_they_are_the_batches_of_the_source_in_order(two):
    made, alone = (list(maker.batches(SOURCE, steps=range(7, 20), **WANTED)) for maker in (two, IN_PROCESS))
    assert len(made) == len(alone) == 13
    for step, batch, other in zip(range(7, 20), made, alone, strict=True):
        expected = SOURCE.batch(5, step, 6, "train", slice(2, 5))
        for field in ("tokens_BxN", "targets_BxN", "weights_BxN", "answers_BxN"):
            np.testing.assert_array_equal(getattr(batch, field), getattr(expected, field))
            np.testing.assert_array_equal(getattr(other, field), getattr(expected, field))


def test_a_stage_may_end_early_and_another_begin(two):
    first = two.batches(SOURCE, steps=range(1000), **WANTED)
    next(first)
    first.close()
    (batch,) = two.batches(SOURCE, steps=[4], **WANTED)
    np.testing.assert_array_equal(batch.tokens_BxN, SOURCE.batch(5, 4, 6, "train", slice(2, 5)).tokens_BxN)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_comes_at_its_step(two, workers):
    batches = (two if workers else IN_PROCESS).batches(FailsAtThree(mode="rewrite", pairs=2, num_keys=4), steps=range(9), **WANTED)
    assert len([next(batches) for _ in range(3)]) == 3
    with pytest.raises(ValueError, match="no batch for step 3"):
        next(batches)


DRIVER = """
import os, signal, sys
from armt_jax.tasks.associative_retrieval import AssociativeRetrieval
from armt_jax.tasks.workers import BatchMaker

maker, source = BatchMaker(2), AssociativeRetrieval(mode="rewrite", pairs=2, num_keys=4)
batches = maker.batches(source, seed=0, split="train", batch_size=2, rows=None, steps=range(9))
if sys.argv[1] == "signals":  # also before a worker has imported anything
    for worker in maker._workers:
        worker._process.send_signal(signal.SIGTERM)
        worker._process.send_signal(signal.SIGINT)
    print(len(list(batches)), flush=True)
next(batches, None)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("what, printed", [("death", ""), ("signals", "9\n")])
def test_workers_outlive_signals_and_not_the_process_they_work_for(tmp_path, what, printed):
    """Of a script without a guard around its main part."""
    (tmp_path / "driver.py").write_text(DRIVER)
    environ = os.environ | {"PYTHONPATH": str(pathlib.Path(__file__).parents[2])}
    # Returns when the last of them has closed its output.
    done = subprocess.run([sys.executable, tmp_path / "driver.py", what], env=environ, text=True, capture_output=True, timeout=120)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, printed), done.stderr


def test_a_worker_that_dies_is_an_error_and_the_others_can_be_closed():
    maker = BatchMaker(2)
    batches = maker.batches(SOURCE, steps=range(50), **WANTED)
    next(batches)
    maker._workers[1]._process.kill()
    with pytest.raises(WorkerDied, match="was ended by SIGKILL.*lower train.data_workers"):
        list(batches)
    maker.close()
    assert all(worker._process.poll() == -signal.SIGKILL for worker in maker._workers)


class Unpicklable(Exception):
    def __init__(self):
        super().__init__("of a kind that cannot be sent")
        self.held = lambda: None


@dataclasses.dataclass(frozen=True)
class FailsUnsendably(AssociativeRetrieval):
    def batch(self, *args):
        print("a line that is no answer")
        raise Unpicklable


def test_an_error_that_cannot_be_sent_is_told(two):
    with pytest.raises(RuntimeError, match="of a kind that cannot be sent"):
        next(two.batches(FailsUnsendably(mode="rewrite", pairs=2, num_keys=4), steps=range(9), **WANTED))
    (batch,) = two.batches(SOURCE, steps=[4], **WANTED)
    assert batch.tokens_BxN.shape[0] == 3
