"""Files of named tensors: safetensors, read and written by its own library, tensor by tensor; PyTorch's .bin, read safely."""

import importlib
import json
import math
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

# The library's names. Of bfloat16 it makes ml_dtypes' array.
DTYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "I64": np.int64, "I32": np.int32, "I16": np.int16,
    "I8": np.int8, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
SHARD_BYTES = 5 * 10**9
WHOLE = slice(None)


class Stored(NamedTuple):
    """A tensor in a file. Nothing of it is read before `read` is called: with all of its rows, or with slice(first, last) of them."""

    file: Path
    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[slice], np.ndarray]


class Tensors(Mapping[str, np.ndarray]):
    """Named tensors of one or several files."""

    def __init__(self, stored: dict[str, Stored], where: Path):
        self.stored, self.where = stored, where

    def __getitem__(self, name: str) -> np.ndarray:
        return self.stored[name].read(WHOLE)

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)


def open_tensors(path: Path) -> Tensors:
    """A file, or the weights of a checkpoint folder: model.safetensors or pytorch_model.bin, whole or in shards with an index.

    Raises:
        ValueError: no such file, or one that is damaged; the message names it.
    """
    if path.is_file():
        return Tensors(_read_file(path), path)
    for name in WEIGHTS:
        if (path / name).is_file():
            return Tensors(_read_file(path / name), path / name)
        if (path / f"{name}.index.json").is_file():
            return _sharded(path / f"{name}.index.json")
    raise ValueError(f"{path} holds no weights: neither {' nor '.join(WEIGHTS)}, whole or with an index")


def _sharded(index: Path) -> Tensors:
    try:
        places = json.loads(index.read_text("utf-8"))["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{index} is no index of shards ({type(error).__name__}: {error})") from error
    stored: dict[str, Stored] = {}
    for name in sorted(set(places.values())):
        file = index.parent / name
        if not file.is_file() or file.parent != index.parent:
            raise ValueError(f"{index} names the shard {name!r}, which is not beside it")
        stored |= _read_file(file)
    for name, shard in places.items():
        if name not in stored:
            raise ValueError(f"{index} places tensor {name!r} in {shard}, which does not have it")
    return Tensors(stored, index)


def _read_file(path: Path) -> dict[str, Stored]:
    return _read_bin(path) if path.suffix in (".bin", ".pt", ".pth") else _read_safetensors(path)


def _read_safetensors(path: Path) -> dict[str, Stored]:
    try:
        file = safe_open(path, framework="np")
    except SafetensorError as error:
        size = path.stat().st_size
        raise ValueError(f"{path} ({size:,} bytes) is no whole safetensors file, it may be truncated: {error}") from error
    stored = {}
    for name in file.keys():
        part = file.get_slice(name)
        if part.get_dtype() not in DTYPES:
            known = ", ".join(DTYPES)
            raise ValueError(f"{path}: tensor {name!r} is of dtype {part.get_dtype()}, which cannot be read; known are {known}")
        # The library's slices begin at one dimension.
        read = lambda rows, name=name, part=part: file.get_tensor(name) if rows == WHOLE else part[rows]
        stored[name] = Stored(path, tuple(part.get_shape()), np.dtype(DTYPES[part.get_dtype()]), read)
    return stored


def _read_bin(path: Path) -> dict[str, Stored]:
    try:
        torch = importlib.import_module("torch")  # by name: nothing else in the package may need it
    except ImportError as error:
        raise ValueError(
            f"{path} is PyTorch's own format and needs PyTorch: pip install 'armt_jax[torch]', or convert the file to model.safetensors"
        ) from error
    try:
        # Files from before PyTorch 1.6 are no zip archives, and cannot be mapped.
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # whatever a damaged or hostile pickle leads to
        brief = " ".join(str(error).split())[:200]
        kind = type(error).__name__
        raise ValueError(f"{path} is no plain PyTorch file of tensors, and nothing else is loaded ({kind}: {brief})") from error
    if not isinstance(tensors, dict):
        raise ValueError(f"{path} holds a {type(tensors).__name__}, not a dict of named tensors")
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor):
            raise ValueError(f"{path}: {name!r} is a {type(tensor).__name__}, not a tensor")

    def stored(tensor) -> Stored:
        brain = tensor.dtype == torch.bfloat16
        kind = np.dtype(ml_dtypes.bfloat16) if brain else tensor[..., :0].numpy().dtype if tensor.ndim else tensor.numpy().dtype

        def read(rows: slice) -> np.ndarray:
            part = tensor if rows == WHOLE else tensor[rows]
            return part.view(torch.int16).numpy().view(kind) if brain else part.numpy()

        return Stored(path, tuple(tensor.shape), kind, read)

    return {name: stored(tensor.detach()) for name, tensor in tensors.items()}


class Tensor(NamedTuple):
    """A tensor to write: `make` is called when its turn comes."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    make: Callable[[], np.ndarray]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def write_safetensors(path: Path, tensors: Iterable[Tensor]) -> None:
    """One file. All its tensors exist at once."""
    arrays = {t.name: _made(t) for t in tensors}
    save_file(arrays, path, metadata={"format": "pt"})


def _made(tensor: Tensor) -> np.ndarray:
    # The library writes the bytes as they lie, whatever the strides say.
    array = np.asarray(tensor.make(), order="C")
    if array.shape != tensor.shape or array.dtype != tensor.dtype:
        promised = f"{tensor.dtype}{list(tensor.shape)}"
        raise ValueError(f"tensor {tensor.name!r} became {array.dtype}{list(array.shape)}, promised was {promised}")
    return array


def write_weights(folder: Path, tensors: Iterable[Tensor], shard_bytes: int = SHARD_BYTES) -> None:
    """model.safetensors, or shards of at most `shard_bytes` with an index, one after the other: the tensors of one exist at once."""
    shards, room = [], 0
    for tensor in tensors:
        if tensor.bytes > room or not shards:
            shards.append([])
            room = shard_bytes
        shards[-1].append(tensor)
        room -= tensor.bytes
    if len(shards) <= 1:
        write_safetensors(folder / WEIGHTS[0], shards[0] if shards else [])
        return
    places = {}
    for i, shard in enumerate(shards, 1):
        name = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        write_safetensors(folder / name, shard)
        places |= {tensor.name: name for tensor in shard}
    index = {"metadata": {"total_size": sum(t.bytes for shard in shards for t in shard)}, "weight_map": places}
    (folder / f"{WEIGHTS[0]}.index.json").write_text(json.dumps(index, indent=1) + "\n")
