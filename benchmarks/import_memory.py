"""Host memory of importing a checkpoint: the peak above what was there before, and the bar, 1.2 x the largest tensor + the shard.

    python benchmarks/import_memory.py [--gigabytes=2] [--sharded] [--dtype=float32] [--fsdp=1] [--folder=DIR] [--json]

Writes a GPT-2 of random numbers (with --sharded in files of 500 MB with an index) into a new folder in DIR (default: the system's for
temporary files), imports it as training does, with --fsdp on that many devices that the CPU is split into, and removes the folder.

The peak is that of anonymous memory (RssAnon), sampled every few milliseconds by another thread: what the process has taken for itself.
VmHWM is shown beside it: the kernel's own record of the peak, which counts the pages of the checkpoint's memory map as well. These belong
to the file cache, which drops them when memory is short. The shard: the bytes of all parameters on devices of this host (a CPU's devices
have no memory of their own, so it is in the peak too).
"""

import argparse
import json
import shutil
import sys
import tempfile
import threading
from pathlib import Path

import jax
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from armt_jax.interop.huggingface import fields_of  # noqa: E402
from armt_jax.interop.names import backbone_entries  # noqa: E402
from armt_jax.interop.pretrained import abstract_shapes, load_parameters, open_checkpoint  # noqa: E402
from armt_jax.interop.tensor_files import Tensor, write_weights  # noqa: E402
from armt_jax.memory.associative import ARMT  # noqa: E402
from armt_jax.model import ModelConfig, RecurrenceConfig  # noqa: E402
from armt_jax.nn.backbones import GPT2  # noqa: E402
from armt_jax.parallel.mesh import MeshConfig, make_mesh  # noqa: E402
from armt_jax.parallel.processes import split_cpu  # noqa: E402
from armt_jax.training import step as steps  # noqa: E402
from benchmarks.process_memory import restart_peak, status  # noqa: E402

MB = 10**6
SHARD_BYTES = 500 * MB


def backbone_of_size(size: float, itemsize: int) -> GPT2:
    """A GPT-2 as wide as gpt2-medium, of as many layers as fit `size` bytes."""
    width, vocab_size, positions = 1024, 50304, 1024  # the published 50257 does not divide over devices
    layers = int((size / itemsize - (vocab_size + positions) * width) // (12 * width**2))
    if layers < 1:
        raise SystemExit(f"error: --gigabytes={size / 1e9:g} does not hold the embeddings and one layer: give at least 0.3")
    return GPT2(vocab_size=vocab_size, num_layers=layers, width=width, num_heads=16, max_positions=positions)


def write_checkpoint(folder: Path, backbone: GPT2, dtype: np.dtype, shard_bytes: int) -> dict[str, int]:
    """{name: bytes} of the tensors written."""
    shapes = abstract_shapes(ModelConfig(backbone, recurrence=RecurrenceConfig(8)))
    numbers = np.random.default_rng(0).standard_normal(10**6, np.float32).astype(dtype)

    def tensor(entry) -> Tensor:
        parts = [np.broadcast_to(np.int8(0), shapes[p] if entry.layer is None else shapes[p][1:]) for p in entry.ours]
        shape = entry.whole(parts).shape
        return Tensor(entry.theirs, shape, dtype, lambda: np.resize(numbers, shape))

    tensors = [tensor(entry) for entry in backbone_entries(backbone)]
    write_weights(folder, tensors, shard_bytes)
    (folder / "config.json").write_text(json.dumps(fields_of(backbone)))
    return {t.name: t.bytes for t in tensors}


class Peak:
    """The peak of this process's memory while the block runs, above what it had at its beginning; bytes."""

    def __enter__(self):
        restart_peak()
        self.before, self.anonymous, self.done = (status("RssAnon"), status("VmRSS")), 0, threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self

    def _watch(self):
        while not self.done.wait(0.002):
            self.anonymous = max(self.anonymous, status("RssAnon") - self.before[0])

    def __exit__(self, *_):
        self.anonymous = max(self.anonymous, status("RssAnon") - self.before[0])
        self.resident = status("VmHWM") - self.before[1]
        self.done.set()
        self.thread.join()


def load(folder: Path, config: ModelConfig, mesh):
    params = load_parameters(open_checkpoint(folder, config), config, steps.abstract_params(config, mesh))
    return jax.block_until_ready(params)


def measure(args, folder: Path) -> dict:
    dtype = np.dtype({"float32": np.float32, "float16": np.float16, "bfloat16": jax.numpy.bfloat16}[args.dtype])
    mesh = make_mesh(MeshConfig(fsdp=args.fsdp, data=1))
    recurrence, memory = RecurrenceConfig(8), ARMT(num_memory_tokens=16, d_mem=64)
    # What is loaded once (libraries, threads, the compiler) is no part of the import: a small model goes first.
    small = GPT2(vocab_size=64, num_layers=1, width=32, num_heads=2, max_positions=32)
    (folder / "small").mkdir()
    write_checkpoint(folder / "small", small, dtype, SHARD_BYTES)
    load(folder / "small", ModelConfig(small, memory, recurrence), mesh)

    backbone = backbone_of_size(args.gigabytes * 1e9, dtype.itemsize)
    (folder / "large").mkdir()
    sizes = write_checkpoint(folder / "large", backbone, dtype, SHARD_BYTES if args.sharded else 10**15)
    with Peak() as peak:
        params = load(folder / "large", ModelConfig(backbone, memory, recurrence), mesh)
    shard = sum(s.data.nbytes for leaf in jax.tree.leaves(params) for s in leaf.addressable_shards)
    largest = max(sizes.values())
    return dict(
        layers=backbone.num_layers, files=len(list((folder / "large").glob("*.safetensors"))), dtype=args.dtype, devices=args.fsdp,
        checkpoint_mb=sum(sizes.values()) / MB, largest_tensor_mb=largest / MB, shard_mb=shard / MB, peak_mb=peak.anonymous / MB,
        peak_with_file_pages_mb=peak.resident / MB, bar_mb=(1.2 * largest + shard) / MB,
        ratio_to_bar=peak.anonymous / (1.2 * largest + shard),
    )  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--sharded", action="store_true", help="several files with an index")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="of the checkpoint")
    parser.add_argument("--fsdp", type=int, default=1, help="devices that the CPU is split into")
    parser.add_argument("--folder", help="where the checkpoint is written")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    args = parser.parse_args()
    split_cpu(args.fsdp)
    folder = Path(tempfile.mkdtemp(prefix="import-memory-", dir=args.folder))
    try:
        row = measure(args, folder)
    finally:
        shutil.rmtree(folder)
    if args.json:
        print(json.dumps({name: round(value, 3) if isinstance(value, float) else value for name, value in row.items()}))
    else:
        for name, value in row.items():
            print(f"{name.replace('_', ' '):26}{value:,.2f}" if isinstance(value, float) else f"{name.replace('_', ' '):26}{value}")
    if row["ratio_to_bar"] > 1:
        sys.exit(f"error: the peak is above the bar of {row['bar_mb']:,.0f} MB")


if __name__ == "__main__":
    main()
