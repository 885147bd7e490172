"""Adaptive softmax and adaptive input embeddings for large vocabularies (Grave et al., arXiv 1609.04309; Baevski and Auli, 1809.10853).

Tokens are sorted by frequency and cut into a shortlist and tail clusters. With the shortlist stands one entry for each tail cluster, so

    p(w) = p_head(w) for the shortlist,   p(w) = p_head(cluster of w) p_tail(w | cluster of w) for the rest.

Tokens of cluster i have embeddings of width E / div_val^i, which a projection takes to the model's width D; input and output may share
them. As in the published Transformer-XL, which uses this for its plain softmax as well (no cutoffs: one cluster). Letters: E embedding
width, R rows computed at once, W tokens of a cluster.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from armt_jax.nn.placement import VOCABULARY, constrain

# Logits of one cluster that exist at once.
ENTRIES_AT_ONCE = 1 << 25
# Rows of a tail computed together, at least. Few rows want a tail, and the last block is computed whole.
TAIL_ROWS = 128


@dataclasses.dataclass(frozen=True)
class Clusters:
    """How a vocabulary is cut: the shortlist 0..cutoffs[0]-1, then the tails.

    Attributes: vocab_size: V. cutoffs: first token of each tail. width: D. embedding_width: E. div_val: by which the widths shrink.

    Raises:
        ValueError: cutoffs that do not rise inside the vocabulary, or widths that shrink to nothing.
    """

    vocab_size: int
    cutoffs: tuple[int, ...]
    width: int
    embedding_width: int
    div_val: int

    def __post_init__(self):
        ends = (0, *self.cutoffs, self.vocab_size)
        if any(a >= b for a, b in zip(ends, ends[1:])):
            raise ValueError(
                f"backbone.cutoffs = {self.cutoffs} must rise strictly between 0 and backbone.vocab_size = {self.vocab_size}: "
                "they are the first tokens of the tail clusters"
            )
        if self.div_val < 1 or self.embedding_width // self.div_val ** len(self.cutoffs) < 1:
            raise ValueError(
                f"backbone.div_val = {self.div_val} must be at least 1 and leave the last of {len(self.cutoffs) + 1} clusters a width of "
                f"at least 1 out of backbone.embedding_width = {self.embedding_width}"
            )

    @property
    def number(self) -> int:
        return len(self.cutoffs) + 1

    @property
    def bounds(self) -> list[tuple[int, int]]:
        ends = (0, *self.cutoffs, self.vocab_size)
        return list(zip(ends, ends[1:]))

    @property
    def widths(self) -> list[int]:
        return [self.embedding_width // self.div_val**i for i in range(self.number)]

    @property
    def projected(self) -> bool:
        """Embeddings as wide as the model need no projection, unless the widths differ."""
        return self.div_val != 1 or self.embedding_width != self.width


def _normal(rngs: nnx.Rngs, std: float, *shape: int) -> nnx.Param:
    return nnx.Param(std * jax.random.normal(rngs.params(), shape, jnp.float32))


class AdaptiveEmbedding(nnx.Module):
    """sqrt(D) P_i e_w for a token w of cluster i; one P for all clusters when their widths are equal, none when they are D.

    Parameters: tables [W_i, E_i], projections [E_i, D].
    """

    def __init__(self, clusters: Clusters, std: float, projection_std: float, rngs: nnx.Rngs):
        self.clusters = clusters
        self.tables = nnx.List([_normal(rngs, std, end - start, e) for (start, end), e in zip(clusters.bounds, clusters.widths)])
        inputs = clusters.widths if clusters.div_val != 1 else clusters.widths[:1]
        self.projections = nnx.List([_normal(rngs, projection_std, e, clusters.width) for e in inputs if clusters.projected])

    def projection(self, i: int) -> jax.Array | None:
        """Of cluster i, [E_i, D]."""
        return self.projections[min(i, len(self.projections) - 1)][...] if self.projections else None

    def __call__(self, ids: jax.Array, dtype: Any) -> jax.Array:
        out = jnp.zeros((*ids.shape, self.clusters.width), dtype)
        for i, (start, end) in enumerate(self.clusters.bounds):
            table = constrain(self.tables[i][...], VOCABULARY)
            found = table[jnp.clip(ids - start, 0, end - start - 1)].astype(dtype)
            projection = self.projection(i)
            found = found if projection is None else found @ projection.astype(dtype)
            out = jnp.where(((ids >= start) & (ids < end))[..., None], found, out)
        return out * self.clusters.width**0.5


class AdaptiveSoftmax(nnx.Module):
    """The head. `tie_tables`: the tables are the embedding's. `tie_projections`: which clusters' projections are the embedding's.

    Parameters: cluster_kernel [C, E], cluster_bias [C] for the C tail clusters, biases [W_i], and projections [E_i, D] and tables
    [W_i, E_i] where they are not the embedding's.
    """

    width = 1

    def __init__(
        self, clusters: Clusters, tie_tables: bool, tie_projections: tuple[bool, ...], std: float, projection_std: float, dtype: Any,
        rngs: nnx.Rngs,
    ):  # fmt: skip
        self.clusters, self.dtype = clusters, dtype
        sizes = [end - start for start, end in clusters.bounds]
        self.biases = nnx.List([nnx.Param(jnp.zeros(size, jnp.float32)) for size in sizes])
        self.tables = nnx.List([] if tie_tables else [_normal(rngs, std, w, e) for w, e in zip(sizes, clusters.widths)])
        own = [i for i, tied in enumerate(tie_projections) if clusters.projected and not tied]
        self.projections = nnx.List([_normal(rngs, projection_std, clusters.widths[i], clusters.width) for i in own])
        self.own = tuple(own)
        tails = clusters.number - 1
        self.cluster_kernel = nnx.data(_normal(rngs, std, tails, clusters.embedding_width) if tails else None)
        self.cluster_bias = nnx.data(nnx.Param(jnp.zeros(tails, jnp.float32)) if tails else None)

    def _weights(self, i: int, embed: AdaptiveEmbedding) -> tuple[jax.Array | None, jax.Array, jax.Array]:
        """(projection [E_i, D] or None, table [W, E_i], bias [W]) of cluster i; the shortlist's end with the entries of the tails."""
        table = (self.tables[i] if self.tables else embed.tables[i])[...]
        bias = self.biases[i][...]
        if i == 0 and self.cluster_kernel is not None:
            table = jnp.concatenate([table, self.cluster_kernel[...]])
            bias = jnp.concatenate([bias, self.cluster_bias[...]])
        projection = self.projections[self.own.index(i)][...] if i in self.own else embed.projection(i)
        return projection, table, bias

    def _log_probs(self, weights, hidden_RxD: jax.Array) -> jax.Array:
        """log p(. | cluster), [R, W] float32."""
        projection, table, bias = weights
        x = hidden_RxD if projection is None else hidden_RxD @ projection.T.astype(self.dtype)
        logits = jnp.matmul(x, table.T.astype(self.dtype), preferred_element_type=jnp.float32) + bias
        return jax.nn.log_softmax(logits, axis=-1)

    def logits(self, hidden: jax.Array, embed: AdaptiveEmbedding) -> jax.Array:
        """log p of every token [..., V]: normalised, and the whole vocabulary at once."""
        size = self.clusters.bounds[0][1]
        head = self._log_probs(self._weights(0, embed), hidden)
        tails = [
            head[..., size + i - 1, None] + self._log_probs(self._weights(i, embed), hidden) for i in range(1, self.clusters.number)
        ]
        return jnp.concatenate([head[..., :size], *tails], axis=-1)

    def losses(self, hidden: jax.Array, targets: jax.Array, embed: AdaptiveEmbedding) -> tuple[jax.Array, jax.Array]:
        """See `heads`. A tail's logits are computed for the tokens whose target lies there, and for the few where it could hold a token
        likelier than a target that is the likeliest of its own cluster and of the shortlist."""
        nll_N, correct_N = self._losses(hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1), embed)
        return nll_N.reshape(targets.shape), correct_N.reshape(targets.shape)

    def _losses(self, hidden_NxD: jax.Array, targets_N: jax.Array, embed: AdaptiveEmbedding) -> tuple[jax.Array, jax.Array]:
        size, tails = self.clusters.bounds[0][1], list(enumerate(self.clusters.bounds))[1:]
        cluster_N = sum(((targets_N >= start).astype(jnp.int32) for start in self.clusters.cutoffs), jnp.zeros_like(targets_N))
        entry = jnp.where(cluster_N == 0, targets_N, size - 1 + cluster_N)
        head = self._rows(0, embed, functools.partial(_pick_head, size), hidden_NxD, entry, jnp.ones(targets_N.shape, bool))
        found, best, likeliest, tails_NxC = head[:, 0], head[:, 1], head[:, 2], head[:, 3:]
        correct = jnp.where(cluster_N == 0, likeliest == targets_N, True)
        for i, (start, end) in tails:
            local, here = jnp.clip(targets_N - start, 0, end - start - 1), cluster_N == i
            tail = self._rows(i, embed, _pick, hidden_NxD, local, here)
            found = found + tail[:, 0]
            correct = correct & (~here | (tail[:, 2] == local))
        correct = correct & ((cluster_N == 0) | (found >= best))
        for i, _ in tails:
            possible = correct & (cluster_N != i) & (tails_NxC[:, i - 1] > found)
            tail = self._rows(i, embed, _pick, hidden_NxD, jnp.zeros_like(targets_N), possible)
            correct = correct & ~(possible & (tails_NxC[:, i - 1] + tail[:, 1] > found))
        return -found, correct

    def _rows(self, i: int, embed, pick: Callable, hidden_NxD, ids_N, wanted_N) -> jax.Array:
        """pick(log p(. | cluster i), ids) [N, n] of the wanted rows, 0 elsewhere."""
        weights = self._weights(i, embed)
        N = hidden_NxD.shape[0]
        wished = max(TAIL_ROWS, N // 16) if i else N
        block = max(1, min(N, wished, ENTRIES_AT_ONCE // weights[1].shape[0]))
        compute = lambda weights, x, ids: pick(self._log_probs(weights, x), ids)
        return _wanted_rows(compute, block, weights, hidden_NxD, ids_N, wanted_N)


def _pick(log_probs_RxW: jax.Array, ids_R: jax.Array) -> jax.Array:
    """[log p(id), the largest log p, the id it belongs to] [R, 3], with gradient through the first alone."""
    rest = jax.lax.stop_gradient(log_probs_RxW)
    likeliest = jnp.argmax(rest, axis=-1).astype(jnp.float32)
    picked = jnp.take_along_axis(log_probs_RxW, ids_R[:, None], axis=-1)[:, 0]
    return jnp.stack([picked, jnp.max(rest, axis=-1), likeliest], axis=-1)


def _pick_head(size: int, log_probs_RxW: jax.Array, ids_R: jax.Array) -> jax.Array:
    """The same of the shortlist's `size` words (the id may be a tail's entry), then log p of the tail clusters [R, 3 + C]."""
    picked = jnp.take_along_axis(log_probs_RxW, ids_R[:, None], axis=-1)
    rest = jax.lax.stop_gradient(log_probs_RxW)
    return jnp.concatenate([picked, _pick(rest[:, :size], jnp.zeros_like(ids_R))[:, 1:], rest[:, size:]], axis=-1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _wanted_rows(compute: Callable, block: int, weights, x_NxD, ids_N, wanted_N) -> jax.Array:
    """compute(weights, x, ids) [R, n] on the wanted rows, `block` of them at once, zeros in the others.

    Work and memory follow the number of wanted rows, which is data. Written with its transpose: autodiff would keep every block's logits,
    or add a gradient of the weights' size for every block that was skipped.
    """
    return _wanted_forward(compute, block, weights, x_NxD, ids_N, wanted_N)[0]


def _blocks(block: int, wanted_N):
    """(rows of block i [R], N where there are no more; number of blocks)."""
    N = wanted_N.shape[0]
    order = jnp.argsort(~wanted_N, stable=True)
    order = jnp.pad(jnp.where(jnp.arange(N) < jnp.sum(wanted_N), order, N), (0, block), constant_values=N)
    return (lambda i: jax.lax.dynamic_slice(order, (i * block,), (block,))), -(-jnp.sum(wanted_N) // block)


def _wanted_forward(compute, block, weights, x_NxD, ids_N, wanted_N):
    rows_of, number = _blocks(block, wanted_N)

    def body(i, out):
        rows = rows_of(i)
        found = compute(weights, x_NxD.at[rows].get(mode="fill", fill_value=0), ids_N.at[rows].get(mode="fill", fill_value=0))
        return out.at[rows].set(found, mode="drop")

    shape = jax.eval_shape(compute, weights, x_NxD[:block], ids_N[:block])
    out = jax.lax.fori_loop(0, number, body, jnp.zeros((x_NxD.shape[0], shape.shape[1]), shape.dtype))
    return out, (weights, x_NxD, ids_N, wanted_N)


def _wanted_backward(compute, block, saved, d_out):
    weights, x_NxD, ids_N, wanted_N = saved
    rows_of, number = _blocks(block, wanted_N)

    def body(i, carry):
        d_weights, d_x = carry
        rows = rows_of(i)
        x, ids, d = (a.at[rows].get(mode="fill", fill_value=0) for a in (x_NxD, ids_N, d_out))
        more, d_rows = jax.vjp(lambda w, x: compute(w, x, ids), weights, x)[1](d)
        return jax.tree.map(jnp.add, d_weights, more), d_x.at[rows].set(d_rows, mode="drop")

    start = jax.tree.map(jnp.zeros_like, (weights, x_NxD))
    d_weights, d_x = jax.lax.fori_loop(0, number, body, start)
    return d_weights, d_x, None, None


_wanted_rows.defvjp(_wanted_forward, _wanted_backward)
