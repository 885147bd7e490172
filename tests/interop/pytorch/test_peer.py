"""Our PyTorch model: it computes what the published code computed, trains, generates, and takes and gives its state."""

import os
from pathlib import Path

import numpy as np
import pytest

from armt_jax.interop import export as exporting
from armt_jax.interop import parity, verify
from armt_jax.interop.names import own_entries
from armt_jax.interop.pretrained import abstract_shapes
from tests.interop.pytorch.models import V, made, torch, transformers

GOLDEN = Path(__file__).parents[2] / "testdata" / "golden"


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


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """An exported ARMT as a user loads it, and the model here."""
    folder = tmp_path_factory.mktemp("exported")
    os.environ.setdefault("HF_MODULES_CACHE", str(folder / "modules"))
    model = made("armt-gpt2")
    exporting.export(model, folder / "out", check=False)
    return transformers.AutoModelForCausalLM.from_pretrained(folder / "out", trust_remote_code=True), model


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
