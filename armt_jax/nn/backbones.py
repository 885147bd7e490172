"""The backbones: GPT-2, GPT-NeoX, Llama, Transformer-XL. Each is a checked config that builds its blocks, final norm and position table.

Field names are ours; `armt_jax.interop` maps Hugging Face's to them.
"""

import dataclasses
from typing import Any, ClassVar

from flax import nnx

from armt_jax.nn.adaptive_softmax import AdaptiveEmbedding, AdaptiveSoftmax, Clusters
from armt_jax.nn.attention import Attention
from armt_jax.nn.blocks import Block, ParallelBlock, PostNormBlock
from armt_jax.nn.heads import TiedHead, UntiedHead
from armt_jax.nn.layers import GeluMLP, Identity, Init, ReluMLP, Shared, SwiGLU, Table, layer_norm, rms_norm
from armt_jax.nn.placement import VOCABULARY
from armt_jax.nn.positions import Rotary, RotaryScaling
from armt_jax.nn.relative_attention import RelativeAttention


@dataclasses.dataclass(frozen=True)
class BackboneConfig:
    """What all backbones have.

    Attributes:
        vocab_size: V. num_layers: L. width: D. num_heads: H.
        mlp_width: hidden width of the feed-forward network; None = 4 D.
        max_positions: positions the backbone was built for; a segment with its memory tokens must fit.
        norm_epsilon: of every norm. tie_embeddings: the head is the transposed token table.
        dropout: rate after the embedding and after each residual branch (not inside attention), training only.
        kernel_std, embedding_std, position_std: initial scales; kernel_std None = 1/sqrt(fan-in).
        scale_residual_init: divide the scale of branch-ending maps by sqrt(2L), as GPT-2 does.

    Raises:
        ValueError: heads that do not divide the width, a dropout outside [0, 1), sizes below 1.
    """

    vocab_size: int = 50257
    num_layers: int = 12
    width: int = 768
    num_heads: int = 12
    mlp_width: int | None = None
    max_positions: int = 1024
    norm_epsilon: float = 1e-5
    tie_embeddings: bool = True
    dropout: float = 0.0
    kernel_std: float | None = 0.02
    embedding_std: float = 0.02
    position_std: float = 0.02
    scale_residual_init: bool = True

    learned_positions: ClassVar[bool] = False

    def __post_init__(self):
        for name in ("vocab_size", "num_layers", "width", "num_heads", "max_positions"):
            if getattr(self, name) < 1:
                raise ValueError(f"backbone.{name} = {getattr(self, name)} must be at least 1")
        if self.width % self.num_heads:
            raise ValueError(
                f"backbone.width = {self.width} is not a multiple of backbone.num_heads = {self.num_heads}: change one of them"
            )
        if self.mlp_width is not None and self.mlp_width < 1:
            raise ValueError(f"backbone.mlp_width = {self.mlp_width} must be at least 1, or None for 4 x width")
        for name in ("norm_epsilon", "kernel_std", "embedding_std", "position_std"):
            if getattr(self, name) is not None and getattr(self, name) < 0:
                raise ValueError(f"backbone.{name} = {getattr(self, name)} must not be negative")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"backbone.dropout = {self.dropout} must lie in [0, 1)")

    @property
    def head_size(self) -> int:
        return self.width // self.num_heads

    @property
    def hidden(self) -> int:
        return self.mlp_width or 4 * self.width

    @property
    def init(self) -> Init:
        depth = self.num_layers if self.scale_residual_init else None
        return Init(self.kernel_std, self.embedding_std, self.position_std, depth)

    @property
    def token_std(self) -> float:
        """Initial scale of the token embeddings as they enter the first layer; memory tokens start at it, too."""
        return self.embedding_std

    @property
    def output_dropout(self) -> float:
        """Between the final norm and the head."""
        return 0.0

    def embedding(self, rngs: nnx.Rngs) -> nnx.Module:
        return Table(self.vocab_size, self.width, self.embedding_std, rngs, split=VOCABULARY)

    def head(self, dtype: Any, rngs: nnx.Rngs) -> nnx.Module:
        """See `armt_jax.nn.heads`."""
        if self.tie_embeddings:
            return TiedHead(self.vocab_size, dtype)
        return UntiedHead(self.width, self.vocab_size, self.init, dtype, rngs)

    def block(self, dtype: Any, rngs: nnx.Rngs) -> Block:
        raise NotImplementedError

    def final_norm(self, dtype: Any, rngs: nnx.Rngs) -> nnx.Module:
        return layer_norm(self.width, self.norm_epsilon, dtype, rngs)


@dataclasses.dataclass(frozen=True)
class GPT2(BackboneConfig):
    """GPT-2 (Radford et al. 2019): learned positions, LayerNorm, tanh-GELU, tied embeddings."""

    learned_positions: ClassVar[bool] = True

    def block(self, dtype, rngs):
        D, init, eps = self.width, self.init, self.norm_epsilon
        attention = Attention(
            D, self.num_heads, self.num_heads, self.head_size, rotary=None, bias=True, init=init, dtype=dtype, rngs=rngs
        )
        mlp = GeluMLP(D, self.hidden, approximate=True, init=init, dtype=dtype, rngs=rngs)
        norms = layer_norm(D, eps, dtype, rngs), layer_norm(D, eps, dtype, rngs)
        return Block(norms[0], attention, norms[1], mlp, self.dropout)


@dataclasses.dataclass(frozen=True)
class GPTNeoX(BackboneConfig):
    """GPT-NeoX (arXiv 2204.06745): rotary positions on a share of each head, parallel residual, exact GELU, untied head."""

    max_positions: int = 2048
    tie_embeddings: bool = False
    rotary_pct: float = 0.25
    rotary_base: float = 10000.0
    parallel_residual: bool = True
    scale_residual_init: bool = False

    def __post_init__(self):
        super().__post_init__()
        rotated = int(self.head_size * self.rotary_pct)
        if not 2 <= rotated <= self.head_size or rotated % 2:
            raise ValueError(
                f"backbone.rotary_pct = {self.rotary_pct} of head size {self.head_size} rotates {rotated} features: "
                "it must be an even number, at least 2 and at most all of them"
            )

    def block(self, dtype, rngs):
        D, init, eps = self.width, self.init, self.norm_epsilon
        rotary = Rotary(int(self.head_size * self.rotary_pct), self.rotary_base)
        attention = Attention(
            D, self.num_heads, self.num_heads, self.head_size, rotary=rotary, bias=True, init=init, dtype=dtype, rngs=rngs
        )
        mlp = GeluMLP(D, self.hidden, approximate=False, init=init, dtype=dtype, rngs=rngs)
        arrangement = ParallelBlock if self.parallel_residual else Block
        norms = layer_norm(D, eps, dtype, rngs), layer_norm(D, eps, dtype, rngs)
        return arrangement(norms[0], attention, norms[1], mlp, self.dropout)


@dataclasses.dataclass(frozen=True)
class Llama(BackboneConfig):
    """Llama (arXiv 2302.13971, 2407.21783): rotary positions, RMSNorm, SwiGLU, grouped-query attention, no biases."""

    num_kv_heads: int | None = None
    head_width: int | None = None
    rotary_base: float = 10000.0
    rotary_scaling: RotaryScaling | None = None
    scale_residual_init: bool = False

    def __post_init__(self):
        super().__post_init__()
        for name in ("num_kv_heads", "head_width"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"backbone.{name} = {getattr(self, name)} must be at least 1, or None")
        if self.head_size % 2:
            raise ValueError(
                f"a head of {self.head_size} features (backbone.width / num_heads, or head_width) cannot be rotated in pairs: make it even"
            )
        if self.num_heads % (self.num_kv_heads or self.num_heads):
            raise ValueError(
                f"backbone.num_heads = {self.num_heads} is not a multiple of backbone.num_kv_heads = {self.num_kv_heads}"
            )

    @property
    def head_size(self):
        return self.head_width or self.width // self.num_heads

    def block(self, dtype, rngs):
        D, init, eps = self.width, self.init, self.norm_epsilon
        rotary = Rotary(self.head_size, self.rotary_base, self.rotary_scaling)
        attention = Attention(
            D, self.num_heads, self.num_kv_heads or self.num_heads, self.head_size, rotary=rotary, bias=False, init=init,
            dtype=dtype, rngs=rngs,
        )  # fmt: skip
        mlp = SwiGLU(D, self.hidden, init=init, dtype=dtype, rngs=rngs)
        return Block(rms_norm(D, eps, dtype, rngs), attention, rms_norm(D, eps, dtype, rngs), mlp, self.dropout)

    def final_norm(self, dtype, rngs):
        return rms_norm(self.width, self.norm_epsilon, dtype, rngs)


NORM_PLACES = {"post": PostNormBlock, "pre": Block}


@dataclasses.dataclass(frozen=True)
class TransformerXL(BackboneConfig):
    """Transformer-XL (Dai et al., arXiv 1901.02860): attention by content and distance, ReLU MLP, adaptive softmax, no final norm.

    Without a memory every segment is read on its own; memory "transformer_xl" adds the cache. The embeddings are scaled by sqrt(D).
    `dropout` also stands inside the MLP and before the head; the published code drops features of the distances as well, this one does not.

    Attributes:
        max_positions: distances have no limit, nor has the segment. head_width: d; None = D / H.
        norm_place: "post" (the paper) or "pre" (`pre_lnorm`). clamp_len: the longest distance told apart; None: all are.
        output_norm: a LayerNorm behind the last block. The published code has none, but with "pre" hidden states, and what RMT carries
            on of them, otherwise grow without bound.
        tie_biases: one u and v for all layers (as published), otherwise each layer has its own (`untie_r`).
        attention_dropout: rate inside attention, after the softmax.
        cutoffs: first token of each tail cluster of the adaptive softmax and input; () for plain ones.
        div_val: cluster i is div_val^i times narrower. embedding_width: E; None = D.
        tie_embeddings: input and output share their tables.
        tie_projections: of each cluster, whether input and output share the projection; None: of all but the shortlist.
        projection_std: initial scale of the projections.

    Raises:
        ValueError: as `BackboneConfig`; cutoffs that do not rise inside the vocabulary; a tie for the wrong number of clusters; attention
            dropout alone.
    """

    max_positions: int = 2**30
    norm_place: str = "post"
    output_norm: bool = False
    head_width: int | None = None
    clamp_len: int | None = None
    tie_biases: bool = True
    attention_dropout: float = 0.0
    cutoffs: tuple[int, ...] = ()
    div_val: int = 1
    embedding_width: int | None = None
    tie_projections: tuple[bool, ...] | None = None
    projection_std: float = 0.01
    scale_residual_init: bool = False

    def __post_init__(self):
        super().__post_init__()
        if self.norm_place not in NORM_PLACES:
            raise ValueError(f"backbone.norm_place = {self.norm_place!r} must be one of {tuple(NORM_PLACES)}")
        if self.clamp_len is not None and self.clamp_len < 1:
            raise ValueError(f"backbone.clamp_len = {self.clamp_len} must be at least 1, or None to tell all distances apart")
        if self.width % 2:
            raise ValueError(f"backbone.width = {self.width} must be even: half of a distance's features are sines, half cosines")
        if not 0.0 <= self.attention_dropout < 1.0:
            raise ValueError(f"backbone.attention_dropout = {self.attention_dropout} must lie in [0, 1)")
        if self.attention_dropout > 0 and self.dropout == 0:
            raise ValueError(
                f"backbone.attention_dropout = {self.attention_dropout} with backbone.dropout = {self.dropout}: training draws random "
                "numbers only where backbone.dropout > 0; raise it, or set attention_dropout to 0"
            )
        if not isinstance(self.cutoffs, tuple) or not all(isinstance(c, int) for c in self.cutoffs):
            raise ValueError(f"backbone.cutoffs = {self.cutoffs!r} must be a tuple of token numbers, like (20000, 40000, 200000)")
        number = self.clusters.number
        ties = self.tie_projections
        if ties is not None and (len(ties) != number or not all(isinstance(t, bool) for t in ties)):
            raise ValueError(
                f"backbone.tie_projections = {ties!r} must hold one True or False for each of the {number} clusters that "
                f"backbone.cutoffs = {self.cutoffs} make, or be None"
            )

    @property
    def head_size(self):
        return self.head_width or self.width // self.num_heads

    @property
    def clusters(self) -> Clusters:
        return Clusters(self.vocab_size, self.cutoffs, self.width, self.embedding_width or self.width, self.div_val)

    @property
    def projection_ties(self) -> tuple[bool, ...]:
        """Of each cluster."""
        return self.tie_projections or (False, *(True,) * len(self.cutoffs))

    @property
    def token_std(self):
        return self.embedding_std * self.width**0.5

    @property
    def output_dropout(self):
        return self.dropout

    def embedding(self, rngs):
        return AdaptiveEmbedding(self.clusters, self.embedding_std, self.projection_std, rngs)

    def head(self, dtype, rngs):
        ties = self.projection_ties
        return AdaptiveSoftmax(self.clusters, self.tie_embeddings, ties, self.embedding_std, self.projection_std, dtype, rngs)

    def block(self, dtype, rngs):
        D, init, eps = self.width, self.init, self.norm_epsilon
        attention = RelativeAttention(
            D, self.num_heads, self.head_size, clamp=self.clamp_len, dropout=self.attention_dropout,
            bias_class=Shared if self.tie_biases else nnx.Param, bias_std=self.embedding_std, init=init, dtype=dtype, rngs=rngs,
        )  # fmt: skip
        mlp = ReluMLP(D, self.hidden, dropout=self.dropout, init=init, dtype=dtype, rngs=rngs)
        norms = layer_norm(D, eps, dtype, rngs), layer_norm(D, eps, dtype, rngs)
        return NORM_PLACES[self.norm_place](norms[0], attention, norms[1], mlp, self.dropout)

    def final_norm(self, dtype, rngs):
        return super().final_norm(dtype, rngs) if self.output_norm else Identity()


BACKBONES: dict[str, type[BackboneConfig]] = {"gpt2": GPT2, "gpt_neox": GPTNeoX, "llama": Llama, "transformer_xl": TransformerXL}

# Published sizes. `neox-tiny-ar` is the model of the associative-retrieval experiments (ARMT, arXiv 2407.04841, appendix E).
PRESETS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", {}),
    "gpt2-medium": ("gpt2", dict(num_layers=24, width=1024, num_heads=16)),
    "gpt2-large": ("gpt2", dict(num_layers=36, width=1280, num_heads=20)),
    "gpt2-xl": ("gpt2", dict(num_layers=48, width=1600, num_heads=25)),
    "llama-3.2-1b": (
        "llama",
        dict(
            vocab_size=128256, num_layers=16, width=2048, num_heads=32, num_kv_heads=8, mlp_width=8192, max_positions=131072,
            rotary_base=500000.0, rotary_scaling=RotaryScaling(), tie_embeddings=True,
        ),
    ),
    "transformer-xl-wt103-base": (
        "transformer_xl",
        dict(
            vocab_size=267735, num_layers=16, width=410, num_heads=10, mlp_width=2100, dropout=0.1, cutoffs=(20000, 40000, 200000)
        ),
    ),
    "transformer-xl-enwik8-base": (
        "transformer_xl",
        dict(vocab_size=204, num_layers=12, width=512, num_heads=8, mlp_width=2048, dropout=0.1),
    ),
    "neox-tiny-ar": ("gpt_neox", dict(vocab_size=128, num_layers=4, width=128, num_heads=4, mlp_width=128)),
}  # fmt: skip
