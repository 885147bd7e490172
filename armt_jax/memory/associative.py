"""ARMT: an associative matrix in every layer (arXiv 2407.04841, equations 1-4).

State of a layer: A [B, H, K, d], z [B, H, K], zeros at the start. H memory heads (1 in the paper), K = 2 nu d_mem / H key features per
head, d = D / H. With the feature map phi (DPFP, Schlag et al., arXiv 2102.11174), for every position x of the layer's input

    q = phi(W_q x),  x <- x + q A / (q z + eps)

and after the layer, for the outputs m_i at the memory tokens, all against the A and z of before this segment (a parallel delta rule)

    k_i = phi(W_k m_i),  v_i = W_v m_i,  beta_i = sigmoid(W_b m_i + b)
    old_i = k_i A / (z k_i + eps)
    A <- A + sum_i beta_i k_i (v_i - old_i)^T,   z <- z + sum_i gamma_i k_i
    gamma_i = clip(1 - (z k_i + eps) / (|k_i|^2 + eps), 0, 1), no gradient through it;  1 without correction and while the memory is empty.

The eps, the clip, the stopped gradient and the empty case are those of the published code; the paper's equations have none of them. Ours
are `read_floor`, with which both divisors q z and z k_i are at least that: where hardly anything is written, a read fades; and the gate
"hard", whose beta_i = clip(1/2 + (W_b m_i + b) / 6, 0, 1) can be 0, with gamma_i = 0 then: a token whose gate is shut leaves A and z as
they were, to the last bit, however many there are of them.
"""

import dataclasses
import math
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from armt_jax.memory.interface import LayerMemory, Layout, MemoryConfig, Trace, check_memory_tokens, memory_layout
from armt_jax.memory.products import batched_product, dot, outer_products
from armt_jax.memory.write_tokens import WriteTokens
from armt_jax.nn.backbones import BackboneConfig
from armt_jax.nn.layers import Init, linear

EPSILON = 1e-5


def dpfp(x: jax.Array, nu: int) -> jax.Array:
    """Deterministic parameter-free projection: [..., d] -> [..., 2 nu d] >= 0: u = [relu(x), relu(-x)] times its rolls by 1..nu."""
    u = jnp.concatenate([jax.nn.relu(x), jax.nn.relu(-x)], axis=-1)
    return jnp.concatenate([u * jnp.roll(u, j, axis=-1) for j in range(1, nu + 1)], axis=-1)


def l2_normalise(x: jax.Array) -> jax.Array:
    """x / |x| over the last axis; zero stays zero, with a zero gradient."""
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    seen = square > 1e-24
    return x * jnp.where(seen, jax.lax.rsqrt(jnp.where(seen, square, 1.0)), 0.0)


KEY_NORMS = {"none": lambda x: x, "l2": l2_normalise}
LIKE_WRITES = ("add", "share")
GATES = ("sigmoid", "hard")
# The share of the gradient that passes beyond the bounds of a hard gate.
BEYOND = 0.1


@jax.custom_vjp
def hard_gate(x_BxHxMx1: jax.Array, cost_Bx1x1x1: jax.Array) -> jax.Array:
    """clip(1/2 + x / 6, 0, 1), with the gradient of the loss plus cost times the largest gate of a segment's tokens.

    At a gate that is shut, or open altogether, a tenth of that gradient passes: a shut one opens again where the loss would gain by it.
    With none, a gate once shut for all inputs stays so.
    """
    return jnp.clip(0.5 + x_BxHxMx1 / 6, 0.0, 1.0)


def largest(gate_BxHxMx1: jax.Array) -> jax.Array:
    """Shares of 1 for the tokens whose gate is the largest of its segment, 0 for the others; 0 for all where all are shut."""
    first = (gate_BxHxMx1 == jnp.max(gate_BxHxMx1, axis=2, keepdims=True)) & (gate_BxHxMx1 > 0)
    return first / jnp.maximum(jnp.sum(first, axis=2, keepdims=True), 1)


def _hard_gate_backward(residual, d_gate):
    x, cost = residual
    return (d_gate + cost * largest(hard_gate(x, cost))) / 6 * jnp.where(jnp.abs(x) < 3, 1.0, BEYOND), jnp.zeros_like(cost)


hard_gate.defvjp(lambda x, cost: (hard_gate(x, cost), (x, cost)), _hard_gate_backward)


class AssociativeState(NamedTuple):
    A_BxHxKxd: jax.Array
    z_BxHxK: jax.Array


class AssociativeUpdate(NamedTuple):
    """Low rank: A grows by sum_i key_i value_i^T, z by `mass`. `empty`: features that nothing had touched before.

    Taking a sum back off a zero leaves rounding, and the read divides by almost nothing there: `undo` restores exact zeros.
    """

    key_BxHxMxK: jax.Array
    value_BxHxMxd: jax.Array
    mass_BxHxK: jax.Array
    empty_BxHxK: jax.Array


class AssociativeMemory(LayerMemory):
    reversible: ClassVar[bool] = True
    training_free: ClassVar[bool] = False

    def __init__(self, config: "ARMT", width: int, init: Init, dtype: Any, rngs: nnx.Rngs):
        kwargs = dict(init=init, dtype=dtype, rngs=rngs)
        self.query = linear(width, config.d_mem, bias=False, **kwargs)
        self.key = linear(width, config.d_mem, bias=False, **kwargs)
        value_init = dataclasses.replace(init, kernel=config.value_std)
        self.value = linear(width, width, bias=False, init=value_init, dtype=dtype, rngs=rngs)
        self.beta = linear(width, config.num_heads, bias=True, **kwargs)
        self.config = config
        self.width = width

    def init_state(self, batch):
        H, K = self.config.num_heads, self.config.key_features
        return AssociativeState(jnp.zeros((batch, H, K, self.width // H), jnp.float32), jnp.zeros((batch, H, K), jnp.float32))

    def _heads(self, x_BxTxD: jax.Array) -> jax.Array:
        """[B, T, D] -> [B, H, T, d], float32: batch axes first, so that products with A need no copy of A."""
        B, T, _ = x_BxTxD.shape
        x = x_BxTxD.astype(jnp.float32)
        return x[:, None] if self.config.num_heads == 1 else jnp.swapaxes(x.reshape(B, T, self.config.num_heads, -1), 1, 2)

    def _features(self, projected_BxTxd: jax.Array) -> jax.Array:
        return KEY_NORMS[self.config.key_norm](dpfp(self._heads(projected_BxTxd), self.config.nu))

    def _recall(self, k_BxHxTxK: jax.Array, state: AssociativeState) -> tuple[jax.Array, jax.Array]:
        """(k A / (k z + eps) [B, H, T, d], k z [B, H, T])."""
        weight = jnp.einsum("bhtk,bhk->bht", k_BxHxTxK, state.z_BxHxK)
        floor = self.config.read_floor
        divisor = jnp.maximum(weight, floor) if floor else weight
        return batched_product(k_BxHxTxK, state.A_BxHxKxd) / (divisor + EPSILON)[..., None], weight

    def read(self, x_BxTxD, state, layout):
        found, _ = self._recall(self._features(self.query(x_BxTxD)), state)
        found = found[:, 0] if self.config.num_heads == 1 else jnp.swapaxes(found, 1, 2).reshape(x_BxTxD.shape)
        return x_BxTxD + found.astype(x_BxTxD.dtype)

    def write(self, trace: Trace, state):
        m = trace.layout.write_slots(trace.outputs_BxTxD)
        k, v = self._features(self.key(m)), self._heads(self.value(m))
        writes_B = self._writes(trace)
        gate = self._gate(self._heads(self.beta(m)), writes_B)
        beta = self.config.beta_max * gate
        old, weight = self._recall(k, state)
        gamma = self._gamma(k, weight, state)
        if self.config.like_writes == "share":
            share = self._share(k, gate)
            beta, gamma = beta * share, gamma * jax.lax.stop_gradient(gate * share)[..., 0]
        elif self.config.gate == "hard":  # what is not written counts for nothing
            gamma = jnp.where(gate[..., 0] > 0, gamma, 0.0)
        mass = jnp.einsum("bhm,bhmk->bhk", gamma, k)
        empty = (state.z_BxHxK == 0) & jnp.all(state.A_BxHxKxd == 0, axis=-1)
        value = beta * (v - old)
        if self.config.first_layer:
            value, mass = jnp.where(writes_B[:, None, None, None], value, 0.0), jnp.where(writes_B[:, None, None], mass, 0.0)
        return AssociativeUpdate(k, value, mass, empty)

    def _writes(self, trace: Trace) -> jax.Array | None:
        """Rows that write in this cell; None: all."""
        if not self.config.first_layer:
            return trace.live_B
        here_B = jnp.broadcast_to(trace.layer >= self.config.first_layer, trace.outputs_BxTxD.shape[:1])
        return here_B if trace.live_B is None else here_B & trace.live_B

    def _gate(self, x_BxHxMx1: jax.Array, writes_B: jax.Array | None) -> jax.Array:
        """From 0 to 1. Rows that write nothing have no cost."""
        if self.config.gate == "sigmoid":
            return jax.nn.sigmoid(x_BxHxMx1)
        cost = jnp.full((x_BxHxMx1.shape[0], 1, 1, 1), self.config.write_cost)
        return hard_gate(x_BxHxMx1, cost if writes_B is None else jnp.where(writes_B[:, None, None, None], cost, 0.0))

    @staticmethod
    def _share(k_BxHxMxK: jax.Array, gate_BxHxMx1: jax.Array) -> jax.Array:
        """1 / max(1, sum_j gate_j k_i k_j), [B, H, M, 1]."""
        return 1 / jnp.maximum(dot(dot(k_BxHxMxK, k_BxHxMxK, 3, 3), gate_BxHxMx1, 3, 2), 1.0)

    def _gamma(self, k, weight_BxHxM, state) -> jax.Array:
        if not self.config.correction:
            return jnp.ones_like(weight_BxHxM)
        square = jnp.sum(k * k, axis=-1)
        # 1 - (w + eps) / (k^2 + eps), written without the cancellation when both are far below eps.
        gamma = jnp.clip((square - weight_BxHxM) / (square + EPSILON), 0.0, 1.0)
        empty = ~jnp.any(state.z_BxHxK != 0, axis=-1)[..., None]
        return jax.lax.stop_gradient(jnp.where(empty, 1.0, gamma))

    @staticmethod
    def _growth(update: AssociativeUpdate) -> jax.Array:
        """sum_i key_i value_i^T, [B, H, K, d]."""
        return outer_products(update.key_BxHxMxK, update.value_BxHxMxd)

    def commit(self, state, update):
        return AssociativeState(state.A_BxHxKxd + self._growth(update), state.z_BxHxK + update.mass_BxHxK)

    def undo(self, state, update):
        A, z = state.A_BxHxKxd - self._growth(update), state.z_BxHxK - update.mass_BxHxK
        return AssociativeState(jnp.where(update.empty_BxHxK[..., None], 0.0, A), jnp.where(update.empty_BxHxK, 0.0, z))


@dataclasses.dataclass(frozen=True)
class ARMT(MemoryConfig):
    """ARMT: an associative matrix per layer, written from M constant memory tokens at the end of each segment.

    Attributes:
        num_memory_tokens: M. d_mem: width of the key projection before the feature map. nu: order of DPFP (3).
        num_heads: memory heads H. correction: gamma as above; False counts every write fully.
        key_norm: "none" (the paper) or "l2" (unit keys and queries; the authors' later code).
        positions: of the memory tokens: "running" on after the text's, or "table": rows of their own (GPT-2).
        beta_max: largest write gate; 1 as published. All tokens of a segment are written against the same old value, so M like keys
            replace up to M beta of it, and more than 2 overshoots by more than the error, again in every segment: a memory that is carried
            on for thousands of segments then explodes. beta_max <= 2 / M with key_norm "l2" prevents that where the keys have their
            mass in z; it does not keep A from growing slowly in directions that nothing overwrites.
            What a write replaces, for one unit key k that was first written by n0 like tokens: they leave z k = n0 (gamma is 1 where k has
            no mass yet) and later writes add none to it (gamma 0 as n0 >= 1). The read is r = k A / n0, and n like tokens with value v
            add n beta k (v - r)^T to A, so r <- r + (n beta / n0) (v - r): the share replaced is n beta / n0. With as many like tokens
            as at first it is beta: a key's newest value can displace the old one at once only where beta_max is near 1.
        like_writes: of tokens of one segment with like keys. "add" as published: they count as often as they are (see beta_max). "share":
            one write is shared among them. With unit keys, token i counts w_i = 1 / max(1, sum_j gate_j k_i k_j) times, in A and, with
            its gate, in z. Then n like tokens with open gates write what one would; the newest value displaces the old one, however many
            wrote either; and no number of tokens overshoots at any beta_max: with D = diag(gate_i w_i) and G the products of the keys
            (not negative, as DPFP's features are not), D G has no eigenvalue above 1 (Collatz and Wielandt's bound at x_i =
            (gate_i / w_i)^0.5), so long as read_floor is 1 or more. Tokens with keys of their own write as they would alone.
        gate: "sigmoid" as published, or "hard". A sigmoid is never 0, and training does not make it small where nothing is worth writing,
            as long as a write there does no harm within the trained length: it takes a little off what is kept, in every segment. What a
            thousand segments take is what a hard gate keeps (docs/results/babilong.md).
        write_cost: what shuts the gates: the gradient is that of the summed loss (nats) plus write_cost for every segment in which a row,
            layer and head writes, times the largest gate of its tokens. (Of all their gates, it would shut all tokens but one for good
            while one is enough.) The loss that is reported is without it. A shut gate opens again where the loss would gain by it
            (`hard_gate`). Wants gate "hard", as a sigmoid only becomes small. A stage may set it for itself: from the first step on it
            shuts gates before they are of use.
        read_floor: smallest divisor of a read; 0 as published. q z is what of the query's features was ever written: with unit keys 1 and
            more at a key that was written, near 0 where the query has little in common with all of them. The published read divides by
            that little, so what says least is read loudest: on text, where every word asks, it is noise, and its gradient now and then
            is ten times all the others together (docs/results/wikitext2.md). With 1 such a read fades with q z, and one at a written
            key stays as it is. Wants key_norm "l2": the size of other keys is free, and what 1 means with it.
        first_layer: layers below it neither write nor have anything to read; 0 as published. What a gate can know of a segment is what the
            layers up to its own have made of it: the first one's sees which words occur, not which belong together.
        value_std: initial scale of W_v; 0 as published, None for 1/sqrt(D).
        memory_std: initial scale of the memory tokens; None: that of the token embeddings.
    """

    num_memory_tokens: int = 10
    d_mem: int = 64
    nu: int = 3
    num_heads: int = 1
    correction: bool = True
    key_norm: str = "none"
    beta_max: float = 1.0
    like_writes: str = "add"
    gate: str = "sigmoid"
    write_cost: float = 0.0
    read_floor: float = 0.0
    first_layer: int = 0
    positions: str = "running"
    value_std: float | None = 0.0
    memory_std: float | None = None

    layer_class: ClassVar[type] = AssociativeMemory
    token_class: ClassVar[type] = WriteTokens
    stage_fields: ClassVar[tuple[str, ...]] = ("write_cost",)

    def __post_init__(self):
        check_memory_tokens(self.num_memory_tokens)
        if self.key_norm not in KEY_NORMS:
            raise ValueError(f"memory.key_norm = {self.key_norm!r} must be one of {tuple(KEY_NORMS)}")
        if self.like_writes not in LIKE_WRITES:
            raise ValueError(f"memory.like_writes = {self.like_writes!r} must be one of {LIKE_WRITES}")
        if self.like_writes == "share" and self.key_norm == "none":
            raise ValueError("memory.like_writes = 'share' needs memory.key_norm = 'l2': products of keys say which are alike")
        if self.gate not in GATES:
            raise ValueError(f"memory.gate = {self.gate!r} must be one of {GATES}")
        if not (0.0 <= self.write_cost < math.inf):
            raise ValueError(f"memory.write_cost = {self.write_cost} must be 0, or more: nats for an open gate")
        if self.write_cost and self.gate != "hard":
            raise ValueError(f"memory.write_cost = {self.write_cost} needs memory.gate = 'hard': a sigmoid never shuts")
        if not 0.0 < self.beta_max <= 1.0:
            raise ValueError(f"memory.beta_max = {self.beta_max} must lie in (0, 1]: it scales the write gate")
        if not (0.0 <= self.read_floor < math.inf):
            raise ValueError(f"memory.read_floor = {self.read_floor} must be 0, as published, or more: it bounds a divisor from below")
        if self.read_floor and self.key_norm == "none":
            raise ValueError(f"memory.read_floor = {self.read_floor} needs memory.key_norm = 'l2': without it a key's size is free")
        if self.num_heads < 1:
            raise ValueError(f"memory.num_heads = {self.num_heads} must be at least 1")
        if self.d_mem < 1 or self.d_mem % self.num_heads:
            raise ValueError(f"memory.d_mem = {self.d_mem} is not a positive multiple of memory.num_heads = {self.num_heads}")
        if not 1 <= self.nu < 2 * self.d_mem // self.num_heads:
            raise ValueError(f"memory.nu = {self.nu} must lie in 1..2 d_mem / num_heads - 1 = {2 * self.d_mem // self.num_heads - 1}")

    @property
    def key_features(self) -> int:
        """K, per memory head."""
        return 2 * self.nu * self.d_mem // self.num_heads

    def layout(self, backbone: BackboneConfig) -> Layout:
        if not 0 <= self.first_layer < backbone.num_layers:
            raise ValueError(
                f"memory.first_layer = {self.first_layer} must lie in 0..backbone.num_layers - 1 = {backbone.num_layers - 1}: some layer "
                "must write"
            )
        if backbone.width % self.num_heads:
            raise ValueError(f"backbone.width = {backbone.width} is not a multiple of memory.num_heads = {self.num_heads}")
        return memory_layout(0, self.num_memory_tokens, self.positions, backbone)

    def layer_memory(self, backbone, dtype, rngs):
        return AssociativeMemory(self, backbone.width, backbone.init, dtype, rngs)

    def token_memory(self, backbone, rngs):
        std = backbone.token_std if self.memory_std is None else self.memory_std
        return WriteTokens(self.num_memory_tokens, backbone.width, std, rngs)
