"""AdamW with clipping, a schedule, and a learning rate of its own for the memory parameters.

    clip all gradients (of what moves)  ->  Adam  ->  + weight_decay * parameter  ->  * (-rate of the leaf at this step)

The rate of a leaf is the schedule with peak `learning_rate`, or `memory_learning_rate` for the memory parameters.
Parameters whose rate is 0 are frozen: their gradients count as zero, in the norm that is clipped, too.
Weight decay is decoupled and multiplied by the same rate, so without a memory rate this is exactly `optax.adamw`.
The optimizer state has the same structure whatever the rates, the schedule and the clipping: a later stage of a
curriculum may change them and keep the state (see `restart_schedule`).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from armt_jax.parallel.rules import path_string
from armt_jax.settings import OptimizerConfig, is_count


def is_memory_path(path: str) -> bool:
    """Whether a parameter belongs to the memory: a component named 'memory', or below 'token_memory'."""
    components = path.split("/")
    return "memory" in components or components[0] == "token_memory"


def is_decayed(path: str, ndim: int) -> bool:
    """The "matrices" mask: matrices of one layer, but no embeddings, position tables or memory tokens.

    Everything under 'layers/' has a leading layer axis, which does not count.
    """
    components = path.split("/")
    is_table = components[0] in ("embed", "positions") or components[-1] == "tokens"
    return ndim - (components[0] == "layers") >= 2 and not is_table


def decay_mask(config: OptimizerConfig, params: Any) -> Any:
    """Tree of booleans in the shape of `params`: which leaves decay."""
    if config.decay_mask == "all":
        return jax.tree.map(lambda _: True, params)
    return jax.tree_util.tree_map_with_path(lambda path, leaf: is_decayed(path_string(path), leaf.ndim), params)


def learning_rate_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """The rate at each step, counted from 0, for a stage of `steps` steps."""
    peak = config.learning_rate
    if not is_count(steps, 1):
        raise ValueError(f"steps={steps!r}: a schedule needs an integer >= 1, the number of optimizer steps of the stage")
    length = steps if config.decay_steps is None else config.decay_steps
    config.check_warmup(length)
    if config.schedule == "constant":
        body = optax.constant_schedule(peak)
    elif config.schedule == "linear":
        body = optax.linear_schedule(peak, peak * config.final_scale, length - config.warmup_steps)
    else:
        body = optax.cosine_decay_schedule(peak, length - config.warmup_steps, alpha=config.final_scale)
    if config.warmup_steps == 0:
        return body
    warmup = optax.linear_schedule(0.0, peak, config.warmup_steps)
    return optax.join_schedules([warmup, body], [config.warmup_steps])


def memory_learning_rate_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """The same for the memory parameters."""
    if config.memory_learning_rate is None:
        return learning_rate_schedule(config, steps)
    return learning_rate_schedule(dataclasses.replace(config, learning_rate=config.memory_learning_rate), steps)


def _without_frozen(config: OptimizerConfig, gradients: Any) -> Any:
    """Zeros for the parameters that a rate of 0 keeps as they are."""
    rate, memory_rate = config.learning_rate, config.memory_learning_rate
    frozen = {False: rate == 0, True: (rate if memory_rate is None else memory_rate) == 0}
    if not any(frozen.values()):
        return gradients
    zero = lambda path, leaf: jnp.zeros_like(leaf) if frozen[is_memory_path(path_string(path))] else leaf
    return jax.tree_util.tree_map_with_path(zero, gradients)


def _clip(config: OptimizerConfig) -> optax.GradientTransformation:
    clips = {"norm": optax.clip_by_global_norm, "value": optax.clip}
    inner = clips[config.clip](config.clip_at) if config.clip in clips else optax.identity()

    def update(gradients, state, params=None):
        return inner.update(_without_frozen(config, gradients), state, params)

    return optax.GradientTransformation(inner.init, update)


def _scale_by_two_rates(rate: optax.Schedule, memory_rate: optax.Schedule) -> optax.GradientTransformation:
    """`optax.scale_by_learning_rate` with a second schedule for the memory leaves; always counts its steps."""

    def init(params):
        del params
        return optax.ScaleByScheduleState(count=jnp.zeros([], jnp.int32))

    def update(updates, state, params=None):
        del params
        step_rate, memory_step_rate = rate(state.count), memory_rate(state.count)

        def scale(path, leaf):
            leaf_rate = memory_step_rate if is_memory_path(path_string(path)) else step_rate
            return jnp.asarray(-leaf_rate, dtype=leaf.dtype) * leaf

        updates = jax.tree_util.tree_map_with_path(scale, updates)
        return updates, optax.ScaleByScheduleState(count=optax.safe_increment(state.count))

    return optax.GradientTransformation(init, update)


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """The optimizer of a stage of `steps` optimizer steps. `update` needs the parameters (for the weight decay)."""
    return optax.chain(
        _clip(config),
        optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps),
        optax.add_decayed_weights(config.weight_decay, mask=lambda params: decay_mask(config, params)),
        _scale_by_two_rates(learning_rate_schedule(config, steps), memory_learning_rate_schedule(config, steps)),
    )


def restart_schedule(opt_state: Any) -> Any:
    """The same optimizer state with its schedule at step 0: Adam's moments, and the count that corrects their bias, go on."""

    def counts(node: Any) -> bool:
        return isinstance(node, optax.ScaleByScheduleState)

    def restart(node: Any) -> Any:
        return node._replace(count=jnp.zeros_like(node.count)) if counts(node) else node

    return jax.tree.map(restart, opt_state, is_leaf=counts)
