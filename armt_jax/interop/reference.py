"""The names and layouts of the published PyTorch ARMT and RMT (Hugging Face backbones inside), and ours.

Every mapping is a permutation of entries, so it serves for parameters and for gradients alike.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from armt_jax.interop import transformer_xl
from armt_jax.memory.associative import ARMT
from armt_jax.memory.interface import MemoryConfig
from armt_jax.memory.recurrent_tokens import RMT
from armt_jax.model import ModelConfig, RecurrenceConfig
from armt_jax.nn.backbones import GPT2, BackboneConfig, GPTNeoX, Llama, TransformerXL

Tensors = Mapping[str, np.ndarray]


def backbone_config(family: str, fields: Mapping[str, Any]) -> BackboneConfig:
    """Our backbone from a Hugging Face config's fields. Raises ValueError for a family we do not know."""
    if family == "gpt2":
        return GPT2(
            vocab_size=fields["vocab_size"], num_layers=fields["n_layer"], width=fields["n_embd"], num_heads=fields["n_head"],
            max_positions=fields["n_positions"],
        )  # fmt: skip
    common = dict(
        vocab_size=fields["vocab_size"], num_layers=fields["num_hidden_layers"], width=fields["hidden_size"],
        num_heads=fields["num_attention_heads"], mlp_width=fields["intermediate_size"],
        max_positions=fields["max_position_embeddings"], tie_embeddings=fields["tie_word_embeddings"],
    ) if family in ("neox", "llama") else {}  # fmt: skip
    if family == "neox":
        return GPTNeoX(
            **common, norm_epsilon=fields["layer_norm_eps"], rotary_pct=fields["rotary_pct"], rotary_base=fields["rotary_emb_base"],
            parallel_residual=fields["use_parallel_residual"],
        )  # fmt: skip
    if family == "llama":
        return Llama(
            **common, norm_epsilon=fields["rms_norm_eps"], num_kv_heads=fields["num_key_value_heads"], rotary_base=fields["rope_theta"]
        )
    raise ValueError(f"family {family!r} is not one of gpt2, neox, llama")


def model_config(meta: Mapping[str, Any]) -> ModelConfig:
    """The model that a golden file describes (its `meta`)."""
    if meta["kind"] == "transformer_xl":
        return transformer_xl.model_config(meta)
    if meta["kind"] not in ("armt", "rmt"):
        raise ValueError(f"kind {meta['kind']!r} is not one of armt, rmt, transformer_xl")
    backbone = backbone_config(meta["family"], meta["config"])
    # The GPT-2 cases have tables grown for the memory tokens, the others number positions on.
    tokens = dict(num_memory_tokens=meta["num_mem_tokens"], positions="table" if meta["family"] == "gpt2" else "running")
    memories: dict[str, Callable[[], MemoryConfig]] = {
        "armt": lambda: ARMT(d_mem=meta["d_mem"], nu=meta["nu"], correction=meta["correction"], **tokens),
        "rmt": lambda: RMT(**tokens),
    }
    recurrence = RecurrenceConfig(segment_length=meta["segment_size"], align=meta["alignment"])
    return ModelConfig(backbone, memories[meta["kind"]](), recurrence)


def _linear(name: str, *, bias: bool, transposed: bool) -> dict[str, Callable[[Tensors], np.ndarray]]:
    out = {"kernel": lambda t: t[f"{name}.weight"].T if transposed else t[f"{name}.weight"]}
    return out | ({"bias": lambda t: t[f"{name}.bias"]} if bias else {})


def _norm(name: str, *, bias: bool) -> dict[str, Callable[[Tensors], np.ndarray]]:
    out = {"scale": lambda t: t[f"{name}.weight"]}
    return out | ({"bias": lambda t: t[f"{name}.bias"]} if bias else {})


def _flatten(tree, prefix=()) -> dict[str, Callable]:
    if callable(tree):
        return {"/".join(prefix): tree}
    return {k: v for name, part in tree.items() for k, v in _flatten(part, (*prefix, name)).items()}


def _gpt2_block(base: str, config) -> dict:
    def third(i, part):
        return lambda t: np.split(t[f"{base}.attn.c_attn.{part}"], 3, axis=-1)[i]

    qkv = {n: {"kernel": third(i, "weight"), "bias": third(i, "bias")} for i, n in enumerate(("query", "key", "value"))}
    return dict(
        norm_attention=_norm(f"{base}.ln_1", bias=True), norm_mlp=_norm(f"{base}.ln_2", bias=True),
        attention=qkv | {"output": _linear(f"{base}.attn.c_proj", bias=True, transposed=False)},
        mlp=dict(
            up=_linear(f"{base}.mlp.c_fc", bias=True, transposed=False), down=_linear(f"{base}.mlp.c_proj", bias=True, transposed=False)
        ),
    )  # fmt: skip


def _neox_block(base: str, config: GPTNeoX) -> dict:
    H, d = config.num_heads, config.head_size

    def part(i, name):
        """The fused projection is laid out [H, 3, d, ...]."""

        def take(t):
            fused = t[f"{base}.attention.query_key_value.{name}"]
            return fused.reshape(H, 3, d, *fused.shape[1:])[:, i].reshape(H * d, *fused.shape[1:]).T

        return take

    qkv = {n: {"kernel": part(i, "weight"), "bias": part(i, "bias")} for i, n in enumerate(("query", "key", "value"))}
    return dict(
        norm_attention=_norm(f"{base}.input_layernorm", bias=True), norm_mlp=_norm(f"{base}.post_attention_layernorm", bias=True),
        attention=qkv | {"output": _linear(f"{base}.attention.dense", bias=True, transposed=True)},
        mlp=dict(
            up=_linear(f"{base}.mlp.dense_h_to_4h", bias=True, transposed=True),
            down=_linear(f"{base}.mlp.dense_4h_to_h", bias=True, transposed=True),
        ),
    )  # fmt: skip


def _llama_block(base: str, config: Llama) -> dict:
    def plain(name):
        return _linear(f"{base}.{name}_proj", bias=False, transposed=True)

    attention = {n: plain(f"self_attn.{n[0]}") for n in ("query", "key", "value", "output")}
    return dict(
        norm_attention=_norm(f"{base}.input_layernorm", bias=False), norm_mlp=_norm(f"{base}.post_attention_layernorm", bias=False),
        attention=attention, mlp={n: plain(f"mlp.{n}") for n in ("gate", "up", "down")},
    )  # fmt: skip


def _associative(base: str) -> dict:
    maps = {"query": "W_mq", "key": "W_mk", "value": "W_mv", "beta": "W_mb"}
    return {n: _linear(f"{base}.{w}", bias=n == "beta", transposed=True) for n, w in maps.items()}


# family -> (prefix of the model, its layers, block, token table, final norm, head)
_FAMILIES = {
    GPT2: ("transformer.", "h", _gpt2_block, "wte", "ln_f", None),
    GPTNeoX: ("gpt_neox.", "layers", _neox_block, "embed_in", "final_layer_norm", "embed_out"),
    Llama: ("model.", "layers", _llama_block, "embed_tokens", "norm", "lm_head"),
}


def name_map(config: ModelConfig) -> tuple[dict[str, Callable], list[dict[str, Callable]]]:
    """(our path -> tensor from theirs) outside the layers, and the same once per layer (paths under `layers/`)."""
    backbone, root = config.backbone, "memory_cell.model."
    if isinstance(backbone, TransformerXL):
        return transformer_xl.name_map(config)
    prefix, layers, block, embed, norm, head = _FAMILIES[type(backbone)]
    armt = isinstance(config.memory, ARMT)
    outside: dict[str, Any] = dict(
        embed=dict(table=lambda t: t[f"{root}{prefix}{embed}.weight"]),
        token_memory=dict(tokens=lambda t: t["memory_cell.memory"]),
        final_norm=_norm(f"{root}{prefix}{norm}", bias=not isinstance(backbone, Llama)),
    )
    if backbone.learned_positions:
        outside["positions"] = dict(table=lambda t: t[f"{root}{prefix}wpe.weight"])
    if not backbone.tie_embeddings:
        outside["head"] = _linear(f"{root}{head}", bias=False, transposed=True)
    per_layer = []
    for i in range(backbone.num_layers):
        base = f"{root}{prefix}{layers}.{i}"
        layer = dict(block=block(f"{base}.layer" if armt else base, backbone))
        per_layer.append(_flatten(layer | (dict(memory=_associative(base)) if armt else {})))
    return _flatten(outside), per_layer


class _Watched(dict):
    """Notes which tensors were read, so that none is left over in silence."""

    def __init__(self, tensors):
        super().__init__(tensors)
        self.read = set()

    def __getitem__(self, name):
        if name not in self:
            raise ValueError(f"tensor {name!r} is missing; the file has {len(self)} tensors, for instance {sorted(self)[:3]}")
        self.read.add(name)
        return super().__getitem__(name)


def magnitudes(config: ModelConfig, tensors: Tensors) -> dict[str, np.ndarray]:
    """{our path: largest |entry| of the tensor it comes from}, one number per layer for stacked paths.

    Their fused tensors are one array to them: a query, key or value part is measured against the whole.
    """

    def largest(take) -> float:
        watched = _Watched(tensors)
        take(watched)
        return max(float(np.max(np.abs(tensors[name]))) for name in watched.read)

    outside, per_layer = name_map(config)
    out = {path: np.asarray(largest(take)) for path, take in outside.items()}
    return out | {f"layers/{path}": np.asarray([largest(layer[path]) for layer in per_layer]) for path in per_layer[0]}


def from_reference(config: ModelConfig, tensors: Tensors) -> dict[str, np.ndarray]:
    """Our flat parameters {path: array}, layers stacked. Raises ValueError for a missing tensor or one that has no place."""
    watched = _Watched(tensors)
    outside, per_layer = name_map(config)
    ours = {path: np.asarray(take(watched)) for path, take in outside.items()}
    for path in per_layer[0]:
        ours[f"layers/{path}"] = np.stack([np.asarray(layer[path](watched)) for layer in per_layer])
    left = sorted(set(tensors) - watched.read)
    if left:
        raise ValueError(f"{len(left)} tensors have no place in {type(config.backbone).__name__}, the first is {left[0]!r}")
    return ours
