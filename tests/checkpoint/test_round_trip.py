"""What is written comes back bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from armt_jax.checkpoint import Checkpoints
from tests.checkpoint.states import abstract, assert_same, small_state


def test_round_trip_is_exact(tmp_path):
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.inner = nnx.Linear(5, 7, rngs=rngs)
            self.layers = nnx.List([nnx.Linear(2, 3, rngs=rngs)])

    params = nnx.state(Model(nnx.Rngs(0)), nnx.Param)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    opt_state = jax.tree.map(lambda x: x + jnp.ones_like(x) * 3, optimizer.init(params))
    state = {
        "params": params,
        "opt": opt_state,
        "key": jax.random.key(1),
        "keys": jax.random.split(jax.random.key(2), 3),
        "memory/0": [
            jnp.full((2, 3), jnp.nan),
            (jnp.zeros((0, 4)), None),
            {"a.b": jnp.float32(-0.0), "a": {"b": jnp.float32(1)}},
        ],
        "kinds": tuple(
            jnp.arange(5).astype(d) for d in ("bfloat16", "float16", "int8", "uint8", "int16", "uint32", "bool")
        ),
    }
    with Checkpoints(tmp_path / "c") as store:
        store.save(10, state, {"seen": [1, {"x": None}]})
        restored = store.restore(abstract(state))
        assert restored.step == 10 and restored.meta == {"seen": [1, {"x": None}]} == store.read_meta(10)
        assert_same(restored.state, state)
    with Checkpoints(tmp_path / "c", read_only=True) as store:
        assert_same(store.restore(state, step=10).state, state)


def test_python_and_numpy_numbers_come_back_as_arrays(tmp_path):
    with Checkpoints(tmp_path / "c") as store:
        store.save(1, {"n": 7, "x": 0.5, "flag": True, "np": np.arange(3, dtype=np.int16)}, {})
        got = store.restore({"n": 0, "x": 0.0, "flag": False, "np": np.zeros(3, np.int16)}).state
    assert_same(
        got, {"n": jnp.int32(7), "x": jnp.float32(0.5), "flag": jnp.bool_(True), "np": jnp.arange(3, dtype=jnp.int16)}
    )


@pytest.mark.parametrize("async_save", [True, False])
def test_donated_buffers_do_not_spoil_the_save(tmp_path, async_save):
    step_fn = jax.jit(lambda s: jax.tree.map(lambda x: x * 2 + 1, s), donate_argnums=0)
    state = {"w": jnp.ones((512, 512)), "v": jnp.zeros((300_000,))}
    with Checkpoints(tmp_path / "c", keep_last=9, async_save=async_save) as store:
        copies = {}
        for step in range(4):
            copies[step] = jax.tree.map(lambda x: np.array(x, copy=True), state)
            store.save(step, state, {})
            for _ in range(4):  # at once, while the save is under way
                state = step_fn(state)
        for step, copy in copies.items():
            assert_same(store.restore(abstract(state), step=step).state, jax.tree.map(jnp.asarray, copy))


def test_meta_must_be_json_and_leaves_arrays(tmp_path):
    with Checkpoints(tmp_path / "c") as store:
        with pytest.raises(TypeError, match="meta must be plain JSON"):
            store.save(1, small_state(1), {"x": object()})
        with pytest.raises(TypeError, match="'name' of the state is a str"):
            store.save(1, {"name": "gpt2", "w": jnp.ones(2)}, {})
        with pytest.raises(TypeError, match="'n' has dtype int64"):
            store.save(1, {"n": np.int64(2**40)}, {})
        with pytest.raises(ValueError, match="both called 'a/b'"):
            store.save(1, {"a/b": jnp.ones(1), "a": {"b": jnp.ones(1)}}, {})
        assert store.steps() == [] and store.latest_step() is None and store.best_step() is None
