"""Cutting rows: where tokens, memory tokens, positions, resets and truncations end up."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from armt_jax.memory.interface import Layout, memory_layout
from armt_jax.nn.backbones import GPT2, Llama
from armt_jax.nn.layers import row_keys
from armt_jax.recurrence import segments
from armt_jax.recurrence.segments import Frame, Marks


@pytest.mark.parametrize("align", segments.ALIGNMENTS)
@pytest.mark.parametrize("length", [1, 3, 4, 5, 8, 11])
@pytest.mark.parametrize("trailing", [(), (2,)])
def test_join_undoes_split(length, align, trailing):
    x = np.random.default_rng(0).normal(size=(2, length, *trailing)).astype(np.float32)
    cut = segments.split(jnp.asarray(x), 4, align)
    assert cut.shape == (segments.num_segments(length, 4), 2, 4, *trailing)
    np.testing.assert_array_equal(segments.join(cut, length, align), x)


def test_a_short_segment_is_filled_at_the_end_or_at_the_start():
    x = jnp.array([[1, 2, 3, 4, 5]])
    np.testing.assert_array_equal(segments.split(x, 3, "left")[:, 0], [[1, 2, 3], [4, 5, 0]])
    np.testing.assert_array_equal(segments.split(x, 3, "right")[:, 0], [[0, 1, 2], [3, 4, 5]])


@pytest.mark.parametrize("length, want", [(1, 1), (4, 1), (5, 2), (8, 2), (9, 3)])
def test_num_segments(length, want):
    assert segments.num_segments(length, 4) == want


# ---- layout ----


def test_positions_run_on_over_the_memory_tokens():
    np.testing.assert_array_equal(Layout().positions(3, None), [0, 1, 2])
    np.testing.assert_array_equal(Layout(0, 2).positions(3, None), [0, 1, 2, 3, 4])
    np.testing.assert_array_equal(Layout(2, 2).positions(3, None), [0, 1, 2, 3, 4, 5, 6])


def test_positions_in_a_grown_table_are_its_last_rows():
    np.testing.assert_array_equal(Layout(0, 2, table_rows=12).positions(3, None), [0, 1, 2, 10, 11])
    np.testing.assert_array_equal(Layout(2, 2, table_rows=12).positions(3, None), [0, 1, 2, 3, 4, 10, 11])


def test_padding_shifts_no_position():
    valid = jnp.array([[True, True, False], [False, True, True], [True, False, True], [False, False, False]])
    text = Layout(1, 1).positions(3, valid)[:, 1:4]
    assert [list(t[v]) for t, v in zip(np.asarray(text), np.asarray(valid))] == [[1, 2], [1, 2], [1, 2], []]
    np.testing.assert_array_equal(Layout(1, 1).positions(3, valid)[:, 4], [3, 3, 3, 1])
    np.testing.assert_array_equal(Layout(1, 1, table_rows=9).positions(3, valid)[:, [0, 4]], [[0, 8]] * 4)
    assert Layout(1, 1).positions(3, valid).min() >= 0


def test_parts_of_a_segment():
    layout, x = Layout(1, 2), jnp.arange(6).reshape(1, 6, 1)
    np.testing.assert_array_equal(layout.real(x)[0, :, 0], [1, 2, 3])
    np.testing.assert_array_equal(layout.write_slots(x)[0, :, 0], [4, 5])
    np.testing.assert_array_equal(
        layout.wrap_valid(jnp.array([[True, False, False]])), [[True, True, False, False, True, True]]
    )
    assert layout.wrap_valid(None) is None
    assert Layout(1, 0).write_slots(x).shape == (1, 0, 1) and Layout().real(x).shape == x.shape


def test_memory_layout():
    small = dict(width=16, num_heads=4, max_positions=32)
    assert memory_layout(2, 3, "running", Llama(**small)) == Layout(2, 3, None)
    assert memory_layout(2, 3, "table", GPT2(**small)) == Layout(2, 3, 37)
    with pytest.raises(ValueError, match="Llama has none: use 'running'"):
        memory_layout(2, 3, "table", Llama(**small))
    with pytest.raises(ValueError, match="memory.positions = 'rotary' must be one of"):
        memory_layout(2, 3, "rotary", GPT2(**small))


# ---- frames ----


def frames_of(length=12, align="left", bptt_segments=None, keys_B=None, **marks):
    more = dict(length=length, segment_length=4, align=align, bptt_segments=bptt_segments, keys_B=keys_B)
    return segments.frames(batch=2, layout=Layout(1, 1), marks=Marks(**marks), **more)


def test_full_segments_need_no_facts():
    assert frames_of() == (Frame(), None)


@pytest.mark.parametrize("align, short", [("left", 2), ("right", 0)])
def test_a_ragged_row_is_masked_and_all_its_rows_live(align, short):
    frame, valid = frames_of(length=10, align=align)
    want = np.ones((3, 2, 4), bool)
    want[short, :, 2:] = align != "left"
    want[short, :, :2] = align == "left"
    np.testing.assert_array_equal(valid, want)
    np.testing.assert_array_equal(frame.valid_BxT[..., 1:-1], want)
    assert np.all(frame.valid_BxT[..., 0]) and np.all(frame.valid_BxT[..., -1])
    assert frame.live_B is None


def test_a_row_lives_where_it_has_a_token():
    valid = np.ones((2, 12), bool)
    valid[0, 4:8], valid[1, :3], valid[1, 9:] = False, False, False
    frame, cut = frames_of(valid_BxN=jnp.asarray(valid))
    np.testing.assert_array_equal(frame.live_B, [[True, True], [False, True], [True, True]])
    np.testing.assert_array_equal(cut[1], [[False] * 4, [True] * 4])


def test_a_peek_does_not_live():
    peek = np.array([[False, True, False], [False, False, True]])
    frame, cut = frames_of(peek_BxS=jnp.asarray(peek))
    np.testing.assert_array_equal(frame.live_B, ~peek.T)
    assert frame.valid_BxT is None and cut is None
    valid = np.ones((2, 12), bool)
    valid[0, :4] = False
    frame, _ = frames_of(peek_BxS=jnp.asarray(peek), valid_BxN=jnp.asarray(valid))
    np.testing.assert_array_equal(frame.live_B, ~peek.T & np.array([[False, True], [True, True], [True, True]]))


def test_resets_lie_by_segment():
    frame, _ = frames_of(reset_BxS=jnp.array([[True, False, False], [False, False, True]]))
    np.testing.assert_array_equal(frame.reset_B, [[True, False], [False, False], [False, True]])


@pytest.mark.parametrize(
    "k, want",
    [
        (1, [0, 1, 1, 1, 1]),
        (2, [0, 1, 0, 1, 0]),
        (3, [0, 0, 1, 0, 0]),
        (4, [0, 1, 0, 0, 0]),
        (5, None),
        (9, None),
        (None, None),
    ],
)
def test_stretches_are_counted_from_the_end(k, want):
    """The first segment starts from what the row starts from: there is nothing before it to cut off."""
    detach = frames_of(length=20, bptt_segments=k)[0].detach
    assert detach is None if want is None else list(np.asarray(detach).astype(int)) == want


def test_every_row_of_every_segment_has_a_key_of_its_own():
    keys = jax.random.key_data(frames_of(keys_B=row_keys(jax.random.key(3), 2))[0].keys_B)
    assert keys.shape[:2] == (3, 2) and len({tuple(k) for k in np.asarray(keys).reshape(6, -1)}) == 6


def test_choose():
    new, old = {"a": jnp.ones((2, 3)), "b": jnp.ones(2)}, {"a": jnp.zeros((2, 3)), "b": jnp.zeros(2)}
    got = segments.choose(jnp.array([True, False]), new, old)
    np.testing.assert_array_equal(got["a"], [[1, 1, 1], [0, 0, 0]])
    np.testing.assert_array_equal(got["b"], [1, 0])


def test_renew():
    state, fresh = jnp.array([[1.0], [2.0]]), lambda: jnp.array([[7.0], [8.0]])
    assert segments.renew(state, fresh, Frame()) is state
    frame = Frame(reset_B=jnp.array([False, True]))
    np.testing.assert_array_equal(segments.renew(state, fresh, frame), [[1], [8]])
    for detach, want in ((True, 0.0), (False, 1.0)):
        frame = Frame(detach=jnp.array(detach))
        np.testing.assert_array_equal(segments.renew(state, fresh, frame), state)
        np.testing.assert_array_equal(jax.grad(lambda s, f=frame: segments.renew(s, fresh, f).sum())(state), [[want], [want]])
