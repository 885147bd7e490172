"""The adaptive softmax and input against the plain formulas over the whole vocabulary."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.extend.core import jaxprs_in_params

from armt_jax.nn import adaptive_softmax
from armt_jax.nn.adaptive_softmax import AdaptiveEmbedding, AdaptiveSoftmax, Clusters
from armt_jax.nn.heads import TiedHead, UntiedHead
from armt_jax.nn.layers import Init, Table

V, D, N = 40, 8, 60
CASES = {
    "plain": dict(cutoffs=(), embedding_width=D, div_val=1, ties=(False,)),
    "projected": dict(cutoffs=(), embedding_width=4, div_val=1, ties=(True,)),
    "one width": dict(cutoffs=(10, 25), embedding_width=D, div_val=1, ties=(False, True, True)),
    "one width projected": dict(cutoffs=(10, 25), embedding_width=4, div_val=1, ties=(False, True, False)),
    "shrinking": dict(cutoffs=(10, 25), embedding_width=D, div_val=2, ties=(False, True, True)),
    "untied": dict(cutoffs=(4,), embedding_width=6, div_val=3, ties=(False, False), tie_tables=False),
}


def parts(cutoffs, embedding_width, div_val, ties, tie_tables=True):
    rngs = nnx.Rngs(0)
    clusters = Clusters(V, cutoffs, D, embedding_width, div_val)
    embed = AdaptiveEmbedding(clusters, 1.0, 0.5, rngs)
    head = AdaptiveSoftmax(clusters, tie_tables, ties, 1.0, 0.5, jnp.float32, rngs)
    for i, bias in enumerate(head.biases):
        bias[...] = np.random.default_rng(i).normal(size=bias.shape)
    if cutoffs:
        head.cluster_bias[...] = np.random.default_rng(9).normal(size=len(cutoffs))
    return embed, head


@pytest.fixture(params=CASES, ids=str)
def pair(request):
    return parts(**CASES[request.param])


def data(seed=0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=(N, D)), jnp.float32), jnp.asarray(rng.integers(0, V, N))


def test_embeddings_by_hand(pair):
    embed, _ = pair
    ids = np.arange(V).reshape(4, 10)
    got = np.asarray(embed(jnp.asarray(ids), jnp.float32))
    for word in range(V):
        i = sum(word >= c for c in embed.clusters.cutoffs)
        row = np.asarray(embed.tables[i][...])[word - embed.clusters.bounds[i][0]]
        projection = embed.projection(i)
        want = np.sqrt(D) * (row if projection is None else row @ np.asarray(projection))
        np.testing.assert_allclose(got[word // 10, word % 10], want, atol=1e-5)


def test_every_case_stores_what_it_says(pair):
    embed, head = pair
    clusters = embed.clusters
    assert [t.shape for t in embed.tables] == [(end - start, e) for (start, end), e in zip(clusters.bounds, clusters.widths)]
    assert len(embed.projections) == (0 if not clusters.projected else clusters.number if clusters.div_val > 1 else 1)
    assert len(head.tables) in (0, clusters.number)


def test_probabilities_by_hand(pair):
    embed, head = pair
    hidden, _ = data()
    got = np.asarray(head.logits(hidden, embed))
    assert got.shape == (N, V)
    np.testing.assert_allclose(np.exp(got).sum(axis=-1), 1.0, atol=1e-5)
    size = embed.clusters.bounds[0][1]

    def softmaxed(i):
        projection, table, bias = (None if a is None else np.asarray(a) for a in head._weights(i, embed))
        x = np.asarray(hidden) if projection is None else np.asarray(hidden) @ projection.T
        scores = np.exp(x @ table.T + bias)
        return scores / scores.sum(axis=-1, keepdims=True)

    whole = softmaxed(0)
    want = [whole[:, :size]] + [whole[:, size + i - 1, None] * softmaxed(i) for i in range(1, embed.clusters.number)]
    np.testing.assert_allclose(np.exp(got), np.concatenate(want, axis=1), atol=2e-6)


@pytest.mark.parametrize("entries", [1 << 25, 120], ids=["one block", "many blocks"])
def test_losses_and_their_gradients_are_those_of_the_full_softmax(pair, entries, monkeypatch):
    monkeypatch.setattr(adaptive_softmax, "ENTRIES_AT_ONCE", entries)
    hidden, targets = data()
    graphdef, params = nnx.split(pair)
    weights = jnp.asarray(np.random.default_rng(1).normal(size=N), jnp.float32)

    def short(params, hidden):
        embed, head = nnx.merge(graphdef, params)
        nll, correct = head.losses(hidden, targets, embed)
        return jnp.sum(nll * weights), (nll, correct)

    def full(params, hidden):
        embed, head = nnx.merge(graphdef, params)
        log_probs = head.logits(hidden, embed)
        nll = -jnp.take_along_axis(log_probs, targets[:, None], axis=1)[:, 0]
        return jnp.sum(nll * weights), (nll, jnp.argmax(log_probs, axis=1) == targets)

    got, want = (jax.jit(jax.value_and_grad(f, argnums=(0, 1), has_aux=True))(params, hidden) for f in (short, full))
    np.testing.assert_allclose(got[0][1][0], want[0][1][0], atol=5e-6)
    np.testing.assert_array_equal(got[0][1][1], want[0][1][1])
    for a, b in zip(jax.tree.leaves(got[1]), jax.tree.leaves(want[1]), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * max(1.0, float(np.abs(b).max())))


@pytest.mark.parametrize("name", ["one width", "shrinking", "untied"])
def test_the_likeliest_token_is_found_in_any_cluster(name):
    """`correct` without the logits of clusters that cannot matter: right for targets that are the likeliest token, and for those
    that are beaten from another cluster alone."""
    embed, head = parts(**CASES[name])
    hidden, _ = data(3)
    log_probs = np.asarray(head.logits(hidden, embed))
    best = log_probs.argmax(axis=1)
    assert len({sum(w >= c for c in embed.clusters.cutoffs) for w in best}) > 1
    assert np.all(head.losses(hidden, jnp.asarray(best), embed)[1])
    for rank in (1, 2):
        other = np.argsort(-log_probs, axis=1)[:, rank]
        assert not np.any(head.losses(hidden, jnp.asarray(other), embed)[1])


def test_no_target_in_a_tail_costs_nothing_and_gives_no_gradient():
    embed, head = parts(**CASES["shrinking"])
    hidden, _ = data()
    graphdef, params = nnx.split((embed, head))

    def loss(params):
        embed, head = nnx.merge(graphdef, params)
        return head.losses(hidden, jnp.zeros(N, int), embed)[0].sum()

    grads = nnx.merge(graphdef, jax.grad(loss)(params))
    assert not np.any(grads[0].tables[1][...]) and not np.any(grads[1].biases[2][...])
    assert np.any(grads[0].tables[0][...]) and np.any(grads[1].cluster_kernel[...])


def test_the_whole_vocabulary_never_exists(monkeypatch):
    """No array of the loss or its gradient holds a tail's logits for all tokens."""
    monkeypatch.setattr(adaptive_softmax, "ENTRIES_AT_ONCE", 150)
    embed, head = parts(**CASES["shrinking"])
    hidden, targets = data()
    graphdef, params = nnx.split((embed, head))

    def loss(params, hidden):
        embed, head = nnx.merge(graphdef, params)
        return head.losses(hidden, targets, embed)[0].sum()

    sizes = set()

    def walk(jaxpr):
        for eqn in jaxpr.eqns:
            sizes.update(v.aval.shape for v in eqn.outvars)
            for inner in jaxprs_in_params(eqn.params):
                walk(inner)

    walk(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(params, hidden).jaxpr)
    assert (10, 15) in sizes  # a block of 10 rows with the 15 words of the last tail
    assert not any(len(shape) == 2 and shape[0] == N and shape[1] >= 12 for shape in sizes)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(cutoffs=(25, 10)), r"backbone.cutoffs = \(25, 10\) must rise strictly between 0 and backbone.vocab_size = 40"),
        (dict(cutoffs=(40,)), r"backbone.cutoffs = \(40,\)"),
        (dict(cutoffs=(10, 25), div_val=3), "backbone.div_val = 3 must be at least 1 and leave the last of 3 clusters"),
        (dict(div_val=0), "backbone.div_val = 0"),
    ],
)
def test_refused_cuts(change, message):
    with pytest.raises(ValueError, match=message):
        Clusters(**dict(vocab_size=V, cutoffs=(), width=D, embedding_width=D, div_val=1) | change)


def test_plain_heads():
    """Logits are products with the table or the head's own matrix, the losses theirs."""
    embed = Table(V, D, 1.0, nnx.Rngs(0))
    hidden, targets = data()
    untied = UntiedHead(D, V, Init(), jnp.float32, nnx.Rngs(1))
    for head, kernel in ((TiedHead(V, jnp.float32), embed.table[...].T), (untied, untied.kernel[...])):
        np.testing.assert_allclose(head.logits(hidden, embed), hidden @ kernel, atol=1e-5)
        nll, correct = head.losses(hidden, targets, embed)
        want = -np.asarray(jax.nn.log_softmax(hidden @ kernel))[np.arange(N), targets]
        np.testing.assert_allclose(nll, want, atol=1e-5)
        np.testing.assert_array_equal(correct, (hidden @ kernel).argmax(axis=1) == targets)
