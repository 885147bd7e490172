"""The names and layouts of the published PyTorch Transformer-XL, and ours."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from armt_jax.memory.hidden_cache import TransformerXLCache
from armt_jax.model import ModelConfig, RecurrenceConfig
from armt_jax.nn.backbones import TransformerXL

Take = Callable[[Mapping[str, np.ndarray]], np.ndarray]


def backbone_config(fields: Mapping[str, Any]) -> TransformerXL:
    """Our backbone from the arguments of the published constructor.

    Raises:
        ValueError: attention other than the relative one with sinusoids, or an extended context.
    """
    for name, only in (("attn_type", 0), ("ext_len", 0), ("tie_weight", True)):
        if fields[name] != only:
            raise ValueError(f"{name} = {fields[name]!r} of a Transformer-XL is not supported: only {only!r} is")
    return TransformerXL(
        vocab_size=fields["n_token"], num_layers=fields["n_layer"], width=fields["d_model"], num_heads=fields["n_head"],
        head_width=fields["d_head"], mlp_width=fields["d_inner"], dropout=fields["dropout"], attention_dropout=fields["dropatt"],
        norm_place="pre" if fields["pre_lnorm"] else "post", clamp_len=fields["clamp_len"] if fields["clamp_len"] > 0 else None,
        cutoffs=tuple(fields["cutoffs"]), div_val=fields["div_val"], embedding_width=fields["d_embed"],
        tie_projections=tuple(fields["tie_projs"]),
    )  # fmt: skip


def model_config(meta: Mapping[str, Any]) -> ModelConfig:
    """The model that a golden file describes. Published training stops the gradient at the cache."""
    memory = TransformerXLCache(meta["cache_length"], same_length=meta["config"]["same_length"])
    recurrence = RecurrenceConfig(segment_length=meta["segment_size"], bptt_segments=1)
    return ModelConfig(backbone_config(meta["config"]), memory, recurrence)


def in_published_order(losses_BxN: np.ndarray, targets_BxN: np.ndarray, config: ModelConfig) -> np.ndarray:
    """Token losses where the published adaptive softmax puts them: in every segment of the batch, token by token and row by row, first
    those of the shortlist, then those of each tail (its `keep_order` is off; the mean is the same)."""
    cluster = np.searchsorted(config.backbone.cutoffs, targets_BxN, side="right")
    B, T = losses_BxN.shape[0], config.recurrence.segment_length
    out = []
    for start in range(0, losses_BxN.shape[1], T):
        losses, order = (a[:, start : start + T].T.reshape(-1) for a in (losses_BxN, cluster))
        out.append(losses[np.argsort(order, kind="stable")].reshape(-1, B).T)
    return np.concatenate(out, axis=1)


def _tensor(name: str) -> Take:
    return lambda t: t[name]


def _transposed(name: str) -> Take:
    return lambda t: t[name].T


def _outside(config: TransformerXL) -> dict[str, Take]:
    clusters = config.clusters
    # With equal widths theirs is one table for all clusters.
    parts = range(clusters.number) if clusters.div_val != 1 else (0,) * clusters.number

    def rows(name: str, i: int) -> Take:
        start, end = clusters.bounds[i]
        return _tensor(name) if clusters.div_val != 1 else lambda t: t[name][start:end]

    out: dict[str, Take] = {
        "layers/block/attention/content_bias": lambda t: t["r_w_bias"].reshape(-1),
        "layers/block/attention/position_bias": lambda t: t["r_r_bias"].reshape(-1),
    }
    for i, part in enumerate(parts):
        out[f"embed/tables/{i}"] = rows(f"word_emb.emb_layers.{part}.weight", i)
        out[f"head/biases/{i}"] = rows(f"crit.out_layers.{part}.bias", i)
    if clusters.projected:
        for part in sorted(set(parts)):
            out[f"embed/projections/{part}"] = _transposed(f"word_emb.emb_projs.{part}")
        for place, i in enumerate(i for i, tied in enumerate(config.projection_ties) if not tied):
            out[f"head/projections/{place}"] = _transposed(f"crit.out_projs.{i}")
    if clusters.number > 1:
        # Theirs counts the clusters' entries from the end.
        out["head/cluster_kernel"] = lambda t: t["crit.cluster_weight"][::-1]
        out["head/cluster_bias"] = lambda t: t["crit.cluster_bias"][::-1]
    return out


def _layer(base: str) -> dict[str, Take]:
    def third(i: int) -> Take:
        return lambda t: np.split(t[f"{base}.dec_attn.qkv_net.weight"], 3)[i].T

    out = {f"attention/{name}/kernel": third(i) for i, name in enumerate(("query", "key", "value"))}
    for name, theirs in (("output", "o_net"), ("distance", "r_net")):
        out[f"attention/{name}/kernel"] = _transposed(f"{base}.dec_attn.{theirs}.weight")
    for name, theirs in (("norm_attention", "dec_attn.layer_norm"), ("norm_mlp", "pos_ff.layer_norm")):
        out |= {f"{name}/scale": _tensor(f"{base}.{theirs}.weight"), f"{name}/bias": _tensor(f"{base}.{theirs}.bias")}
    for name, place in (("up", 0), ("down", 3)):
        out[f"mlp/{name}/kernel"] = _transposed(f"{base}.pos_ff.CoreNet.{place}.weight")
        out[f"mlp/{name}/bias"] = _tensor(f"{base}.pos_ff.CoreNet.{place}.bias")
    return {f"block/{path}": take for path, take in out.items()}


def name_map(config: ModelConfig) -> tuple[dict[str, Take], list[dict[str, Take]]]:
    """As `armt_jax.interop.reference.name_map`."""
    return _outside(config.backbone), [_layer(f"layers.{i}") for i in range(config.backbone.num_layers)]
