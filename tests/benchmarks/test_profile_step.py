"""Where the time of a step goes: from the profiler's trace and the compiled program."""

import jax
import jax.numpy as jnp
import pytest

from benchmarks.profile_step import Operation, operations, summarise, traced


def test_operations_of_a_program_and_their_times():
    def loop(x):
        return jax.lax.fori_loop(0, 5, lambda i, x: jnp.tanh(x @ x), x)

    x = jnp.full((64, 64), 0.01)
    compiled = jax.jit(loop).lower(x).compile()
    program = operations(compiled.as_text())
    rows = summarise(traced(lambda: jax.block_until_ready(compiled(x)), 2), program, 2)
    (product,) = [row for row in rows if row["kind"] == "product"]
    assert product["times"] == 5 and product["result"] == "f32[64,64]"
    spent = [row["ms"] for row in rows]
    assert spent == sorted(spent, reverse=True) and sum(row["share"] for row in rows) == pytest.approx(1, abs=1e-2)
    assert not any(row["operation"].startswith("while") for row in rows), "its inside is counted"


@pytest.mark.parametrize(
    "inside, kind",
    [
        ({"parameter", "dot", "add"}, "product"),
        ({"custom-call"}, "product"),
        ({"parameter", "transpose", "copy", "bitcast"}, "copy"),
        ({"parameter", "dynamic-slice", "constant"}, "copy"),
        ({"parameter", "transpose", "add"}, "other"),
        ({"broadcast", "constant"}, "other"),
    ],
)
def test_kinds(inside, kind):
    assert Operation("f32[]", "fusion", frozenset(inside)).kind == kind
