"""The checkpoint of another run is refused, and said to be one."""

import jax.numpy as jnp
import pytest

from armt_jax.checkpoint import CheckpointError, Checkpoints
from tests.checkpoint.states import abstract


def test_another_architecture_is_named_and_never_passed_over(tmp_path):
    saved = {"layers": {str(i): jnp.ones((4, i + 1)) for i in range(9)}, "old": jnp.ones(2), "same": jnp.ones(3)}
    wanted = {"layers": {str(i): jnp.ones((4, i + 2)) for i in range(9)}, "new": jnp.ones(2), "same": jnp.ones(3)}
    with Checkpoints(tmp_path / "c") as store:
        store.save(1, wanted, {})  # an older one would fit
        store.save(2, saved, {})
        with pytest.raises(CheckpointError) as caught:
            store.restore(abstract(wanted))
    text = str(caught.value)
    assert (
        "layers/0: saved float32[4, 1], wanted float32[4, 2]" in text
        and "and 6 more" in text
        and "same" not in text.split("Use")[0]
    )
    assert "c/2" in text and "--config" in text and "--workdir" in text


def test_missing_extra_and_other_dtype_are_refused(tmp_path):
    with Checkpoints(tmp_path / "c") as store:
        store.save(1, {"w": jnp.ones(3), "m": jnp.ones(2)}, {})
        with pytest.raises(CheckpointError, match=r"w: saved float32\[3\], wanted bfloat16\[3\]\. "):
            store.restore({"w": jnp.ones(3, jnp.bfloat16), "m": jnp.ones(2)})
        with pytest.raises(CheckpointError, match=r"m: saved float32\[2\], wanted nothing"):
            store.restore({"w": jnp.ones(3)})
        with pytest.raises(CheckpointError, match=r"z: saved nothing, wanted float32\[\]"):
            store.restore({"w": jnp.ones(3), "m": jnp.ones(2), "z": jnp.float32(0)})
        with pytest.raises(CheckpointError, match=r"No checkpoint 7 in .*\[1\]"):
            store.restore({"w": jnp.ones(3), "m": jnp.ones(2)}, step=7)
