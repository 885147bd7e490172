"""The diagonal schedule with layers over `stage`: what it computes, and what the devices exchange inside its loop."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from armt_jax.parallel.collectives import Collective, collectives, traffic

ROOT = pathlib.Path(__file__).parents[2]

SCRIPT = """
import functools, json, sys
import jax, numpy as np
from flax import nnx
from armt_jax.config import resolve_backbone, resolve_memory
from armt_jax.model import ModelConfig, RecurrenceConfig
from armt_jax.nn.placement import on_mesh
from armt_jax.parallel.collectives import collectives
from armt_jax.parallel.mesh import MeshConfig, make_mesh, put_batch
from armt_jax.tasks import Batch
from armt_jax.training import step as steps
from armt_jax.training.optimizer import OptimizerConfig, make_optimizer
from armt_jax.training.step import TrainState

B, S, T, V, L, D, M = 4, 5, 4, 16, 8, 16, 2
rng = np.random.default_rng(0)
tokens, targets = rng.integers(0, V, (2, B, S * T), dtype=np.int32)
batch = Batch(tokens, targets, rng.choice([0.0, 0.5, 1.0], tokens.shape).astype(np.float32), np.zeros_like(tokens))
backbone = dict(name="llama", vocab_size=V, num_layers=L, width=D, num_heads=2, max_positions=16, kernel_std=None, embedding_std=0.5)
memory = dict(name="armt", num_memory_tokens=M, d_mem=32, value_std=0.1, key_norm="l2")

def config(schedule, gradient):
    recurrence = RecurrenceConfig(T, schedule=schedule, gradient=gradient, anchor_every=4)
    return ModelConfig(resolve_backbone(backbone), resolve_memory(memory), recurrence)

def forward(config, mesh):
    graphdef, _ = steps.abstract_model(config)
    run = on_mesh(mesh)(lambda params, tokens: nnx.merge(graphdef, params).ingest(tokens))
    params = steps.create_params(config, 0, mesh)
    return jax.jit(run).lower(params, put_batch(tokens, mesh)).compile(), (params, put_batch(tokens, mesh))

def training(config, mesh):
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-3), 1)
    step = steps.make_train_step(config, optimizer, mesh, num_answers=0, accumulate=1)
    params = steps.create_params(config, 0, mesh)
    args = TrainState(params, steps.create_opt_state(optimizer, params, mesh)), put_batch(batch, mesh), jax.random.key(0)
    return step.lower(*args).compile(), args

alone = make_mesh(MeshConfig(data=1), jax.devices()[:1])
(one, one_args) = training(config("sequential", "store"), alone)
_, want = one(*one_args)

for gradient, axes in json.loads(sys.argv[1]):
    staged = make_mesh(MeshConfig(*axes))
    if gradient == "forward":
        (one, one_args), (all_, args) = forward(config("sequential", "store"), alone), forward(config("diagonal", "store"), staged)
        expected, got = one(*one_args), all_(*args)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-5, atol=1e-6)
        assert {leaf.addressable_shards[0].data.shape[0] for leaf in jax.tree.leaves(got.layers)} == {L // staged.shape["stage"]}
    else:
        all_, args = training(config("diagonal", gradient), staged)
        _, got = all_(*args)
        np.testing.assert_allclose([got.loss, got.gradient_norm], [want.loss, want.gradient_norm], rtol=1e-5)
    print(json.dumps([[c.kind, c.shapes, c.bytes, c.loops, c.times] for c in collectives(all_.as_text())]), flush=True)
"""
ACTIVATION = (4, 6, 16)  # B, T and the memory tokens, D
# What is computed, on which mesh: exchanges within the loop.
STAGES, COPIES = (1, 1, 1, 4), (2, 1, 1, 2)
PROGRAMS = [("forward", STAGES), ("store", STAGES), ("remat", STAGES), ("reversible", STAGES), ("reversible", COPIES)]


@pytest.fixture(scope="module")
def exchanges() -> dict[tuple, list[Collective]]:
    """Of each program, once its numbers were found to be those of one device; all in one process, whose start is dear."""
    flags = "--xla_force_host_platform_device_count=4 --xla_llvm_disable_expensive_passes=true"
    environ = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}"}
    command = [sys.executable, "-c", SCRIPT, json.dumps(PROGRAMS)]
    done = subprocess.run(command, env=environ, cwd=ROOT, text=True, capture_output=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "ematerialization" not in done.stderr, done.stderr[-3000:]
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[") and not line.startswith("[Gloo]")]
    found = [[Collective(kind, tuple(map(tuple, shapes)), *rest) for kind, shapes, *rest in line] for line in lines]
    return {program: [each for each in line if each.loops] for program, line in zip(PROGRAMS, found, strict=True)}


def without_ones(shape):
    return tuple(n for n in shape if n != 1)


@pytest.mark.parametrize(
    ("gradient", "permutes", "hand_overs"), [("forward", 1, 1), ("store", 2, 2), ("remat", 3, 3), ("reversible", 3, 2)]
)
def test_inside_the_loop_stages_pass_one_layers_activations_and_nothing_else(gradient, permutes, hand_overs, exchanges):
    """Forward: up to the next stage, and the finished segment from the last one. Backward: the same the other way; and up again where the
    backward pass computes the inside of a tick again."""
    inside = exchanges[gradient, STAGES]
    kinds = [each.kind for each in inside]
    assert set(kinds) <= {"collective-permute", "all-reduce"}, inside
    assert 1 <= kinds.count("collective-permute") <= permutes and kinds.count("all-reduce") <= hand_overs, inside
    assert all(without_ones(shape) == ACTIVATION for each in inside for shape in each.shapes), inside


def test_copies_of_a_pipeline_add_up_their_gradients_once(exchanges):
    inside = exchanges["reversible", COPIES]
    activation = (ACTIVATION[0] // 2, *ACTIVATION[1:])
    assert inside and all(without_ones(shape) == activation for each in inside for shape in each.shapes), inside


PROGRAM = '''HloModule jit_f

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(f32[] %a, f32[] %b)
}

%body (carry: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %x = f32[4,8]{1,0} get-tuple-element(%carry), index=1
  %moved = f32[4,8]{1,0} collective-permute(%x), source_target_pairs={{0,1},{1,2}}
  %inner = (s32[], f32[4,8]{1,0}) while(%t), condition=%below_three, body=%deep
  ROOT %out = (s32[], f32[4,8]{1,0}) tuple(%i, %moved)
}

%deep (carry: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %both = (f32[4,8]{1,0}, bf16[2]{0}) all-reduce(%x, %y), to_apply=%add
}

%below_three (carry: (s32[], f32[4,8])) -> pred[] {
  %three = s32[]{:T(128)} constant(3), metadata={op_name="jit(f)/while"}
  ROOT %few = pred[] compare(%i, %three), direction=LT
}

%condition (carry: (s32[], f32[4,8])) -> pred[] {
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (p: f32[4,8]) -> f32[4,8] {
  %p = f32[4,8]{1,0} parameter(0)
  %started = (f32[4,8]{1,0:T(8,128)}, f32[16,8]{1,0:T(8,128)}, u32[], u32[]) all-gather-start(%p), dimensions={0}
  %done = f32[16,8]{1,0} all-gather-done(%started)
  %loop = (s32[], f32[4,8]{1,0}) while(%t), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  ROOT %r = f32[4,8]{1,0} get-tuple-element(%loop), index=1
}
'''


HIDDEN = '''HloModule jit_f

%async_collective_fusion.1 (x: f32[4,8]) -> f32[16,8] {
  ROOT %first = f32[16,8]{1,0} all-gather(%x), channel_id=7, dimensions={0}
}

%async_collective_fusion.2 (x: f32[4,8]) -> f32[16,8] {
  ROOT %second = f32[16,8]{1,0} all-gather(%x), channel_id=7, dimensions={0}
}

%body (carry: (s32[], f32[16,8])) -> (s32[], f32[16,8]) {
  ROOT %goes_on = (s32[], f32[16,8]{1,0}) fusion(%carry), kind=kCustom, calls=%async_collective_fusion.2
}

ENTRY %main (p: f32[4,8]) -> f32[16,8] {
  %started = f32[16,8]{1,0} fusion(%p), kind=kCustom, calls=%async_collective_fusion.1
  %work = (s32[], f32[16,8]{1,0}) while(%t), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"5"}}
}
'''


def test_an_exchange_hidden_behind_a_loop_is_one():
    """As TPU programs write it: one channel, in a fusion before the loop and in one inside."""
    assert collectives(HIDDEN) == [Collective("all-gather", ((16, 8),), 512, 0, 1)]


def test_a_programs_text_is_read():
    """By hand: a gather before the loop (counted once, by its result), a permute in it, a sum of two arrays in a loop inside,
    whose length only its condition says."""
    found = collectives(PROGRAM)
    assert found == [
        Collective("all-gather", ((16, 8),), 512, 0, 1),
        Collective("collective-permute", ((4, 8),), 128, 1, 5),
        Collective("all-reduce", ((4, 8), (2,)), 132, 2, 15),
    ]
    sums = {each.kind: (each.number, each.bytes, each.in_loops) for each in traffic(found)}
    assert sums == {"all-gather": (1, 512, 0), "collective-permute": (1, 640, 640), "all-reduce": (1, 1980, 1980)}
    with pytest.raises(ValueError, match="no ENTRY"):
        collectives("nothing")
