"""python -m armt_jax.interop.export --workdir=RUN --out=DIR [--format=hf|reference|backbone]: a trained model for PyTorch.

    hf          a folder for AutoModelForCausalLM.from_pretrained(DIR, trust_remote_code=True): weights, config, and one file of code that
                needs torch and transformers alone. Memories none, armt, rmt
    reference   the weights under the names of the published ARMT and RMT code
    backbone    Hugging Face's own GPT-2, GPT-NeoX or Llama, without the memory

Ends by comparing what it wrote with the model here, and writes the figures into DIR/README.md. --check=false skips that (it needs the extra
`torch`). DIR must not exist; it is written beside it and renamed when all is well. Exit codes: 0 done, 1 error or a figure past its bar.
"""

import argparse
import dataclasses
import json
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_dtypes
import numpy as np
from flax import nnx

from armt_jax.checkpoint import CheckpointError, Checkpoints
from armt_jax.config import resolve
from armt_jax.evaluation.evaluate import checkpoint_choice, mesh_here, run_config
from armt_jax.interop import parity
from armt_jax.interop.huggingface import fields_of
from armt_jax.interop.model_card import Origin, model_card
from armt_jax.interop.names import Entry, backbone_entries, own_entries, reference_entries
from armt_jax.interop.pretrained import OWN_TYPE, Checkpoint, abstract_shapes, load_parameters
from armt_jax.interop.tensor_files import Tensor, open_tensors, write_weights
from armt_jax.memory.associative import ARMT
from armt_jax.memory.presets import MEMORIES
from armt_jax.memory.recurrent_tokens import RMT
from armt_jax.model import MemoryTransformer, ModelConfig
from armt_jax.nn.backbones import BACKBONES, GPT2, GPTNeoX, Llama
from armt_jax.parallel.rules import path_string
from armt_jax.training.restore import restore_target
from armt_jax.training.workdir import WorkdirError

FORMATS = ("hf", "reference", "backbone")
DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}


class ParityError(RuntimeError):
    """What was written does not compute what the model computes; nothing was kept."""


class Written(NamedTuple):
    """What an export is: its tensors, config.json, and the code beside them."""

    entries: list[Entry]
    fields: dict[str, Any]
    code: tuple[Path, ...] = ()


def _section(part: Any, registry: Mapping[str, type]) -> dict[str, Any]:
    """A part of the config as its section of a config file."""
    name = next((name for name, kind in registry.items() if kind is type(part)), "none")
    return {"name": name, **dataclasses.asdict(part)}


def check_exportable(config: ModelConfig, format: str) -> None:
    """Raises ValueError for a model that has no such form."""
    backbone, memory = config.backbone, config.memory
    if format not in FORMATS:
        raise ValueError(f"--format={format} must be one of {', '.join(FORMATS)}")
    if type(backbone) not in (GPT2, GPTNeoX, Llama):
        raise ValueError(f"backbone {type(backbone).__name__} has no form in PyTorch here; GPT2, GPTNeoX and Llama have")
    if format == "hf" and type(memory) not in (ARMT, RMT) and dataclasses.fields(memory):
        name = type(memory).__name__
        raise ValueError(f"--format=hf: memory {name} has no form in PyTorch; none, armt and rmt have. --format=backbone leaves it out")
    if format == "reference":
        if type(memory) not in (ARMT, RMT):
            raise ValueError(f"--format=reference: the published code has no memory {type(memory).__name__}; it has armt and rmt")
        published = dict(num_heads=1, key_norm="none", nu=3, beta_max=1.0, gate="sigmoid", like_writes="add", read_floor=0.0, first_layer=0)
        own = {name: getattr(memory, name) for name in published} if isinstance(memory, ARMT) else published
        if own != published:
            computes, has = (", ".join(f"{name} = {value!r}" for name, value in each.items()) for each in (published, own))
            raise ValueError(f"--format=reference: the published code computes memory.{computes}; this model has {has}: use --format=hf")


def describe(config: ModelConfig, format: str) -> Written:
    """What an export of this model has in it. Raises ValueError as `check_exportable`."""
    check_exportable(config, format)
    if format == "backbone":
        return Written(backbone_entries(config.backbone), fields_of(config.backbone))
    recurrence = config.recurrence
    own = dict(
        backbone=_section(config.backbone, BACKBONES), memory=_section(config.memory, MEMORIES), segment_length=recurrence.segment_length,
        align=recurrence.align, bptt_segments=recurrence.bptt_segments,
    )  # fmt: skip
    if format == "reference":
        return Written(reference_entries(config), {**fields_of(config.backbone), "armt_jax": own})
    auto = {"AutoConfig": "modeling_armt.ArmtConfig", "AutoModelForCausalLM": "modeling_armt.ArmtForCausalLM"}
    fields = dict(model_type=OWN_TYPE, architectures=["ArmtForCausalLM"], auto_map=auto, **own)
    return Written(own_entries(abstract_shapes(config)), fields, (parity.MODELING,))


def tensors_of(model: MemoryTransformer, entries: list[Entry], dtype: str) -> list[Tensor]:
    """The model's parameters as tensors to write, each made when its turn comes."""
    if dtype not in DTYPES:
        raise ValueError(f"--dtype={dtype} must be one of {', '.join(DTYPES)}")
    kind = np.dtype(DTYPES[dtype])
    leaves = {path_string(p): leaf for p, leaf in jax.tree_util.tree_leaves_with_path(nnx.split(model)[1])}

    def tensor(entry: Entry) -> Tensor:
        held = [leaves[path] for path in entry.ours]
        shapes = [leaf.shape if entry.layer is None else leaf.shape[1:] for leaf in held]
        shape = entry.whole([np.broadcast_to(np.int8(0), s) for s in shapes]).shape

        def make() -> np.ndarray:
            parts = [np.asarray(leaf if entry.layer is None else leaf[entry.layer]) for leaf in held]
            return entry.whole(parts).astype(kind)

        return Tensor(entry.theirs, shape, kind, make)

    return [tensor(entry) for entry in entries]


def _read_back(folder: Path, model: MemoryTransformer, written: Written, dtype: str) -> int:
    """How many parameters differ from the written file's (rounded to its dtype)."""
    graphdef, params = nnx.split(model)
    found = Checkpoint(open_tensors(folder), tuple(written.entries))
    again = load_parameters(found, model.config, params)
    rounded = jax.tree.map(lambda a: np.asarray(a).astype(DTYPES[dtype]).astype(np.float32), params)
    return sum(not np.array_equal(a, b) for a, b in zip(jax.tree.leaves(rounded), jax.tree.leaves(jax.tree.map(np.asarray, again))))


def _check(folder: Path, model: MemoryTransformer, written: Written, format: str, dtype: str) -> list[parity.Figure]:
    """Raises ParityError for a figure past its bar."""
    differing = _read_back(folder, model, written, dtype)
    if differing:
        raise ParityError(f"{differing} parameters read back from the written weights differ from the model's: nothing was kept")
    if format == "reference":
        return []
    # In a shorter dtype both sides compute with what was written.
    graphdef, params = nnx.split(model)
    rounded = nnx.merge(graphdef, jax.tree.map(lambda a: jax.numpy.asarray(np.asarray(a).astype(DTYPES[dtype]).astype(np.float32)), params))
    compare = parity.compare if format == "hf" else parity.compare_backbone
    peer = parity.load_peer(folder, format)
    figures = compare(rounded, peer)
    if bad := [f for f in figures if not f.ok]:
        shown = "; ".join(f"{f.case}: {f.kind} {f.error:.1e} > {parity.TOLERANCES[f.kind]:.0e}" for f in bad[:4])
        why = _why(parity.rounding(rounded, peer)) if format == "hf" else ""
        raise ParityError(f"the exported model differs from the one here ({shown}): nothing was kept{why}")
    return figures


def _why(rounding: Mapping[str, float]) -> str:
    """Whether float32 can be as exact as the bar asks, for this model."""
    found = ", ".join(f"{kind} {error:.1e}" for kind, error in rounding.items())
    if all(error <= parity.TOLERANCES[kind] / 2 for kind, error in rounding.items()):
        return f". PyTorch's float32 is within {found} of its float64 here, so this is a defect of the export: please report it"
    return (
        f". PyTorch's float32 itself is {found} from its float64 here: this model is that coarse. Memory reads that divide by almost "
        "nothing (q z near 0) do that, and very sharp attention. Train it, or give it more memory features (memory.d_mem); --check=false "
        "exports it as it is"
    )


def export(
    model: MemoryTransformer,
    out: str | Path,
    format: str = "hf",
    *,
    dtype: str = "float32",
    check: bool = True,
    origin: Origin | None = None,
) -> list[parity.Figure]:
    """Writes the folder `out`. origin: where the model comes from, for the model card and the tokenizer's files.

    Raises:
        ValueError: the folder exists, the model has no such form, or PyTorch is missing for the check. ParityError: it does not compute
            the same. Nothing is left behind then.
    """
    out = Path(out).absolute()
    if out.exists():
        raise ValueError(f"--out={out} exists: give a folder that does not, or remove it")
    if not out.parent.is_dir():
        raise ValueError(f"--out={out}: {out.parent} is no existing folder, create it")
    if format == "backbone":
        model = parity.without_memory(model)
    written = describe(model.config, format)
    if check and format != "reference":
        parity.require_torch()
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    partial.mkdir()
    try:
        write_weights(partial, tensors_of(model, written.entries, dtype))
        config_name = "config.json"
        (partial / config_name).write_text(json.dumps({**written.fields, "dtype": dtype, "torch_dtype": dtype}, indent=1) + "\n")
        for file in written.code:
            shutil.copyfile(file, partial / file.name)
        if origin is not None:
            origin.save_tokenizer(partial)
        figures = _check(partial, model, written, format, dtype) if check else None
        (partial / "README.md").write_text(model_card(out.name, model, format, dtype, figures, origin))
        partial.rename(out)
    finally:
        if partial.exists():
            shutil.rmtree(partial)
    return figures or []


def load_run(workdir: Path, checkpoint: str | int = "best", data_path: str | None = None) -> tuple[MemoryTransformer, Origin]:
    """A run's model, on the devices of this machine, and where it comes from."""
    workdir = workdir.absolute()
    raw = run_config(workdir, data_path)
    config = resolve({**raw, "mesh": {}})
    mesh = mesh_here(config)
    with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
        restored = checkpoints.restore(restore_target(config, raw, mesh), step=checkpoint)
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: MemoryTransformer(config.model, rngs=nnx.Rngs(0))))
    return nnx.merge(graphdef, restored.state.params), Origin(workdir, raw, restored.step, config.task.tokenizer)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m armt_jax.interop.export", description=__doc__.split("\n\n")[0])
    parser.add_argument("--workdir", required=True, metavar="RUN", help="the run whose model is exported")
    parser.add_argument("--out", required=True, metavar="DIR", help="the folder to write; it must not exist")
    parser.add_argument("--format", default="hf", choices=FORMATS)
    parser.add_argument("--dtype", default="float32", choices=tuple(DTYPES), help="of the weights in the file")
    parser.add_argument("--checkpoint", default="best", help="best, last, or a step")
    parser.add_argument("--data_path", default=None, help="where the run's text lies, if not where it lay in training")
    parser.add_argument("--check", default="true", choices=("true", "false"), help="compare with PyTorch at the end")
    a = parser.parse_args(argv)
    try:
        if Path(a.out).exists():
            raise ValueError(f"--out={a.out} exists: give a folder that does not, or remove it")
        model, origin = load_run(Path(a.workdir), checkpoint_choice(a.checkpoint), a.data_path)
        figures = export(model, a.out, a.format, dtype=a.dtype, check=a.check == "true", origin=origin)
    except (ValueError, OSError, CheckpointError, ParityError, WorkdirError) as error:
        if os.environ.get("ARMT_JAX_TRACEBACK"):
            raise
        print(f"{type(error).__name__}: {error} (set ARMT_JAX_TRACEBACK=1 for the traceback)", file=sys.stderr)
        return 1
    for figure in figures:
        print(f"{figure.kind:10} {figure.error:.1e} (bar {parity.TOLERANCES[figure.kind]:.0e})  {figure.case}")
    print(f"{a.out}: {a.format}, step {origin.step} of {a.workdir}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
