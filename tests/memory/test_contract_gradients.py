"""The contract of gradients: the same under every schedule and strategy, and reaching exactly as far as they may."""

import dataclasses

import jax
import numpy as np
import pytest

from armt_jax.memory.associative import ARMT
from armt_jax.memory.hidden_cache import TransformerXLCache
from armt_jax.memory.layer_tokens import ParallelRMT
from armt_jax.memory.recurrent_tokens import RMT
from armt_jax.parallel.rules import path_string
from tests.memory.harness import TOKENS, Harness, close, tokens_of
from tests.memory.systems import GPT2_, SMALL, B, S, System, T

OWN = [("sequential", "reversible"), ("diagonal", "reversible")]  # what takes a memory's own `undo`
GOLDEN = ("armt", "armt-no-correction", "rmt")
# Autodiff of the same tick for every memory, so two stand for all.
AUTODIFF, ON = [("sequential", "remat"), ("diagonal", "store"), ("diagonal", "remat")], ("armt", "gated-slots")


def lengths(align: str) -> tuple[int, ...]:
    return (T,) * (S - 1) + (2,) if align == "left" else (2,) + (T,) * (S - 1)


def everything(system: System):
    """A ragged row with padding, a dead segment in row 0, a peek in row 1, resets, truncation, dropout, from a memory that is not empty.

    All of it in one run of ticks between anchors, with live segments before and after.
    """
    tokens = tokens_of(seed=5, lengths=lengths(system.align))
    starts = np.cumsum((0, *lengths(system.align)))
    valid = np.ones(tokens.shape, bool)
    valid[0, starts[2] : starts[3]] = False
    valid[1, starts[2] - 1] = valid[1, -2] = False
    reset = np.zeros((B, S), bool)
    reset[0, 3] = reset[1, 0] = True
    peek = np.zeros((B, S), bool)
    peek[1, 2] = True
    weights = np.random.default_rng(6).uniform(0.5, 1.5, tokens.shape).astype(np.float32)
    weights[:, ::5] = 0
    return tokens, weights, dict(bptt=3, valid_BxN=valid, reset_BxS=reset, peek_BxS=peek, key=jax.random.key(7))


def outcome(harness, tokens, weights, state, schedule, strategy, **options):
    (value, out), grads = harness.gradients(
        tokens, weights, state, schedule=schedule, strategy=strategy, state_weight=0.1, **options
    )
    params, first = grads
    return dict(value=value, loss=out.loss_S, weight=out.weight_S, state=out.state, params=params, first=first), out.correct_BxN


@pytest.mark.parametrize("case", ["everything", "plain"])
def test_schedules_and_strategies_agree(harness, case):
    """Loss of every segment, state, gradients of every parameter and of the first state."""
    if case == "plain" and harness.system.name in GOLDEN:
        pytest.skip("compared with the published code without masks or resets, store and reversible (test_verify.py)")
    if case == "everything":
        tokens, weights, options = everything(harness.system)
        _, state = harness.run(tokens_of(seed=4))
        combinations = OWN + (AUTODIFF if harness.system.name in ON else [])
    else:
        # No mask, no reset; on a diagonal there are always masks, so that is as above.
        tokens, weights, options = TOKENS, np.ones(TOKENS.shape, np.float32), {}
        state = harness.fresh()
        combinations = [("sequential", "reversible")]
    want, correct = outcome(harness, tokens, weights, state, "sequential", "store", **options)
    assert np.isfinite(want["value"])
    for schedule, strategy in combinations:
        if schedule == "diagonal" and not harness.system.local:
            continue
        got, right = outcome(harness, tokens, weights, state, schedule, strategy, **options)
        np.testing.assert_array_equal(right, correct, err_msg=f"{schedule} {strategy}")
        for part in want:
            close(got[part], want[part], 3e-5)


def test_a_cost_of_writing_is_counted_once_a_write_under_every_schedule_and_strategy():
    """Also where there are cells outside the grid (diagonals), segments that are dead in a row and layers that write nothing."""
    memory = ARMT(**SMALL, key_norm="l2", like_writes="share", gate="hard", write_cost=0.05, first_layer=1)
    system = System("armt-write-cost", GPT2_, memory)
    harness = Harness(system)
    tokens, weights, options = everything(system)
    _, state = harness.run(tokens_of(seed=4))
    want, _ = outcome(harness, tokens, weights, state, "sequential", "store", **options)
    for schedule, strategy in OWN + AUTODIFF:
        got, _ = outcome(harness, tokens, weights, state, schedule, strategy, **options)
        for part in want:
            close(got[part], want[part], 3e-5)
    free = Harness(dataclasses.replace(system, memory=dataclasses.replace(system.memory, write_cost=0.0)))
    without, _ = outcome(free, tokens, weights, state, "sequential", "store", **options)
    close(without["value"], want["value"], 1e-6)
    bias = {name: named(got["params"])["layers/memory/beta/bias"] for name, got in (("with", want), ("without", without))}
    below, above = bias["with"] - bias["without"]
    assert below == 0 and above > 0.05, "gates are cheaper shut, where there are any"


def named(tree):
    return {path_string(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def segments_of(grads) -> list[int]:
    """Segments whose token embeddings got a gradient."""
    leaves = [(path_string(path), np.abs(leaf)) for path, leaf in jax.tree_util.tree_leaves_with_path(grads)]
    rows = np.concatenate([leaf.max(axis=-1) for name, leaf in leaves if name.startswith("embed/table")])
    return list(np.flatnonzero(rows.reshape(S, -1).max(axis=-1)))


def segments_reached(harness, loss_segment: int, schedule: str, strategy: str, bptt) -> list[int]:
    """Segments whose token embeddings get a gradient from the loss of one segment."""
    cut = lengths(harness.system.align)
    starts = np.cumsum((0, *cut))
    tokens = tokens_of(seed=8, lengths=cut)
    weights = np.zeros(tokens.shape, np.float32)
    weights[:, starts[loss_segment] : starts[loss_segment + 1]] = 1
    options = dict(valid_BxN=np.ones(tokens.shape, bool), reset_BxS=np.zeros((B, S), bool), key=jax.random.key(7))
    _, (grads, _) = harness.gradients(
        tokens, weights, harness.fresh(), schedule=schedule, strategy=strategy, bptt=bptt, **options
    )
    return segments_of(grads)


@pytest.mark.parametrize("schedule, strategy", [("sequential", "store"), *OWN])
def test_gradient_reaches_exactly_as_far_as_the_truncation(harness, schedule, strategy):
    """Stretches of 3 segments counted from the end: {0}, {1, 2, 3}."""
    if schedule == "diagonal" and not harness.system.local:
        pytest.skip("refused by the config: the state is not layer-local")
    for s in range(S):
        stretch = range(1, s + 1) if s else range(0, 1)
        want = [i for i in stretch if s - i <= harness.system.reach]
        assert segments_reached(harness, s, schedule, strategy, bptt=3) == want, f"loss of segment {s}"


@pytest.mark.parametrize("schedule", ["sequential", "diagonal"])
def test_truncation_leaves_a_learned_first_state_its_gradient(harness, schedule):
    """Two stretches of two segments: the first of them starts from the memory's own parameters."""
    if not isinstance(harness.system.memory, (RMT, ParallelRMT)) or (schedule == "diagonal" and not harness.system.local):
        pytest.skip("the first state is empty, or the config refuses the schedule")
    weights = np.zeros(TOKENS.shape, np.float32)
    weights[:, : 2 * T] = 1
    _, (grads, _) = harness.gradients(TOKENS, weights, None, schedule=schedule, bptt=2)
    learned = [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(grads) if path_string(path).endswith("memory/tokens")]
    assert len(learned) == 1 and np.abs(learned[0]).max() > 1e-3


def test_without_truncation_the_gradient_reaches_the_first_segment(harness):
    weights = np.zeros(TOKENS.shape, np.float32)
    weights[:, -T:] = 1
    _, (grads, first) = harness.gradients(TOKENS, weights, harness.fresh())
    assert segments_of(grads) == [s for s in range(S) if S - 1 - s <= harness.system.reach]
    # An empty cache has nothing to give a gradient to.
    if harness.system.reach >= S and not isinstance(harness.system.memory, TransformerXLCache):
        assert all(np.any(leaf) for leaf in jax.tree.leaves(first))
