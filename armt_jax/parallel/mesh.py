"""The device mesh, and how a batch lies on it.

Axes, slowest links first: `data` (copies of the model), `stage` (layers, a pipeline: only neighbours talk), `fsdp`
(parameters split, gathered where used), `tensor` (heads and MLP split: talks most, so on neighbouring devices). The
rows of a batch are split over `data` and `fsdp`; devices that differ only in `stage` or `tensor` hold the same rows.
"""

import collections
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from armt_jax.nn.placement import ROWS as BATCH_AXES
from armt_jax.nn.placement import on_mesh

AXES = ("data", "stage", "fsdp", "tensor")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Size of each mesh axis. At most one is -1: it takes all devices that the others leave.

    `cpu_devices`: how many devices a CPU counts for (see `processes.split_cpu`); other platforms ignore it.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    stage: int = 1
    cpu_devices: int = 1

    def __post_init__(self):
        if not isinstance(self.cpu_devices, int) or isinstance(self.cpu_devices, bool) or self.cpu_devices < 1:
            raise ValueError(f"mesh.cpu_devices = {self.cpu_devices!r} must be an integer >= 1")
        sizes = self.sizes
        for name, size in sizes.items():
            if not isinstance(size, int) or isinstance(size, bool) or (size < 1 and size != -1):
                raise ValueError(f"mesh.{name} = {size!r} must be an integer >= 1, or -1 to take the remaining devices")
        filling = [name for name, size in sizes.items() if size == -1]
        if len(filling) > 1:
            raise ValueError(f"mesh: {' and '.join(filling)} are -1; only one axis can take the remaining devices")

    @property
    def sizes(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in AXES}


def _sizes(config: MeshConfig, num_devices: int) -> dict[str, int]:
    sizes = config.sizes
    asked = " * ".join(f"{name}={sizes[name]}" for name in AXES)
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if -1 in sizes.values():
        if num_devices % fixed:
            raise ValueError(
                f"mesh {asked}: the fixed axes multiply to {fixed}, which does not divide the {num_devices} devices; "
                "change an axis or the number of devices"
            )
        return {name: num_devices // fixed if size == -1 else size for name, size in sizes.items()}
    if fixed != num_devices:
        raise ValueError(
            f"mesh {asked} needs {fixed} devices, there are {num_devices}; set one axis to -1 to take what is there, "
            "or pass the devices to use"
        )
    return sizes


def _over_slices(shape: tuple[int, ...], slices: int) -> tuple[int, ...]:
    """How many slices each axis spans: as many as its size allows, slowest axis first. Their product is `slices`."""
    spans = []
    for size in shape:
        spans.append(math.gcd(size, slices))
        slices //= spans[-1]
    return tuple(spans)


def place_devices(shape: tuple[int, ...], devices: Sequence[jax.Device]) -> np.ndarray:
    """The devices as an array of `shape`: links inside a slice for the fast axes, between slices for the slow ones.

    A slice is what JAX calls devices with a fast network of their own: a TPU slice, a GPU node or NVLink domain, a CPU
    host. `jax.make_mesh` refuses more than one.

    Raises:
        ValueError: slices of unequal numbers of devices.
    """
    members = collections.Counter(getattr(device, "slice_index", 0) for device in devices)
    if len(set(members.values())) > 1:
        counts = ", ".join(f"slice {index}: {count}" for index, count in sorted(members.items()))
        raise ValueError(f"slices of unequal numbers of devices ({counts}): use the same number of every slice")
    spans = _over_slices(shape, len(members))
    inside = tuple(size // span for size, span in zip(shape, spans, strict=True))

    def place(split: bool) -> np.ndarray:
        if len(members) == 1:
            return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=split)
        return mesh_utils.create_hybrid_device_mesh(inside, spans, devices, allow_split_physical_axes=split)

    try:
        return place(split=False)
    except NotImplementedError:  # a TPU's torus has no set of whole sides of these sizes
        logging.warning(
            "mesh %s: no axis order follows whole sides of the TPU's torus; its sides are split, which can be slower. Axes that are "
            "products of sides are faster",
            " * ".join(f"{name}={size}" for name, size in zip(AXES, inside, strict=True)),
        )
        return place(split=True)


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh over `devices` (default: all devices of all processes). Every device is used."""
    devices = jax.devices() if devices is None else list(devices)
    sizes = _sizes(config, len(devices))
    return Mesh(place_devices(tuple(sizes[name] for name in AXES), devices), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over `data` and `fsdp`."""
    return NamedSharding(mesh, P(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, P())


def _batch_axes(mesh: Mesh) -> str:
    return " * ".join(f"{axis}={mesh.shape[axis]}" for axis in BATCH_AXES)


def _local_parts(mesh: Mesh) -> tuple[int, range]:
    """Number of parts a batch is cut into, and the parts that devices of this process hold."""
    parts = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    indices = batch_sharding(mesh).addressable_devices_indices_map((parts,)).values()
    held = sorted({index[0].indices(parts)[0] for index in indices})
    if not held:
        raise ValueError(f"process {jax.process_index()} has no device in the mesh {dict(mesh.shape)}; build it over all devices")
    local = range(held[0], held[-1] + 1)
    if held != list(local):
        raise ValueError(
            f"process {jax.process_index()} holds parts {held} of {parts} of a batch over {_batch_axes(mesh)}: "
            "a process must hold one run of rows; choose axis sizes that keep its devices together"
        )
    return parts, local


def check_rows(global_batch: int, accumulate: int, mesh: Mesh) -> None:
    """Raises ValueError where a batch, computed in `accumulate` parts, gives devices unequal numbers of rows."""
    parts = math.prod(mesh.shape[axis] for axis in BATCH_AXES) * accumulate
    if global_batch % parts:
        raise ValueError(
            f"global batch of {global_batch} rows in train.accumulate = {accumulate} parts does not divide over mesh axes "
            f"{_batch_axes(mesh)}; make it a multiple of {parts}"
        )


def process_rows(global_batch: int, mesh: Mesh) -> slice:
    """The rows of a batch of `global_batch` rows that this process must supply to `put_batch`.

    Processes whose devices differ only in `stage` or `tensor` supply the same rows.
    """
    parts, local = _local_parts(mesh)
    if global_batch < 1 or global_batch % parts:
        raise ValueError(
            f"global batch of {global_batch} rows does not divide over mesh axes {_batch_axes(mesh)}; make it a multiple of {parts}"
        )
    rows = global_batch // parts
    return slice(local.start * rows, local.stop * rows)


def put_batch(batch: Any, mesh: Mesh) -> Any:
    """Global arrays, rows over `data` and `fsdp`, from the rows of this process (numpy; see `process_rows`)."""
    parts, local = _local_parts(mesh)
    sharding = batch_sharding(mesh)
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(batch)]
    shapes = [leaf.shape for leaf in leaves]
    if any(not shape for shape in shapes) or len({shape[0] for shape in shapes}) > 1:
        raise ValueError(f"batch with shapes {shapes}: every array needs the same number of rows as its first dimension")

    def put(leaf: np.ndarray) -> jax.Array:
        rows = leaf.shape[0]
        if rows == 0 or rows % len(local):
            raise ValueError(
                f"batch of {rows} rows on process {jax.process_index()} does not divide over its {len(local)} parts of "
                f"mesh axes {_batch_axes(mesh)}; make the global batch a multiple of {parts}"
            )
        global_shape = (rows // len(local) * parts, *leaf.shape[1:])
        return jax.make_array_from_process_local_data(sharding, leaf, global_shape)

    return jax.tree.unflatten(jax.tree.structure(batch), [put(leaf) for leaf in leaves])


_NOTHING = P()


def sum_over_data(function: Callable, mesh: Mesh, kept_specs: Any = _NOTHING) -> Callable:
    """`function(params, kept, *rows) -> (sums, kept)`, placed on the mesh: every part of `data` computes its own rows, and sums are added
    up once, at the end.

    Left to itself, the partitioner adds gradients up across devices inside the scan: once per segment instead of once per step.
    Only on a mesh of copies, of the model or of a pipeline: with `fsdp` or `tensor` beside, XLA's partitioner dies on the embedding's
    gather inside a partly manual region (jax 0.10.2), so there everything is left to it.

    Args:
        kept_specs: which dimension of what the rows keep (a tree, or None) runs over rows: PartitionSpecs that name "data" there.
    """
    if mesh.shape["data"] == 1 or mesh.shape["data"] * mesh.shape["stage"] != mesh.size:
        return on_mesh(mesh)(function)

    def part(params, kept, rows):
        sums, kept = function(params, kept, *rows)
        return jax.lax.psum(sums, "data"), kept

    specs = dict(in_specs=(P(), kept_specs, P("data")), out_specs=(P(), kept_specs))
    split = jax.shard_map(part, mesh=mesh, **specs, axis_names={"data"}, check_vma=False)
    return on_mesh(mesh)(lambda params, kept, *rows: split(params, kept, rows))
