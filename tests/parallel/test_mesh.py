"""The mesh and batches on it, on one device; several devices and processes are in test_devices.py."""

import dataclasses
import itertools
import math

import jax
import numpy as np
import pytest

from armt_jax.parallel.mesh import MeshConfig, make_mesh, place_devices, process_rows, put_batch


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"fsdp": 0}, "mesh.fsdp = 0 must"),
        ({"tensor": -2}, "mesh.tensor = -2 must"),
        ({"stage": 1.0}, "mesh.stage = 1.0 must"),
        ({"fsdp": -1}, "data and fsdp are -1"),
    ],
)
def test_config_errors(fields, message):
    with pytest.raises(ValueError, match=message):
        MeshConfig(**fields)


def test_device_count_must_fit():
    one = jax.devices()[:1]
    with pytest.raises(ValueError, match="tensor=2 needs 4 devices, there are 1"):
        make_mesh(MeshConfig(data=2, tensor=2), one)
    with pytest.raises(ValueError, match="multiply to 3, which does not divide the 1 devices"):
        make_mesh(MeshConfig(fsdp=3), one)


def test_one_device():
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    assert dict(mesh.shape) == {"data": 1, "stage": 1, "fsdp": 1, "tensor": 1}
    assert process_rows(3, mesh) == slice(0, 3)
    batch = put_batch({"tokens": np.arange(6).reshape(3, 2)}, mesh)
    assert batch["tokens"].tolist() == [[0, 1], [2, 3], [4, 5]]


@pytest.mark.parametrize("batch", [{"a": np.zeros((2, 3)), "b": np.zeros(3)}, {"a": np.float32(1)}])
def test_rows_must_agree(batch):
    with pytest.raises(ValueError, match="same number of rows"):
        put_batch(batch, make_mesh(MeshConfig(), jax.devices()[:1]))


def test_empty_batch_is_an_error():
    with pytest.raises(ValueError, match="batch of 0 rows"):
        put_batch({"a": np.zeros((0, 3))}, make_mesh(MeshConfig(), jax.devices()[:1]))


@dataclasses.dataclass(frozen=True)
class Chip:
    """What JAX reads of a device to place it."""

    id: int
    process_index: int = 0
    slice_index: int = 0
    platform: str = "gpu"
    device_kind: str = "stand-in"
    coords: tuple[int, int, int] = (0, 0, 0)
    core_on_chip: int = 0


@pytest.mark.parametrize(
    "shape, slices",
    [((4, 1, 2, 1), 2), ((1, 1, 8, 1), 2), ((2, 2, 2, 1), 4), ((3, 2, 1, 4), 2), ((2, 3, 4, 1), 6), ((1, 1, 2, 4), 8), ((1, 4, 1, 2), 4)],
)  # fmt: skip
def test_slow_axes_go_over_slices(shape, slices):
    each = math.prod(shape) // slices
    chips = [Chip(id=n, process_index=n // each, slice_index=n // each) for n in range(math.prod(shape))]
    placed = place_devices(shape, chips)
    assert placed.shape == shape and set(placed.flat) == set(chips)
    # A line of devices along an axis crosses from slice to slice at most as often as the slower axes leave slices over.
    left = slices
    for axis, size in enumerate(shape):
        lines = np.moveaxis(placed, axis, -1).reshape(-1, size)
        crossed = {len({chip.slice_index for chip in line}) for line in lines}
        assert crossed == {math.gcd(size, left)}
        left //= math.gcd(size, left)
    assert left == 1


def test_slices_of_unequal_size_are_named():
    with pytest.raises(ValueError, match="slice 0: 3, slice 1: 1"):
        place_devices((4, 1, 1, 1), [Chip(id=n, slice_index=n // 3) for n in range(4)])


@pytest.mark.parametrize("shape, split", [((1, 1, 16, 4), False), ((4, 4, 1, 4), False), ((1, 1, 8, 8), True), ((2, 1, 32, 1), True)])
def test_sides_of_a_torus_are_split_where_they_must_be_and_said(shape, split, caplog):
    sides = itertools.product(range(4), repeat=3)
    chips = [Chip(id=n, platform="tpu", device_kind="TPU v4", coords=coords) for n, coords in enumerate(sides)]
    placed = place_devices(shape, chips)
    assert placed.shape == shape and set(placed.flat) == set(chips)
    assert ("sides are split" in caplog.text) == split
