"""Memory transformers in PyTorch: ARMT (arXiv 2407.04841), RMT (arXiv 2207.06881), or no memory, on GPT-2, GPT-NeoX or Llama.

Written by `python -m armt_jax.interop.export`. It needs torch and transformers, nothing else:

    model = AutoModelForCausalLM.from_pretrained(DIR, trust_remote_code=True)
    out = model(ids, attention_mask=mask, labels=ids)          # out.logits, out.loss, out.memory_state
    out = model(more_ids, memory_state=out.memory_state)       # state in, state out; None is the empty memory
    model.generate(ids, attention_mask=mask, max_new_tokens=64)

A row is cut into segments of `config.segment_length` tokens. Without `use_cache` every segment, a short one at the end too, is written to
memory. With it (generate) the last segment stays open and is decoded with a key-value cache; when it is full it is written to memory, and a
fresh one begins.

Shapes: B batch, N tokens of a row, T tokens of a segment, M memory tokens, L layers, D width, H heads, K memory key features, V vocabulary.
"""

import math
from dataclasses import field, make_dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.generation import GenerationMixin
from transformers.utils import ModelOutput

EPSILON = 1e-5
# What transformers calls the cache in an output: it has another name since 5.24 (the old one still reads it).
CACHE = "cache" if hasattr(ModelOutput, "_replace_old_cache_name") else "past_key_values"

BACKBONE = dict(
    name="gpt2", vocab_size=50257, num_layers=12, width=768, num_heads=12, mlp_width=None, max_positions=1024, norm_epsilon=1e-5,
    tie_embeddings=True, dropout=0.0,
)  # fmt: skip


class ArmtConfig(PretrainedConfig):
    """backbone, memory: a `name` and the fields of that part, as the training configuration has them.

    align: where a short segment goes; "left": the last one is short, "right": the first. bptt_segments: the gradient reaches so many
    segments back; None: all.
    """

    model_type = "armt"

    def __init__(self, backbone=None, memory=None, segment_length=512, align="left", bptt_segments=None, **kwargs):
        self.backbone = {**BACKBONE, **(backbone or {})}
        self.memory = dict(memory or {"name": "none"})
        self.segment_length = segment_length
        self.align = align
        self.bptt_segments = bptt_segments
        self.vocab_size = self.backbone["vocab_size"]
        self.hidden_size = self.backbone["width"]
        self.num_hidden_layers = self.backbone["num_layers"]
        self.num_attention_heads = self.backbone["num_heads"]
        # The head reads the token table itself: there are no two tensors to tie.
        super().__init__(**{**kwargs, "tie_word_embeddings": False})

    @property
    def head_size(self) -> int:
        return self.backbone.get("head_width") or self.backbone["width"] // self.backbone["num_heads"]

    @property
    def num_kv_heads(self) -> int:
        return self.backbone.get("num_kv_heads") or self.backbone["num_heads"]

    @property
    def mlp_width(self) -> int:
        return self.backbone["mlp_width"] or 4 * self.backbone["width"]

    @property
    def front(self) -> int:
        """Memory tokens before a segment's own."""
        return self.memory["num_memory_tokens"] if self.memory["name"] == "rmt" else 0

    @property
    def back(self) -> int:
        return 0 if self.memory["name"] == "none" else self.memory["num_memory_tokens"]

    @property
    def own_rows(self) -> bool:
        """The memory tokens have rows of their own in the position table."""
        return self.memory.get("positions") == "table"

    @property
    def position_rows(self) -> int:
        return self.backbone["max_positions"] + (self.front + self.back if self.own_rows else 0)


class MemoryState(NamedTuple):
    """What goes from segment to segment, float32. ARMT: A [L, B, H, K, D / H] and z [L, B, H, K]. RMT: tokens [B, M, D]. Others None."""

    A: torch.Tensor | None = None
    z: torch.Tensor | None = None
    tokens: torch.Tensor | None = None

    def detach(self) -> "MemoryState":
        return MemoryState(*(None if t is None else t.detach() for t in self))

    def by_layer(self) -> "LayerStates":
        return LayerStates(*(None if t is None else t.unbind(0) for t in (self.A, self.z)), self.tokens)

    def rows(self, index: torch.Tensor) -> "MemoryState":
        """These rows of the batch."""
        axes = (1, 1, 0)
        return MemoryState(*(None if t is None else t.index_select(axis, index.to(t.device)) for t, axis in zip(self, axes)))

    @property
    def batch(self) -> int | None:
        sizes = [t.shape[axis] for t, axis in zip(self, (1, 1, 0)) if t is not None]
        return sizes[0] if sizes else None


class LayerStates(NamedTuple):
    """A MemoryState within a row: A and z are of one tensor a layer, for stacking them after every segment would copy all of them."""

    A: tuple[torch.Tensor, ...] | None = None
    z: tuple[torch.Tensor, ...] | None = None
    tokens: torch.Tensor | None = None

    def stacked(self) -> MemoryState:
        return MemoryState(*(None if ts is None else torch.stack(ts) for ts in (self.A, self.z)), self.tokens)

    def detach(self) -> "LayerStates":
        layers = (None if ts is None else tuple(t.detach() for t in ts) for ts in (self.A, self.z))
        return LayerStates(*layers, None if self.tokens is None else self.tokens.detach())


def choose(live: torch.Tensor | None, new: LayerStates, old: LayerStates) -> LayerStates:
    """`new` in the rows marked, `old` elsewhere."""
    if live is None:
        return new
    pick = lambda n, o: torch.where(live.view(-1, *(1,) * (n.dim() - 1)), n, o)
    layers = (None if n is None else tuple(map(pick, n, o)) for n, o in zip(new[:2], old[:2]))
    return LayerStates(*layers, None if new.tokens is None else pick(new.tokens, old.tokens))


# ---- the backbone ----


def wide(x: torch.Tensor) -> torch.Tensor:
    """float32, where it is not float64."""
    return x if x.dtype == torch.float64 else x.float()


class RMSNorm(nn.Module):
    def __init__(self, width, epsilon):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, x):
        y = wide(x)
        return (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.epsilon)).to(x.dtype) * self.weight


class Table(nn.Module):
    """Rows looked up by id."""

    def __init__(self, rows, width):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, width))

    def forward(self, ids):
        return F.embedding(ids, self.weight)


def norm(config):
    kind = RMSNorm if config.backbone["name"] == "llama" else nn.LayerNorm
    return kind(config.backbone["width"], config.backbone["norm_epsilon"])


class Rotary:
    """Turns the first `rotated` features of every head by position * base^(-2i / rotated), in halves (GPT-NeoX, Llama)."""

    def __init__(self, config):
        b = config.backbone
        share = b.get("rotary_pct", 0.25) if b["name"] == "gpt_neox" else 1.0
        self.rotated = int(config.head_size * share)
        # Plain numbers: a tensor would be made on the "meta" device while a checkpoint is loaded.
        inverse = [b.get("rotary_base", 10000.0) ** (-i / self.rotated) for i in range(0, self.rotated, 2)]
        scaling = b.get("rotary_scaling")
        self.frequencies = inverse if scaling is None else [self._stretched(f, **scaling) for f in inverse]

    @staticmethod
    def _stretched(f, factor, low_factor, high_factor, original_positions):
        """Llama 3: slow frequencies are stretched, fast ones kept, those between blended."""
        turns = original_positions * f / (2 * math.pi)
        blend = min(max((turns - low_factor) / (high_factor - low_factor), 0.0), 1.0)
        return f * ((1 - blend) / factor + blend)

    def angles(self, positions):
        """Cosine and sine, for all layers: [1 or B, 1, T, rotated / 2]; positions [T] or [B, T]."""
        angles = positions[..., None].float() * torch.tensor(self.frequencies, device=positions.device)
        angles = angles[None, None] if positions.dim() == 1 else angles[:, None]
        return angles.cos(), angles.sin()

    @staticmethod
    def turn(x, angles):
        """x [B, H, T, d]."""
        cos, sin = angles
        rotated = 2 * cos.shape[-1]
        a, b = wide(x[..., :rotated]).chunk(2, dim=-1)
        return torch.cat([torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(x.dtype), x[..., rotated:]], -1)


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        D, d, bias = config.backbone["width"], config.head_size, config.backbone["name"] != "llama"
        self.heads, self.kv_heads, self.head_size = config.backbone["num_heads"], config.num_kv_heads, d
        self.query = nn.Linear(D, self.heads * d, bias=bias)
        self.key = nn.Linear(D, self.kv_heads * d, bias=bias)
        self.value = nn.Linear(D, self.kv_heads * d, bias=bias)
        self.output = nn.Linear(self.heads * d, D, bias=bias)

    def forward(self, x, angles, mask, past):
        """angles: Rotary's, or None. mask: added to the scores, None: plainly causal. past: keys and values that stand before these, or
        None. Returns (y, both)."""
        B, T, _ = x.shape
        q, k, v = (f(x).view(B, T, -1, self.head_size).transpose(1, 2) for f in (self.query, self.key, self.value))
        if angles is not None:
            q, k = Rotary.turn(q, angles), Rotary.turn(k, angles)
        if past is not None:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        seen = (k, v)
        if self.kv_heads != self.heads:
            k, v = (t.repeat_interleave(self.heads // self.kv_heads, dim=1) for t in seen)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        return self.output(y.transpose(1, 2).reshape(B, T, -1)), seen


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        D, hidden, self.kind = config.backbone["width"], config.mlp_width, config.backbone["name"]
        gated = self.kind == "llama"
        self.up = nn.Linear(D, hidden, bias=not gated)
        self.down = nn.Linear(hidden, D, bias=not gated)
        self.gate = nn.Linear(D, hidden, bias=False) if gated else None

    def forward(self, x):
        if self.gate is not None:
            return self.down(F.silu(self.gate(x)) * self.up(x))
        return self.down(F.gelu(self.up(x), approximate="tanh" if self.kind == "gpt2" else "none"))


class Block(nn.Module):
    """x + attention, then + MLP; GPT-NeoX's parallel residual feeds both from x."""

    def __init__(self, config):
        super().__init__()
        self.norm_attention, self.attention = norm(config), Attention(config)
        self.norm_mlp, self.mlp = norm(config), MLP(config)
        self.dropout = nn.Dropout(config.backbone["dropout"])
        self.parallel = config.backbone["name"] == "gpt_neox" and config.backbone.get("parallel_residual", True)

    def forward(self, x, angles, mask, past):
        y, seen = self.attention(self.norm_attention(x), angles, mask, past)
        after = x + self.dropout(y)
        return after + self.dropout(self.mlp(self.norm_mlp(x if self.parallel else after))), seen


# ---- the memory ----


class AssociativeMemory(nn.Module):
    """ARMT's matrix of one layer: read on entering the block, written from the block's outputs at the memory tokens."""

    def __init__(self, config, number):
        super().__init__()
        D, memory = config.backbone["width"], config.memory
        self.writes = number >= memory.get("first_layer", 0)
        self.heads, self.nu = memory.get("num_heads", 1), memory["nu"]
        self.unit_keys, self.correction = memory.get("key_norm") == "l2", memory["correction"]
        self.beta_max, self.read_floor = memory.get("beta_max", 1.0), memory.get("read_floor", 0.0)
        self.share_writes = memory.get("like_writes", "add") == "share"
        self.hard_gate = memory.get("gate", "sigmoid") == "hard"
        self.query = nn.Linear(D, memory["d_mem"], bias=False)
        self.key = nn.Linear(D, memory["d_mem"], bias=False)
        self.value = nn.Linear(D, D, bias=False)
        self.beta = nn.Linear(D, self.heads)
        self.key_features = 2 * self.nu * memory["d_mem"] // self.heads

    def _heads(self, x):
        """[B, T, D] -> [B, H, T, D / H], float32."""
        return wide(x).view(*x.shape[:2], self.heads, -1).transpose(1, 2)

    def _features(self, x):
        """DPFP (arXiv 2102.11174): u = [relu(x), relu(-x)] times its rolls by 1..nu."""
        x = self._heads(x)
        u = torch.cat([F.relu(x), F.relu(-x)], -1)
        k = torch.cat([u * u.roll(j, -1) for j in range(1, self.nu + 1)], -1)
        if not self.unit_keys:
            return k
        square = k.pow(2).sum(-1, keepdim=True)
        seen = square > 1e-24
        return k * torch.where(seen, torch.rsqrt(torch.where(seen, square, torch.ones_like(square))), torch.zeros_like(square))

    def _recall(self, k, A, z):
        """float32 throughout, also under torch.autocast: what is nearly equal is subtracted here, in every segment again."""
        with torch.autocast(k.device.type, enabled=False):
            weight = (k @ z[..., None])[..., 0]
            divisor = weight.clamp(min=self.read_floor) if self.read_floor else weight
            return k @ A / (divisor + EPSILON)[..., None], weight

    def read(self, x, A, z):
        found, _ = self._recall(self._features(self.query(x)), A, z)
        return x + found.transpose(1, 2).reshape(x.shape).to(x.dtype)

    def write(self, m, A, z):
        """m [B, M, D] -> the new A and z. All memory tokens look at the old ones: a parallel delta rule."""
        if not self.writes:
            return A, z
        k, v = self._features(self.key(m)), self._heads(self.value(m))
        gate = self._heads((F.hardsigmoid if self.hard_gate else torch.sigmoid)(wide(self.beta(m))))
        beta = self.beta_max * gate
        old, weight = self._recall(k, A, z)
        gamma = torch.ones_like(weight)
        if self.correction:
            with torch.no_grad():
                square = k.pow(2).sum(-1)
                empty = (z == 0).all(-1, keepdim=True)
                gamma = torch.where(empty, gamma, ((square - weight) / (square + EPSILON)).clamp(0, 1))
        if self.share_writes:  # among tokens with like keys
            share = 1 / (k @ k.transpose(-1, -2) @ gate).clamp(min=1.0)
            beta, gamma = beta * share, gamma * (gate * share)[..., 0].detach()
        elif self.hard_gate:
            gamma = torch.where(gate[..., 0] > 0, gamma, torch.zeros_like(gamma))
        with torch.autocast(k.device.type, enabled=False):
            return A + k.transpose(-1, -2) @ (beta * (v - old)), z + (gamma[..., None] * k).sum(-2)


class MemoryTokens(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.tokens = nn.Parameter(torch.empty(config.back, config.backbone["width"]))


class Layer(nn.Module):
    def __init__(self, config, number):
        super().__init__()
        self.block = Block(config)
        self.memory = AssociativeMemory(config, number) if config.memory["name"] == "armt" else None


# ---- the model ----


class OpenSegment:
    """The segment that generation has under way, and the memory before it. What `past_key_values` holds."""

    def __init__(self, state: MemoryState):
        self.state, self.seen = state, 0
        self.clear()

    def clear(self):
        """An empty segment."""
        self.filled, self.layers, self.valid = 0, None, None

    def get_seq_length(self, layer_idx=0) -> int:
        """Tokens read so far, in all segments."""
        return self.seen

    def reorder_cache(self, rows):
        """For beam search."""
        self.state = self.state.rows(rows)
        if self.layers is not None:
            self.layers = [tuple(t.index_select(0, rows.to(t.device)) for t in pair) for pair in self.layers]
            self.valid = self.valid.index_select(0, rows.to(self.valid.device))


_fields = [("loss", torch.Tensor), ("logits", torch.Tensor), (CACHE, OpenSegment), ("memory_state", MemoryState)]
ArmtOutput = make_dataclass(
    "ArmtOutput", [(name, kind | None, field(default=None)) for name, kind in _fields], bases=(ModelOutput,),
    namespace={"__module__": __name__},
)  # fmt: skip
ArmtOutput.__doc__ = """loss: mean cross-entropy of the next tokens. past_key_values: the open segment, with use_cache. memory_state: after
all complete segments (without use_cache: after the whole row)."""


class ArmtForCausalLM(PreTrainedModel, GenerationMixin):
    config_class = ArmtConfig
    base_model_prefix = ""
    _no_split_modules = ["Layer"]
    _supports_sdpa = True
    _is_stateful = True  # generation cannot take back what a segment has written

    def __init__(self, config):
        super().__init__(config)
        backbone = config.backbone
        self.embed = Table(config.vocab_size, config.hidden_size)
        self.positions = Table(config.position_rows, config.hidden_size) if backbone["name"] == "gpt2" else None
        self.rotary = Rotary(config) if self.positions is None else None
        self.token_memory = MemoryTokens(config) if config.back else None
        self.dropout = nn.Dropout(backbone["dropout"])
        self.layers = nn.ModuleList(Layer(config, number) for number in range(config.num_hidden_layers))
        self.final_norm = norm(config)
        tied = backbone["tie_embeddings"]
        self.head = None if tied else nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def _init_weights(self, module):
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        for name in ("weight", "tokens"):
            if isinstance(module, (Table, MemoryTokens)) and hasattr(module, name):
                nn.init.normal_(getattr(module, name), std=0.02)

    def get_input_embeddings(self):
        return self.embed

    def set_input_embeddings(self, value):
        self.embed = value

    # -- memory --

    def init_state(self, batch: int) -> MemoryState:
        """The empty memory of `batch` rows."""
        c = self.config
        if c.memory["name"] == "rmt":
            return MemoryState(tokens=wide(self.token_memory.tokens).expand(batch, -1, -1))
        if c.memory["name"] == "armt":
            memory = self.layers[0].memory
            shape = (c.num_hidden_layers, batch, memory.heads, memory.key_features)
            zeros = lambda *s: torch.zeros(*s, dtype=wide(self.embed.weight[:0]).dtype, device=self.embed.weight.device)
            return MemoryState(A=zeros(*shape, c.hidden_size // memory.heads), z=zeros(*shape))
        return MemoryState()

    def ingest(self, input_ids, attention_mask=None, memory_state=None) -> MemoryState:
        """The memory after reading a row."""
        return self(input_ids, attention_mask=attention_mask, memory_state=memory_state, logits_to_keep=1).memory_state

    def _memory_tokens(self, state, batch):
        """[B, M, D] as they enter the first layer, before positions."""
        tokens = self.token_memory.tokens.expand(batch, -1, -1) if state.tokens is None else state.tokens
        return tokens.to(self.embed.weight.dtype)

    # -- segments --

    def _text_positions(self, count, T, before=0, valid=None, valid_before=0):
        """[T], or [B, T] with a mask: only real tokens count."""
        device = self.embed.weight.device
        if valid is None:
            return count + before + torch.arange(T, device=device)
        return count + (valid_before + valid.cumsum(-1) - 1).clamp(min=0)

    def _back_positions(self, T, valid):
        c = self.config
        steps = torch.arange(c.back, device=self.embed.weight.device)
        if c.own_rows:
            first = c.position_rows - c.back + steps
            return first if valid is None else first.expand(valid.shape[0], -1)
        return c.front + T + steps if valid is None else c.front + valid.sum(-1, keepdim=True) + steps

    def _front_positions(self, valid):
        front = torch.arange(self.config.front, device=self.embed.weight.device)
        return front if valid is None else front.expand(valid.shape[0], -1)

    def _mask(self, new, valid):
        """Additive [B, 1, new, all] for the last `new` of all places; valid [B, all]. A row of nothing stays finite."""
        size = valid.shape[1]
        causal = torch.ones(size, size, dtype=torch.bool, device=valid.device).tril()[size - new :]
        seen = torch.zeros((), dtype=self.embed.weight.dtype, device=valid.device)
        # As good as minus infinity, and finite in every type that torch.autocast may turn it into.
        return torch.where(causal & valid[:, None, None, :], seen, seen - 2.0**15)

    def _stack(self, x, positions, mask, state, past=None):
        """Embeddings through all layers. Returns (hidden, each layer's output at the last places, keys and values)."""
        if self.positions is not None:
            x = x + self.positions(positions)
        x = self.dropout(x)
        angles = None if self.rotary is None else self.rotary.angles(positions)
        outputs, seen = [], []
        for i, layer in enumerate(self.layers):
            if layer.memory is not None:
                x = layer.memory.read(x, state.A[i], state.z[i])
            x, pair = layer.block(x, angles, mask, None if past is None else past[i])
            outputs.append(x[:, x.shape[1] - self.config.back :])
            seen.append(pair)
        return self.final_norm(x), outputs, seen

    def _written(self, hidden, outputs, state):
        """The state after a segment whose last places are the memory tokens."""
        M = self.config.back
        if state.tokens is not None:
            return LayerStates(tokens=wide(hidden[:, hidden.shape[1] - M :]))
        if state.A is None:
            return state
        new = [layer.memory.write(m, state.A[i], state.z[i]) for i, (layer, m) in enumerate(zip(self.layers, outputs))]
        return LayerStates(A=tuple(A for A, _ in new), z=tuple(z for _, z in new))

    def _segment(self, ids, valid, state):
        """A whole segment with its memory tokens: (hidden of the real tokens, the state after it)."""
        c, (B, T) = self.config, ids.shape
        parts = [self.embed(ids)]
        if c.back:
            tokens = self._memory_tokens(state, B)
            parts = ([tokens] if c.front else []) + parts + [tokens]
        positions = [self._front_positions(valid), self._text_positions(c.front, T, 0, valid), self._back_positions(T, valid)]
        mask = None
        if valid is not None:
            mask = self._mask(c.front + T + c.back, F.pad(valid, (c.front, c.back), value=True))
        hidden, outputs, _ = self._stack(torch.cat(parts, 1), torch.cat(positions, -1), mask, state)
        live = None if valid is None else valid.any(-1)
        return hidden[:, c.front : c.front + T], choose(live, self._written(hidden, outputs, state), state)

    def _read_row(self, ids, valid, state):
        """All segments of a row, each written to memory."""
        T, N = self.config.segment_length, ids.shape[1]
        S = -(-N // T)
        first = N - (S - 1) * T if self.config.align == "right" else T
        state = state.by_layer()
        edges = [0, *range(first, N, T), N]
        hidden, truncate = [], self.config.bptt_segments
        for s in range(S):
            if s and truncate is not None and truncate < S and (S - s) % truncate == 0:
                state = state.detach()
            here = slice(edges[s], edges[s + 1])
            out, state = self._segment(ids[:, here], None if valid is None else valid[:, here], state)
            hidden.append(out)
        return torch.cat(hidden, 1), state.stacked()

    # -- decoding --

    def _commit(self, open_segment):
        """Writes the full segment to memory: its memory tokens are read on top of its keys and values."""
        o = open_segment
        if self.config.back:
            B, valid = o.valid.shape[0], o.valid
            x, positions = self._memory_tokens(o.state, B), self._back_positions(o.filled, valid)
            places = F.pad(valid, (self.config.front, self.config.back), value=True)
            before = o.state.by_layer()
            hidden, outputs, _ = self._stack(x, positions, self._mask(self.config.back, places), before, o.layers)
            o.state = choose(valid.any(-1), self._written(hidden, outputs, before), before).stacked()
        o.clear()

    def _extend(self, o, ids, valid):
        """More tokens of the open segment, which has room for them: their hidden states."""
        c, (B, T) = self.config, ids.shape
        x, valid = self.embed(ids), torch.ones_like(ids, dtype=torch.bool) if valid is None else valid
        before = 0 if o.layers is None else o.valid.sum(-1, keepdim=True)
        positions = self._text_positions(c.front, T, valid=valid, valid_before=before)
        opening = o.layers is None and c.front > 0
        if opening:
            x = torch.cat([self._memory_tokens(o.state, B), x], 1)
            positions = torch.cat([self._front_positions(valid), positions], -1)
        o.valid = valid if o.layers is None else torch.cat([o.valid, valid], 1)
        mask = self._mask(x.shape[1], F.pad(o.valid, (c.front, 0), value=True))
        hidden, _, o.layers = self._stack(x, positions, mask, o.state, o.layers)
        o.filled += T
        return hidden[:, c.front :] if opening else hidden

    def _decode(self, o, ids, valid):
        """Any number of tokens on top of an open segment; full ones are written as soon as another token comes."""
        T, hidden = self.config.segment_length, []
        while ids.shape[1]:
            if o.filled == T:
                self._commit(o)
            take = min(T - o.filled, ids.shape[1])
            here = None if valid is None else valid[:, :take]
            if o.filled == 0 and ids.shape[1] > T:
                out, after = self._segment(ids[:, :take], here, o.state.by_layer())
                o.state = after.stacked()
            else:
                out = self._extend(o, ids[:, :take], here)
            hidden.append(out)
            o.seen += take
            ids, valid = ids[:, take:], None if valid is None else valid[:, take:]
        return torch.cat(hidden, 1)

    # -- what users call --

    def forward(
        self, input_ids=None, attention_mask=None, labels=None, memory_state=None, past_key_values=None, use_cache=False,
        logits_to_keep=0, return_dict=True, cache=None, **kwargs,
    ):  # fmt: skip
        """attention_mask [B, N]: 0 at padding (left or right). labels: as input_ids, -100 where a prediction does not count; the shift by
        one is done here. memory_state: where a row goes on; past_key_values, or cache: where generation goes on (it has the memory in
        it)."""
        past_key_values = cache if past_key_values is None else past_key_values
        if memory_state is not None and past_key_values is not None:
            raise ValueError("past_key_values holds the memory already: give it or memory_state, not both")
        state = self.init_state(input_ids.shape[0]) if memory_state is None else memory_state
        valid = None if attention_mask is None or bool(attention_mask.all()) else attention_mask.bool()
        if use_cache or past_key_values is not None:
            past_key_values = OpenSegment(state) if past_key_values is None else past_key_values
            hidden, state = self._decode(past_key_values, input_ids, valid), past_key_values.state
        else:
            hidden, state = self._read_row(input_ids, valid, state)
        kept = hidden if labels is not None or not logits_to_keep else hidden[:, -logits_to_keep:]
        logits = F.linear(kept, self.embed.weight if self.head is None else self.head.weight)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=-100)
        out = ArmtOutput(loss, logits, past_key_values, state)
        return out if return_dict in (None, True) else out.to_tuple()

    def _prepare_cache_for_generation(self, *args, **kwargs):
        """The first forward makes the cache."""

    def prepare_inputs_for_generation(
        self, input_ids, past_key_values=None, attention_mask=None, memory_state=None, use_cache=True, cache=None, **kwargs
    ):  # fmt: skip
        past_key_values = cache if past_key_values is None else past_key_values
        if past_key_values is not None:
            seen = past_key_values.get_seq_length()
            attention_mask = None if attention_mask is None else attention_mask[:, seen:]
            input_ids, memory_state = input_ids[:, seen:], None
        elif memory_state is not None and memory_state.batch not in (None, input_ids.shape[0]):
            copies = input_ids.shape[0] // memory_state.batch  # beams and several sequences of one prompt
            memory_state = memory_state.rows(torch.arange(memory_state.batch, device=input_ids.device).repeat_interleave(copies))
        return dict(
            input_ids=input_ids, attention_mask=attention_mask, past_key_values=past_key_values, memory_state=memory_state,
            use_cache=use_cache, logits_to_keep=1,
        )  # fmt: skip


# A copy saved with save_pretrained brings this file along.
ArmtConfig.register_for_auto_class()
ArmtForCausalLM.register_for_auto_class("AutoModelForCausalLM")
