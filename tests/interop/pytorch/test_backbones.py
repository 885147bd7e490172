"""Hugging Face's backbones come in, compute the same, and go out again bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from armt_jax.interop import export as exporting
from armt_jax.interop.pretrained import load_model
from armt_jax.interop.tensor_files import open_tensors
from armt_jax.memory.associative import ARMT
from armt_jax.model import RecurrenceConfig
from tests.interop.pytorch.models import V, torch, transformers

LLAMA = dict(
    vocab_size=V, hidden_size=32, intermediate_size=56, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=64, eos_token_id=0, bos_token_id=0,
)  # fmt: skip

STRETCHED = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16)
GPT = dict(vocab_size=V, n_positions=64, n_embd=32, n_layer=2, n_head=4, eos_token_id=0, bos_token_id=0)
NEOX = {**LLAMA, "rotary_pct": 0.25}
CONFIGS = {
    "gpt2": lambda: transformers.GPT2Config(**GPT),
    "gpt2-untied": lambda: transformers.GPT2Config(**GPT, tie_word_embeddings=False, n_inner=48),
    "neox": lambda: transformers.GPTNeoXConfig(**NEOX),
    "neox-tied-sequential": lambda: transformers.GPTNeoXConfig(**NEOX, tie_word_embeddings=True, use_parallel_residual=False),
    "llama": lambda: transformers.LlamaConfig(**LLAMA, tie_word_embeddings=False, head_dim=16),
    "llama-3-tied": lambda: transformers.LlamaConfig(**LLAMA, tie_word_embeddings=True, rope_scaling=STRETCHED),
}


def random_model(config, dtype=torch.float32):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.to(dtype)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_backbone_of_transformers_computes_the_same_here(name, tmp_path):
    theirs = random_model(CONFIGS[name]())
    theirs.save_pretrained(tmp_path / "in")
    ours = load_model(tmp_path / "in")
    ids = np.random.default_rng(0).integers(0, V, (2, 30))
    with torch.no_grad():
        wanted = theirs(torch.tensor(ids)).logits.numpy()
        generated = theirs.generate(
            torch.tensor(ids), attention_mask=torch.ones(2, 30, dtype=torch.int64), max_new_tokens=16, min_new_tokens=16, do_sample=False,
            pad_token_id=0, suppress_tokens=None, eos_token_id=None,
        )[:, 30:]  # fmt: skip
    assert np.abs(np.asarray(ours(ids.astype(np.int32))[0]) - wanted).max() <= 2e-5
    assert np.array_equal(ours.generate(jnp.asarray(ids, jnp.int32), max_new_tokens=16).tokens_BxG, generated.numpy())
    # And out again: the same names, the same bytes.
    exporting.export(ours, tmp_path / "out", "backbone", check=False)
    first, again = open_tensors(tmp_path / "in"), open_tensors(tmp_path / "out")
    assert set(first) == set(again)
    assert all(first[n].tobytes() == again[n].tobytes() for n in first)
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        assert np.abs(back(torch.tensor(ids)).logits.numpy() - wanted).max() <= 2e-6


@pytest.mark.parametrize("dtype, name", [(torch.bfloat16, "bfloat16"), (torch.float16, "float16")])
def test_short_floats_come_in_and_go_out_bit_for_bit(dtype, name, tmp_path):
    theirs = random_model(CONFIGS["llama"](), dtype)
    theirs.save_pretrained(tmp_path / "in", max_shard_size="20KB")
    assert (tmp_path / "in" / "model.safetensors.index.json").exists()
    memory = ARMT(3, d_mem=4)
    model = load_model(tmp_path / "in", memory, RecurrenceConfig(8))
    exporting.export(model, tmp_path / "out", "backbone", dtype=name, check=False)
    first, again = open_tensors(tmp_path / "in"), open_tensors(tmp_path / "out")
    assert set(first) == set(again)
    assert all(first[n].tobytes() == again[n].tobytes() and first[n].dtype == again[n].dtype for n in first)
    torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text((tmp_path / "in" / "config.json").read_text())
    for a, b in zip(jax.tree.leaves(nnx.split(load_model(tmp_path, memory, RecurrenceConfig(8)))[1]), jax.tree.leaves(nnx.split(model)[1])):
        assert np.array_equal(a, b)
