"""The names and layouts of the published PyTorch ARMT and RMT (Hugging Face backbones inside), and ours.

Every mapping is a permutation of entries, so it serves for parameters and for gradients alike.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from armt_jax.interop import transformer_xl
from armt_jax.interop.huggingface import backbone_of
from armt_jax.interop.names import Entry, by_path, reference_entries
from armt_jax.memory.associative import ARMT
from armt_jax.memory.interface import MemoryConfig
from armt_jax.memory.recurrent_tokens import RMT
from armt_jax.model import ModelConfig, RecurrenceConfig
from armt_jax.nn.backbones import BackboneConfig, TransformerXL

Tensors = Mapping[str, np.ndarray]


# The golden files' word for a family, and Hugging Face's.
MODEL_TYPES = {"gpt2": "gpt2", "neox": "gpt_neox", "llama": "llama"}


def backbone_config(family: str, fields: Mapping[str, Any]) -> BackboneConfig:
    """Our backbone from a Hugging Face config's fields. Raises ValueError for a family we do not know."""
    if family not in MODEL_TYPES:
        raise ValueError(f"family {family!r} is not one of {', '.join(MODEL_TYPES)}")
    return backbone_of({**fields, "model_type": MODEL_TYPES[family]})


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


Take = Callable[[Tensors], np.ndarray]


def name_map(config: ModelConfig) -> tuple[dict[str, Take], list[dict[str, Take]]]:
    """(our path -> tensor from theirs) outside the layers, and the same once per layer (paths under `layers/`)."""
    if isinstance(config.backbone, TransformerXL):
        return transformer_xl.name_map(config)

    def take(entry: Entry, place: int) -> Take:
        return lambda t: entry.parts(t[entry.theirs])[place]

    outside: dict[str, Take] = {}
    per_layer: list[dict[str, Take]] = [{} for _ in range(config.backbone.num_layers)]
    for path, held in by_path(reference_entries(config)).items():
        for entry, place in held:
            group = outside if entry.layer is None else per_layer[entry.layer]
            group[path.removeprefix("layers/")] = take(entry, place)
    return outside, per_layer


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
