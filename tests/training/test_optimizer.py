"""The optimizer: schedules, clipping, decay mask, the rate of the memory parameters."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from armt_jax.parallel.rules import path_string
from armt_jax.training.optimizer import (
    OptimizerConfig,
    decay_mask,
    is_memory_path,
    learning_rate_schedule,
    make_optimizer,
    memory_learning_rate_schedule,
)

L, D, M, V = 2, 4, 3, 8

SHAPES = {
    "embed": {"table": (V, D)},
    "positions": {"table": (V, D)},
    "token_memory": {"tokens": (M, D)},
    "final_norm": {"scale": (D,)},
    "head": {"kernel": (D, V)},
    "layers": {
        "block": {
            "norm_mlp": {"bias": (L, D)},
            "attention": {"value": {"kernel": (L, D, D), "bias": (L, D)}},
        },
        "memory": {
            "tokens": (L, M, D),
            "value": {"kernel": (L, D, D)},
            "beta": {"kernel": (L, D, 1), "bias": (L, 1)},
        },
    },
}
DECAYED = {
    "head/kernel",
    "layers/block/attention/value/kernel",
    "layers/memory/value/kernel",
    "layers/memory/beta/kernel",
}
MEMORY = {
    "token_memory/tokens",
    "layers/memory/tokens",
    "layers/memory/value/kernel",
    "layers/memory/beta/kernel",
    "layers/memory/beta/bias",
}


def random_tree(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    arrays = jax.tree.map(
        lambda shape: scale * rng.normal(size=shape), SHAPES, is_leaf=lambda node: isinstance(node, tuple)
    )
    return jax.tree.map(lambda array: jnp.asarray(array, jnp.float32), arrays)


def flat(tree):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    }


def run(optimizer, params, gradients):
    state = optimizer.init(params)
    step = jax.jit(optimizer.update)
    for gradient in gradients:
        updates, state = step(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def as_state(tree):
    return nnx.State(jax.tree.map(nnx.Param, tree))


def assert_trees_equal(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **(tolerance or {"rtol": 0, "atol": 0})), a, b)


@pytest.mark.parametrize(
    "schedule, half, end",
    [("constant", 0.4, 0.4), ("linear", 0.4 * 0.55, 0.04), ("cosine", 0.4 * 0.55, 0.04)],
)
def test_schedule_at_known_steps(schedule, half, end):
    config = OptimizerConfig(learning_rate=0.4, schedule=schedule, warmup_steps=10, final_scale=0.1)
    rate = learning_rate_schedule(config, 110)
    expected = {0: 0.0, 5: 0.2, 10: 0.4, 60: half, 110: end, 1000: end}
    np.testing.assert_allclose([rate(step) for step in expected], list(expected.values()), rtol=1e-6)


def test_schedule_without_warmup_starts_at_the_peak_and_decay_steps_sets_its_length():
    config = OptimizerConfig(learning_rate=0.4, memory_learning_rate=0.8, schedule="linear", decay_steps=20)
    for rate, peak in ((learning_rate_schedule(config, 500), 0.4), (memory_learning_rate_schedule(config, 500), 0.8)):
        np.testing.assert_allclose([rate(0), rate(10), rate(20)], [peak, peak / 2, 0.0], rtol=1e-6)


def test_cosine_is_a_cosine():
    rate = learning_rate_schedule(OptimizerConfig(learning_rate=1.0, schedule="cosine"), 100)
    np.testing.assert_allclose(rate(25), (1 + np.cos(np.pi / 4)) / 2, rtol=1e-6)


def test_decay_mask_picks_exactly_the_matrices():
    mask = flat(decay_mask(OptimizerConfig(), random_tree(0)))
    assert {path for path, decays in mask.items() if decays} == DECAYED
    assert all(flat(decay_mask(OptimizerConfig(decay_mask="all"), random_tree(0))).values())


def test_only_masked_leaves_shrink():
    params = random_tree(0)
    config = OptimizerConfig(learning_rate=0.1, weight_decay=0.5)
    moved, _ = run(make_optimizer(config, 1), params, [jax.tree.map(jnp.zeros_like, params)])
    for path, before in flat(params).items():
        factor = 1 - 0.1 * 0.5 if path in DECAYED else 1.0
        np.testing.assert_allclose(flat(moved)[path], factor * before, rtol=1e-6, err_msg=path)


def test_memory_paths():
    assert {path for path in flat(random_tree(0)) if is_memory_path(path)} == MEMORY
    assert not is_memory_path("layers/block/memory_norm/scale") and not is_memory_path("head/token_memory")


@pytest.mark.parametrize("mask", ["matrices", "all"])
@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_equals_optax_adamw_without_a_memory_rate(schedule, mask):
    config = OptimizerConfig(
        learning_rate=3e-2,
        schedule=schedule,
        warmup_steps=2,
        b1=0.8,
        b2=0.95,
        eps=1e-6,
        weight_decay=0.1,
        decay_mask=mask,
    )
    params, gradients = random_tree(0), [random_tree(seed) for seed in range(1, 6)]
    reference = optax.adamw(
        learning_rate_schedule(config, 5), b1=0.8, b2=0.95, eps=1e-6, weight_decay=0.1, mask=decay_mask(config, params)
    )
    ours, _ = run(make_optimizer(config, 5), params, gradients)
    theirs, _ = run(reference, params, gradients)
    assert_trees_equal(ours, theirs, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_memory_leaves_move_by_the_ratio_of_the_rates(weight_decay):
    plain = OptimizerConfig(learning_rate=1e-2, schedule="linear", weight_decay=weight_decay)
    separate = dataclasses.replace(plain, memory_learning_rate=3e-2)
    params, gradient = random_tree(0), random_tree(1)
    updates = []
    for config in (plain, separate):
        optimizer = make_optimizer(config, 4)
        state = optimizer.init(params)
        for _ in range(3):  # parameters held still, so that the third update differs by the rate alone
            update, state = optimizer.update(gradient, state, params)
        updates.append(flat(update))
    for path in updates[0]:
        factor = 3.0 if path in MEMORY else 1.0
        np.testing.assert_allclose(updates[1][path], factor * updates[0][path], rtol=1e-6, err_msg=path)


@pytest.mark.parametrize(
    "rates, still",
    [
        ({"learning_rate": 0.0, "memory_learning_rate": 0.1}, False),
        ({"learning_rate": 0.1, "memory_learning_rate": 0.0}, True),
    ],
)
def test_rate_zero_freezes(rates, still):
    params = random_tree(0)
    moved, _ = run(
        make_optimizer(OptimizerConfig(weight_decay=0.1, **rates), 2), params, [random_tree(1), random_tree(2)]
    )
    for path, before in flat(params).items():
        assert np.array_equal(flat(moved)[path], before) == ((path in MEMORY) == still), path


def test_clip_by_norm_counts_all_gradients():
    params, gradient = random_tree(0), random_tree(1, scale=10.0)
    norm = float(optax.tree.norm(gradient))
    clipped = jax.tree.map(lambda leaf: leaf * (0.5 / norm), gradient)
    _, state = run(make_optimizer(OptimizerConfig(clip="norm", clip_at=0.5), 1), params, [gradient])
    _, expected = run(make_optimizer(OptimizerConfig(), 1), params, [clipped])
    assert_trees_equal(state, expected, rtol=1e-5)
    first_moment = optax.tree.get(state, "mu")
    np.testing.assert_allclose(float(optax.tree.norm(first_moment)) / (1 - 0.9), 0.5, rtol=1e-5)


@pytest.mark.parametrize("frozen", ["the memory", "all else"])
def test_frozen_parameters_do_not_count_in_the_norm_that_is_clipped(frozen):
    params, gradient, larger = random_tree(0), random_tree(1, scale=10.0), random_tree(1, scale=1000.0)
    mix = lambda path, a, b: b if is_memory_path(path_string(path)) == (frozen == "the memory") else a
    larger = jax.tree_util.tree_map_with_path(mix, gradient, larger)
    rate, memory_rate = {"the memory": (0.1, 0.0), "all else": (0.0, 0.1)}[frozen]
    config = OptimizerConfig(learning_rate=rate, memory_learning_rate=memory_rate, clip="norm", clip_at=0.5)
    _, state = run(make_optimizer(config, 1), params, [larger])
    _, expected = run(make_optimizer(config, 1), params, [gradient])
    assert_trees_equal(state, expected)
    np.testing.assert_allclose(float(optax.tree.norm(optax.tree.get(state, "mu"))) / (1 - 0.9), 0.5, rtol=1e-5)


def test_clip_by_value_and_small_gradients_untouched():
    params, gradient = random_tree(0), random_tree(1)
    clipped = jax.tree.map(lambda leaf: jnp.clip(leaf, -0.5, 0.5), gradient)
    assert float(jnp.max(jnp.abs(gradient["embed"]["table"]))) > 0.5
    _, state = run(make_optimizer(OptimizerConfig(clip="value", clip_at=0.5), 1), params, [gradient])
    _, expected = run(make_optimizer(OptimizerConfig(), 1), params, [clipped])
    assert_trees_equal(state, expected)
    for clip in ("norm", "value"):
        untouched, _ = run(make_optimizer(OptimizerConfig(clip=clip, clip_at=1e3), 1), params, [gradient])
        assert_trees_equal(untouched, run(make_optimizer(OptimizerConfig(), 1), params, [gradient])[0])


def test_accumulated_gradients_give_the_step_of_their_mean():
    config = OptimizerConfig(learning_rate=1e-2, memory_learning_rate=3e-2, weight_decay=0.1, clip="norm")
    params, parts = random_tree(0), [random_tree(seed) for seed in range(1, 5)]
    accumulating = optax.MultiSteps(make_optimizer(config, 2), every_k_schedule=2)
    means = [jax.tree.map(lambda x, y: (x + y) / 2, a, b) for a, b in (parts[:2], parts[2:])]
    accumulated, _ = run(accumulating, params, parts)
    whole, _ = run(make_optimizer(config, 2), params, means)
    assert_trees_equal(accumulated, whole, rtol=1e-5, atol=1e-6)


def test_state_has_one_structure_and_works_abstractly():
    params = random_tree(0)
    variants = [
        OptimizerConfig(),
        OptimizerConfig(memory_learning_rate=0.1, schedule="cosine", warmup_steps=1, clip="norm", weight_decay=0.1),
        OptimizerConfig(decay_mask="all", clip="value", schedule="linear"),
    ]
    states = [jax.eval_shape(make_optimizer(config, 9).init, params) for config in variants]
    assert len({jax.tree.structure(state) for state in states}) == 1
    assert states[0] == jax.eval_shape(
        lambda p, g, s: make_optimizer(variants[1], 9).update(g, s, p)[1], params, params, states[0]
    )


def test_nnx_state_gives_the_same_numbers_and_runs_are_repeatable():
    config = OptimizerConfig(memory_learning_rate=3e-2, weight_decay=0.1, clip="norm")
    params, gradients = random_tree(0), [random_tree(1), random_tree(2)]
    plain, _ = run(make_optimizer(config, 2), params, gradients)
    again, _ = run(make_optimizer(config, 2), params, gradients)
    wrapped, _ = run(make_optimizer(config, 2), as_state(params), [as_state(gradient) for gradient in gradients])
    assert_trees_equal(plain, again)
    assert_trees_equal(nnx.to_pure_dict(wrapped), plain)


@pytest.mark.parametrize(
    "field, value, rule",
    [
        ("learning_rate", -1.0, ">= 0"),
        ("learning_rate", float("nan"), "finite"),
        ("learning_rate", "1e-3", "number"),
        ("memory_learning_rate", -0.1, ">= 0"),
        ("schedule", "cosin", "constant, linear, cosine"),
        ("warmup_steps", -1, ">= 0"),
        ("decay_steps", 0, ">= 1"),
        ("final_scale", 1.5, "share"),
        ("b1", 1.0, r"\[0, 1\)"),
        ("eps", 0.0, "> 0"),
        ("weight_decay", True, "number"),
        ("decay_mask", "none", "matrices, all"),
        ("clip", "global", "none, norm, value"),
        ("clip_at", 0, "clip='none'"),
    ],
)
def test_config_errors_name_field_value_and_rule(field, value, rule):
    with pytest.raises(ValueError, match=rule) as error:
        OptimizerConfig(**{field: value})
    assert f"train.optimizer.{field} = {value!r} " in str(error.value)


def test_warmup_must_fit_into_the_schedule():
    with pytest.raises(ValueError, match="train.optimizer.warmup_steps = 10 .*linear schedule, 10 steps"):
        OptimizerConfig(schedule="linear", warmup_steps=10, decay_steps=10)
    with pytest.raises(ValueError, match="train.optimizer.warmup_steps = 10 .*cosine schedule, 5 steps"):
        make_optimizer(OptimizerConfig(schedule="cosine", warmup_steps=10), 5)
    with pytest.raises(ValueError, match="steps=0"):
        make_optimizer(OptimizerConfig(), 0)
