"""The export: a folder that needs none of our code, kept only where it computes the same."""

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from flax import nnx

from armt_jax.config import resolve
from armt_jax.data.tokenizers import gpt2
from armt_jax.interop import export as exporting
from armt_jax.interop import parity
from armt_jax.interop.pretrained import load_model
from armt_jax.interop.tensor_files import open_tensors
from armt_jax.training.loop import train
from tests.interop.pytorch.models import MODELS, made, torch, transformers


@pytest.mark.parametrize("name", MODELS)
def test_the_export_finds_its_own_model_equal(name, tmp_path):
    figures = exporting.export(made(name), tmp_path / "out")
    assert {f.kind for f in figures} == {"logits", "generated"} | ({"state"} if name != "none-gpt2" else set())
    assert all(f.ok for f in figures)
    # Of logits up to 3 or so: absolute, the worst is 2.6e-5 (armt-gpt2).
    assert max(f.error * f.unit for f in figures if f.kind == "logits") <= 2 * parity.TOLERANCES["logits"]
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.count("| logits |") == 9 and "trust_remote_code=True" in card


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
