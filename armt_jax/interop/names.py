"""Which tensor of PyTorch's holds which of our parameters: names and layouts of the Hugging Face backbones, of the published ARMT and RMT
around them, and of our own PyTorch model.

Every mapping is a permutation of entries, so it serves in both directions, and for gradients as well.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from armt_jax.memory.associative import ARMT
from armt_jax.memory.recurrent_tokens import RMT
from armt_jax.model import ModelConfig
from armt_jax.nn.backbones import GPT2, BackboneConfig, GPTNeoX, Llama

Array = np.ndarray


class Entry(NamedTuple):
    """One tensor of theirs.

    ours: the parameters it holds (paths like layers/block/mlp/up/kernel). layer: which layer of them; None: they have no layer axis.
    parts: the tensor to those parameters, as views where that is possible. whole: the way back.
    """

    theirs: str
    ours: tuple[str, ...]
    layer: int | None
    parts: Callable[[Array], Sequence[Array]]
    whole: Callable[[Sequence[Array]], Array]


def _same(theirs: str, ours: str, layer: int | None = None) -> Entry:
    return Entry(theirs, (ours,), layer, lambda t: (t,), lambda parts: parts[0])


def _turned(theirs: str, ours: str, layer: int | None = None) -> Entry:
    """PyTorch's Linear is [out, in], ours [in, out]."""
    return Entry(theirs, (ours,), layer, lambda t: (t.T,), lambda parts: parts[0].T)


def _linear(theirs: str, ours: str, layer: int | None = None, *, bias: bool, turned: bool = True) -> list[Entry]:
    kernel = (_turned if turned else _same)(f"{theirs}.weight", f"{ours}/kernel", layer)
    return [kernel, _same(f"{theirs}.bias", f"{ours}/bias", layer)] if bias else [kernel]


def _norm(theirs: str, ours: str, layer: int | None = None, *, bias: bool) -> list[Entry]:
    scale = _same(f"{theirs}.weight", f"{ours}/scale", layer)
    return [scale, _same(f"{theirs}.bias", f"{ours}/bias", layer)] if bias else [scale]


def _qkv(leaf: str) -> tuple[str, ...]:
    return tuple(f"layers/block/attention/{name}/{leaf}" for name in ("query", "key", "value"))


BLOCK = "layers/block"


def _gpt2_block(base: str, layer: int, config: BackboneConfig) -> list[Entry]:
    def fused(name: str, leaf: str) -> Entry:
        return Entry(
            f"{base}.attn.c_attn.{name}", _qkv(leaf), layer, lambda t: np.split(t, 3, axis=-1), lambda parts: np.concatenate(parts, axis=-1)
        )

    linear = dict(bias=True, turned=False)  # their Conv1D is [in, out], as ours
    return [
        fused("weight", "kernel"), fused("bias", "bias"),
        *_norm(f"{base}.ln_1", f"{BLOCK}/norm_attention", layer, bias=True), *_norm(f"{base}.ln_2", f"{BLOCK}/norm_mlp", layer, bias=True),
        *_linear(f"{base}.attn.c_proj", f"{BLOCK}/attention/output", layer, **linear),
        *_linear(f"{base}.mlp.c_fc", f"{BLOCK}/mlp/up", layer, **linear),
        *_linear(f"{base}.mlp.c_proj", f"{BLOCK}/mlp/down", layer, **linear),
    ]  # fmt: skip


def _neox_block(base: str, layer: int, config: BackboneConfig) -> list[Entry]:
    H, d = config.num_heads, config.head_size

    def split(t: Array) -> list[Array]:
        """The fused projection is laid out [H, 3, d, ...]."""
        heads = t.reshape(H, 3, d, *t.shape[1:])
        return [heads[:, i].reshape(H * d, *t.shape[1:]).T for i in range(3)]

    def fuse(parts: Sequence[Array]) -> Array:
        heads = [p.T.reshape(H, d, *p.T.shape[1:]) for p in parts]
        return np.stack(heads, axis=1).reshape(3 * H * d, *heads[0].shape[2:])

    def fused(name: str, leaf: str) -> Entry:
        return Entry(f"{base}.attention.query_key_value.{name}", _qkv(leaf), layer, split, fuse)

    return [
        fused("weight", "kernel"), fused("bias", "bias"),
        *_norm(f"{base}.input_layernorm", f"{BLOCK}/norm_attention", layer, bias=True),
        *_norm(f"{base}.post_attention_layernorm", f"{BLOCK}/norm_mlp", layer, bias=True),
        *_linear(f"{base}.attention.dense", f"{BLOCK}/attention/output", layer, bias=True),
        *_linear(f"{base}.mlp.dense_h_to_4h", f"{BLOCK}/mlp/up", layer, bias=True),
        *_linear(f"{base}.mlp.dense_4h_to_h", f"{BLOCK}/mlp/down", layer, bias=True),
    ]  # fmt: skip


def _llama_block(base: str, layer: int, config: BackboneConfig) -> list[Entry]:
    attention = [(f"self_attn.{n[0]}_proj", f"attention/{n}") for n in ("query", "key", "value", "output")]
    mlp = [(f"mlp.{n}_proj", f"mlp/{n}") for n in ("gate", "up", "down")]
    linear = [e for theirs, ours in attention + mlp for e in _linear(f"{base}.{theirs}", f"{BLOCK}/{ours}", layer, bias=False)]
    return [
        *linear,
        *_norm(f"{base}.input_layernorm", f"{BLOCK}/norm_attention", layer, bias=False),
        *_norm(f"{base}.post_attention_layernorm", f"{BLOCK}/norm_mlp", layer, bias=False),
    ]


class Family(NamedTuple):
    """Hugging Face's names: of the inner model, its layers, the token table, the final norm, the head; and buffers that say nothing."""

    model: str
    layers: str
    block: Callable[[str, int, BackboneConfig], list[Entry]]
    embed: str
    norm: str
    head: str
    buffers: str


FAMILIES: dict[type[BackboneConfig], Family] = {
    GPT2: Family("transformer.", "h", _gpt2_block, "wte", "ln_f", "lm_head", r".*attn\.(masked_)?bias"),
    GPTNeoX: Family(
        "gpt_neox.", "layers", _neox_block, "embed_in", "final_layer_norm", "embed_out",
        r".*attention\.((masked_)?bias|rotary_emb\.inv_freq)",
    ),
    Llama: Family("model.", "layers", _llama_block, "embed_tokens", "norm", "lm_head", r".*rotary_emb\.inv_freq"),
}  # fmt: skip


def family_of(backbone: BackboneConfig) -> Family:
    """Raises ValueError for a backbone that Hugging Face does not have."""
    if type(backbone) not in FAMILIES:
        names = ", ".join(kind.__name__ for kind in FAMILIES)
        raise ValueError(f"backbone {type(backbone).__name__} has no form in Hugging Face's transformers; {names} have")
    return FAMILIES[type(backbone)]


def backbone_entries(backbone: BackboneConfig, root: str = "", model: str | None = None, wrapped: str = "") -> list[Entry]:
    """The bare backbone under Hugging Face's names.

    root: before every name. model: in place of the family's own name of the inner model. wrapped: between a layer and its parts.
    """
    family = family_of(backbone)
    inner = f"{root}{family.model if model is None else model}"
    out = [_same(f"{inner}{family.embed}.weight", "embed/table")]
    out += _norm(f"{inner}{family.norm}", "final_norm", bias=not isinstance(backbone, Llama))
    if backbone.learned_positions:
        out.append(_same(f"{inner}wpe.weight", "positions/table"))
    if not backbone.tie_embeddings:
        out += _linear(f"{root}{family.head}", "head", bias=False)
    for i in range(backbone.num_layers):
        out += family.block(f"{inner}{family.layers}.{i}{wrapped}", i, backbone)
    return out


def reference_entries(config: ModelConfig) -> list[Entry]:
    """ARMT or RMT under the names of the published code."""
    if type(config.memory) not in (ARMT, RMT):
        raise ValueError(f"memory {type(config.memory).__name__} has no names in the published code; ARMT and RMT have")
    armt = isinstance(config.memory, ARMT)
    root, family = "memory_cell.model.", family_of(config.backbone)
    out = [_same("memory_cell.memory", "token_memory/tokens")]
    out += backbone_entries(config.backbone, root, wrapped=".layer" if armt else "")
    if armt:
        maps = {"query": "W_mq", "key": "W_mk", "value": "W_mv", "beta": "W_mb"}
        for i in range(config.backbone.num_layers):
            base = f"{root}{family.model}{family.layers}.{i}"
            out += [e for n, w in maps.items() for e in _linear(f"{base}.{w}", f"layers/memory/{n}", i, bias=n == "beta")]
    return out


# Leaves whose name differs in PyTorch.
_LEAVES = {"kernel": "weight", "scale": "weight", "table": "weight"}


def own_entries(shapes: Mapping[str, tuple[int, ...]]) -> list[Entry]:
    """Our own PyTorch model (`pytorch/modeling_armt.py`), whose modules are called as ours. shapes: of our parameters, by path."""
    out = []
    for path, shape in shapes.items():
        *modules, leaf = path.split("/")
        make = _turned if leaf == "kernel" else _same
        if modules[0] == "layers":
            out += [
                make(".".join(("layers", str(i), *modules[1:], _LEAVES.get(leaf, leaf))), path, i) for i in range(shape[0])
            ]
        else:
            # The head's kernel stands right below it.
            out.append(make(".".join((*modules, _LEAVES.get(leaf, leaf))), path))
    return out


def by_path(entries: Iterable[Entry]) -> dict[str, list[tuple[Entry, int]]]:
    """{our path: the entries that hold it, in the order of the layers, and which of their parts it is}."""
    out: dict[str, list[tuple[Entry, int]]] = {}
    for entry in entries:
        for place, path in enumerate(entry.ours):
            out.setdefault(path, []).append((entry, place))
    return {path: sorted(found, key=lambda e: e[0].layer or 0) for path, found in out.items()}
