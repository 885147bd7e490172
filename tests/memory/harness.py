"""A memory system's model with its compiled functions, the tokens it reads, and comparisons."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from armt_jax.parallel.rules import path_string
from tests.memory.systems import B, S, System, T, V

IDS = V // S  # every segment has token ids of its own, so a row of the embedding table belongs to one segment


class Harness:
    """One model, and its jitted functions compiled once."""

    def __init__(self, system: System):
        self.system, self.model = system, system.model()
        self.graphdef, self.params = nnx.split(self.model)
        self._gradients = {}

    def fresh(self):
        return self.model.init_state(B)

    @functools.cached_property
    def run(self):
        """(tokens, state) -> (logits, state), nothing optional."""
        fn = jax.jit(lambda params, tokens, state: nnx.merge(self.graphdef, params)(tokens, state))
        return lambda tokens, state=None: fn(self.params, tokens, self.fresh() if state is None else state)

    @functools.cached_property
    def masked(self):
        """The same with a mask of real tokens and resets, by default all real and none."""

        @jax.jit
        def fn(params, tokens, valid, reset):
            return nnx.merge(self.graphdef, params)(tokens, valid_BxN=valid, reset_BxS=reset)

        def masked(tokens, valid=None, reset=None):
            valid = np.ones(tokens.shape, bool) if valid is None else valid
            return fn(self.params, tokens, valid, np.zeros((B, S), bool) if reset is None else reset)

        return masked

    def loop(self, tokens, state=None):
        """Segment after segment in Python: [logits per segment], [state after each]."""
        logits, states = [], []
        for start in range(0, tokens.shape[1], T):
            out, state = self.run(tokens[:, start : start + T], state)
            logits.append(np.asarray(out))
            states.append(state)
        return logits, states

    def gradients(
        self, tokens, weights, state, *, schedule="sequential", strategy="store", state_weight=0.0, bptt=None, **options
    ):
        """((objective, Losses), (gradient of parameters, of the first state)). The objective looks at the final state, too."""
        name = (schedule, strategy, bptt)
        if name not in self._gradients:
            model = self.model.with_recurrence(schedule=schedule, gradient=strategy, bptt_segments=bptt)
            graphdef = nnx.split(model)[0]

            def objective(params, state, tokens, weights, state_weight, options):
                out = nnx.merge(graphdef, params).losses(tokens, jnp.roll(tokens, -1, axis=1), weights, state, **options)
                spread = sum((jnp.sum(jnp.sin(3 * leaf)) for leaf in jax.tree.leaves(out.state)), jnp.float32(0))
                return jnp.sum(out.loss_S) + state_weight * spread, out

            self._gradients[name] = jax.jit(jax.value_and_grad(objective, argnums=(0, 1), has_aux=True))
        return self._gradients[name](self.params, state, tokens, weights, state_weight, options)


def tokens_of(seed=0, lengths=(T,) * S, batch=B):
    """Random rows; segment s draws from its own ids."""
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.integers(s * IDS, (s + 1) * IDS, (batch, n)) for s, n in enumerate(lengths)], axis=1).astype(
        np.int32
    )


TOKENS = tokens_of()


def largest(tree) -> float:
    return max((float(np.max(np.abs(leaf))) for leaf in jax.tree.leaves(tree)), default=0.0)


def close(got, want, tolerance=1e-5):
    """Equal structure, and every leaf within `tolerance` of its largest entry.

    Or of a hundredth of the largest entry of all, because a gradient may be zero but for rounding (a key's bias).
    """
    assert jax.tree.structure(got) == jax.tree.structure(want)
    floor = largest(want) / 100
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(largest(b), floor), err_msg=path_string(path))


def row(tree: Any, i: int):
    """Row i of a GridState."""
    return type(tree)(jax.tree.map(lambda a: a[:, i], tree.layers), jax.tree.map(lambda a: a[i], tree.tokens))


def differs(a, b) -> bool:
    return float(np.max(np.abs(np.asarray(a) - np.asarray(b)))) > 1e-4
