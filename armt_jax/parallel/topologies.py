"""Devices that need not be there: TPU slices and clusters of GPUs, described to their compilers.

    v5e:4x4, v5p:4x4x4      a slice, by the sides of its torus (libtpu compiles for it; extra `aot`)
    h100:8, h100:4x8        8 GPUs of one host; 4 hosts of 8 (JAX's CUDA plugin compiles for them, without CUDA; extra `aot-gpu`)
"""

import dataclasses
import re

GIB, MIB = 2**30, 2**20


@dataclasses.dataclass(frozen=True)
class Gpu:
    """What the compiler asks of a GPU. capability: CUDA's compute capability. memory: bytes, all that nvidia-smi shows. cores:
    multiprocessors, each with `shared` bytes that blocks may ask for. bandwidth: of memory, bytes per second. cache: of level 2, bytes."""

    name: str
    capability: tuple[int, int]
    memory: int
    cores: int
    shared: int
    bandwidth: int
    cache: int
    clock_ghz: float

    def target(self) -> str:
        """As text of XLA's GpuTargetConfigProto."""
        return f"""
            gpu_device_info {{
              cuda_compute_capability {{ major: {self.capability[0]} minor: {self.capability[1]} }}
              core_count: {self.cores} fpus_per_core: {128 if self.capability[0] >= 9 else 64} clock_rate_ghz: {self.clock_ghz}
              device_memory_size: {self.memory} memory_bandwidth: {self.bandwidth} l2_cache_size: {self.cache}
              threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
              block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
              registers_per_core_limit: 65536 registers_per_block_limit: 65536
              shared_memory_per_core: {self.shared + 1024} shared_memory_per_block: 49152 shared_memory_per_block_optin: {self.shared}
            }}
            platform_name: "CUDA" device_description_str: "{self.name}"
            dnn_version_info {{ major: 9 minor: 8 }} runtime_version {{ major: 13 }}"""


# NVIDIA's data sheets, and the CUDA programming guide for what a compute capability has; memory as nvidia-smi gives it.
GPUS = {
    "a100": Gpu("NVIDIA A100-SXM4-80GB", (8, 0), 81920 * MIB, 108, 163 * 1024, 2_039 * 10**9, 40 * MIB, 1.41),
    "h100": Gpu("NVIDIA H100 80GB HBM3", (9, 0), 81559 * MIB, 132, 227 * 1024, 3_352 * 10**9, 50 * MIB, 1.98),
    "h200": Gpu("NVIDIA H200", (9, 0), 143771 * MIB, 132, 227 * 1024, 4_800 * 10**9, 60 * MIB, 1.98),
}
# Memory of a chip that JAX sees as one device, by the first part of a topology's name (Google Cloud's TPU system architecture pages).
TPU_MEMORY = {"v5e": 16 * GIB, "v5litepod": 16 * GIB, "v5p": 95 * GIB, "v6e": 32 * GIB}


def is_gpu(topology: str) -> bool:
    return topology.partition(":")[0] in GPUS


def chip_memory(topology: str) -> int:
    """Bytes. Raises ValueError for a chip that is not known."""
    chip = topology.partition(":")[0]
    if chip not in TPU_MEMORY and chip not in GPUS:
        known = ", ".join([*TPU_MEMORY, *GPUS])
        raise ValueError(f"--topology={topology}: the chip {chip!r} is unknown; known are {known}, as in v5e:4x4 or h100:4x8")
    return GPUS[chip].memory if chip in GPUS else TPU_MEMORY[chip]


def topology_devices(topology: str):
    """The devices of a TPU slice or of a GPU cluster, as descriptions.

    Raises:
        ValueError: the compiler for them is missing, or does not know the topology.
    """
    chip_memory(topology)
    return _gpus(topology) if is_gpu(topology) else _slice(topology)


def compiler_options(topology: str) -> dict[str, int]:
    """What a compiler has to be told when the device is not there."""
    return {"xla_gpu_autotune_level": 0} if is_gpu(topology) else {}  # it would try kernels out


def _slice(topology: str):
    from jax.experimental import topologies

    try:
        return topologies.get_topology_desc(topology, "tpu").devices
    except (ImportError, RuntimeError, NotImplementedError, ValueError) as error:
        raise ValueError(
            f"--topology={topology}: libtpu gives no such slice ({' '.join(str(error).split())[:300]}). Is it installed (the extra "
            "'aot'), and are the sizes those of a slice, like v5e:4x4 or v5p:4x4x4?"
        ) from error


def _gpus(topology: str):
    from jax.experimental import topologies

    chip, _, sizes = topology.partition(":")
    if not re.fullmatch(r"([1-9]\d*x)?[1-9]\d*", sizes):
        raise ValueError(f"--topology={topology}: {sizes!r} is no number of GPUs, which are {chip}:8 on one host, {chip}:4x8 on 4 hosts")
    hosts, each = sizes.split("x") if "x" in sizes else ("1", sizes)
    try:
        return topologies.get_topology_desc(platform="cuda", target_config=GPUS[chip].target(), topology=f"1x{hosts}x{each}").devices
    except (ImportError, RuntimeError, NotImplementedError, ValueError) as error:
        raise ValueError(
            f"--topology={topology}: JAX's CUDA plugin gives no such GPUs ({' '.join(str(error).split())[:300]}). Is it installed (the "
            "extra 'aot-gpu', of the same version as jax)?"
        ) from error
