"""python -m armt_jax.interop.verify FILE...: does this library compute what the published PyTorch code computed?

Each FILE (.npz) holds a small model's weights, an input, and the reference's results. Checked for every schedule and gradient strategy that
applies: logits (of Transformer-XL the loss of every token), loss, every gradient, the final memory state; and the greedy continuation.
Prints the largest error of each kind and exits with 1 if one is past its tolerance, 2 if a file cannot be read.
"""

import argparse
import itertools
import json
import sys
import zipfile
import zlib
from collections.abc import Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from armt_jax.interop.reference import from_reference, magnitudes, model_config
from armt_jax.interop.transformer_xl import in_published_order
from armt_jax.model import MemoryTransformer
from armt_jax.parallel.rules import path_string
from armt_jax.recurrence.gradients import GRADIENTS
from armt_jax.recurrence.schedules import SCHEDULES
from armt_jax.recurrence.segments import join, split

# Logits and losses: absolute. State and gradients: relative to the largest entry of the array.
TOLERANCES = {"logits": 2e-5, "token loss": 2e-5, "loss": 2e-6, "gradient": 1e-4, "state": 1e-4, "generated": 0.0}


class Meta(dict):
    """What a golden file says of itself."""

    def __missing__(self, key: str):
        raise ValueError(f"the file's meta lacks {key!r} (it has {', '.join(sorted(self)) or 'nothing'})")


def load(path: str) -> tuple[dict, dict[str, np.ndarray]]:
    """(meta, arrays). Raises ValueError naming the file and what it lacks."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        meta = json.loads(str(arrays.pop("meta")), object_hook=Meta)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path}: not a readable golden file ({type(error).__name__}: {error})") from error
    results = "token_loss" if meta.get("kind") == "transformer_xl" else "logits"
    missing = [name for name in ("input_ids", results, "loss") if name not in arrays]
    if missing:
        raise ValueError(f"{path}: lacks {', '.join(missing)}")
    return meta, arrays


def _group(arrays: dict, prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): a for name, a in arrays.items() if name.startswith(prefix)}


def build(meta: dict, arrays: dict) -> tuple[MemoryTransformer, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """The model with the file's weights, and the file's gradients under our paths, each with its scale."""
    config = model_config(meta)
    model = nnx.eval_shape(lambda: MemoryTransformer(config, rngs=nnx.Rngs(0)))
    graphdef, abstract = nnx.split(model)
    weights = from_reference(config, _group(arrays, "param/"))

    def place(path, leaf):
        name = path_string(path)
        if name not in weights:
            raise ValueError(f"the file has no tensor for parameter {name}")
        if weights[name].shape != leaf.shape:
            raise ValueError(f"parameter {name} has shape {leaf.shape}, the file's tensor {weights[name].shape}")
        return jnp.asarray(weights[name], leaf.dtype)

    params = jax.tree_util.tree_map_with_path(place, abstract)
    wanted = _group(arrays, "grad/")
    gradients, scales = from_reference(config, wanted), magnitudes(config, wanted)
    return nnx.merge(graphdef, params), {path: (gradients[path], scales[path]) for path in gradients}


def combinations(model: MemoryTransformer) -> Iterator[MemoryTransformer]:
    """Every schedule and strategy that applies; the reversible ones with exact states every 2 segments and with the first one alone."""
    memory = model.config.memory
    for schedule, gradient in itertools.product(SCHEDULES, GRADIENTS):
        if schedule == "diagonal" and not (memory.layer_class.layer_local and memory.token_class.layer_local):
            continue
        for anchor_every in (2, 64) if gradient == "reversible" else (64,):
            yield model.with_recurrence(schedule=schedule, gradient=gradient, anchor_every=anchor_every)


def relative(got, want, scale=None) -> float:
    """Largest |got - want| over `scale`: the largest |want|, or the given number per leading entry."""
    scale = np.max(np.abs(want)) if scale is None else scale.reshape(scale.shape + (1,) * (want.ndim - scale.ndim))
    return float(np.max(np.abs(np.asarray(got) - want) / np.maximum(scale, 1e-30)))


def errors(model: MemoryTransformer, arrays: dict, gradients: dict) -> dict[str, float]:
    """The largest error of each kind for one schedule and strategy."""
    ids = arrays["input_ids"].astype(np.int32)
    weights = np.ones(ids.shape, np.float32) if "labels_mask" not in arrays else arrays["labels_mask"].astype(np.float32)
    weights[:, -1] = 0.0
    graphdef, params = nnx.split(model)

    def loss(params):
        model = nnx.merge(graphdef, params)
        out = model.losses(ids, np.roll(ids, -1, axis=1), weights)
        return out.loss_S.sum() / out.weight_S.sum(), (out.state, model(ids)[0])

    (value, (state, logits)), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    found = {path_string(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(grads)}
    out = {
        "logits": float(np.max(np.abs(logits - arrays["logits"]))),
        "loss": abs(float(value) - float(arrays["loss"])),
        "gradient": _worst(relative(found[name], *want) for name, want in gradients.items()),
    }
    wanted = {part: _group(arrays, f"final_state/{part}/") for part in ("A", "z")}
    if wanted["A"]:
        got = {"A": state.layers.A_BxHxKxd, "z": state.layers.z_BxHxK}
        out["state"] = _worst(relative(got[p][int(i)][:, 0], want) for p, layers in wanted.items() for i, want in layers.items())
    return out


def _worst(errors: Iterable[float]) -> float:
    """The largest; NaN where one is (Python's `max` passes over it)."""
    return float(np.max(list(errors)))


def stream_errors(model: MemoryTransformer, arrays: dict, gradients: dict) -> dict[str, float]:
    """The same for Transformer-XL: a stream whose targets are the next ids, and hidden states as memory."""
    ids = arrays["input_ids"].astype(np.int32)
    tokens, targets, every = ids[:, :-1], ids[:, 1:], np.ones(ids[:, 1:].shape, np.float32)
    graphdef, params = nnx.split(model)

    def loss(params):
        model = nnx.merge(graphdef, params)
        out = model.losses(tokens, targets, every)
        hidden, state, _ = model.hidden(tokens)
        nll, _ = model.head.losses(hidden, split(targets, hidden.shape[2]), model.embed)
        found = [join(a, targets.shape[1]) for a in (hidden, nll)]
        return out.loss_S.sum() / out.weight_S.sum(), (out.state, state, *found)

    (value, (state, again, hidden, token_loss)), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    found = {path_string(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(grads)}
    wanted = _group(arrays, "final_state/hidden/")
    token_loss = in_published_order(np.asarray(token_loss), targets, model.config)
    # The published code caches the last layer's output, too, and never reads it.
    caches = [[*s.layers.hidden_BxCxD, hidden[:, -s.layers.hidden_BxCxD.shape[2] :]] for s in (state, again)]
    return {
        "token loss": float(np.max(np.abs(token_loss - arrays["token_loss"]))),
        "loss": abs(float(value) - float(arrays["loss"])),
        "gradient": _worst(relative(found[name], *want) for name, want in gradients.items()),
        "state": _worst(relative(cache[int(i)], want) for cache in caches for i, want in wanted.items()),
    }


# How the results of each kind of file are compared.
COMPARISONS = {"armt": errors, "rmt": errors, "transformer_xl": stream_errors}


def generated_error(model: MemoryTransformer, arrays: dict) -> float:
    """Number of tokens of the greedy continuation that differ. The published code lengthens the last segment."""
    want = arrays["generated"]
    prompt = arrays["input_ids"][:, : int(arrays["generate_prompt_len"])].astype(np.int32)
    got = model.generate(prompt, max_new_tokens=want.shape[1], overflow="extend").tokens_BxG
    return float(np.sum(np.asarray(got) != want))


def verify(path: str) -> dict[str, float]:
    """The largest error of each kind over all schedules and strategies. Raises ValueError for an unusable file."""
    meta, arrays = load(path)
    with jax.default_matmul_precision("highest"):
        model, gradients = build(meta, arrays)
        worst: dict[str, float] = {}
        for variant in combinations(model):
            for kind, error in COMPARISONS[meta["kind"]](variant, arrays, gradients).items():
                # A NaN must not lose against a number.
                worst[kind] = float(np.maximum(error, worst.get(kind, 0.0)))
        if "generated" in arrays:
            worst["generated"] = generated_error(model, arrays)
    return worst


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m armt_jax.interop.verify", description=__doc__.split("\n\n")[0])
    parser.add_argument("files", nargs="+", metavar="FILE", help="golden .npz files")
    width, failed, unreadable = 34, 0, 0
    files = parser.parse_args(argv).files
    print("file".ljust(width) + "".join(kind.rjust(12) for kind in TOLERANCES))
    for path in files:
        name = path.rsplit("/", 1)[-1].removesuffix(".npz")
        try:
            found = verify(path)
        except ValueError as error:
            print(f"{name.ljust(width)}error: {error}", flush=True)
            unreadable += 1
            continue
        bad = [kind for kind, error in found.items() if not error <= TOLERANCES[kind]]
        cells = (f"{found[k]:.1e}" if k in found else "-" for k in TOLERANCES)
        print(name.ljust(width) + "".join(c.rjust(12) for c in cells) + (f"  FAILED: {', '.join(bad)}" if bad else ""), flush=True)
        failed += bool(bad)
    print("tolerance".ljust(width) + "".join(f"{t:.0e}".rjust(12) for t in TOLERANCES.values()))
    return 2 if unreadable else int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
