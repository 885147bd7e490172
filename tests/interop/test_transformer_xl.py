"""What the golden files do not hold (pre-norm, one width for all clusters, projected embeddings), against a restatement in float64.

The restatement reads the published names and shapes, and is itself checked against the golden files.
"""

from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from armt_jax.interop import verify
from armt_jax.interop.reference import from_reference, model_config
from armt_jax.interop.transformer_xl import backbone_config, in_published_order
from armt_jax.model import MemoryTransformer
from armt_jax.parallel.rules import path_string

GOLDEN = Path(__file__).parents[1] / "testdata" / "golden"
PLAIN, LONG, ADAPTIVE = "transformer_xl", "transformer_xl_long_cache_same_length", "transformer_xl_adaptive"


def log_softmax(x):
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def norm(t, name, x):
    x = x - x.mean(axis=-1, keepdims=True)
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + 1e-5) * t[f"{name}.weight"] + t[f"{name}.bias"]


class Restated:
    """The published model without dropout; `t` holds its tensors in float64."""

    def __init__(self, meta, t):
        self.c, self.t = meta["config"], {name: np.asarray(a, np.float64) for name, a in t.items()}
        self.T, self.C = meta["segment_size"], meta["cache_length"]
        self.ends = [0, *self.c["cutoffs"], self.c["n_token"]]

    def projection(self, kind, i):
        """[D, E_i] or None. `kind` word_emb.emb_projs or crit.out_projs; tied ones are stored on the input side alone."""
        shared = self.c["div_val"] == 1
        if shared and self.c["d_embed"] == self.c["d_model"]:
            return None
        if kind == "crit.out_projs" and not self.c["tie_projs"][i]:
            return self.t[f"{kind}.{i}"]
        return self.t[f"word_emb.emb_projs.{0 if shared else i}"]

    def table(self, i):
        if self.c["div_val"] == 1:
            return self.t["word_emb.emb_layers.0.weight"][self.ends[i] : self.ends[i + 1]]
        return self.t[f"word_emb.emb_layers.{i}.weight"]

    def bias(self, i):
        if self.c["div_val"] == 1:
            return self.t["crit.out_layers.0.bias"][self.ends[i] : self.ends[i + 1]]
        return self.t[f"crit.out_layers.{i}.bias"]

    def embed(self, ids):
        out = np.zeros((*ids.shape, self.c["d_model"]))
        for i in range(len(self.ends) - 1):
            for place in zip(*np.nonzero((ids >= self.ends[i]) & (ids < self.ends[i + 1]))):
                row, p = self.table(i)[ids[place] - self.ends[i]], self.projection("word_emb.emb_projs", i)
                out[place] = row if p is None else p @ row
        return out * self.c["d_model"] ** 0.5

    def attention(self, base, h, memory):
        c, (H, d) = self.c, self.t["r_w_bias"].shape
        cat = np.concatenate([memory, h], axis=1)
        entering = norm(self.t, f"{base}.layer_norm", cat) if c["pre_lnorm"] else cat
        heads = (entering @ self.t[f"{base}.qkv_net.weight"].T).reshape(*cat.shape[:2], 3, H, d)
        q, k, v = heads[:, memory.shape[1] :, 0], heads[:, :, 1], heads[:, :, 2]
        T, S = h.shape[1], cat.shape[1]
        distance = (np.arange(T)[:, None] + S - T) - np.arange(S)
        far = np.maximum(distance, 0) if c["clamp_len"] <= 0 else np.clip(distance, 0, c["clamp_len"])
        waves = 10000.0 ** (-np.arange(0, c["d_model"], 2) / c["d_model"])
        angles = far[..., None] * waves
        r = (np.concatenate([np.sin(angles), np.cos(angles)], axis=-1) @ self.t[f"{base}.r_net.weight"].T).reshape(T, S, H, d)
        scores = np.einsum("bthd,bshd->bhts", q + self.t["r_w_bias"], k) + np.einsum("bthd,tshd->bhts", q + self.t["r_r_bias"], r)
        seen = distance >= 0
        if c["same_length"]:
            seen &= distance < self.C
        p = np.exp(log_softmax(np.where(seen, scores / d**0.5, -1e300)))
        out = np.einsum("bhts,bshd->bthd", p, v).reshape(*h.shape[:2], H * d) @ self.t[f"{base}.o_net.weight"].T
        return h + out if c["pre_lnorm"] else norm(self.t, f"{base}.layer_norm", h + out)

    def feed_forward(self, base, x):
        y = norm(self.t, f"{base}.layer_norm", x) if self.c["pre_lnorm"] else x
        y = np.maximum(y @ self.t[f"{base}.CoreNet.0.weight"].T + self.t[f"{base}.CoreNet.0.bias"], 0)
        y = x + y @ self.t[f"{base}.CoreNet.3.weight"].T + self.t[f"{base}.CoreNet.3.bias"]
        return y if self.c["pre_lnorm"] else norm(self.t, f"{base}.layer_norm", y)

    def nll(self, h, target):
        """Of one token."""
        logits = []
        for i in range(len(self.ends) - 1):
            weight, bias, p = self.table(i), self.bias(i), self.projection("crit.out_projs", i)
            if i == 0 and len(self.ends) > 2:
                weight = np.concatenate([weight, self.t["crit.cluster_weight"]])
                bias = np.concatenate([bias, self.t["crit.cluster_bias"]])
            logits.append(log_softmax(weight @ (h if p is None else h @ p) + bias))
        i = int(np.searchsorted(self.c["cutoffs"], target, side="right"))
        return -logits[0][target] if i == 0 else -(logits[0][-i] + logits[i][target - self.ends[i]])

    def __call__(self, ids):
        """(token losses [B, N], caches [L][B, C, D])."""
        L, B = self.c["n_layer"], len(ids)
        memory, losses = [np.zeros((B, 0, self.c["d_model"]))] * L, []
        for start in range(0, ids.shape[1] - 1, self.T):
            h, after = self.embed(ids[:, start : start + self.T]), []
            for i in range(L):
                after.append(np.concatenate([memory[i], h], axis=1)[:, -self.C :])
                h = self.feed_forward(f"layers.{i}.pos_ff", self.attention(f"layers.{i}.dec_attn", h, memory[i]))
            targets = ids[:, start + 1 : start + 1 + self.T]
            losses.append(np.array([[self.nll(*pair) for pair in zip(*row)] for row in zip(h, targets)]))
            memory = after
        return np.concatenate(losses, axis=1), memory


def loaded(name):
    meta, arrays = verify.load(str(GOLDEN / f"{name}.npz"))
    return meta, {key.removeprefix("param/"): a for key, a in arrays.items() if key.startswith("param/")}, arrays


@pytest.mark.parametrize("name", [PLAIN, LONG, ADAPTIVE])
def test_the_restatement_computes_what_the_golden_files_hold(name):
    meta, tensors, arrays = loaded(name)
    losses, caches = Restated(meta, tensors)(arrays["input_ids"])
    losses = in_published_order(losses, arrays["input_ids"][:, 1:], model_config(meta))
    np.testing.assert_allclose(losses, arrays["token_loss"], atol=2e-6)
    for i, cache in enumerate(caches):
        np.testing.assert_allclose(cache, arrays[f"final_state/hidden/{i}"], atol=2e-6)


def drawn(tensors, **shapes):
    """The file's tensors with some replaced (None: dropped) by random ones of other shapes; '__' stands for '.'."""
    rng = np.random.default_rng(0)
    out = dict(tensors)
    for name, shape in shapes.items():
        out.pop(name.replace("__", "."), None)
        if shape is not None:
            out[name.replace("__", ".")] = rng.normal(scale=0.3, size=shape).astype(np.float32)
    return out


def variants():
    """name -> (meta, tensors, ids)."""
    meta, tensors, arrays = loaded(PLAIN)
    long_meta, long_tensors, long_arrays = loaded(LONG)
    config, ids = meta["config"], arrays["input_ids"]
    cut = dict(crit__cluster_weight=(2, 32), crit__cluster_bias=(2,))
    narrow = dict(word_emb__emb_layers__0__weight=(120, 12), word_emb__emb_projs__0=(32, 12))
    own = dict(crit__out_projs__0=(32, 12), crit__out_projs__2=(32, 12), crit__cluster_weight=(2, 12), crit__cluster_bias=(2,))
    ties = dict(cutoffs=[30, 70], tie_projs=[False, True, False])
    return {
        "pre-norm": (meta | dict(config=config | dict(pre_lnorm=True)), tensors, ids),
        "pre-norm, clamp, same length": (long_meta | dict(config=long_meta["config"] | dict(pre_lnorm=True)), long_tensors,
                                         long_arrays["input_ids"]),
        "clusters of one width": (meta | dict(config=config | ties), drawn(tensors, **cut), ids),
        "clusters of one projected width": (meta | dict(config=config | ties | dict(d_embed=12)), drawn(tensors, **narrow, **own), ids),
        "one projected width": (meta | dict(config=config | dict(d_embed=12, tie_projs=[True])), drawn(tensors, **narrow), ids),
        "short cache": (meta | dict(cache_length=3, config=config | dict(mem_len=3)), tensors, ids),
        "short cache, same length": (meta | dict(cache_length=3, config=config | dict(mem_len=3, same_length=True)), tensors, ids),
    }  # fmt: skip


@pytest.mark.parametrize("name", variants())
def test_variants_of_the_published_model(name):
    meta, tensors, ids = variants()[name]
    want, caches = Restated(meta, tensors)(ids)
    config = model_config(meta)
    model = nnx.eval_shape(lambda: MemoryTransformer(config, rngs=nnx.Rngs(0)))
    graphdef, abstract = nnx.split(model)
    weights = from_reference(config, tensors)
    assert {path_string(p): a.shape for p, a in jax.tree_util.tree_leaves_with_path(abstract)} == {n: a.shape for n, a in weights.items()}
    model = nnx.merge(graphdef, jax.tree_util.tree_map_with_path(lambda p, a: jax.numpy.asarray(weights[path_string(p)]), abstract))
    with jax.default_matmul_precision("highest"):
        logits, state = model(ids[:, :-1].astype(np.int32))
    got = -np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), ids[:, 1:, None], axis=-1)[..., 0]
    np.testing.assert_allclose(got, want, atol=2e-5)
    for i, cache in enumerate(caches):
        np.testing.assert_allclose(state.layers.hidden_BxCxD[i], cache, atol=1e-4 * np.abs(cache).max())


@pytest.mark.parametrize("change", [dict(attn_type=1), dict(ext_len=4), dict(tie_weight=False)])
def test_what_we_do_not_have_is_refused(change):
    ((name, value),) = change.items()
    with pytest.raises(ValueError, match=f"{name} = {value!r} of a Transformer-XL is not supported"):
        backbone_config(loaded(PLAIN)[0]["config"] | change)
