"""Parity with the published PyTorch code, and a check that fails when it should."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from armt_jax.interop import verify
from armt_jax.interop.reference import backbone_config, from_reference, magnitudes, model_config
from armt_jax.interop.verify import TOLERANCES

GOLDEN = Path(__file__).parents[1] / "testdata" / "golden"
FILES = sorted(path.stem for path in GOLDEN.glob("*.npz"))
# Every schedule and strategy; the others have the plainest one here, most of them the most involved one too, and all have every one in
# `.ci/run`, by the command.
ALL_COMBINATIONS = ("armt_gpt2",)


def path_of(name: str) -> str:
    return str(GOLDEN / f"{name}.npz")


def within(found: dict[str, float]):
    for kind, error in found.items():
        assert error <= TOLERANCES[kind], kind


def test_the_golden_files_are_there():
    assert FILES == [
        "armt_gpt2", "armt_gpt2_no_correction", "armt_gpt2_ragged_masked", "armt_llama", "armt_neox", "rmt_gpt2", "rmt_llama",
        "transformer_xl", "transformer_xl_adaptive", "transformer_xl_long_cache_same_length",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ALL_COMBINATIONS)
def test_every_schedule_and_strategy_computes_what_the_published_code_computed(name):
    found = verify.verify(path_of(name))
    assert set(found) == {"loss", "gradient", "logits", "state", "generated"}
    within(found)


@pytest.fixture(scope="module", params=[name for name in FILES if name not in ALL_COMBINATIONS])
def golden(request):
    meta, arrays = verify.load(path_of(request.param))
    return request.param, meta, arrays, *verify.build(meta, arrays)


def test_the_plainest_and_the_most_involved_way_agree_with_the_published_code(golden):
    name, meta, arrays, model, gradients = golden
    involved = dict(schedule="sequential" if meta["kind"] == "rmt" else "diagonal", gradient="reversible", anchor_every=2)
    with jax.default_matmul_precision("highest"):
        compare = verify.COMPARISONS[meta["kind"]]
        within(compare(model, arrays, gradients))
        if not name.endswith(("llama", "neox")):  # the way through the grid is the same under another backbone
            within(compare(model.with_recurrence(**involved), arrays, gradients))
        if "generated" in arrays:
            assert verify.generated_error(model, arrays) == 0


def test_no_value_projection_is_zero():
    """A zero one would hide the whole recurrence."""
    for name in FILES:
        _, arrays = verify.load(path_of(name))
        maps = [a for key, a in arrays.items() if key.startswith("param/") and key.endswith(("W_mv.weight", "qkv_net.weight"))]
        assert len(maps) == (0 if name.startswith("rmt") else 3)
        assert all(np.abs(a).max() > 1e-2 for a in maps)


# ---- the command ----


def copied(name: str, target: Path, change) -> str:
    """A copy of a golden file after `change(arrays)`."""
    with np.load(path_of(name)) as file:
        arrays = {key: file[key] for key in file.files}
    change(arrays)
    np.savez(target, **arrays)
    return str(target)


@pytest.fixture
def plain_only(monkeypatch):
    """One schedule and strategy: the command's answers do not hang on the number of them."""
    monkeypatch.setattr(verify, "combinations", lambda model: iter([model]))


def test_the_command_succeeds(plain_only, capsys):
    assert verify.main([path_of("rmt_llama")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and lines[1].startswith("rmt_llama") and "FAILED" not in lines[1]
    assert lines[2].startswith("tolerance")


def test_one_changed_weight_fails(plain_only, capsys, tmp_path):
    def change(arrays):
        arrays["param/memory_cell.model.model.layers.1.mlp.up_proj.weight"][3, 4] += 0.05

    assert verify.main([copied("rmt_llama", tmp_path / "changed.npz", change)]) == 1
    assert "FAILED: logits, loss, gradient" in capsys.readouterr().out


def test_a_nan_fails(plain_only, capsys, tmp_path):
    def change(arrays):
        arrays["logits"][0, 0, 0] = np.nan

    assert verify.main([copied("rmt_llama", tmp_path / "nan.npz", change)]) == 1
    assert "FAILED: logits" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["gradient", "state"])
def test_a_nan_among_numbers_fails(plain_only, monkeypatch, capsys, kind):
    """Python's max of a number and a NaN behind it is the number."""
    relative, asked = verify.relative, []

    def broken(got, want, scale=None):
        asked.append(scale)
        # Gradients have a scale, states have none; the first of either is left as it is.
        mine = [each for each in asked if (each is None) == (kind == "state")]
        return np.nan if (scale is None) == (kind == "state") and len(mine) > 1 else relative(got, want, scale)

    monkeypatch.setattr(verify, "relative", broken)
    assert verify.main([path_of("armt_gpt2")]) == 1
    assert f"FAILED: {kind}" in capsys.readouterr().out


def test_unreadable_files_are_named_and_the_others_still_checked(plain_only, capsys, tmp_path):
    whole = Path(path_of("armt_neox")).read_bytes()
    (tmp_path / "truncated.npz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.npz").write_text("not an archive")
    broken = [str(tmp_path / name) for name in ("truncated.npz", "text.npz", "absent.npz")]
    assert verify.main([*broken, path_of("rmt_llama")]) == 2
    lines = capsys.readouterr().out.splitlines()
    for line, path in zip(lines[1:4], broken):
        assert f"error: {path}: not a readable golden file" in line
    assert lines[4].startswith("rmt_llama") and "error" not in lines[4]


@pytest.mark.parametrize("place", [100, 100_000])
def test_a_damaged_array_is_an_unreadable_file(tmp_path, place):
    """The decompression fails in one place, the checksum in the other."""
    whole = bytearray(Path(path_of("rmt_llama")).read_bytes())
    whole[place : place + 16] = bytes(16)
    (tmp_path / "damaged.npz").write_bytes(whole)
    assert verify.main([str(tmp_path / "damaged.npz")]) == 2


def change_of(name: str, action: str):
    def change(arrays):
        if action == "drop":
            del arrays[name]
        elif action == "add":
            arrays[name] = np.zeros(3, np.float32)
        elif action == "cut":
            arrays[name] = arrays[name][:-1]

    return change


BLOCK = "param/memory_cell.model.model.layers.0."


@pytest.mark.parametrize(
    "change, message",
    [
        (change_of(f"{BLOCK}mlp.up_proj.weight", "drop"), "tensor 'memory_cell.model.*0.mlp.up_proj.weight' is missing"),
        (change_of(f"{BLOCK}mlp.side_proj.weight", "add"), "1 tensors have no place in Llama, the first is .*side_proj"),
        (change_of("param/memory_cell.memory", "cut"), r"token_memory/tokens has shape \(4, 32\), the file's tensor \(3, 32\)"),
        (change_of("logits", "drop"), "lacks logits"),
        (change_of("meta", "drop"), "not a readable golden file"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(capsys, tmp_path, change, message):
    path = copied("rmt_llama", tmp_path / "odd.npz", change)
    with pytest.raises(ValueError, match=message):
        verify.verify(path)
    assert verify.main([path]) == 2
    assert "error: " in capsys.readouterr().out


@pytest.mark.parametrize("key", ["kind", "family", "segment_size", "alignment"])
def test_a_file_whose_meta_lacks_something_is_refused(capsys, tmp_path, key):
    def change(arrays):
        meta = json.loads(str(arrays["meta"]))
        del meta[key]
        arrays["meta"] = np.array(json.dumps(meta))

    assert verify.main([copied("rmt_llama", tmp_path / "odd.npz", change)]) == 2
    assert f"the file's meta lacks '{key}'" in capsys.readouterr().out


def test_a_transformer_xl_file_needs_its_token_losses(tmp_path):
    with pytest.raises(ValueError, match="lacks token_loss"):
        verify.verify(copied("transformer_xl", tmp_path / "odd.npz", change_of("token_loss", "drop")))


def test_one_changed_weight_of_transformer_xl_fails(plain_only, capsys, tmp_path):
    def change(arrays):
        arrays["param/r_r_bias"][1, 2] += 0.05

    assert verify.main([copied("transformer_xl", tmp_path / "changed.npz", change)]) == 1
    assert "FAILED: token loss, loss, gradient, state" in capsys.readouterr().out


def test_unknown_kinds_and_families():
    meta, _ = verify.load(path_of("rmt_llama"))
    with pytest.raises(ValueError, match="kind 'lstm' is not one of"):
        model_config(meta | {"kind": "lstm"})
    with pytest.raises(ValueError, match="family 'bert' is not one of gpt2, neox, llama"):
        backbone_config("bert", meta["config"])


@pytest.mark.parametrize("name", FILES)
def test_every_tensor_has_exactly_one_place(name):
    """Ours and theirs hold the same numbers, each once: equal in count and in sum of squares."""
    meta, arrays = verify.load(path_of(name))
    theirs = {key.removeprefix("param/"): a for key, a in arrays.items() if key.startswith("param/")}
    ours = from_reference(model_config(meta), theirs)
    assert sum(a.size for a in ours.values()) == sum(a.size for a in theirs.values())
    squares = [sum(float(np.sum(np.asarray(a, np.float64) ** 2)) for a in group.values()) for group in (ours, theirs)]
    assert squares[0] == pytest.approx(squares[1], rel=1e-9)
    assert set(magnitudes(model_config(meta), theirs)) == set(ours)


def test_meta_is_plain_json():
    for name in FILES:
        with np.load(path_of(name)) as file:
            meta = json.loads(str(file["meta"]))
            family = set() if meta["kind"] == "transformer_xl" else {"family"}
            assert {"kind", "config", "segment_size"} | family <= set(meta)
