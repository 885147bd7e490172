"""Checkpoints of arrays on several devices and in several processes."""

import json
import socket

import jax
import jax.numpy as jnp
import numpy as np

from armt_jax.checkpoint import Checkpoints, checksums
from tests.checkpoint.programs import finish, start_python
from tests.checkpoint.states import assert_same

SHARDED = """
import json, sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from armt_jax.checkpoint import CheckpointError, Checkpoints, checksums
assert len(jax.devices()) == 8
host = {"w": np.random.default_rng(0).normal(size=(16, 24)).astype(np.float32), "b": np.arange(16).astype(jnp.bfloat16)}
seen = []
for kind in (AxisType.Auto, AxisType.Explicit):
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind, kind))
    for spec in (P(), P("x"), P(("x", "y")), P("y", "x")):
        put = lambda a: jax.device_put(a, NamedSharding(mesh, P(*spec[: a.ndim])))
        seen.append(checksums({"w": put(host["w"]), "one": jnp.float32(2), "b": put(host["b"])}))
print(json.dumps(seen))
shard = lambda m, *spec: NamedSharding(m, P(*spec))
with Checkpoints(sys.argv[1]) as store:
    store.save(1, {"w": jax.device_put(host["w"], shard(mesh, "x", "y")), "b": host["b"]}, {})
    other = jax.make_mesh((2, 2), ("p", "q"), devices=jax.devices()[4:])
    wanted = {"w": shard(other, "q", "p"), "b": shard(other)}
    target = {k: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=wanted[k]) for k, a in host.items()}
    got = store.restore(target).state
    assert all(got[k].sharding == wanted[k] and np.array_equal(got[k], host[k]) for k in host)
    five = jax.make_mesh((5,), ("z",), devices=jax.devices()[:5])
    try:
        store.restore(target | {"w": jax.ShapeDtypeStruct((16, 24), np.float32, sharding=shard(five, "z"))})
    except CheckpointError as error:
        assert "w [16, 24] of the target cannot lie on this mesh" in str(error) and "damaged" not in str(error), error
    else:
        raise AssertionError("16 over 5")
"""


def test_sharding_changes_neither_checksum_nor_restore(tmp_path):
    code, out, err = finish(start_python(SHARDED, tmp_path / "c", devices=8))
    assert code == 0, err
    host = {
        "w": np.random.default_rng(0).normal(size=(16, 24)).astype(np.float32),
        "one": jnp.float32(2),
        "b": jnp.arange(16, dtype=jnp.bfloat16),
    }
    assert json.loads(out) == [checksums(host)] * 8
    with Checkpoints(tmp_path / "c") as store:  # eight devices wrote it, one reads it
        got = store.restore({"w": jnp.zeros((16, 24)), "b": jnp.zeros(16, jnp.bfloat16)}).state
    assert_same(got, {"w": jnp.asarray(host["w"]), "b": host["b"]})


TWO_PROCESSES = """
import sys
from pathlib import Path
import jax, jax.numpy as jnp, numpy as np
jax.distributed.initialize(f"localhost:{sys.argv[2]}", 2, int(sys.argv[3]))
from jax.experimental.multihost_utils import sync_global_devices
from jax.sharding import NamedSharding, PartitionSpec as P
from armt_jax.checkpoint import CheckpointError, Checkpoints
mesh = jax.make_mesh((2, 2), ("x", "y"))
def state(step):
    host = np.random.default_rng(step).normal(size=(256, 256)).astype(np.float32)
    return {"w": jax.make_array_from_callback(host.shape, NamedSharding(mesh, P("x", "y")), lambda i: host[i])}
store = Checkpoints(sys.argv[1])
for step in (1, 2):
    store.save(step, state(step), {}, rank=-step)
assert store.restore(state(0)).step == 2
store.save(2, state(22), {}, wait=True)
sync_global_devices("saved")
if jax.process_index() == 0:  # what process 1 has written, and only process 1 will read
    file = max(Path(sys.argv[1], "2", "state", "ocdbt.process_1", "d").iterdir(), key=lambda f: f.stat().st_size)
    file.write_bytes(file.read_bytes()[:1000])
sync_global_devices("damaged")
got = store.restore(state(0))
pairs = zip(got.state["w"].addressable_shards, state(1)["w"].addressable_shards)
print("restored", got.step, all(np.array_equal(a.data, b.data) for a, b in pairs))
store.close()
if jax.process_index() == 0:  # as if each host had its own disk
    Path(sys.argv[1], "1", "5").mkdir()
try:
    Checkpoints(Path(sys.argv[1], str(jax.process_index() + 1)), read_only=True).restore(state(0))
except CheckpointError as error:
    print(error)
"""


def test_damage_seen_by_one_process_is_damage_for_all(tmp_path):
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = s.getsockname()[1]
    processes = [start_python(TWO_PROCESSES, tmp_path / "c", port, i, devices=2) for i in (0, 1)]
    for code, out, err in [finish(process) for process in processes]:
        assert code == 0, err
        assert "restored 1 True\n" in out and "is not the same for all processes" in out, out
    with Checkpoints(tmp_path / "c", read_only=True) as store:  # written by two processes, read by one
        got = store.restore({"w": jax.ShapeDtypeStruct((256, 256), jnp.float32)})
    assert got.step == 1
