"""A loss or a gradient that is not finite stops the run."""

import types

import numpy as np
import pytest

from armt_jax.training.loop import Run
from armt_jax.training.stops import NonFiniteLoss
from tests.training.runs import metrics, restore, saved, steps_behind


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"loss": np.nan, "bad_segment": 2}, "segment 2"),
        ({"gradient_norm": np.inf}, "gradient"),
        ({"loss": np.nan, "bad_segment": 0, "gradient_norm": np.nan}, "segment 0"),
    ],
)
def test_a_loss_that_is_not_finite_stops_the_run(counting, tmp_path, start, bad, said):
    counting.bad = {7: bad, 8: {"loss": np.nan, "bad_segment": 1}}
    with pytest.raises(NonFiniteLoss) as error:
        counting.run(tmp_path, train__checkpoint_every=6)
    assert all(part in str(error.value) for part in ("step 7", "stage 1", said, "last checkpoint is step 6")), error.value
    assert saved(tmp_path)[-1] == 6 and [row["step"] for row in metrics(tmp_path)] == [4, 5]
    last = restore(tmp_path, counting.config)
    assert last.step == 6 and steps_behind(last.state, start) == 6
    counting.bad, counting.done = {}, []
    assert counting.run(tmp_path, train__checkpoint_every=6).step == 16 and counting.done[0] == 7


def test_a_divergence_before_the_first_checkpoint(counting, tmp_path):
    counting.bad = {1: {"loss": np.inf, "bad_segment": 0}}
    with pytest.raises(NonFiniteLoss, match=r"step 1 .*segment 0.*no checkpoint was saved yet"):
        counting.run(tmp_path)
    assert saved(tmp_path) == []


@pytest.mark.parametrize(
    ("what", "dtype", "nvidia", "variable", "named"),
    [
        ("gradient", "bfloat16", True, "", True), ("gradient", "float32", True, "", False), ("gradient", "bfloat16", False, "", False),
        ("loss of segment 0", "bfloat16", True, "", False), ("gradient", "bfloat16", True, "xla", False),
    ],
)  # fmt: skip
def test_a_gradient_that_the_attention_kernel_may_have_spoilt(monkeypatch, what, dtype, nvidia, variable, named):
    monkeypatch.setattr("armt_jax.nn.attention._on_cuda", lambda: nvidia)
    monkeypatch.setenv("ARMT_JAX_ATTENTION", variable)
    said = Run._other_attention(types.SimpleNamespace(model=types.SimpleNamespace(dtype=dtype)), what)
    assert ("ARMT_JAX_ATTENTION=xla" in said) == named == bool(said)
