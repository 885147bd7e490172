"""The contract: what every memory system promises, one list for all of them. Gradients are in `test_contract_gradients.py`."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from armt_jax.memory.hidden_cache import TransformerXLCache
from armt_jax.memory.interface import MemoryConfig
from armt_jax.memory.layer_tokens import ParallelRMT
from armt_jax.memory.presets import MEMORIES, RMTXL
from armt_jax.memory.recurrent_tokens import RMT
from armt_jax.model import MemoryTransformer, RecurrenceConfig
from armt_jax.parallel.rules import path_string
from armt_jax.settings import OptimizerConfig
from armt_jax.training.optimizer import is_memory_path, make_optimizer
from tests.memory.harness import TOKENS, close, differs, row, tokens_of
from tests.memory.systems import LLAMA, SYSTEMS, B, L, S, T, V, build

PROMPT = 6


def test_every_memory_has_a_row():
    assert {type(s.memory) for s in SYSTEMS} >= set(MEMORIES.values())


def test_state_has_fixed_shapes_in_float32(harness):
    _, states = harness.loop(TOKENS)
    for state in (*states, harness.run(TOKENS)[1]):
        assert jax.tree.map(lambda a: (a.shape, a.dtype), state) == jax.tree.map(lambda a: (a.shape, a.dtype), harness.fresh())
    for leaf in jax.tree.leaves(harness.fresh()):
        assert leaf.dtype == jnp.float32
    assert all(leaf.shape[:2] == (L, B) for leaf in jax.tree.leaves(harness.fresh().layers))
    assert all(leaf.shape[0] == B for leaf in jax.tree.leaves(harness.fresh().tokens))


def test_memory_changes_with_what_is_read(harness):
    """Otherwise the list below would hold for a memory that does nothing."""
    _, state = harness.run(TOKENS)
    changed = [differs(a, b) for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(harness.fresh()))]
    assert all(changed) and bool(changed) == bool(harness.system.reach)


def test_rows_are_independent(harness):
    other = TOKENS.copy()
    other[1] = tokens_of(seed=1)[1]
    logits, state = harness.run(TOKENS)
    logits2, state2 = harness.run(other)
    np.testing.assert_allclose(logits2[0], logits[0], atol=1e-6)
    close(row(state2, 0), row(state, 0), 1e-6)
    assert differs(logits[1], logits2[1])


@pytest.mark.parametrize("schedule", ["sequential", "diagonal"])
def test_rows_that_only_peek_keep_their_memory_to_the_last_bit(harness, schedule):
    if schedule == "diagonal" and not harness.system.local:
        pytest.skip("not layer-local")
    _, state = harness.run(TOKENS)
    peek = np.array([[True] * S, [False] * S])
    _, after = jax.jit(lambda state: harness.model.with_recurrence(schedule=schedule)(TOKENS[:, ::-1], state, peek_BxS=peek))(state)
    jax.tree.map(np.testing.assert_array_equal, row(after, 0), row(state, 0))
    moved = [not np.array_equal(a, b) for a, b in zip(jax.tree.leaves(row(after, 1)), jax.tree.leaves(row(state, 1)))]
    assert any(moved) == bool(harness.system.reach)


def test_masks_that_mark_nothing_change_nothing(harness):
    logits, state = harness.run(TOKENS)
    masked, masked_state = harness.masked(TOKENS)
    np.testing.assert_allclose(masked, logits, atol=2e-5)
    close(masked_state, state)


def test_reset_of_a_row_equals_a_fresh_state(harness):
    reset = np.zeros((B, S), bool)
    reset[0, 2] = True
    logits, state = harness.masked(TOKENS, reset=reset)
    plain, plain_state = harness.run(TOKENS)
    later, states = harness.loop(TOKENS[:, 2 * T :])
    np.testing.assert_allclose(logits[0, 2 * T :], np.concatenate(later, axis=1)[0], atol=2e-5)
    np.testing.assert_allclose(logits[0, : 2 * T], plain[0, : 2 * T], atol=2e-5)
    np.testing.assert_allclose(logits[1], plain[1], atol=2e-5)
    close(row(state, 0), row(states[-1], 0))
    close(row(state, 1), row(plain_state, 1))
    assert bool(harness.system.reach) == differs(logits[0, 2 * T :], plain[0, 2 * T :])


def test_a_dead_segment_leaves_the_state_alone(harness):
    """Row 0 has padding alone in segment 1: as if the segment were not there. Row 1 reads it."""
    valid = np.ones(TOKENS.shape, bool)
    valid[0, T : 2 * T] = False
    logits, state = harness.masked(TOKENS, valid=valid)
    without, states = harness.loop(np.delete(TOKENS, np.s_[T : 2 * T], axis=1))
    np.testing.assert_allclose(logits[0, 2 * T :], np.concatenate(without[1:], axis=1)[0], atol=2e-5)
    close(row(state, 0), row(states[-1], 0))
    close(row(state, 1), row(harness.run(TOKENS)[1], 1))


def test_padding_is_not_read(harness):
    """Other ids at padded places change no real output and no state."""
    valid = np.ones(TOKENS.shape, bool)
    valid[0, 2], valid[1, T : T + 3], valid[:, -1] = False, False, False
    other = np.where(valid, TOKENS, (TOKENS + 5) % V)
    logits, state = harness.masked(TOKENS, valid=valid)
    logits2, state2 = harness.masked(other, valid=valid)
    np.testing.assert_allclose(np.asarray(logits2)[valid], np.asarray(logits)[valid], atol=1e-6)
    close(state2, state, 1e-6)


def transplanted(bare: MemoryTransformer, model: MemoryTransformer, rows: np.ndarray) -> MemoryTransformer:
    """`bare` with the weights of `model`, and the given rows at the end of its token table."""
    weights = {path_string(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(nnx.split(model)[1])}
    table = "embed/tables/0" if "embed/tables/0" in weights else "embed/table"
    if len(rows):
        rows = rows * (model.config.backbone.embedding_std / model.config.backbone.token_std)
        weights[table] = jnp.concatenate([weights[table], rows])
    graphdef, params = nnx.split(bare)

    def place(path, leaf):
        found = weights[path_string(path)]
        if path_string(path) == "head/kernel":
            found = jnp.pad(found, ((0, 0), (0, len(rows))))
        if path_string(path) in ("head/tables/0", "head/biases/0"):
            # Tokens of no probability: the head normalises over all.
            low = -1e30 if path_string(path) == "head/biases/0" else 0.0
            found = jnp.pad(found, ((0, len(rows)), (0, 0))[: found.ndim], constant_values=low)
        if path_string(path) == "positions/table":  # theirs may have grown at the end
            found = found[: leaf.shape[0]]
        assert found.shape == leaf.shape, path_string(path)
        return found

    return nnx.merge(graphdef, jax.tree_util.tree_map_with_path(place, params))


def test_empty_memory_equals_the_bare_backbone(harness):
    """The first segment sees the memory tokens that stand before it, where a system has them, as ordinary tokens, nothing else.

    Parallel RMT puts other tokens there in every layer, so its bare backbone is one layer deep.
    """
    system = harness.system
    layers = 1 if isinstance(system.memory, ParallelRMT) else L
    model = system.model(num_layers=layers) if layers != L else harness.model
    first = {
        RMT: lambda: model.token_memory.tokens[...], RMTXL: lambda: model.token_memory.tokens[...],
        ParallelRMT: lambda: model.layers.memory.tokens[0],
    }.get(type(system.memory), lambda: np.zeros((0, system.backbone.width)))()  # fmt: skip
    M = len(first)
    backbone = dataclasses.replace(system.backbone, num_layers=layers, vocab_size=V + M)
    bare = transplanted(build(backbone, MemoryConfig(), RecurrenceConfig(segment_length=M + T)), model, first)
    ids = np.concatenate([np.broadcast_to(V + np.arange(M), (B, M)), TOKENS[:, :T]], axis=1).astype(np.int32)
    want = np.asarray(bare(ids)[0])[:, M:, :V]
    got, _ = harness.run(TOKENS[:, :T]) if layers == L else model(TOKENS[:, :T])
    np.testing.assert_allclose(got, want, atol=2e-5)


@pytest.mark.parametrize("place", [1, T - 1, T + 1, 3 * T])
def test_nothing_from_the_future_changes_an_earlier_output(harness, place):
    other = TOKENS.copy()
    other[:, place] = (other[:, place] + 3) % V
    logits, _ = harness.run(TOKENS)
    logits2, _ = harness.run(other)
    np.testing.assert_allclose(logits2[:, :place], logits[:, :place], atol=1e-6)
    end = (place // T + 1) * T
    for b in range(B):
        assert all(differs(logits[b, i], logits2[b, i]) for i in range(place, end))
    last = min(S, place // T + 1 + harness.system.reach)
    for s in range(place // T + 1, S):
        cut = np.s_[:, s * T : (s + 1) * T]
        assert differs(logits[cut], logits2[cut]) == (s < last), f"segment {s}"


def test_scan_equals_a_python_loop(harness):
    logits, state = harness.run(TOKENS)
    by_hand, states = harness.loop(TOKENS)
    np.testing.assert_allclose(logits, np.concatenate(by_hand, axis=1), atol=2e-5)
    close(state, states[-1])


def test_decode_equals_prefill(harness):
    """Greedy decoding over two segment ends against one full pass over what it produced."""
    out = harness.model.generate(TOKENS[:, :PROMPT], max_new_tokens=S * T - PROMPT, overflow="commit")
    row = np.concatenate([TOKENS[:, :PROMPT], out.tokens_BxG], axis=1)
    logits, _ = harness.run(row)
    before = np.asarray(jax.nn.log_softmax(logits))[:, PROMPT - 1 : -1]
    np.testing.assert_array_equal(out.tokens_BxG, before.argmax(-1))
    np.testing.assert_allclose(out.log_probs_BxG, before.max(-1), atol=2e-5)
    np.testing.assert_array_equal(out.pending_BxP, row[:, -T:])
    close(out.state, harness.loop(row[:, :-T])[1][-1])


def test_state_survives_a_save_and_load(harness, tmp_path):
    _, state = harness.run(TOKENS)
    np.savez(tmp_path / "state.npz", *jax.tree.leaves(state))
    with np.load(tmp_path / "state.npz") as file:
        loaded = jax.tree.unflatten(jax.tree.structure(state), [file[name] for name in file.files])
    more = tokens_of(seed=3)
    want, after = harness.run(more, state)
    got, after2 = harness.run(more, loaded)
    np.testing.assert_array_equal(got, want)
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(after2), jax.tree.leaves(after)))


@pytest.mark.parametrize("frozen", ["the memory", "all else", "nothing"])
def test_frozen_parts_do_not_move(harness, frozen):
    """`learning_rate` or `memory_learning_rate` of 0: exactly those parameters stay, to the bit."""
    rates = {"the memory": (0.1, 0.0), "all else": (0.0, 0.1), "nothing": (0.1, 0.1)}[frozen]
    optimizer = make_optimizer(OptimizerConfig(learning_rate=rates[0], memory_learning_rate=rates[1], weight_decay=0.1), 1)
    gradients = jax.tree.map(jnp.ones_like, harness.params)
    updates, _ = optimizer.update(gradients, optimizer.init(harness.params), harness.params)
    moved = {path_string(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(updates)}
    frozen_paths = {path for path in moved if {"the memory": True, "all else": False}.get(frozen) == is_memory_path(path)}
    assert bool(frozen_paths) == (frozen == "all else" or (frozen == "the memory" and any(map(is_memory_path, moved))))
    for path, update in moved.items():
        assert not update.any() if path in frozen_paths else update.all(), path


def test_a_cache_that_holds_everything_equals_one_long_segment():
    """The context's hidden states pass the block's norm and projections just as the segment's own."""
    recurrence = RecurrenceConfig(segment_length=T)
    model = build(LLAMA, TransformerXLCache(S * T), recurrence)
    bare = transplanted(build(LLAMA, MemoryConfig(), RecurrenceConfig(segment_length=S * T)), model, np.zeros((0, 16)))
    np.testing.assert_allclose(model(TOKENS)[0], bare(TOKENS)[0], atol=5e-5)
