"""Memory state that goes on from batch to batch: of all rows where the source of batches says so (`carries_state`), or of a share of them
(`keep_memory` of a stage).

Row r of a batch goes on where row r of the batch before ended, so its memory does, too: detached, as part of the train state, and split
over devices like the rows of a batch. A row marked fresh starts from the empty memory instead. That one follows from the parameters (RMT's
first memory is learned), so marking it, and not storing it, lets the gradient reach them.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from armt_jax.model import MemoryTransformer, ModelConfig
from armt_jax.parallel.mesh import BATCH_AXES, process_rows, put_batch
from armt_jax.recurrence.schedules import GridState


class Carried(NamedTuple):
    """state: after the last batch. fresh_B: rows that start from the empty memory whatever `state` holds."""

    state: GridState
    fresh_B: jax.Array


# Sets these draws apart from those of batches (`tasks.base.SPLIT_IDS`): part of the key of the random stream.
_ROWS_KEPT = 3

# Which dimension runs over rows, for `sum_over_data`.
ROWS = Carried(GridState(P(None, "data"), P("data")), P("data"))


def over_rows(function: Callable[[jax.Array, int], Any], carried: Carried) -> Carried:
    """function(leaf, axis) of every leaf, where `axis` is the one that runs over rows."""
    layers = jax.tree.map(lambda leaf: function(leaf, 1), carried.state.layers)
    tokens = jax.tree.map(lambda leaf: function(leaf, 0), carried.state.tokens)
    return Carried(GridState(layers, tokens), function(carried.fresh_B, 0))


def begin(model: MemoryTransformer, carried: Carried | None) -> GridState | None:
    """The state that a batch starts from."""
    if carried is None:
        return None
    (layers, tokens), fresh_B = carried
    empty = model.init_state(fresh_B.shape[0])

    def pick(axis: int):
        def one(new, old):
            marked = fresh_B.reshape((1,) * axis + fresh_B.shape + (1,) * (old.ndim - axis - 1))
            return jnp.where(marked, new, old)

        return one

    return GridState(jax.tree.map(pick(1), empty.layers, layers), jax.tree.map(pick(0), empty.tokens, tokens))


def end(carried: Carried | None, state: GridState) -> Carried | None:
    """What the next batch starts from."""
    return None if carried is None else Carried(jax.lax.stop_gradient(state), jnp.zeros_like(carried.fresh_B))


def renew_rows(carried: Carried, kept: float, seed: int, step: int, rows: int, mesh: Mesh) -> Carried:
    """Marks rows as fresh, each with probability 1 - kept: a pure function of (seed, step) on any number of hosts."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, _ROWS_KEPT, step]))
    fresh_B = rng.random(rows) >= kept
    return carried._replace(fresh_B=carried.fresh_B | put_batch(fresh_B[process_rows(rows, mesh)], mesh))


def carried_shardings(mesh: Mesh) -> Carried:
    """Layers over `stage`, rows over `data` and `fsdp`, as a prefix of the tree."""
    rows = NamedSharding(mesh, P(BATCH_AXES))
    return Carried(GridState(NamedSharding(mesh, P("stage", BATCH_AXES)), rows), rows)


def abstract_memory(config: ModelConfig, rows: int) -> GridState:
    """Shapes of the memory state."""
    return nnx.eval_shape(lambda: MemoryTransformer(config, rngs=nnx.Rngs(0)).init_state(rows))


def remembers(config: ModelConfig) -> bool:
    """Whether anything passes from segment to segment."""
    return bool(jax.tree.leaves(abstract_memory(config, 1)))


def abstract_carried(config: ModelConfig, rows: int, mesh: Mesh) -> Carried:
    """Shapes and shardings."""
    abstract = Carried(abstract_memory(config, rows), jax.ShapeDtypeStruct((rows,), bool))
    layers, others = carried_shardings(mesh).state

    def placed(leaf, axis):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=layers if axis else others)

    return over_rows(placed, abstract)


def fresh(config: ModelConfig, rows: int, mesh: Mesh) -> Carried:
    """Every row starts from the empty memory."""
    return _maker(config, rows, mesh)()


@functools.lru_cache(maxsize=16)
def _maker(config: ModelConfig, rows: int, mesh: Mesh) -> Callable[[], Carried]:
    abstract = abstract_carried(config, rows, mesh)

    def make():
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), abstract)
        return zeros._replace(fresh_B=jnp.ones(rows, bool))

    return jax.jit(make, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, abstract))
