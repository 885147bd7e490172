"""Pretrained weights: a checkpoint of PyTorch's, in any of its forms, into our parameters, tensor by tensor onto the mesh.

Known forms, told apart by what is in the folder:

    Hugging Face's GPT-2, GPT-NeoX (Pythia), Llama     the backbone; memory parameters stay as they were initialised
    what `armt_jax.interop.export` wrote                 all parameters
    a state_dict of the published ARMT or RMT            all parameters (names begin with memory_cell.)
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from armt_jax.config import resolve_backbone, resolve_memory
from armt_jax.interop.huggingface import backbone_of, check_same, read_config
from armt_jax.interop.names import Entry, backbone_entries, by_path, family_of, own_entries, reference_entries
from armt_jax.interop.tensor_files import Stored, Tensors, open_tensors
from armt_jax.memory.interface import MemoryConfig
from armt_jax.model import MemoryTransformer, ModelConfig, RecurrenceConfig
from armt_jax.parallel.rules import path_string

OWN_TYPE = "armt"  # model_type of what the export writes


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Checked tensors, and where they belong. grown: rows of our position table before the checkpoint's (None: it is ours as it is)."""

    tensors: Tensors
    entries: tuple[Entry, ...]
    grown: int | None = None


def abstract_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """{path: shape} of a model's parameters."""
    abstract = nnx.eval_shape(lambda: nnx.split(MemoryTransformer(config, rngs=nnx.Rngs(0)))[1])
    return {path_string(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(abstract)}


def open_checkpoint(path: str | Path, config: ModelConfig) -> Checkpoint:
    """Opens a checkpoint and compares it with the model, without reading a tensor.

    Raises:
        ValueError: not a checkpoint, one of another architecture or size, a missing, extra or misshapen tensor, a damaged file. The message
            names the file or tensor.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise ValueError(f"init.path = {str(path)!r} does not exist: give the folder of a checkpoint")
    tensors = open_tensors(path)
    shapes = abstract_shapes(config)
    if any(name.startswith("memory_cell.") for name in tensors):
        return _checked(Checkpoint(tensors, tuple(reference_entries(config))), config, shapes)
    folder = path if path.is_dir() else path.parent
    fields = read_config(folder)
    if fields["model_type"] == OWN_TYPE:
        backbone, memory, _ = own_parts(fields)
        check_same(config.backbone, backbone, str(folder))
        if memory != config.memory:
            raise ValueError(f"{folder} has the memory {memory}, and the config {config.memory}: make them the same")
        return _checked(Checkpoint(tensors, tuple(own_entries(shapes))), config, shapes)
    check_same(config.backbone, backbone_of(fields), str(folder))
    layout = config.memory.layout(config.backbone)
    grown = layout.front if layout.table_rows is not None else None
    if "positions/table" in shapes:
        shapes["positions/table"] = (config.backbone.max_positions, config.backbone.width)
    inner = family_of(config.backbone).model
    # Some publish the inner model alone.
    model = None if any(name.startswith(inner) for name in tensors) else ""
    return _checked(Checkpoint(tensors, tuple(backbone_entries(config.backbone, model=model)), grown), config, shapes)


def own_parts(fields: Mapping[str, Any]):
    """(backbone, memory, recurrence) from the config.json of an export."""
    recurrence = RecurrenceConfig(fields["segment_length"], align=fields["align"], bptt_segments=fields["bptt_segments"])
    return resolve_backbone(fields["backbone"]), resolve_memory(fields["memory"]), recurrence


def _checked(found: Checkpoint, config: ModelConfig, shapes: Mapping[str, tuple[int, ...]]) -> Checkpoint:
    tensors, where = found.tensors, found.tensors.where
    for entry in found.entries:
        if entry.theirs not in tensors:
            raise ValueError(
                f"{where}: tensor {entry.theirs!r} is missing; it has {len(tensors)}, for instance {', '.join(sorted(tensors)[:3])}"
            )
        _check_shape(entry, tensors, shapes)
    extra = sorted(set(tensors) - {entry.theirs for entry in found.entries})
    family = family_of(config.backbone)
    extra = [name for name in extra if not re.fullmatch(family.buffers, name) and not _is_tied_head(name, found, config)]
    if extra:
        kind = type(config.backbone).__name__
        raise ValueError(f"{where}: {len(extra)} tensors have no place in this {kind} model, the first is {extra[0]!r}")
    return found


def _check_shape(entry: Entry, tensors: Tensors, shapes: Mapping[str, tuple[int, ...]]) -> None:
    stored = tensors.stored[entry.theirs]
    wanted = [shapes[path] if entry.layer is None else shapes[path][1:] for path in entry.ours]
    need = entry.whole([np.broadcast_to(np.int8(0), shape) for shape in wanted]).shape
    if stored.shape != need:
        raise ValueError(
            f"{stored.file}: tensor {entry.theirs!r} has shape {list(stored.shape)}, and {entry.ours[0]} of this model needs {list(need)}"
        )
    if not jnp.issubdtype(stored.dtype, jnp.floating):
        raise ValueError(f"{stored.file}: tensor {entry.theirs!r} is of {stored.dtype}: weights are floating-point numbers")


def _is_tied_head(name: str, found: Checkpoint, config: ModelConfig) -> bool:
    """A head that repeats the token table. Raises ValueError where it is another one."""
    family = family_of(config.backbone)
    if not config.backbone.tie_embeddings or not name.endswith(f"{family.head}.weight"):
        return False
    table = next(entry.theirs for entry in found.entries if entry.ours == ("embed/table",))
    if not _same_tensor(found.tensors.stored[name], found.tensors.stored[table]):
        where = found.tensors.where
        raise ValueError(f"{where}: tensor {name!r} differs from the token table {table!r}: set backbone.tie_embeddings = False")
    return True


def _same_tensor(one: Stored, other: Stored, rows: int = 1024) -> bool:
    """Compared by blocks of rows: two whole tables at once may be too much for a host."""
    if one.shape != other.shape:
        return False
    blocks = (slice(start, min(start + rows, one.shape[0])) for start in range(0, one.shape[0], rows))
    return all(np.array_equal(one.read(block), other.read(block)) for block in blocks)


def load_parameters(found: Checkpoint, config: ModelConfig, like: Any, seed: int = 0) -> Any:
    """The checkpoint's parameters, each on the devices and in the parts that `like` has it.

    like: the parameters, or their shapes with shardings (ShapeDtypeStruct). What the checkpoint does not have is initialised from `seed`,
    and that alone: the memory's parameters, and the rows by which a position table is grown. Memory tokens are scaled to the imported
    token embeddings (unless memory.memory_std says otherwise).

    On the host there is never more than the devices' parts of the parameters, and one tensor of the checkpoint.
    """
    held = by_path(found.entries)
    leaves, treedef = jax.tree_util.tree_flatten_with_path(like)
    wanted = {path_string(path): leaf for path, leaf in leaves}
    values = _initial(config, seed, {p: leaf.sharding for p, leaf in wanted.items() if p not in held or _is_grown(p, found)})
    for path, leaf in wanted.items():
        if path not in held:
            continue
        if path in values:
            values[path] = _grown(values[path], held[path], found)
        else:
            values[path] = _loaded(leaf.shape, leaf.sharding, held[path], found.tensors)
    if "token_memory/tokens" in wanted and "token_memory/tokens" not in held and config.memory.memory_std is None:
        tokens = values["token_memory/tokens"]
        scale = jnp.std(values["embed/table"]) / max(config.backbone.token_std, 1e-30)
        values["token_memory/tokens"] = jax.jit(jnp.multiply, out_shardings=tokens.sharding)(tokens, scale)
    return jax.tree_util.tree_unflatten(treedef, [values[path] for path in wanted])


def _is_grown(path: str, found: Checkpoint) -> bool:
    return path == "positions/table" and found.grown is not None


def _initial(config: ModelConfig, seed: int, placed: Mapping[str, Any]) -> dict[str, jax.Array]:
    """{path: parameter} of these parameters as a new model has them: the others are never computed. placed: {path: sharding}."""
    if not placed:
        return {}

    def init():
        params = nnx.split(MemoryTransformer(config, rngs=nnx.Rngs(seed)))[1]
        every = {path_string(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
        return {path: every[path] for path in placed}

    return jax.jit(init, out_shardings=dict(placed))()


def _loaded(shape: tuple[int, ...], sharding: Any, held: list[tuple[Entry, int]], tensors: Tensors) -> jax.Array:
    """One parameter, float32. Every tensor of it is read once, and cut into the parts of the devices here."""
    bounds = lambda index: tuple(i.indices(n)[:2] for i, n in zip(index, shape))
    needed = {bounds(index) for index in sharding.addressable_devices_indices_map(shape).values()}
    blocks = {place: _aligned(tuple(end - start for start, end in place)) for place in needed}
    for row, (entry, part) in enumerate(held):
        layered = entry.layer is not None
        taking = [place for place in blocks if not layered or place[0][0] <= row < place[0][1]]
        if not taking:
            continue
        whole = entry.parts(tensors[entry.theirs])[part]
        for place in taking:
            target = blocks[place][row - place[0][0]] if layered else blocks[place]
            target[...] = whole[tuple(slice(*ends) for ends in (place[1:] if layered else place))]
        del whole
    return jax.make_array_from_callback(shape, sharding, lambda index: blocks[bounds(index)])


def _aligned(shape: tuple[int, ...]) -> np.ndarray:
    """An empty float32 array that begins at a multiple of 64 bytes: such a one a CPU device takes as it is, any other it copies."""
    size = 4 * math.prod(shape)
    memory = np.empty(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(np.float32).reshape(shape)


def _grown(initial: jax.Array, held: list[tuple[Entry, int]], found: Checkpoint) -> jax.Array:
    """The initial table, small as every new row, with the checkpoint's rows in it."""
    rows = found.tensors.stored[held[0][0].theirs].shape
    sharding = initial.sharding
    whole = NamedSharding(sharding.mesh, PartitionSpec()) if isinstance(sharding, NamedSharding) else sharding
    text = _loaded(rows, whole, held, found.tensors)
    put = lambda table, text: jax.lax.dynamic_update_slice(table, text, (found.grown, 0))
    return jax.jit(put, out_shardings=sharding)(initial, text)


def load_model(
    path: str | Path,
    memory: MemoryConfig | None = None,
    recurrence: RecurrenceConfig | None = None,
    *,
    seed: int = 0,
    dtype: str = "float32",
) -> MemoryTransformer:
    """A model from a checkpoint folder, on one device.

    Args:
        path: Hugging Face's GPT-2, GPT-NeoX or Llama, or an export of ours. memory: the memory to put into a bare backbone; None: none, or
            the export's. recurrence: None: segments as long as the backbone's positions allow, or the export's. seed: of what is new.

    Raises:
        ValueError: as `open_checkpoint`.
    """
    fields = read_config(Path(path).expanduser())
    exported = fields if fields["model_type"] == OWN_TYPE else fields.get("armt_jax")
    if exported is not None:
        backbone, own, cut = own_parts(exported)
        memory, recurrence = own if memory is None else memory, cut if recurrence is None else recurrence
    else:
        backbone, memory = backbone_of(fields), MemoryConfig() if memory is None else memory
    if recurrence is None:
        layout = memory.layout(backbone)
        room = backbone.max_positions - (0 if layout.table_rows is not None else layout.front + layout.back)
        recurrence = RecurrenceConfig(max(1, room))
    config = ModelConfig(backbone, memory, recurrence, dtype)
    found = open_checkpoint(path, config)
    graphdef, abstract = nnx.split(nnx.eval_shape(lambda: MemoryTransformer(config, rngs=nnx.Rngs(0))))
    place = SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), abstract)
    return nnx.merge(graphdef, load_parameters(found, config, like, seed))
