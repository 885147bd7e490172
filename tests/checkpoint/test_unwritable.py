"""Places that cannot be written, or no longer."""

import jax
import jax.numpy as jnp
import pytest

from armt_jax.checkpoint import CheckpointError, Checkpoints
from tests.checkpoint.programs import finish, start_python
from tests.checkpoint.states import assert_same, small_state


def test_a_directory_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for bad in (tmp_path / "file" / "c", tmp_path / "file", tmp_path / "no" / "such" / "c"):
        with pytest.raises(CheckpointError, match=str(bad)):
            Checkpoints(bad)
    assert not (tmp_path / "no").exists()
    with Checkpoints(tmp_path / "none", read_only=True) as store:
        with pytest.raises(CheckpointError, match="opened read_only"):
            store.save(1, small_state(1), {})
        with pytest.raises(CheckpointError, match="there is none"):
            store.restore(small_state(0))
    assert not (tmp_path / "none").exists()
    with pytest.raises(ValueError, match="keep_last is 0"):
        Checkpoints(tmp_path / "c", keep_last=0)


FULL_DISK = """
import resource, sys, time
import jax, jax.numpy as jnp
from armt_jax.checkpoint import CheckpointError, Checkpoints
state = lambda step: {"w": jax.random.bits(jax.random.key(step), (256, 1024))}
def limit(size): resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
store = Checkpoints(sys.argv[1], keep_last=1)
store.save(1, state(1), {}, rank=1.0, wait=True)
limit(100_000)
store.save(2, state(2), {}, rank=2.0)
try:  # noticed without anybody waiting for it
    for _ in range(200):
        store.check_errors()
        time.sleep(0.05)
    print("unnoticed")
except CheckpointError as error:
    print("noticed", error)
print("steps", store.steps(), store.best_step())
limit(resource.RLIM_INFINITY)
store.save(3, state(3), {}, rank=3.0, wait=True)  # there is space again, and 1 not forgotten
print("steps", store.steps(), store.best_step())
limit(100_000)
store.save(4, state(4), {})
try:
    with store:
        raise KeyError("mine")
except KeyError as error:
    print("kept", error)
with Checkpoints(sys.argv[1]) as store:
    store.save(5, state(5), {})
"""


def test_a_full_disk_fails_the_run_and_spares_the_last_checkpoint(tmp_path):
    code, out, err = finish(start_python(FULL_DISK, tmp_path / "c"))
    assert code == 1, err
    assert "CheckpointError: Saving checkpoint 5 into" in err.splitlines()[-1], err
    lines = out.splitlines()
    assert lines[0].startswith(f"noticed Saving checkpoint 2 into {tmp_path / 'c'} failed (")
    assert "free space" in lines[0] and "the last complete checkpoint is step 1" in lines[0]
    assert lines[1:] == ["steps [1] 1", "steps [3] 3", "kept 'mine'"]
    with Checkpoints(tmp_path / "c") as store:
        target = {"w": jax.ShapeDtypeStruct((256, 1024), jnp.uint32)}
        assert store.steps() == [3]
        assert_same(store.restore(target).state, {"w": jax.random.bits(jax.random.key(3), (256, 1024))})
