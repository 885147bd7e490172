"""The contract: what every memory system promises, one list for all of them.

A new system earns its place by a row in `SYSTEMS`; `test_every_memory_has_a_row` fails until it has one. One row is a toy
defined here, a gated bank of slots. It uses the part of the interface that no built-in system uses, `mix`, and runs under
every schedule and gradient strategy; no line of the driver knows of it.
"""

import dataclasses
import functools
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from armt_jax.memory.associative import ARMT
from armt_jax.memory.hidden_cache import TransformerXLCache
from armt_jax.memory.interface import LayerMemory, MemoryConfig
from armt_jax.memory.layer_tokens import ParallelRMT
from armt_jax.memory.presets import ARMTXL, MEMORIES, RMTXL, NoMemory
from armt_jax.memory.recurrent_tokens import RMT
from armt_jax.model import MemoryTransformer, ModelConfig, RecurrenceConfig
from armt_jax.nn.backbones import GPT2, BackboneConfig, GPTNeoX, Llama, TransformerXL
from armt_jax.nn.layers import linear
from armt_jax.parallel.rules import path_string

B, S, T, L, V = 2, 4, 4, 2, 32
IDS = V // S  # every segment has token ids of its own, so a row of the embedding table belongs to one segment
PROMPT = 6


# ---- a system that the library does not have ----


class Kept(NamedTuple):
    """The new value and the one it replaces, so that a commit can be undone."""

    new: Any
    old: Any


class GatedSlots(LayerMemory):
    """A bank of slots, read by cross-attention out of the attention branch and overwritten through a gate (as LM2 does)."""

    training_free: ClassVar[bool] = False

    def __init__(self, slots: int, backbone: BackboneConfig, dtype, rngs):
        D, self.slots, self.width = backbone.width, slots, backbone.width
        kwargs = dict(bias=False, init=backbone.init, dtype=dtype, rngs=rngs)
        self.query, self.value = linear(D, D, **kwargs), linear(D, D, **kwargs)
        self.candidate, self.gate = linear(D, slots * D, **kwargs), linear(D, slots, **kwargs)

    def init_state(self, batch):
        return jnp.zeros((batch, self.slots, self.width))

    def mix(self, x_BxTxD, state):
        share = jax.nn.softmax(jnp.einsum("btd,bnd->btn", self.query(x_BxTxD), state) / self.width**0.5, axis=-1)
        return x_BxTxD + jnp.einsum("btn,bnd->btd", share, self.value(state)).astype(x_BxTxD.dtype)

    def write(self, trace, state):
        y = trace.outputs_BxTxD
        real = jnp.ones(y.shape[:2]) if trace.valid_BxT is None else trace.valid_BxT
        mean = jnp.sum(y * real[..., None], axis=1) / jnp.maximum(jnp.sum(real, axis=1), 1)[:, None]
        new = jnp.tanh(self.candidate(mean)).reshape(-1, self.slots, self.width)
        gate = jax.nn.sigmoid(self.gate(mean))[..., None]
        return Kept((1 - gate) * state + gate * new, state)

    def commit(self, state, update):
        return update.new

    def undo(self, state, update):
        return update.old


@dataclasses.dataclass(frozen=True)
class GatedSlotsConfig(MemoryConfig):
    slots: int = 3

    layer_class: ClassVar[type] = GatedSlots

    def layer_memory(self, backbone, dtype, rngs):
        return GatedSlots(self.slots, backbone, dtype, rngs)


# ---- the rows ----

SIZES = dict(
    vocab_size=V, num_layers=L, width=16, num_heads=4, mlp_width=24, max_positions=32, kernel_std=None, embedding_std=0.5,
    position_std=0.5, tie_embeddings=False, dropout=0.1,
)  # fmt: skip
GPT2_, NEOX, LLAMA = GPT2(**SIZES), GPTNeoX(**SIZES, rotary_pct=0.5), Llama(**SIZES, num_kv_heads=2)
# Embeddings are scaled by sqrt(width).
XL = TransformerXL(**SIZES | dict(embedding_std=0.125), attention_dropout=0.1, clamp_len=5)
XL_ADAPTIVE = dataclasses.replace(XL, cutoffs=(9, 20), div_val=2, projection_std=0.5, tie_biases=False)


@dataclasses.dataclass(frozen=True)
class System:
    """`reach`: how many segments back the memory lets one see, through all layers."""

    name: str
    backbone: BackboneConfig
    memory: MemoryConfig
    reach: int = S
    align: str = "left"

    @property
    def local(self) -> bool:
        return self.memory.layer_class.layer_local and self.memory.token_class.layer_local

    def model(self, **backbone) -> MemoryTransformer:
        recurrence = RecurrenceConfig(segment_length=T, anchor_every=4, align=self.align)
        return build(dataclasses.replace(self.backbone, **backbone), self.memory, recurrence)


def build(backbone, memory, recurrence):
    return MemoryTransformer(ModelConfig(backbone, memory, recurrence), rngs=nnx.Rngs(0))


SMALL = dict(num_memory_tokens=2, d_mem=8, value_std=None)
SYSTEMS = (
    System("none", GPT2_, NoMemory(), reach=0),
    System("armt", GPT2_, ARMT(**SMALL, positions="table")),
    System("armt-heads-l2", LLAMA, ARMT(**SMALL, num_heads=2, key_norm="l2"), align="right"),
    System("armt-no-correction", NEOX, ARMT(**SMALL, correction=False)),
    System("rmt", GPT2_, RMT(num_memory_tokens=2), align="right"),
    System("parallel-rmt", LLAMA, ParallelRMT(num_memory_tokens=2)),
    System("transformer-xl", XL_ADAPTIVE, TransformerXLCache(3), reach=L),
    System("cache-rotary", LLAMA, TransformerXLCache(3), reach=L, align="right"),
    # Unit keys: with these few features and hidden states of post-norm size, one rounding of the weights moves other gradients by 1e-4.
    System("armt-xl", XL, ARMTXL(**SMALL, key_norm="l2", cache_length=3), align="right"),
    System("rmt-xl", XL, RMTXL(num_memory_tokens=2, cache_length=6, cached="text")),
    System("gated-slots", NEOX, GatedSlotsConfig()),
)


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


@pytest.fixture(scope="module", params=SYSTEMS, ids=lambda s: s.name)
def harness(request):
    return Harness(request.param)


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


# ---- the list ----


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
    for row in range(B):
        assert all(differs(logits[row, i], logits2[row, i]) for i in range(place, end))
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


# ---- gradients ----

STRATEGIES = [("sequential", "remat"), ("sequential", "reversible"), ("diagonal", "reversible")]


def lengths(align: str) -> tuple[int, ...]:
    return (T,) * (S - 1) + (2,) if align == "left" else (2,) + (T,) * (S - 1)


def everything(system: System):
    """A ragged row with padding, a segment dead in row 0, resets, truncation and dropout, from a memory that is not empty.

    All of it in one run of ticks between anchors, with live segments before and after.
    """
    tokens = tokens_of(seed=5, lengths=lengths(system.align))
    starts = np.cumsum((0, *lengths(system.align)))
    valid = np.ones(tokens.shape, bool)
    valid[0, starts[2] : starts[3]] = False
    valid[1, starts[2] - 1] = valid[1, -2] = False
    reset = np.zeros((B, S), bool)
    reset[0, 3] = reset[1, 0] = True
    weights = np.random.default_rng(6).uniform(0.5, 1.5, tokens.shape).astype(np.float32)
    weights[:, ::5] = 0
    return tokens, weights, dict(bptt=3, valid_BxN=valid, reset_BxS=reset, key=jax.random.key(7))


def outcome(harness, tokens, weights, state, schedule, strategy, **options):
    (value, out), grads = harness.gradients(
        tokens, weights, state, schedule=schedule, strategy=strategy, state_weight=0.1, **options
    )
    params, first = grads
    return dict(value=value, loss=out.loss_S, weight=out.weight_S, state=out.state, params=params, first=first), out.correct_BxN


@pytest.mark.parametrize("case", ["everything", "plain"])
def test_schedules_and_strategies_agree(harness, case):
    """Loss of every segment, state, gradients of every parameter and of the first state."""
    if case == "everything":
        tokens, weights, options = everything(harness.system)
        _, state = harness.run(tokens_of(seed=4))
        combinations = STRATEGIES
    else:
        tokens, weights, options = TOKENS, np.ones(TOKENS.shape, np.float32), {}
        state = None
        combinations = STRATEGIES[1:]
    want, correct = outcome(harness, tokens, weights, state, "sequential", "store", **options)
    assert np.isfinite(want["value"])
    for schedule, strategy in combinations:
        if schedule == "diagonal" and not harness.system.local:
            continue
        got, right = outcome(harness, tokens, weights, state, schedule, strategy, **options)
        np.testing.assert_array_equal(right, correct, err_msg=f"{schedule} {strategy}")
        for part in want:
            close(got[part], want[part], 3e-5)


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


@pytest.mark.parametrize("schedule, strategy", [("sequential", "store"), *STRATEGIES[1:]])
def test_gradient_reaches_exactly_as_far_as_the_truncation(harness, schedule, strategy):
    """Stretches of 3 segments counted from the end: {0}, {1, 2, 3}."""
    if schedule == "diagonal" and not harness.system.local:
        pytest.skip("refused by the config: the state is not layer-local")
    for s in range(S):
        stretch = range(1, s + 1) if s else range(0, 1)
        want = [i for i in stretch if s - i <= harness.system.reach]
        assert segments_reached(harness, s, schedule, strategy, bptt=3) == want, f"loss of segment {s}"


def test_without_truncation_the_gradient_reaches_the_first_segment(harness):
    weights = np.zeros(TOKENS.shape, np.float32)
    weights[:, -T:] = 1
    _, (grads, first) = harness.gradients(TOKENS, weights, harness.fresh())
    assert segments_of(grads) == [s for s in range(S) if S - 1 - s <= harness.system.reach]
    # An empty cache has nothing to give a gradient to.
    if harness.system.reach >= S and not isinstance(harness.system.memory, TransformerXLCache):
        assert all(np.any(leaf) for leaf in jax.tree.leaves(first))


def test_a_cache_that_holds_everything_equals_one_long_segment():
    """The context's hidden states pass the block's norm and projections just as the segment's own."""
    recurrence = RecurrenceConfig(segment_length=T)
    model = build(LLAMA, TransformerXLCache(S * T), recurrence)
    bare = transplanted(build(LLAMA, MemoryConfig(), RecurrenceConfig(segment_length=S * T)), model, np.zeros((0, 16)))
    np.testing.assert_allclose(model(TOKENS)[0], bare(TOKENS)[0], atol=5e-5)
