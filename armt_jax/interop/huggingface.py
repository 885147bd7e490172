"""Hugging Face's config.json of GPT-2, GPT-NeoX and Llama, and our backbones: both ways."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from armt_jax.nn.backbones import GPT2, BackboneConfig, GPTNeoX, Llama
from armt_jax.nn.positions import RotaryScaling

Fields = Mapping[str, Any]


def read_config(folder: Path) -> dict[str, Any]:
    """A folder's config.json. Raises ValueError naming the file."""
    path = folder / "config.json"
    try:
        fields = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({type(error).__name__}: {error}): a checkpoint folder has a config.json") from error
    if not isinstance(fields, dict) or "model_type" not in fields:
        raise ValueError(f"{path} says no model_type: it is not the config.json of a transformers checkpoint")
    return fields


def _only(fields: Fields, **allowed: Any) -> None:
    """Refuses what our backbone does not compute. A field that is not there has the allowed value."""
    for name, value in allowed.items():
        values = value if isinstance(value, tuple) else (value,)
        if fields.get(name, values[0]) not in values:
            raise ValueError(f"{name} = {fields[name]!r} of a {fields['model_type']} checkpoint is not supported: only {values[0]!r} is")


def _rope(fields: Fields) -> dict[str, Any]:
    """Rotary settings, which transformers 5 keeps in rope_parameters and earlier versions beside the others."""
    return {**(fields.get("rope_scaling") or {}), **(fields.get("rope_parameters") or {})}


def _scaling(rope: Fields) -> RotaryScaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind != "llama3":
        raise ValueError(f"rope_type = {kind!r} is not supported: only 'default' and 'llama3' are")
    return RotaryScaling(
        rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"], rope["original_max_position_embeddings"]
    )


def _gpt2(f: Fields) -> GPT2:
    _only(
        f, activation_function=("gelu_new", "gelu_pytorch_tanh"), scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False,
        add_cross_attention=False,
    )  # fmt: skip
    return GPT2(
        vocab_size=f["vocab_size"], num_layers=f["n_layer"], width=f["n_embd"], num_heads=f["n_head"], mlp_width=f.get("n_inner"),
        max_positions=f.get("n_positions", 1024), norm_epsilon=f.get("layer_norm_epsilon", 1e-5),
        tie_embeddings=f.get("tie_word_embeddings", True),
    )  # fmt: skip


def _common(f: Fields, tied: bool) -> dict[str, Any]:
    return dict(
        vocab_size=f["vocab_size"], num_layers=f["num_hidden_layers"], width=f["hidden_size"], num_heads=f["num_attention_heads"],
        mlp_width=f["intermediate_size"], max_positions=f.get("max_position_embeddings", 2048),
        tie_embeddings=f.get("tie_word_embeddings", tied),
    )  # fmt: skip


def _gpt_neox(f: Fields) -> GPTNeoX:
    _only(f, hidden_act="gelu", attention_bias=True)
    rope = _rope(f)
    if _scaling(rope) is not None:
        raise ValueError("rope_type = 'llama3' of a gpt_neox checkpoint is not supported: only 'default' is")
    return GPTNeoX(
        **_common(f, False), norm_epsilon=f.get("layer_norm_eps", 1e-5),
        rotary_pct=rope.get("partial_rotary_factor", f.get("rotary_pct", 0.25)),
        rotary_base=float(rope.get("rope_theta", f.get("rotary_emb_base", f.get("rope_theta", 10000)))),
        parallel_residual=f.get("use_parallel_residual", True),
    )  # fmt: skip


def _llama(f: Fields) -> Llama:
    _only(f, hidden_act="silu", attention_bias=False, mlp_bias=False)
    rope, plain_head = _rope(f), f["hidden_size"] // f["num_attention_heads"]
    return Llama(
        **_common(f, False), norm_epsilon=f.get("rms_norm_eps", 1e-6),
        num_kv_heads=f.get("num_key_value_heads") or f["num_attention_heads"],
        head_width=None if f.get("head_dim") in (None, plain_head) else f["head_dim"],
        rotary_base=float(rope.get("rope_theta", f.get("rope_theta", 10000.0))), rotary_scaling=_scaling(rope),
    )  # fmt: skip


READERS = {"gpt2": _gpt2, "gpt_neox": _gpt_neox, "llama": _llama}


def backbone_of(fields: Fields) -> BackboneConfig:
    """Our backbone from the fields of a config.json. Raises ValueError for an architecture, or a variant of one, that we do not have."""
    kind = fields.get("model_type")
    if kind not in READERS:
        raise ValueError(f"model_type = {kind!r} is another architecture: {', '.join(READERS)} can be read")
    try:
        return READERS[kind](fields)
    except KeyError as error:
        raise ValueError(f"a {kind} config.json has no field {error}") from error


def _shared_fields(b: BackboneConfig) -> dict[str, Any]:
    return dict(
        vocab_size=b.vocab_size, num_hidden_layers=b.num_layers, hidden_size=b.width, num_attention_heads=b.num_heads,
        intermediate_size=b.hidden, max_position_embeddings=b.max_positions, tie_word_embeddings=b.tie_embeddings,
    )  # fmt: skip


def fields_of(backbone: BackboneConfig) -> dict[str, Any]:
    """The config.json of a bare backbone. Raises ValueError for one that transformers does not have."""
    b = backbone
    ends = dict(bos_token_id=None, eos_token_id=None)  # theirs may lie outside the vocabulary
    if isinstance(b, GPT2):
        return dict(
            model_type="gpt2", architectures=["GPT2LMHeadModel"], vocab_size=b.vocab_size, n_layer=b.num_layers, n_embd=b.width,
            n_head=b.num_heads, n_inner=b.mlp_width, n_positions=b.max_positions, layer_norm_epsilon=b.norm_epsilon,
            activation_function="gelu_new", tie_word_embeddings=b.tie_embeddings, resid_pdrop=b.dropout, embd_pdrop=b.dropout,
            attn_pdrop=0.0, **ends,
        )  # fmt: skip
    if isinstance(b, GPTNeoX):
        rope = dict(rope_theta=b.rotary_base, partial_rotary_factor=b.rotary_pct, rope_type="default")
        return dict(
            model_type="gpt_neox", architectures=["GPTNeoXForCausalLM"], **_shared_fields(b), layer_norm_eps=b.norm_epsilon,
            hidden_act="gelu", attention_bias=True, use_parallel_residual=b.parallel_residual, rotary_pct=b.rotary_pct,
            rotary_emb_base=b.rotary_base, rope_parameters=rope, hidden_dropout=b.dropout, attention_dropout=0.0, **ends,
        )  # fmt: skip
    if isinstance(b, Llama):
        rope: dict[str, Any] = dict(rope_type="default")
        if b.rotary_scaling is not None:
            s = b.rotary_scaling
            rope = dict(
                rope_type="llama3", factor=s.factor, low_freq_factor=s.low_factor, high_freq_factor=s.high_factor,
                original_max_position_embeddings=s.original_positions,
            )  # fmt: skip
        return dict(
            model_type="llama", architectures=["LlamaForCausalLM"], **_shared_fields(b), rms_norm_eps=b.norm_epsilon, hidden_act="silu",
            attention_bias=False, mlp_bias=False, num_key_value_heads=b.num_kv_heads or b.num_heads, head_dim=b.head_size,
            rope_theta=b.rotary_base, rope_scaling=None if b.rotary_scaling is None else rope,
            rope_parameters=rope | dict(rope_theta=b.rotary_base), **ends,
        )  # fmt: skip
    raise ValueError(f"backbone {type(b).__name__} has no form in Hugging Face's transformers; GPT2, GPTNeoX, Llama have")


# Fields that decide what a backbone computes; the others are initial scales and dropout.
COMPUTES = (
    "vocab_size", "num_layers", "width", "num_heads", "hidden", "max_positions", "norm_epsilon", "tie_embeddings", "head_size",
    "num_kv_heads", "rotary_pct", "rotary_base", "rotary_scaling", "parallel_residual",
)  # fmt: skip


def check_same(backbone: BackboneConfig, found: BackboneConfig, where: str) -> None:
    """Raises ValueError naming the first field in which a checkpoint's backbone computes something else than the config's."""
    if type(backbone) is not type(found):
        ours, theirs = type(backbone).__name__, type(found).__name__
        raise ValueError(f"{where} is a {theirs}, and the config's backbone a {ours}: change backbone.name")

    def values(b: BackboneConfig) -> dict[str, Any]:
        out = {name: getattr(b, name) for name in COMPUTES if hasattr(b, name)}
        return out | ({"num_kv_heads": b.num_kv_heads or b.num_heads} if isinstance(b, Llama) else {})

    ours, theirs = values(backbone), values(found)
    names = {"hidden": "mlp_width", "head_size": "head_width"}
    for name in ours:
        if ours[name] != theirs[name]:
            key = names.get(name, name)
            raise ValueError(f"{where} has {key} = {theirs[name]!r}, and backbone.{key} = {ours[name]!r}: set it to the checkpoint's")
