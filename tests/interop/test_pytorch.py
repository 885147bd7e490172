"""Against PyTorch itself: Hugging Face's backbones come in, our models go out. Skipped where PyTorch is not installed."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from armt_jax.config import resolve
from armt_jax.data.tokenizers import gpt2
from armt_jax.interop import export as exporting
from armt_jax.interop import parity, verify
from armt_jax.interop.names import own_entries
from armt_jax.interop.pretrained import abstract_shapes, load_model
from armt_jax.interop.tensor_files import open_tensors
from armt_jax.memory.associative import ARMT
from armt_jax.memory.interface import MemoryConfig
from armt_jax.memory.recurrent_tokens import RMT
from armt_jax.model import MemoryTransformer, ModelConfig, RecurrenceConfig
from armt_jax.nn.backbones import GPT2, GPTNeoX, Llama
from armt_jax.training.loop import train

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
torch.set_num_threads(1)

GOLDEN = Path(__file__).parents[1] / "testdata" / "golden"
V = 101


@pytest.fixture(autouse=True)
def highest_precision():
    with jax.default_matmul_precision("highest"):
        yield


# ---- Hugging Face's own backbones ----

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


# ---- the golden files through our PyTorch model ----


@pytest.mark.parametrize("name", sorted(path.stem for path in GOLDEN.glob("*rmt_*.npz")))
def test_the_pytorch_model_computes_what_the_published_code_computed(name, tmp_path):
    meta, arrays = verify.load(str(GOLDEN / f"{name}.npz"))
    model, gradients = verify.build(meta, arrays)
    exporting.export(model, tmp_path / "out", "hf", check=False)
    peer = parity.load_peer(tmp_path / "out", "hf")
    ids = torch.tensor(arrays["input_ids"].astype(np.int64))
    labels = ids.clone()
    if "labels_mask" in arrays:
        # True at position i: the prediction of token i + 1 counts.
        labels[:, 1:][~torch.tensor(arrays["labels_mask"][:, :-1])] = -100
    out = peer(ids, labels=labels)
    out.loss.backward()
    assert np.abs(out.logits.detach().numpy() - arrays["logits"]).max() <= verify.TOLERANCES["logits"]
    assert abs(out.loss.item() - arrays["loss"]) <= verify.TOLERANCES["loss"]
    for i in range(3):
        for part, state in (("A", out.memory_state.A), ("z", out.memory_state.z)):
            if f"final_state/{part}/{i}" in arrays:
                assert verify.relative(state[i, :, 0].detach().numpy(), arrays[f"final_state/{part}/{i}"]) <= verify.TOLERANCES["state"]
    found = {name: p.grad.numpy() for name, p in peer.named_parameters()}
    for entry in own_entries(abstract_shapes(model.config)):
        wanted, scale = gradients[entry.ours[0]]
        if entry.layer is not None:
            wanted, scale = wanted[entry.layer], scale[entry.layer]
        assert verify.relative(found[entry.theirs], entry.whole([wanted]), scale) <= verify.TOLERANCES["gradient"], entry.theirs
    if "generated" in arrays:
        assert np.array_equal(lengthened(peer, ids[:, : int(arrays["generate_prompt_len"])], meta["segment_size"]), arrays["generated"])


def lengthened(peer, prompt, T):
    """As published: the last segment goes on past its end, and nothing more is written."""
    closed = (prompt.shape[1] - 1) // T * T
    state = peer.ingest(prompt[:, :closed]) if closed else None
    peer.config.segment_length = 10**6
    ids = prompt[:, closed:]
    mask = torch.ones_like(ids)
    return peer.generate(ids, attention_mask=mask, memory_state=state, max_new_tokens=5, do_sample=False)[:, ids.shape[1] :].numpy()


# ---- our models out ----

SIZES = dict(vocab_size=V, num_layers=2, width=32, num_heads=4, kernel_std=None, embedding_std=0.5, position_std=0.5)
MODELS = {
    "armt-gpt2": (GPT2(**SIZES, max_positions=24), ARMT(3, d_mem=8, positions="table", value_std=None)),
    "armt-llama-heads": (
        Llama(**SIZES, max_positions=64, num_kv_heads=2, tie_embeddings=False),
        # With fewer features (d_mem 8, nu 2) some q z are almost 0, and float32 itself is 6e-5 (JAX) and 2e-4 (PyTorch) from float64.
        ARMT(3, d_mem=16, num_heads=2, key_norm="l2", beta_max=0.7, read_floor=0.3, value_std=None, correction=False),
    ),
    "armt-neox-hard": (
        GPTNeoX(**SIZES, max_positions=64),
        ARMT(3, d_mem=16, key_norm="l2", gate="hard", write_cost=0.1, like_writes="share", read_floor=1.0, first_layer=1, value_std=None),
    ),
    "rmt-neox": (GPTNeoX(**SIZES, max_positions=64), RMT(3)),
    "none-gpt2": (GPT2(**SIZES, max_positions=24), MemoryConfig()),
}


def made(name, **recurrence):
    backbone, memory = MODELS[name]
    config = ModelConfig(backbone, memory, RecurrenceConfig(**{"segment_length": 12, **recurrence}))
    return MemoryTransformer(config, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("name", MODELS)
def test_the_export_finds_its_own_model_equal(name, tmp_path):
    figures = exporting.export(made(name), tmp_path / "out")
    assert {f.kind for f in figures} == {"logits", "generated"} | ({"state"} if name != "none-gpt2" else set())
    assert all(f.ok for f in figures)
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.count("| logits |") == 9 and "trust_remote_code=True" in card


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """An exported ARMT as a user loads it, and the model here."""
    folder = tmp_path_factory.mktemp("exported")
    os.environ.setdefault("HF_MODULES_CACHE", str(folder / "modules"))
    model = made("armt-gpt2")
    exporting.export(model, folder / "out", check=False)
    return transformers.AutoModelForCausalLM.from_pretrained(folder / "out", trust_remote_code=True), model


def test_it_trains(loaded):
    peer, _ = loaded
    ids = torch.randint(0, V, (2, 40), generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW(peer.parameters(), 1e-9)
    out = peer.train()(ids, labels=ids)
    out.loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() and p.grad.abs().sum() > 0 for p in peer.parameters())
    optimizer.step()
    optimizer.zero_grad()
    peer.eval()


def test_state_goes_in_and_out(loaded):
    peer, _ = loaded
    ids = torch.randint(0, V, (2, 36), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole = peer(ids)
        first = peer(ids[:, :24])
        rest = peer(ids[:, 24:], memory_state=first.memory_state)
    assert torch.allclose(whole.logits[:, 24:], rest.logits, atol=1e-5)
    assert torch.allclose(whole.memory_state.A, rest.memory_state.A, atol=1e-5)
    assert torch.equal(peer.ingest(ids[:, :24]).A, first.memory_state.A)
    with pytest.raises(ValueError, match="not both"):
        peer(ids, memory_state=first.memory_state, past_key_values=object())


def test_generation_with_and_without_a_cache_beams_and_samples(loaded):
    peer, _ = loaded
    ids = torch.randint(0, V, (2, 20), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    mask[0, :13] = 0
    options = dict(attention_mask=mask, max_new_tokens=20, pad_token_id=0)
    cached, fresh = (peer.generate(ids, **options, do_sample=False, use_cache=use) for use in (True, False))
    assert torch.equal(cached, fresh)
    read = []
    hook = peer.embed.register_forward_hook(lambda module, inputs, output: read.append(inputs[0].shape[1]))
    peer.generate(ids, **options, do_sample=False)
    hook.remove()
    assert sum(read) == 20 + 19 and read[-19:] == [1] * 19, "with a cache nothing is read twice, whatever transformers calls it"
    state = peer.ingest(ids)
    assert peer.generate(ids, **options, num_beams=3, memory_state=state).shape == (2, 40)
    assert peer.generate(ids, **options, do_sample=True, num_return_sequences=2, memory_state=state).shape == (4, 40)
    single = peer.generate(ids[1:], max_new_tokens=20, do_sample=False, attention_mask=mask[1:], pad_token_id=0)
    assert torch.equal(single[0], cached[1])


def test_a_cache_given_is_a_cache_used(loaded):
    peer, _ = loaded
    ids = torch.randint(0, V, (2, 30), generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        whole = peer(ids).logits
        out = peer(ids[:, :20], use_cache=True)
        for i in range(20, 30):
            out = peer(ids[:, i : i + 1], past_key_values=out.past_key_values)
            assert torch.allclose(out.logits[:, 0], whole[:, i], atol=1e-3), i


def test_under_autocast_the_memory_is_float32(loaded):
    peer, _ = loaded
    ids = torch.randint(0, V, (2, 40), generator=torch.Generator().manual_seed(5))
    memory = next(module for module in peer.modules() if hasattr(module, "_recall"))
    state = peer.ingest(ids)
    k, A, z = torch.rand(2, memory.heads, 5, memory.key_features), state.A[0], state.z[0]
    exact = memory._recall(k, A, z)
    mask = torch.ones_like(ids)
    mask[0, :24] = 0  # a whole segment and more is padding
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(torch.equal(a, b) for a, b in zip(memory._recall(k, A, z), exact))
        out = peer(ids, attention_mask=mask, labels=ids)
    assert out.memory_state.A.dtype == out.memory_state.z.dtype == torch.float32
    assert torch.isfinite(out.loss) and torch.isfinite(out.logits).all()


def test_truncation_cuts_the_gradient(tmp_path):
    exporting.export(made("armt-gpt2", bptt_segments=1), tmp_path / "out", check=False)
    peer = parity.load_peer(tmp_path / "out", "hf")
    ids = torch.randint(0, V, (1, 36))
    embedded = []
    peer.embed.register_forward_hook(lambda module, inputs, output: embedded.append(output) or output.retain_grad())
    peer(ids, labels=torch.where(torch.arange(36) >= 30, ids, -100)).loss.backward()
    reached = [e.grad is not None and bool(e.grad.abs().sum() > 0) for e in embedded]
    assert reached == [False, False, True]


def test_right_aligned_rows_agree(tmp_path):
    model = made("rmt-neox", align="right")
    exporting.export(model, tmp_path / "out", check=False)
    peer = parity.load_peer(tmp_path / "out", "hf")
    ids = np.random.default_rng(3).integers(0, V, (2, 31))
    with torch.no_grad():
        assert np.abs(peer(torch.tensor(ids)).logits.numpy() - np.asarray(model(ids.astype(np.int32))[0])).max() <= 2e-5


def test_the_folder_needs_none_of_our_code(tmp_path):
    """In another process, where `armt_jax` and JAX cannot be imported."""
    model = made("rmt-neox")
    exporting.export(model, tmp_path / "out", check=False)
    ids = np.arange(40).reshape(1, 40)
    code = (
        "import sys; sys.modules['armt_jax'] = sys.modules['jax'] = None\n"
        "import torch, transformers\n"
        f"m = transformers.AutoModelForCausalLM.from_pretrained({str(tmp_path / 'out')!r}, trust_remote_code=True)\n"
        "print('sum', float(m(torch.arange(40)[None]).logits.double().abs().sum()))"
    )
    environ = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "PYTHONPATH": ""}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environ, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    value = float(done.stdout.split("sum ")[1])
    assert value == pytest.approx(float(np.abs(np.asarray(model(ids)[0], np.float64)).sum()), rel=1e-5)


def test_a_model_that_computes_something_else_is_not_kept(tmp_path, monkeypatch):
    real = parity.load_peer

    def bent(folder, kind):
        peer = real(folder, kind)
        with torch.no_grad():
            peer.final_norm.bias[0] += 1e-3
        return peer

    monkeypatch.setattr(parity, "load_peer", bent)
    with pytest.raises(exporting.ParityError, match="segment 1 on the state before: logits .* > 2e-05.*nothing was kept.*a defect"):
        exporting.export(made("armt-gpt2"), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_model_that_float32_cannot_hold_is_told_from_a_defect(tmp_path):
    """Attention so sharp that a rounding of its scores decides where it looks."""
    model = made("armt-gpt2")
    for path, leaf in nnx.to_flat_state(nnx.state(model)):
        if path[-2:] in (("query", "kernel"), ("key", "kernel")) and "attention" in path:
            leaf.set_value(100 * leaf.get_value())
    with pytest.raises(exporting.ParityError, match="float32 itself is logits .* from its float64.*--check=false exports it"):
        exporting.export(model, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_without_pytorch_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ValueError, match=r"pip install 'armt_jax\[torch\]', or give --check=false"):
        exporting.export(made("armt-gpt2"), tmp_path / "out")
    assert not list(tmp_path.iterdir())


# ---- the command ----


def test_the_command(tmp_path, capsys, monkeypatch):
    raw = dict(
        backbone=dict(name="gpt2", vocab_size=128, num_layers=1, width=16, num_heads=2, max_positions=16),
        memory=dict(name="armt", num_memory_tokens=1, d_mem=4, value_std=None), mesh={},
        task=dict(name="associative_retrieval", mode="remember", pairs=2, num_keys=4), evaluation=dict(batch_size=4, batches=1),
        train=dict(batch_size=4, log_every=1, validate_every=1, validation_batches=1, stages=[dict(steps=1)]),
    )  # fmt: skip
    train(resolve(raw), raw, tmp_path / "run")
    arguments = [f"--workdir={tmp_path / 'run'}", f"--out={tmp_path / 'out'}"]
    assert exporting.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "hf, step 1 of" in printed and "greedy, 64 tokens" in printed
    names = {"README.md", "config.json", "model.safetensors", "modeling_armt.py"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    assert json.loads((tmp_path / "out" / "config.json").read_text())["segment_length"] == 4
    assert exporting.main(arguments) == 1
    assert "out exists: give a folder that does not" in capsys.readouterr().err
    assert exporting.main([f"--workdir={tmp_path}", f"--out={tmp_path / 'other'}"]) == 1
    assert "is not a run's workdir" in capsys.readouterr().err
    assert exporting.main([arguments[0], f"--out={tmp_path / 'bare'}", "--format=backbone"]) == 0
    assert exporting.main([arguments[0], f"--out={tmp_path / 'published'}", "--format=reference"]) == 0
    assert "memory_cell.memory" in open_tensors(tmp_path / "published")
    assert dataclasses.asdict(load_model(tmp_path / "out").config.memory)["d_mem"] == 4


def text_run(folder, make_corpus, **tokenizer):
    """The workdir of a model trained for a step on a text."""
    text = "the thin theme, thus the thing\n" * 30
    corpus = make_corpus(train=text, validation=text, folder=folder.name, **tokenizer)
    raw = dict(
        backbone=dict(name="gpt2", vocab_size=300, num_layers=1, width=16, num_heads=2, max_positions=16),
        memory=dict(name="armt", num_memory_tokens=1, d_mem=8, value_std=None), mesh={}, recurrence=dict(segment_length=8),
        data=dict(
            dataset="text", path=corpus.path, tokenizer=corpus.tokenizer, tokenizer_path=corpus.tokenizer_path, segments=2,
            vocab_size=corpus.vocab_size, splits=("train", "validation"), cache_dir=corpus.cache_dir, resets_at="never",
        ),
        evaluation=dict(batch_size=2, batches=1),
        train=dict(batch_size=2, log_every=1, validate_every=1, validation_batches=1, stages=[dict(steps=1)]),
    )  # fmt: skip
    train(resolve(raw), raw, folder)
    return folder


@pytest.mark.parametrize("kind", ["gpt2", "bytes", "characters", "words"])
def test_a_run_on_text_brings_its_tokenizer(kind, make_corpus, tmp_path):
    options = {"tokenizer": kind}
    if kind == "gpt2":
        symbols = gpt2.byte_symbols()
        merges = [("t", "h"), ("th", "e"), (symbols[ord(" ")], "the")]
        names = [*symbols.values(), *("".join(pair) for pair in merges), gpt2.END_OF_TEXT]
        (tmp_path / "bpe").mkdir()
        gpt2.GPT2Tokenizer({name: i for i, name in enumerate(names)}, merges).save(tmp_path / "bpe")
        options["tokenizer_path"] = str(tmp_path / "bpe")
    run = text_run(tmp_path / "run", make_corpus, **options)
    model, origin = exporting.load_run(run)
    exporting.export(model, tmp_path / "out", check=False, origin=origin)
    card, text = (tmp_path / "out" / "README.md").read_text(), "the other thing, thus\n the"
    ours = origin.tokenizer.encode(text)
    if kind == "words":  # white space is not kept, and <eos> stands at every line's end: no tokenizer of transformers does that
        assert "transformers has none" in card and "from armt_jax.data.tokenizers import WordTokenizer" in card
        assert np.array_equal(type(origin.tokenizer).load(tmp_path / "out").encode(text), ours)
        return
    assert 'AutoTokenizer.from_pretrained("out", trust_remote_code=True)' in card
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert tokenizer(text)["input_ids"] == ours.tolist()
    unknown = "or" if kind == "characters" else ""  # what the text that it was trained on does not have
    assert tokenizer.decode(ours) == "".join("<unk>" if c in unknown else c for c in text)
    assert tokenizer.padding_side == "left" and len(tokenizer) == origin.tokenizer.vocab_size
    assert tokenizer.eos_token_id == origin.tokenizer.end_id
