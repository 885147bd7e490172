"""Which checkpoints are kept: the newest and the best."""

import jax.numpy as jnp
import pytest

from armt_jax.checkpoint import Checkpoints
from armt_jax.retention import steps_to_keep
from tests.checkpoint.states import abstract, assert_same, small_state


def test_the_newest_and_the_best_are_kept(tmp_path):
    ranks = {1: 0.1, 2: 0.9, 3: None, 4: 0.9, 5: float("inf"), 6: float("nan"), 7: None}
    with Checkpoints(tmp_path / "c", keep_last=2) as store:
        for step, rank in ranks.items():
            store.save(step, small_state(step), {}, rank=rank)
        store.wait()
        assert store.steps() == [2, 6, 7] and store.best_step() == 2 and store.latest_step() == 7
    with Checkpoints(tmp_path / "c", keep_last=1) as store:  # the best survives a restart
        assert store.best_step() == 2
        store.save(8, small_state(8), {}, rank=0.8, wait=True)
        assert store.steps() == [2, 8]
        best = store.restore(abstract(small_state(0)), step="best")
        assert best.step == 2
        assert_same(best.state, small_state(2))
        store.save(9, small_state(9), {}, rank=1.0, wait=True)
        assert store.steps() == [9] and store.restore(small_state(0)).step == 9


def test_without_ranks_only_the_newest_are_kept_and_the_latest_is_best(tmp_path):
    with Checkpoints(tmp_path / "c", keep_last=2) as store:
        for step in (5, 10, 15):
            store.save(step, small_state(step), {}, wait=True)
        assert store.steps() == [10, 15] and store.best_step() == 15
        assert store.restore(small_state(0), step="best").step == 15


def test_going_back_to_an_old_step(tmp_path):
    with Checkpoints(tmp_path / "c", keep_last=2) as store:
        for step in (1, 2, 3):
            store.save(step, small_state(step), {}, rank=-step)
        store.save(
            1, {"w": jnp.ones(16), "n": jnp.int32(0)}, {}, wait=True
        )  # unranked now, older than both: still not thrown away at once
        assert store.steps() == [1, 2, 3]
        store.delete_after(1)
        assert store.steps() == [1]
        store.save(2, small_state(20), {}, wait=True)
        assert_same(store.restore(small_state(0)).state, small_state(20))


def test_saving_a_step_again(tmp_path):
    with Checkpoints(tmp_path / "c") as store:
        store.save(1, small_state(1), {"a": 1}, rank=0.5, wait=True)
        inode = (tmp_path / "c" / "1").stat().st_ino
        store.save(1, small_state(1), {"a": 1}, rank=0.5, wait=True)
        assert (tmp_path / "c" / "1").stat().st_ino == inode  # identical: nothing written
        store.save(1, small_state(2), {"a": 1}, rank=0.5)
        store.save(1, small_state(3), {"a": 3})  # while the other is still under way
        restored = store.restore(small_state(0))
        assert restored.step == 1 and restored.meta == {"a": 3}
        assert_same(restored.state, small_state(3))


@pytest.mark.parametrize(
    ("steps", "ranks", "damaged", "keep_last", "kept"),
    [
        ([1, 2, 3, 4, 5], {1: None, 2: 1.0, 3: 1.0, 4: None, 5: None}, set(), 2, {2, 4, 5}),
        ([1, 2, 3, 4, 5], {1: None, 2: 1.0, 5: None}, {3, 4}, 2, {2, 5, 3, 4}),  # 3, 4: newer than the oldest to stay
        ([1, 2, 3, 4, 5], {2: 1.0, 4: None, 5: None}, {3}, 2, {1, 2, 4, 5}),  # 1: unknown, so not deleted
        ([7, 8, 5], {7: None, 8: None, 5: None}, set(), 1, {8, 5}),
    ],
)
def test_which_steps_are_kept(steps, ranks, damaged, keep_last, kept):
    assert steps_to_keep(steps, ranks, damaged, 5, keep_last) == kept
