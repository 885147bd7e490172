"""Reading and writing files of tensors, whole and damaged."""

import json
import pickle

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from armt_jax.interop.tensor_files import Tensor, open_tensors, write_safetensors, write_weights

ARRAYS = {
    "b": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a": np.linspace(-2, 2, 7).astype(ml_dtypes.bfloat16),
    "half": np.ones((1, 3), np.float16),
    "scalar": np.array(3.5, np.float32),
    "none": np.zeros((0, 4), np.float32),
}


def write(path, arrays=ARRAYS):
    write_safetensors(path, [Tensor(name, a.shape, a.dtype, lambda a=a: a) for name, a in arrays.items()])
    return path


def same(tensors, arrays=ARRAYS):
    assert set(tensors) == set(arrays)
    for name, a in arrays.items():
        assert tensors[name].dtype == a.dtype and tensors[name].shape == a.shape
        assert tensors[name].tobytes() == a.tobytes()


def test_what_is_written_is_read(tmp_path):
    same(open_tensors(write(tmp_path / "x.safetensors")))
    write(tmp_path / "model.safetensors")
    same(open_tensors(tmp_path))


def test_rows_are_read_alone(tmp_path):
    tensors = open_tensors(write(tmp_path / "x.safetensors"))
    assert np.array_equal(tensors.stored["b"].read(slice(1, 2)), ARRAYS["b"][1:2])
    part = tensors.stored["a"].read(slice(2, 5))
    assert part.dtype == ml_dtypes.bfloat16 and part.tobytes() == ARRAYS["a"][2:5].tobytes()


def test_strided_arrays_are_written_as_they_are_indexed(tmp_path):
    a = np.arange(24, dtype=np.float32).reshape(4, 6)
    views = {"turned": a.T, "columns": a[:, 1:3], "backwards": a[::-1]}
    same(open_tensors(write(tmp_path / "x.safetensors", views)), views)


def test_the_library_reads_what_is_written(tmp_path):
    read = load_file(write(tmp_path / "ours.safetensors"))
    for name, a in ARRAYS.items():
        assert read[name].tobytes() == a.tobytes() and read[name].dtype == a.dtype


@pytest.mark.parametrize("limit, files", [(10**6, 1), (40, 2), (1, 5)])
def test_weights_are_written_in_shards_of_a_size(tmp_path, limit, files):
    write_weights(tmp_path, [Tensor(name, a.shape, a.dtype, lambda a=a: a) for name, a in ARRAYS.items()], limit)
    assert len(list(tmp_path.glob("*.safetensors"))) == files
    assert (tmp_path / "model.safetensors.index.json").exists() == (files > 1)
    same(open_tensors(tmp_path))


def test_shards(tmp_path):
    names = list(ARRAYS)
    write(tmp_path / "m-1.safetensors", {n: ARRAYS[n] for n in names[:2]})
    write(tmp_path / "m-2.safetensors", {n: ARRAYS[n] for n in names[2:]})
    places = {n: f"m-{1 + (i >= 2)}.safetensors" for i, n in enumerate(names)}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    same(open_tensors(tmp_path))
    index.write_text(json.dumps({"weight_map": places | {"lost": "m-1.safetensors"}}))
    with pytest.raises(ValueError, match="places tensor 'lost' in m-1.safetensors"):
        open_tensors(tmp_path)
    (tmp_path / "m-2.safetensors").unlink()
    with pytest.raises(ValueError, match="shard 'm-2.safetensors', which is not beside it"):
        open_tensors(tmp_path)
    index.write_text("{}")
    with pytest.raises(ValueError, match="index.json is no index of shards"):
        open_tensors(tmp_path)


@pytest.mark.parametrize("keep, message", [(-3, "not fully covered"), (30, "header length"), (3, "header too small"), (0, "")])
def test_a_truncated_file_is_named(tmp_path, keep, message):
    path = write(tmp_path / "cut.safetensors")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=f"cut.safetensors .* is no whole safetensors file, it may be truncated: .*{message}"):
        open_tensors(path)


def headed(path, header) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))


@pytest.mark.parametrize(
    "header, message",
    [
        (b"not json", "deserializing header"),
        ([1], "deserializing header"),
        ({"w": 3}, "deserializing header"),
        ({"w": {"dtype": "F32", "shape": [2]}}, "missing field `data_offsets`"),
        ({"w": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}, "deserializing header: .*"),
        ({"w": {"dtype": "F8_E4M3", "shape": [8], "data_offsets": [0, 8]}}, "tensor 'w' is of dtype F8_E4M3"),
    ],
)
def test_a_damaged_header_is_named(tmp_path, header, message):
    headed(tmp_path / "bad.safetensors", header)
    with pytest.raises(ValueError, match=f"bad.safetensors.*{message}"):
        open_tensors(tmp_path / "bad.safetensors")


def test_a_folder_without_weights(tmp_path):
    with pytest.raises(ValueError, match="holds no weights"):
        open_tensors(tmp_path)


def test_a_broken_promise_is_an_error(tmp_path):
    promise = Tensor("w", (3,), np.dtype(np.float32), lambda: np.zeros(2, np.float32))
    with pytest.raises(ValueError, match="'w' became"):
        write_safetensors(tmp_path / "w.safetensors", [promise])


# ---- PyTorch's own format ----


def test_bin_files(tmp_path):
    torch = pytest.importorskip("torch")
    state = {"w": torch.randn(3, 4), "b": torch.randn(5).bfloat16(), "h": torch.randn(2).half(), "s": torch.tensor(1.5)}
    torch.save(state, tmp_path / "pytorch_model.bin")
    tensors = open_tensors(tmp_path)
    for name, tensor in state.items():
        assert tensors.stored[name].shape == tuple(tensor.shape)
        assert np.array_equal(tensors[name].astype(np.float32), tensor.float().numpy())
    assert tensors["b"].dtype == ml_dtypes.bfloat16
    (tmp_path / "pytorch_model.bin").rename(tmp_path / "shard.bin")
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {name: "shard.bin" for name in state}}))
    assert set(open_tensors(tmp_path)) == set(state)


def test_bin_files_of_old_and_of_parameters(tmp_path):
    torch = pytest.importorskip("torch")
    state = {"w": torch.nn.Parameter(torch.randn(3, 4)), "b": torch.nn.Parameter(torch.randn(5).bfloat16())}
    for zipped in (True, False):  # files from before PyTorch 1.6 are no archives
        torch.save(state, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
        tensors = open_tensors(tmp_path)
        for name, tensor in state.items():
            assert np.array_equal(tensors[name].astype(np.float32), tensor.detach().float().numpy())


class Hostile:
    def __reduce__(self):
        return print, ("this must never run",)


def test_a_pickle_that_is_not_plain_tensors(tmp_path, capsys):
    torch = pytest.importorskip("torch")
    path = tmp_path / "pytorch_model.bin"
    torch.save({"w": Hostile()}, path)
    with pytest.raises(ValueError, match="pytorch_model.bin is no plain PyTorch file"):
        open_tensors(path)
    path.write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(ValueError, match="pytorch_model.bin is no plain PyTorch file"):
        open_tensors(path)
    assert "never" not in capsys.readouterr().out
    torch.save({"w": 3}, path)
    with pytest.raises(ValueError, match="'w' is a int, not a tensor"):
        open_tensors(path)
    torch.save([torch.ones(2)], path)
    with pytest.raises(ValueError, match="holds a list"):
        open_tensors(path)


def test_a_bin_without_pytorch_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"needs PyTorch: pip install 'armt_jax\[torch\]'"):
        open_tensors(tmp_path)
