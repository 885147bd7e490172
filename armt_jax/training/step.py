"""One training step and one evaluation step, jitted over a mesh."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import PartitionSpec as P

from armt_jax.model import MemoryTransformer, ModelConfig
from armt_jax.nn.layers import row_keys
from armt_jax.parallel.mesh import check_rows, process_rows, put_batch, replicated, sum_over_data
from armt_jax.parallel.rules import shardings, shardings_like
from armt_jax.tasks import Batch, BatchSource, exact_match
from armt_jax.tasks.workers import IN_PROCESS, BatchMaker
from armt_jax.telemetry.flops import count_flops
from armt_jax.training.carried import ROWS, Carried, abstract_carried, begin, carried_shardings, end, over_rows


class TrainState(NamedTuple):
    """carried: memory that goes on from batch to batch; None where every batch starts with empty memories."""

    params: Any
    opt_state: Any
    carried: Carried | None = None


class StepMetrics(NamedTuple):
    """Sums and weights, on the device until somebody asks. `bad_segment`: the first with a non-finite loss, or -1."""

    loss: jax.Array
    weight: jax.Array
    right: jax.Array
    answers: jax.Array
    gradient_norm: jax.Array
    update_norm: jax.Array
    bad_segment: jax.Array


def abstract_model(config: ModelConfig) -> tuple[Any, Any]:
    """(graphdef, parameters as shapes): nothing is allocated."""
    return nnx.split(nnx.eval_shape(lambda: MemoryTransformer(config, rngs=nnx.Rngs(0))))


def create_params(config: ModelConfig, seed: int, mesh) -> Any:
    """Initial parameters, born sharded: no host ever holds the whole model."""
    _, abstract = abstract_model(config)

    def init():
        return nnx.split(MemoryTransformer(config, rngs=nnx.Rngs(seed)))[1]

    return jax.jit(init, out_shardings=shardings(abstract, mesh))()


def abstract_params(config: ModelConfig, mesh) -> Any:
    """Shapes and shardings of the parameters."""
    _, params = abstract_model(config)
    return jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), params, shardings(params, mesh))


def create_opt_state(optimizer: optax.GradientTransformation, params: Any, mesh) -> Any:
    """A fresh optimizer state, laid out like the parameters."""
    return jax.jit(optimizer.init, out_shardings=opt_state_shardings(optimizer, params, mesh))(params)


def opt_state_shardings(optimizer: optax.GradientTransformation, params: Any, mesh) -> Any:
    abstract = jax.eval_shape(optimizer.init, params)
    return shardings_like(abstract, params, shardings(params, mesh), mesh)


def abstract_state(config: ModelConfig, optimizer: optax.GradientTransformation, mesh, carried_rows: int | None = None) -> TrainState:
    """Shapes and shardings of a train state, to restore into. carried_rows: how many rows carry their memory along; None: no memory is."""
    _, params = abstract_model(config)
    placed = TrainState(shardings(params, mesh), opt_state_shardings(optimizer, params, mesh))
    state = TrainState(params, jax.eval_shape(optimizer.init, params))
    state = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), state, placed)
    return state if carried_rows is None else state._replace(carried=abstract_carried(config, carried_rows, mesh))


class Sums(NamedTuple):
    """What a batch adds up to. Parts of a batch, on one device after another or on several at once, simply add."""

    loss_S: jax.Array
    weight: jax.Array
    right: jax.Array
    answers: jax.Array


def _metrics(sums: Sums) -> StepMetrics:
    bad = ~jnp.isfinite(sums.loss_S)
    first = jnp.where(jnp.any(bad), jnp.argmax(bad), -1)
    return StepMetrics(sums.loss_S.sum(), sums.weight, sums.right, sums.answers, jnp.zeros(()), jnp.zeros(()), first)


def _loss(graphdef, num_answers: int, params, carried: Carried | None, batch: Batch, keys_B):
    model = nnx.merge(graphdef, params)
    out = model.losses(
        batch.tokens_BxN, batch.targets_BxN, batch.weights_BxN, begin(model, carried), valid_BxN=batch.valid_BxN,
        reset_BxS=batch.reset_BxS, peek_BxS=batch.peek_BxS, key=keys_B,
    )  # fmt: skip
    right, answers = exact_match(out.correct_BxN, batch.answers_BxN, num_answers)
    return out.loss_S.sum(), (Sums(out.loss_S, out.weight_S.sum(), right, answers), end(carried, out.state))


def _cut(a, axis: int, parts: int):
    """Row i goes to part i % parts: every device keeps rows of every part."""
    return jnp.moveaxis(a.reshape(*a.shape[:axis], -1, parts, *a.shape[axis + 1 :]), axis + 1, 0)


def _paste(a, axis: int):
    """The inverse of `_cut`."""
    a = jnp.moveaxis(a, 0, axis + 1)
    return a.reshape(*a.shape[:axis], -1, *a.shape[axis + 2 :])


def sum_gradients(graphdef, num_answers: int, accumulate: int, params, carried: Carried | None, batch: Batch, keys_B):
    """((gradient of the summed loss, sums), carried) of the batch, computed in `accumulate` parts one after the other."""
    grad = jax.value_and_grad(functools.partial(_loss, graphdef, num_answers), has_aux=True)

    def one(carried, batch, keys_B):
        (_, (sums, carried)), total = grad(params, carried, batch, keys_B)
        return (total, sums), carried

    if accumulate == 1:
        return one(carried, batch, keys_B)
    rows = jax.tree.map(lambda a: _cut(a, 0, accumulate), (batch, keys_B))
    parts = (None if carried is None else over_rows(lambda a, axis: _cut(a, axis, accumulate), carried), *rows)
    shape, _ = jax.eval_shape(one, *jax.tree.map(lambda a: a[0], parts))
    start = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shape)

    def add(sums, part):
        more, carried = one(*part)
        return jax.tree.map(jnp.add, sums, more), carried

    sums, carried = jax.lax.scan(add, start, parts)
    return sums, None if carried is None else over_rows(_paste, carried)


def gradients(graphdef, num_answers: int, accumulate: int, mesh, params, carried: Carried | None, batch: Batch, key):
    """(gradient of the weighted mean loss over the whole batch, metrics, carried). Sums are added, over parts and devices, and the division
    comes last, so parts with unequal weights count by their weights. Every row draws from a key of its own, wherever it is computed."""
    check_rows(batch.tokens_BxN.shape[0], accumulate, mesh)
    keys_B = None if key is None else row_keys(key, batch.tokens_BxN.shape[0])
    compute = functools.partial(sum_gradients, graphdef, num_answers, accumulate)
    (total, sums), carried = sum_over_data(compute, mesh, _row_specs(carried))(params, carried, batch, keys_B)
    scale = 1.0 / jnp.maximum(sums.weight, 1e-9)
    return jax.tree.map(lambda g: g * scale, total), _metrics(sums), carried


def _row_specs(carried: Carried | None):
    return P() if carried is None else ROWS


def make_train_step(
    config: ModelConfig, optimizer: optax.GradientTransformation, mesh, *, num_answers: int, accumulate: int, carries: bool = False
) -> Callable[[TrainState, Batch, jax.Array], tuple[TrainState, StepMetrics]]:
    """step(state, batch, key) -> (state, metrics). The old state's buffers are donated. carries: the state holds carried memory."""
    graphdef, _ = abstract_model(config)
    placed = jax.tree.map(lambda a: a.sharding, abstract_state(config, optimizer, mesh))
    placed = placed._replace(carried=carried_shardings(mesh) if carries else None)
    dropout = config.backbone.dropout > 0 or config.memory.layer_class.needs_rng or config.memory.token_class.needs_rng

    @functools.partial(jax.jit, donate_argnums=0, out_shardings=(placed, replicated(mesh)))
    def step(state: TrainState, batch: Batch, key):
        key = key if dropout else None
        grads, metrics, carried = gradients(graphdef, num_answers, accumulate, mesh, state.params, state.carried, batch, key)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        norms = dict(gradient_norm=optax.tree.norm(grads), update_norm=optax.tree.norm(updates))
        return TrainState(params, opt_state, carried), metrics._replace(**norms)

    return step


def model_flops(config: ModelConfig, num_answers: int, state: TrainState, batch: Batch) -> int:
    """Matrix-product operations of a training step, all devices together, without rematerialisation."""
    plain = dataclasses.replace(config.recurrence, schedule="sequential", gradient="store")
    graphdef, _ = abstract_model(dataclasses.replace(config, recurrence=plain))
    gradient = lambda *args: sum_gradients(graphdef, num_answers, 1, *args, None)[0][0]
    return count_flops(gradient, state.params, state.carried, batch)


def make_evaluation_step(
    config: ModelConfig, mesh, *, num_answers: int, carries: bool = False
) -> Callable[[Any, Carried | None, Batch], tuple[StepMetrics, Carried | None]]:
    """step(params, carried, batch) -> (metrics, carried); no gradient, no dropout."""
    graphdef, _ = abstract_model(config)

    @functools.partial(jax.jit, out_shardings=(replicated(mesh), carried_shardings(mesh) if carries else None))
    def step(params, carried: Carried | None, batch: Batch):
        compute = functools.partial(_loss, graphdef, num_answers)
        sums, carried = sum_over_data(lambda *args: compute(*args)[1], mesh, _row_specs(carried))(params, carried, batch, None)
        return _metrics(sums), carried

    return step


class Totals(NamedTuple):
    """Sums over batches, on the host."""

    loss: float
    weight: float
    right: float
    answers: float


def measure(step, params, carried: Carried | None, batches: Iterable[Batch], mesh) -> Totals:
    """Sums over batches (this process's rows of them). carried: fresh, where their source carries state."""
    total = np.zeros(len(Totals._fields))
    for batch in batches:
        metrics, carried = step(params, carried, put_batch(batch, mesh))
        metrics = jax.device_get(metrics)
        total += [getattr(metrics, name) for name in Totals._fields]
    return Totals(*map(float, total))


def read_batches(
    source: BatchSource, mesh, *, seed: int, split: str, batch_size: int, batches: int | None, maker: BatchMaker = IN_PROCESS
) -> Iterator[Batch]:
    """This process's rows of the first batches of a split, or (None) of all there are."""
    rows, steps = process_rows(batch_size, mesh), range(count_batches(source, batch_size, split, batches))
    return maker.batches(source, seed=seed, split=split, batch_size=batch_size, rows=rows, steps=steps)


def count_batches(source: BatchSource, batch_size: int, split: str, batches: int | None) -> int:
    """How many batches to read: those asked for (None: all), and no more than there are."""
    there = source.num_steps(batch_size, split)
    if there is None and batches is None:
        raise ValueError(f"the {split} split of {source.name} has no end: give a number of batches")
    return min(n for n in (there, batches) if n is not None)
