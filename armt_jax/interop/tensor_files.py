"""Files of named tensors: safetensors read through a memory map and written one tensor after the other, PyTorch's .bin read safely.

The safetensors format: 8 bytes with the header's length, the header (JSON: name -> dtype, shape, place), then the bytes of all tensors.
"""

import importlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np

DTYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "I64": np.int64, "I32": np.int32, "I16": np.int16,
    "I8": np.int8, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip
NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}
WEIGHTS = ("model.safetensors", "pytorch_model.bin")


class Stored(NamedTuple):
    """A tensor in a file: nothing of it is read before `read` is called, and of a memory map only what is looked at."""

    file: Path
    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]


class Tensors(Mapping[str, np.ndarray]):
    """Named tensors of one or several files."""

    def __init__(self, stored: dict[str, Stored], where: Path):
        self.stored, self.where = stored, where

    def __getitem__(self, name: str) -> np.ndarray:
        return self.stored[name].read()

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


def _damaged(path: Path, why: str) -> ValueError:
    return ValueError(f"{path} is no whole safetensors file: {why}")


def _read_safetensors(path: Path) -> dict[str, Stored]:
    size = path.stat().st_size
    if size < 8:
        raise _damaged(path, f"it has {size} bytes")
    data = np.memmap(path, np.uint8, mode="r")
    begin = 8 + int.from_bytes(data[:8].tobytes(), "little")
    if begin > size:
        raise _damaged(path, f"its header should end at byte {begin}, and the file has {size}")
    try:
        header = json.loads(data[8:begin].tobytes())
        header.pop("__metadata__", None)
        return {name: _stored(path, data, begin, size, name, **entry) for name, entry in header.items()}
    except (UnicodeDecodeError, json.JSONDecodeError, AttributeError, TypeError) as error:
        raise _damaged(path, f"its header cannot be read ({type(error).__name__}: {error})") from error


def _stored(path: Path, data, begin: int, size: int, name: str, dtype: str, shape: list[int], data_offsets: list[int]) -> Stored:
    if dtype not in DTYPES:
        raise ValueError(f"{path}: tensor {name!r} is of dtype {dtype}, which cannot be read; known are {', '.join(DTYPES)}")
    kind, (start, end) = np.dtype(DTYPES[dtype]), data_offsets
    if end - start != math.prod(shape) * kind.itemsize or start < 0:
        raise _damaged(path, f"tensor {name!r} of shape {shape} and dtype {dtype} cannot have {end - start} bytes")
    if begin + end > size:
        raise _damaged(path, f"tensor {name!r} should end at byte {begin + end}, and the file has {size}: it is truncated")
    return Stored(path, tuple(shape), kind, lambda: data[begin + start : begin + end].view(kind).reshape(shape))


def _read_bin(path: Path) -> dict[str, Stored]:
    try:
        torch = importlib.import_module("torch")  # by name: nothing else in the package may need it
    except ImportError as error:
        raise ValueError(
            f"{path} is PyTorch's own format and needs PyTorch: pip install 'armt_jax[torch]', or convert the file to model.safetensors"
        ) from error
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
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
        read = lambda: tensor.view(torch.int16).numpy().view(kind) if brain else tensor.numpy()
        return Stored(path, tuple(tensor.shape), kind, read)

    return {name: stored(tensor) for name, tensor in tensors.items()}


class Tensor(NamedTuple):
    """A tensor to write: `make` is called when its turn comes."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    make: Callable[[], np.ndarray]


def write_safetensors(path: Path, tensors: Iterable[Tensor]) -> None:
    """Writes one tensor after the other: no two of them need to exist at once."""
    tensors = sorted(tensors, key=lambda t: t.name)
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    end = 0
    for t in tensors:
        size = math.prod(t.shape) * t.dtype.itemsize
        header[t.name] = {"dtype": NAMES[t.dtype], "shape": list(t.shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for t in tensors:
            array = np.asarray(t.make(), order="C")
            if array.shape != t.shape or array.dtype != t.dtype:
                raise ValueError(f"tensor {t.name!r} became {array.dtype}{list(array.shape)}, promised was {t.dtype}{list(t.shape)}")
            file.write(array.reshape(-1).view(np.uint8).data)
