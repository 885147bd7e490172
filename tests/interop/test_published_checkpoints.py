"""Checkpoints of the published ARMT and RMT code as its training leaves them: one file, no config.json, buffers and a tied head inside."""

from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from armt_jax.interop import verify
from armt_jax.interop.pretrained import load_parameters, open_checkpoint
from armt_jax.interop.reference import model_config
from armt_jax.model import MemoryTransformer

GOLDEN = Path(__file__).parents[1] / "testdata" / "golden"
WRAPPED = {"armt_gpt2": ".layer", "armt_neox": ".layer", "armt_llama": ".layer", "rmt_gpt2": "", "rmt_llama": ""}


def buffers(name: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What a state_dict holds besides parameters, with older transformers versions."""
    mask, layer = np.tril(np.ones((1, 1, 8, 8), np.float32)), WRAPPED[name]
    root = "memory_cell.model"
    if name.endswith("gpt2"):
        tables = {f"{root}.transformer.h.{i}{layer}.attn.bias": mask for i in range(2)}
        return tables | {f"{root}.lm_head.weight": arrays["param/memory_cell.model.transformer.wte.weight"]}
    if name.endswith("neox"):
        base = f"{root}.gpt_neox.layers.0{layer}.attention"
        return {f"{base}.bias": mask, f"{base}.rotary_emb.inv_freq": np.ones(4, np.float32)}
    return {f"{root}.model.layers.0{layer}.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32)}


@pytest.mark.parametrize("name", WRAPPED)
def test_a_published_checkpoint_gives_the_published_logits(name, tmp_path):
    meta, arrays = verify.load(str(GOLDEN / f"{name}.npz"))
    tensors = {key.removeprefix("param/"): array for key, array in arrays.items() if key.startswith("param/")}
    save_file({k: np.ascontiguousarray(a) for k, a in (tensors | buffers(name, arrays)).items()}, tmp_path / "model.safetensors")
    config = model_config(meta)
    graphdef, abstract = nnx.split(nnx.eval_shape(lambda: MemoryTransformer(config, rngs=nnx.Rngs(0))))
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), abstract)
    for path in (tmp_path / "model.safetensors", tmp_path):  # the file, and its folder
        model = nnx.merge(graphdef, load_parameters(open_checkpoint(path, config), config, like))
        logits, _ = jax.jit(lambda ids, model=model: model(ids))(arrays["input_ids"].astype(np.int32))
        np.testing.assert_allclose(logits, arrays["logits"], atol=2e-5)


def test_a_tensor_too_many_is_refused_by_name(tmp_path):
    meta, arrays = verify.load(str(GOLDEN / "rmt_gpt2.npz"))
    tensors = {key.removeprefix("param/"): np.ascontiguousarray(a) for key, a in arrays.items() if key.startswith("param/")}
    save_file(tensors | {"memory_cell.model.transformer.h.7.ln_1.weight": np.ones(4, np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="1 tensors have no place in this GPT2 model, the first is 'memory_cell.model.transformer.h.7"):
        open_checkpoint(tmp_path, model_config(meta))
