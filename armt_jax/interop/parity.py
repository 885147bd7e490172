"""Does an exported model compute in PyTorch what it computes here? Needs the extra `torch`; PyTorch is imported by name, inside."""

import dataclasses
import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from armt_jax.memory.interface import MemoryConfig
from armt_jax.model import MemoryTransformer

MODELING = Path(__file__).parent / "pytorch" / "modeling_armt.py"
# Logits: absolute, and relative to the largest where that is above 1. State: relative to the largest entry. Generated: tokens that differ.
TOLERANCES = {"logits": 2e-5, "state": 1e-4, "generated": 0.0}
NEW_TOKENS = 64
ROWS = 2  # compared side by side


class Figure(NamedTuple):
    """error: in the units of TOLERANCES. unit: of a logit error, so that error * unit is the largest absolute difference."""

    case: str
    kind: str
    error: float
    unit: float = 1.0

    @property
    def ok(self) -> bool:
        return self.error <= TOLERANCES[self.kind]


def require_torch():
    """(torch, transformers). Raises ValueError naming the extra."""
    try:
        torch, transformers = importlib.import_module("torch"), importlib.import_module("transformers")
    except ImportError as error:
        raise ValueError(
            f"the export checks itself in PyTorch, and {error.name} is not installed: pip install 'armt_jax[torch]', or give --check=false"
        ) from error
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return torch, transformers


def modeling() -> Any:
    """The module `modeling_armt`, from the package (an export has a copy of it)."""
    if "modeling_armt" not in sys.modules:
        spec = importlib.util.spec_from_file_location("modeling_armt", MODELING)
        module = importlib.util.module_from_spec(spec)
        sys.modules["modeling_armt"] = module
        spec.loader.exec_module(module)
    return sys.modules["modeling_armt"]


def load_peer(folder: Path, kind: str) -> Any:
    """The exported model in PyTorch, float32."""
    torch, transformers = require_torch()
    cls = modeling().ArmtForCausalLM if kind == "hf" else transformers.AutoModelForCausalLM
    return cls.from_pretrained(folder, dtype=torch.float32).eval()


def _relative(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.max(np.abs(got - want)) / max(float(np.max(np.abs(want))), 1e-30))


def logit_error(got: np.ndarray, want: np.ndarray) -> tuple[float, float]:
    """(largest difference in the unit, the unit: the largest logit where that is above 1, else 1)."""
    unit = max(1.0, float(np.max(np.abs(want))))
    return float(np.max(np.abs(got - want))) / unit, unit


def state_error(peer_state: Any, state: Any) -> float | None:
    """None for a memory without state."""
    pairs = []
    if peer_state.A is not None:
        pairs = [(peer_state.A, state.layers.A_BxHxKxd), (peer_state.z, state.layers.z_BxHxK)]
    elif peer_state.tokens is not None:
        pairs = [(peer_state.tokens, state.tokens)]
    # NumPy's maximum, here and below: Python's passes over a NaN.
    return float(np.max([_relative(a.detach().numpy(), np.asarray(b)) for a, b in pairs])) if pairs else None


class Row(NamedTuple):
    """Ids to compare on. goes_on: from the state behind the row before, not from the empty one."""

    case: str
    ids: np.ndarray
    valid: np.ndarray | None = None
    goes_on: bool = False

    @property
    def seen(self) -> np.ndarray:
        """Where logits are compared: all places that are no padding."""
        return np.ones(self.ids.shape, bool) if self.valid is None else self.valid


def _answer(peer: Any, torch: Any, row: Row, state: Any) -> tuple[np.ndarray, Any]:
    """(logits where they are seen, memory state behind the row), of the model in PyTorch."""
    mask = None if row.valid is None else torch.tensor(row.valid.astype(np.int64))
    with torch.no_grad():
        out = peer(torch.tensor(row.ids), attention_mask=mask, memory_state=state if row.goes_on else None)
    return out.logits.numpy()[row.seen], out.memory_state


@dataclasses.dataclass
class Comparison:
    """One model, here and in PyTorch, on the same ids."""

    model: MemoryTransformer
    peer: Any
    torch: Any

    def __post_init__(self):
        self.graphdef, self.params = nnx.split(self.model)
        self.figures: list[Figure] = []
        self.states: tuple[Any, Any] = (None, None)
        self._run = jax.jit(lambda params, ids, state, valid: nnx.merge(self.graphdef, params)(ids, state, valid_BxN=valid))

    def note(self, case: str, kind: str, error: float | None, unit: float = 1.0) -> None:
        if error is not None:
            self.figures.append(Figure(case, kind, error, unit))

    def row(self, row: Row) -> None:
        """Compares one call, and keeps both states."""
        state, peer_state = self.states
        state = state if row.goes_on else self.model.init_state(len(row.ids))
        logits, state = self._run(self.params, jnp.asarray(row.ids, jnp.int32), state, row.valid)
        theirs, peer_state = _answer(self.peer, self.torch, row, peer_state)
        self.note(row.case, "logits", *logit_error(theirs, np.asarray(logits)[row.seen]))
        self.note(row.case, "state", state_error(peer_state, state))
        self.states = state, peer_state

    def generate(self, case: str, ids: np.ndarray, valid: np.ndarray | None, count: int = NEW_TOKENS) -> None:
        ours = self.model.generate(jnp.asarray(ids, jnp.int32), max_new_tokens=count, valid_BxN=valid).tokens_BxG
        with self.torch.no_grad():
            mask = np.ones(ids.shape, np.int64) if valid is None else valid.astype(np.int64)
            theirs = self.peer.generate(
                self.torch.tensor(ids), attention_mask=self.torch.tensor(mask), max_new_tokens=count, min_new_tokens=count, do_sample=False,
                pad_token_id=0,
            )  # fmt: skip
        self.note(case, "generated", float(np.sum(theirs[:, ids.shape[1] :].numpy() != np.asarray(ours))))


def left_padded(rows: int, length: int, paddings: list[int]) -> np.ndarray:
    """[rows, length], False at the padding of each row."""
    return np.arange(length)[None] >= np.array([paddings[i % len(paddings)] for i in range(rows)])[:, None]


def _rows(model: MemoryTransformer, rng: np.random.Generator) -> list[Row]:
    """1 to 6 segments with the state handed on, all of them at once, a ragged row of rare ids, rows padded at the left."""
    T, V = model.config.recurrence.segment_length, model.config.backbone.vocab_size
    draw = lambda length, low=0: rng.integers(low, V, (ROWS, length))
    ragged, padding = 3 * T + max(1, T // 2), [T + max(1, T // 3), 0]
    return [
        *(Row(f"random ids, segment {s + 1} on the state before", draw(T), goes_on=s > 0) for s in range(6)),
        Row("random ids, 6 segments in one row", draw(6 * T)),
        Row(f"rare ids (the last hundredth), {ragged} tokens, last segment short", draw(ragged, V - max(2, V // 100))),
        Row("rows padded at the left, one of them over its whole first segment", draw(ragged), left_padded(ROWS, ragged, padding)),
    ]


def compare(model: MemoryTransformer, peer: Any, seed: int = 0) -> list[Figure]:
    """The memory model: `_rows`, and generation."""
    torch, _ = require_torch()
    model = model.with_config(dataclasses.replace(model.config, dtype="float32"))
    c, T, V = Comparison(model, peer, torch), model.config.recurrence.segment_length, model.config.backbone.vocab_size
    rng = np.random.default_rng(seed)
    with jax.default_matmul_precision("highest"):
        for row in _rows(model, rng):
            c.row(row)
        prompt = 2 * T - T // 2
        draw = lambda: rng.integers(0, V, (ROWS, prompt))
        c.generate(f"greedy, {NEW_TOKENS} tokens after {prompt}", draw(), None)
        c.generate(f"greedy, {NEW_TOKENS} tokens, one prompt padded at the left", draw(), left_padded(ROWS, prompt, [max(1, T // 3), 0]))
    return c.figures


def rounding(model: MemoryTransformer, peer: Any, seed: int = 0) -> dict[str, float]:
    """How far PyTorch's own float32 is from its float64 on the rows of `compare`, {kind: largest error}: none can be nearer."""
    torch, _ = require_torch()
    rows = _rows(model, np.random.default_rng(seed))

    def outputs() -> list[tuple[np.ndarray, list[np.ndarray]]]:
        found, state = [], None
        for row in rows:
            logits, state = _answer(peer, torch, row, state)
            found.append((logits, [a.numpy() for a in state if a is not None]))
        return found

    short = outputs()
    peer.double()
    long = outputs()
    peer.float()
    worst = {"logits": float(np.max([logit_error(a, b)[0] for (a, _), (b, _) in zip(short, long, strict=True)]))}
    states = [_relative(a, b) for (_, some), (_, others) in zip(short, long, strict=True) for a, b in zip(some, others, strict=True)]
    return worst | ({"state": float(np.max(states))} if states else {})


def compare_backbone(model: MemoryTransformer, peer: Any, seed: int = 0) -> list[Figure]:
    """The bare backbone, one segment long, against Hugging Face's own model."""
    torch, _ = require_torch()
    backbone, rng = model.config.backbone, np.random.default_rng(seed)
    length = min(backbone.max_positions, model.config.recurrence.segment_length, 256)
    figures = []
    for case, low in (("random ids", 0), ("rare ids", backbone.vocab_size - max(2, backbone.vocab_size // 100))):
        ids = rng.integers(low, backbone.vocab_size, (2, length))
        with jax.default_matmul_precision("highest"):
            logits = np.asarray(model(jnp.asarray(ids, jnp.int32))[0])
        with torch.no_grad():
            theirs = peer(torch.tensor(ids)).logits.float().numpy()
        figures.append(Figure(f"{case}, {length} tokens", "logits", *logit_error(theirs, logits)))
    return figures


def without_memory(model: MemoryTransformer) -> MemoryTransformer:
    """The bare backbone of a model: the same weights, and the rows of the position table that are its own."""
    config = model.config
    layout = config.memory.layout(config.backbone)
    bare = dataclasses.replace(config, memory=MemoryConfig(), dtype="float32")
    other = nnx.eval_shape(lambda: MemoryTransformer(bare, rngs=nnx.Rngs(0)))
    graphdef, abstract = nnx.split(other)
    own = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(nnx.split(model)[1])}

    def pick(path, leaf):
        found = own[jax.tree_util.keystr(path)]
        return found if found.shape == leaf.shape else found[layout.front : layout.front + leaf.shape[0]]

    return nnx.merge(graphdef, jax.tree_util.tree_map_with_path(pick, abstract))
