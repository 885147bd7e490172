"""The loop's decisions about stages: when one ends, and what the next starts from."""

import gc
import weakref

import jax
import jax.numpy as jnp
import pytest

from armt_jax.checkpoint import Checkpoints
from armt_jax.evaluation.evaluate import load
from armt_jax.parallel.rules import path_string
from armt_jax.training.loop import Run
from armt_jax.training.step import StepMetrics, TrainState
from tests.training.runs import metrics, restore, steps_behind


def test_a_stage_ends_at_its_stop_and_after_its_patience(counting, tmp_path, start):
    counting.validations = {2: 0.5, 4: 0.95, 6: 0.5, 8: 0.6, 10: 0.6, 12: 0.1, 14: 0.3}
    stages = [{"steps": 20, "stop_at": 0.9}, {"steps": 20, "patience": 2}, {"steps": 2}]
    standing = counting.run(tmp_path, train__validate_every=2, train__stages=stages)
    assert [step for step, _ in counting.entered] == [4, 12] and standing.step == 14 and standing.finished
    assert counting.done == list(range(1, 15))
    assert steps_behind(counting.entered[0][1], start) == 4


def test_the_next_stage_starts_from_the_best_checkpoint(counting, tmp_path, start):
    counting.validations = {2: 0.5, 4: 0.6, 6: 0.55, 8: 0.4, 10: 0.1, 12: 0.3}
    counting.run(tmp_path, train__validate_every=2, train__keep_last=1, train__stages=[{"steps": 8}, {"steps": 4}])
    (step, state), = counting.entered
    assert step == 8 and steps_behind(state, start) == 4
    last = restore(tmp_path, counting.config)
    assert last.step == 12 and steps_behind(last.state, start) == 4 + 4
    assert load(tmp_path).step == 12, "the best of a run is the best of its last stage, though an earlier one had more"


def test_a_change_of_stage_holds_one_state_at_a_time(counting, tmp_path, monkeypatch):
    """A model that only just fits has no room for the best state beside the last one."""
    counting.validations = {4: 0.6, 8: 0.4}
    refs, alive, one_step, restore_from = [], [], Run.one_step, Checkpoints.restore

    def stepped(run):
        one_step(run)
        refs[:] = [weakref.ref(leaf) for leaf in jax.tree.leaves(run.state)]

    def restored(checkpoints, *args, **kwargs):
        checkpoints.wait()  # until then it holds what it saves
        gc.collect()
        alive.append(sum(ref() is not None for ref in refs))
        return restore_from(checkpoints, *args, **kwargs)

    monkeypatch.setattr(Run, "one_step", stepped)
    monkeypatch.setattr(Checkpoints, "restore", restored)
    counting.run(tmp_path)
    assert len(refs) > 5 and alive == [0]


def test_the_next_stage_starts_fresh_in_its_optimizer(counting, tmp_path):
    counting.validations = {4: 0.6, 8: 0.4}
    counting.run(tmp_path, train__keep_optimizer=False)
    (_, state), = counting.entered
    assert all(not leaf.any() for leaf in jax.tree.leaves(state.opt_state)) and len(jax.tree.leaves(state.opt_state)) > 3


def test_keep_optimizer_restarts_the_schedule_and_keeps_the_moments(counting, tmp_path):
    counting.validations = {4: 0.6, 8: 0.4}
    counting.run(tmp_path, train__keep_optimizer=True)
    (_, state), = counting.entered
    leaves = jax.tree_util.tree_leaves_with_path(state.opt_state)
    moments = [leaf for path, leaf in leaves if "/mu/" in path_string(path) or "/nu/" in path_string(path)]
    counts = [int(leaf) for path, leaf in leaves if path_string(path).endswith("count")]
    assert moments and all((leaf == 4).all() for leaf in moments), "those of the best step, 4"
    assert sorted(counts) == [0, 4], "Adam's count goes on, the schedule's starts anew"


@pytest.mark.parametrize("crash_at", [1, 7, 8, 9])
def test_a_crash_anywhere_changes_no_decision(counting, tmp_path, start, crash_at):
    counting.validations = {2: 0.5, 4: 0.6, 6: 0.4, 8: 0.3, 10: 0.1, 12: 0.9}
    changes = dict(train__validate_every=2, train__stages=[{"steps": 50, "patience": 2}, {"steps": 50, "stop_at": 0.9}, {"steps": 1}])
    counting.crash_at = crash_at
    with pytest.raises(KeyboardInterrupt):
        counting.run(tmp_path, **changes)
    counting.crash_at, counting.entered = None, []
    standing = counting.run(tmp_path, **changes)
    assert (standing.step, standing.stage, standing.finished) == (13, 2, True)
    entered = {step: steps_behind(state, start) for step, state in counting.entered}
    assert entered == {step: behind for step, behind in {8: 4, 12: 8}.items() if step >= crash_at}
    assert steps_behind(restore(tmp_path, counting.config).state, start) == 9
    assert [row["step"] for row in metrics(tmp_path)] == [2, 4, 5, 6, 8, 10, 12, 13]


def test_the_counting_step_has_the_state_of_the_real_one(counting):
    """Else the tests on it would prove little: the same structure in, the same out."""
    state = TrainState({"a": jnp.zeros(2)}, (jnp.zeros([], jnp.int32),))
    new, found = counting.train_step(state, None, None)
    assert jax.tree.structure(new) == jax.tree.structure(state) and new.opt_state[0].dtype == jnp.int32
    assert found._fields == StepMetrics._fields
