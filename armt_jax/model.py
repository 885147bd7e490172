"""MemoryTransformer: embed -> grid of (layer, segment) cells -> head. What users call.

Shape letters, used as suffixes throughout the package:
B batch, N tokens of a row, S segments, T tokens per segment, M memory tokens, L layers, D model width, H heads, d head size,
K memory key features, V vocabulary, C cache or context length, F MLP width.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from armt_jax.memory.interface import MemoryConfig
from armt_jax.nn.backbones import BackboneConfig
from armt_jax.nn.heads import weighed_losses
from armt_jax.nn.layers import Shared, Table, dropout, row_keys
from armt_jax.nn.placement import ROWS, WHOLE, constrain, constrain_state
from armt_jax.recurrence import schedules, segments
from armt_jax.recurrence.cell import Cell, Layer
from armt_jax.recurrence.checks import check_shape, check_targets, check_tokens
from armt_jax.recurrence.gradients import GRADIENTS
from armt_jax.recurrence.schedules import SCHEDULES, GridParams, GridState
from armt_jax.recurrence.segments import PLAIN, Marks

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
# Logits that exist at once in the loss: segments are taken together up to this many entries, and one with more than the second number
# (512 MB, and as much again in the backward pass) is cut into stretches of tokens.
LOGITS_AT_ONCE, LOGITS_AT_MOST = 1 << 22, 1 << 27
# Tell the dropout after the embedding and before the head apart from the layers' (whose keys are folded with their numbers).
EMBEDDING_SALT, OUTPUT_SALT = 2**31 - 1, 2**31 - 2


@dataclasses.dataclass(frozen=True)
class RecurrenceConfig:
    """How a row is cut and in which order it runs.

    Attributes:
        segment_length: T, real tokens per segment. schedule: "sequential" or "diagonal".
        gradient: "store", "remat" or "reversible". bptt_segments: truncation, None for the whole row: no gradient
            crosses from a stretch of so many segments, counted from the row's end, to the one before.
        align: where a short segment goes: "left" = the last one is short, "right" = the first.
        anchor_every: ticks between exact copies of the memory state in the reversible backward pass.
    """

    segment_length: int = 512
    schedule: str = "sequential"
    gradient: str = "store"
    bptt_segments: int | None = None
    align: str = "left"
    anchor_every: int = 64

    def __post_init__(self):
        for name, allowed in (("schedule", tuple(SCHEDULES)), ("gradient", GRADIENTS), ("align", segments.ALIGNMENTS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"recurrence.{name} = {getattr(self, name)!r} must be one of {allowed}")
        for name in ("segment_length", "anchor_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"recurrence.{name} = {getattr(self, name)} must be at least 1")
        if self.bptt_segments is not None and self.bptt_segments < 1:
            raise ValueError(f"recurrence.bptt_segments = {self.bptt_segments} must be at least 1, or None for the whole row")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A backbone with a memory. Parameters and memory state are float32; `dtype` is that of the computation.

    Raises:
        ValueError: for a combination that makes no sense, naming both sides.
    """

    backbone: BackboneConfig
    memory: MemoryConfig = MemoryConfig()
    recurrence: RecurrenceConfig = RecurrenceConfig()
    dtype: str = "float32"

    def __post_init__(self):
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype = {self.dtype!r} must be one of {tuple(DTYPES)}")
        layout = self.memory.layout(self.backbone)
        name, recurrence = type(self.memory).__name__, self.recurrence
        T, room = recurrence.segment_length, self.backbone.max_positions
        tokens = layout.front + layout.back
        if (T if layout.table_rows is not None else T + tokens) > room:
            raise ValueError(
                f"recurrence.segment_length = {T} with {tokens} memory tokens of {name} does not fit backbone.max_positions = {room}: "
                "shorten the segment, use fewer memory tokens or raise max_positions"
            )
        layer, token = self.memory.layer_class, self.memory.token_class
        if recurrence.schedule == "diagonal" and not (layer.layer_local and token.layer_local):
            raise ValueError(
                f"recurrence.schedule = 'diagonal' needs layer-local memory, and memory {name} is not: the stack's output for one segment "
                "enters the first layer of the next. Use 'sequential', or memory 'parallel_rmt'"
            )
        if recurrence.gradient == "reversible" and not layer.reversible:
            raise ValueError(f"recurrence.gradient = 'reversible' needs a memory that can undo a commit, and {name} cannot: use 'remat'")


class Losses(NamedTuple):
    """Per segment, as sums and weights. `correct_BxN`: the most likely token is the target; where nothing weighs it may be False."""

    loss_S: jax.Array
    weight_S: jax.Array
    correct_BxN: jax.Array
    state: GridState


class MemoryTransformer(nnx.Module):
    """A transformer that reads a row segment by segment and carries memory state.

    `logits, state = model(tokens, state)`: state in, state out; None starts from an empty memory. The same weights run under every
    schedule and gradient strategy (`with_recurrence`).
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        backbone, dtype = config.backbone, DTYPES[config.dtype]
        layout = config.memory.layout(backbone)
        self.config = config
        self.embed = backbone.embedding(rngs)
        rows = layout.table_rows or backbone.max_positions
        learned = backbone.learned_positions
        self.positions = nnx.data(Table(rows, backbone.width, backbone.position_std, rngs) if learned else None)
        self.token_memory = config.memory.token_memory(backbone, rngs)

        @nnx.split_rngs(splits=backbone.num_layers)
        @nnx.vmap(in_axes=0, out_axes=0)
        def stack(rngs):
            return Layer(backbone.block(dtype, rngs), config.memory.layer_memory(backbone, dtype, rngs))

        layers, shared, own = nnx.split(stack(rngs), Shared, ...)
        self.layers = nnx.merge(layers, jax.tree.map(lambda a: a[0], shared), own)
        self.final_norm = backbone.final_norm(dtype, rngs)
        self.head = backbone.head(dtype, rngs)

    @property
    def dtype(self):
        return DTYPES[self.config.dtype]

    def with_recurrence(self, **changes) -> "MemoryTransformer":
        """The same weights (shared, not copied) under another schedule, gradient strategy, segment length, ..."""
        config = dataclasses.replace(self.config, recurrence=dataclasses.replace(self.config.recurrence, **changes))
        graphdef, params = nnx.split(self)
        model = nnx.merge(graphdef, params)
        model.config = config
        return model

    def with_config(self, config: ModelConfig) -> "MemoryTransformer":
        """The same weights (shared, not copied) under another config that has the same parameters: another cache length, `clamp_len`, ...

        Raises:
            ValueError: the parameters of the two differ.
        """
        graphdef, other = nnx.split(nnx.eval_shape(lambda: MemoryTransformer(config, rngs=nnx.Rngs(0))))
        params = nnx.split(self)[1]
        have, need = ({jax.tree_util.keystr(k): v.shape for k, v in jax.tree_util.tree_leaves_with_path(p)} for p in (params, other))
        for name in sorted(have.keys() | need.keys()):
            if have.get(name) != need.get(name):
                raise ValueError(
                    f"parameter {name} is {have.get(name, 'absent')} in this model and {need.get(name, 'absent')} under the other config: "
                    "change only what adds, removes and reshapes no parameter"
                )
        return nnx.merge(graphdef, params)

    def with_memory(self, **changes) -> "MemoryTransformer":
        """The same weights with other fields of the memory config, such as `cache_length`. Raises ValueError as `with_config`."""
        return self.with_config(dataclasses.replace(self.config, memory=dataclasses.replace(self.config.memory, **changes)))

    def stacked_layers(self):
        """(graphdef, parameters [L, ...]) of the layers. What they share is repeated, so that its gradients add up."""
        graphdef, shared, own = nnx.split(self.layers, Shared, ...)
        L = self.config.backbone.num_layers
        return graphdef, nnx.merge_state(jax.tree.map(lambda a: jnp.broadcast_to(a, (L, *a.shape)), shared), own)

    def init_state(self, batch: int) -> GridState:
        """The empty memory of `batch` rows."""
        graphdef, params = self.stacked_layers()
        layers = jax.vmap(lambda p: nnx.merge(graphdef, p).memory.init_state(batch))(params)
        if not jax.tree.leaves(layers):
            layers = ()
        tokens = jax.tree.map(lambda leaf: constrain(leaf, ROWS), self.token_memory.init_state(batch))
        return GridState(constrain_state(layers), tokens)

    def __call__(
        self,
        tokens_BxN: jax.Array,
        state: GridState | None = None,
        *,
        valid_BxN: jax.Array | None = None,
        reset_BxS: jax.Array | None = None,
        peek_BxS: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, GridState]:
        """Logits [B, N, V] float32 and the memory state after the row.

        Args:
            tokens_BxN: int ids. valid_BxN: bool, False at padding. reset_BxS: bool, rows whose memory is emptied before a segment.
            peek_BxS: bool, rows whose segment is read and leaves the memory as it was.
            state: from `init_state` or an earlier call. key: turns dropout on (training); one key, or one
                for each row [B].

        Raises:
            ValueError: an empty row, ids outside the vocabulary (outside `jax.jit` alone: inside they are not known), a state of
                another batch, shape or dtype.
        """
        hidden_SxBxTxD, state, _ = self.hidden(tokens_BxN, state, Marks(valid_BxN, reset_BxS, peek_BxS), key)
        hidden = segments.join(hidden_SxBxTxD, tokens_BxN.shape[1], self.config.recurrence.align)
        return self.logits(hidden), state

    def ingest(self, tokens_BxN, state=None, *, valid_BxN=None, reset_BxS=None) -> GridState:
        """Reads a row into memory; no logits are computed. A short last segment is committed as it is."""
        return self.hidden(tokens_BxN, state, Marks(valid_BxN, reset_BxS))[1]

    def peek(self, tokens_BxN, state=None, *, valid_BxN=None) -> jax.Array:
        """Logits of a row read on top of `state`, which is left as it was."""
        return self(tokens_BxN, state, valid_BxN=valid_BxN)[0]

    def generate(self, tokens_BxN, state=None, **kwargs):
        """Continues a prompt; see `armt_jax.generation.generate`."""
        from armt_jax.generation import generate  # it needs this module's class

        return generate(self, tokens_BxN, state, **kwargs)

    def embed_tokens(self, tokens: jax.Array) -> jax.Array:
        return self.embed(tokens, self.dtype)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """[..., D] after the final norm -> [..., V], float32 (log-probabilities where the head is an adaptive softmax)."""
        return self.head.logits(hidden, self.embed)

    def hidden(self, tokens_BxN, state=None, marks: Marks = PLAIN, key=None):
        """Runs the grid. Returns (hidden [S, B, T, D] after the final norm, state, mask of real tokens [S, B, T] or None)."""
        check_tokens(tokens_BxN, self.config.backbone.vocab_size)
        B, N = tokens_BxN.shape
        recurrence = self.config.recurrence
        S = segments.num_segments(N, recurrence.segment_length)
        for name, given, shape in zip(("valid", "reset", "peek"), marks, ((B, N), (B, S), (B, S))):
            check_shape(name, given, shape)
        state = self.init_state(B) if state is None else self._checked(state, B)
        cell_def, layers = self.stacked_layers()
        layout = self.config.memory.layout(self.config.backbone)
        frames, valid = segments.frames(
            batch=B, length=N, segment_length=recurrence.segment_length, layout=layout, align=recurrence.align, marks=marks,
            bptt_segments=recurrence.bptt_segments, keys_B=_row_keys(key, B),
        )  # fmt: skip
        enter, leave, around = self._around(layout, B)
        grid = schedules.Grid(Cell(cell_def, layout, B), self.config.backbone.num_layers, enter, leave)
        tokens_SxBxT = constrain(segments.split(tokens_BxN, recurrence.segment_length, recurrence.align), WHOLE, ROWS)
        x_SxBxTxD = constrain(self.embed_tokens(tokens_SxBxT), WHOLE, ROWS)
        run = SCHEDULES[recurrence.schedule]
        hidden, state = run(grid, recurrence.gradient, recurrence.anchor_every, GridParams(layers, around), state, x_SxBxTxD, frames)
        return hidden, state, valid

    def _around(self, layout, batch: int):
        """What stands around the layers, as pure functions of its parameters."""
        parts = {"token_memory": self.token_memory, "positions": self.positions, "final_norm": self.final_norm}
        split = {name: nnx.split(part) for name, part in parts.items() if part is not None}
        backbone, dtype = self.config.backbone, self.dtype

        def part(params, name):
            return nnx.merge(split[name][0], params[name])

        def started(params, tokens, frame):
            memory = part(params, "token_memory")
            return memory, segments.renew(tokens, lambda: memory.init_state(batch), frame)

        def enter(params, x_BxTxD, tokens, frame):
            memory, tokens = started(params, tokens, frame)
            x = memory.wrap(x_BxTxD, tokens)
            if "positions" in split:
                valid = None if frame.valid_BxT is None else layout.real(frame.valid_BxT)
                x = x + part(params, "positions")(layout.positions(x_BxTxD.shape[1], valid), dtype)
            return dropout(x, backbone.dropout, frame.keys_B, EMBEDDING_SALT)

        def leave(params, hidden_BxTxD, tokens, frame):
            memory, tokens = started(params, tokens, frame)
            hidden = part(params, "final_norm")(hidden_BxTxD)
            after = memory.next_state(hidden, tokens, layout)
            if frame.live_B is not None:
                after = segments.choose(frame.live_B, after, tokens)
            return dropout(layout.real(hidden), backbone.output_dropout, frame.keys_B, OUTPUT_SALT), after

        return enter, leave, {name: params for name, (_, params) in split.items()}

    def _checked(self, state: GridState, batch: int) -> GridState:
        want = jax.eval_shape(lambda: self.init_state(batch))
        if jax.tree.structure(state) != jax.tree.structure(want):
            raise ValueError(
                f"the memory state has the structure {jax.tree.structure(state)}, and this model needs {jax.tree.structure(want)}: "
                "start from model.init_state(batch)"
            )
        for (path, got), need in zip(jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(want)):
            if got.shape != need.shape or got.dtype != need.dtype:
                raise ValueError(
                    f"memory state {jax.tree_util.keystr(path)} is {got.dtype}{list(got.shape)}, and {batch} rows of this model need "
                    f"{need.dtype}{list(need.shape)}: start from model.init_state({batch}), and keep the state in float32"
                )
        return state

    def losses(
        self, tokens_BxN, targets_BxN, weights_BxN, state=None, *, valid_BxN=None, reset_BxS=None, peek_BxS=None, key=None
    ) -> Losses:
        """Weighted cross-entropy of the targets, computed per segment so that logits never exist for a whole row (an adaptive softmax cuts
        by rows of its own, and computes a tail cluster for the tokens that are there).

        Args:
            targets_BxN: the token each position must predict. weights_BxN: float32, 0 where the prediction does not count.

        Raises:
            ValueError: as `__call__`; and a target outside the vocabulary that counts.
        """
        recurrence = self.config.recurrence
        for name, given in (("targets", targets_BxN), ("weights", weights_BxN)):
            check_shape(name, given, tokens_BxN.shape)
        check_tokens(tokens_BxN, self.config.backbone.vocab_size)
        check_targets(targets_BxN, weights_BxN, self.config.backbone.vocab_size)
        hidden, state, valid = self.hidden(tokens_BxN, state, Marks(valid_BxN, reset_BxS, peek_BxS), key)
        targets, weights = (segments.split(a, recurrence.segment_length, recurrence.align) for a in (targets_BxN, weights_BxN))
        weights = weights.astype(jnp.float32) if valid is None else weights * valid

        nll, correct = self._by_segments(functools.partial(weighed_losses, self.head, self.embed), hidden, targets, weights)
        # A padded or unweighted position must not turn a NaN elsewhere into a zero, nor its own into the sum.
        loss_S = jnp.sum(jnp.where(weights > 0, nll * weights, 0.0), axis=(1, 2))
        correct_BxN = segments.join(correct, tokens_BxN.shape[1], recurrence.align)
        return Losses(loss_S, jnp.sum(weights, axis=(1, 2)), correct_BxN, state)

    def token_losses(self, tokens_BxN, targets_BxN, state=None, *, valid_BxN=None, reset_BxS=None) -> tuple[jax.Array, GridState]:
        """-ln p of every target [B, N], float32, and the memory state after the row; for evaluation."""
        recurrence = self.config.recurrence
        check_shape("targets", targets_BxN, tokens_BxN.shape)
        check_tokens(tokens_BxN, self.config.backbone.vocab_size)
        check_targets(targets_BxN, np.ones(targets_BxN.shape), self.config.backbone.vocab_size)
        hidden, state, _ = self.hidden(tokens_BxN, state, Marks(valid_BxN, reset_BxS))
        targets = segments.split(targets_BxN, recurrence.segment_length, recurrence.align)
        (nll,) = self._by_segments(lambda h, t: self.head.losses(h, t, self.embed)[:1], hidden, targets)
        return segments.join(nll, tokens_BxN.shape[1], recurrence.align), state

    def _by_segments(self, function, hidden, *cut):
        """function(hidden, *cut) over the leading axis of segments, as many of them together, or as much of one, as their logits allow."""
        S, B, T = hidden.shape[:3]
        pieces = min(T, -(-B * T * self.head.width // LOGITS_AT_MOST))
        if pieces > 1:
            length = -(-T // pieces)
            pieces = -(-T // length)

            def apart(a):  # [S, B, T, ...] to [S * pieces, B, length, ...]
                a = jnp.pad(a, ((0, 0), (0, 0), (0, pieces * length - T), *[(0, 0)] * (a.ndim - 3)))
                return jnp.moveaxis(a.reshape(S, B, pieces, length, *a.shape[3:]), 2, 1).reshape(S * pieces, B, length, *a.shape[3:])

            out = jax.lax.map(lambda a: function(*a), tuple(map(apart, (hidden, *cut))))
            return tuple(jnp.moveaxis(a.reshape(S, pieces, B, length), 1, 2).reshape(S, B, -1)[:, :, :T] for a in out)
        group = self._segments_at_once(S, B, T)
        grouped = [a.reshape(-1, group, *a.shape[1:]) for a in (hidden, *cut)]
        out = jax.lax.map(lambda a: function(*a), tuple(grouped))
        return tuple(a.reshape(-1, *a.shape[2:]) for a in out)

    def _segments_at_once(self, S: int, B: int, T: int) -> int:
        fit = max(1, LOGITS_AT_ONCE // (B * T * self.head.width))
        return max(g for g in range(1, S + 1) if S % g == 0 and g <= fit)


def _row_keys(key: jax.Array | None, rows: int) -> jax.Array | None:
    if key is None:
        return None
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        raise ValueError(f"key is an array of {key.dtype}, not a PRNG key: make one with jax.random.key(seed)")
    if key.ndim == 0:
        return row_keys(key, rows)
    check_shape("key", key, (rows,))
    return key
