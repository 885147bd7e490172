"""Which segments of text write: counted by hand on a memory that does what the text says, and on a run through the command."""

import numpy as np
import pytest

from armt_jax.config import resolve
from armt_jax.evaluation import babilong_writes
from armt_jax.recurrence.schedules import GridState

FACT, LOUD, QUIET = 1, 2, 0


class Told:
    """A reader with two layers and two leaves; a segment moves layer 2 by as much as its LOUD tokens say, layer 1 never holds anything."""

    segment_length = 4

    def empty(self):
        return GridState((np.zeros((2, 2, 3, 1)), np.zeros((2, 2, 1))), ())

    def ingest(self, state, tokens_BxN):
        A, z = (leaf.copy() for leaf in state.layers)
        A[1, :, 0, 0] += 4 * np.sum(tokens_BxN == FACT, axis=1)
        z[1, :, 0] += 3 * np.sum(tokens_BxN == FACT, axis=1)
        A[1, :, 1, 0] += np.sum(tokens_BxN == LOUD, axis=1)
        return GridState((A, z), ())


@pytest.fixture
def writes():
    facts = np.full((2, 4), QUIET)
    facts[:, 0] = FACT  # a memory of size 5, from both leaves
    text = np.full((2, 12), QUIET)
    text[0, 4:6], text[1, 8] = LOUD, LOUD  # row 0: two in its second segment; row 1: one in its third
    return babilong_writes.observe(Told(), facts, text)


def test_changes_are_counted_in_the_size_of_the_memory(writes):
    assert list(writes.changes) == ["layer 2"]  # of layer 1 the facts left nothing
    np.testing.assert_allclose(writes.changes["layer 2"], [[0, 0], [2 / 5, 0], [0, 1 / 5]])
    np.testing.assert_allclose(writes.moved["layer 2"], [2 / 5, 1 / 5])
    line = babilong_writes.table(writes).splitlines()[-1].split()
    assert line == ["layer", "2", "2", "of", "6", "0.333", "0.300", "0.400", "0.300"]


def test_the_largest_come_with_their_text_and_no_more_than_wrote(writes):
    found = babilong_writes.largest(writes, 5, Told.segment_length)
    assert [(place, round(change, 6)) for place, change, _ in found] == [("layer 2", 0.4), ("layer 2", 0.2)]
    np.testing.assert_array_equal([ids for _, _, ids in found], [[LOUD, LOUD, QUIET, QUIET], [LOUD, QUIET, QUIET, QUIET]])


def test_the_text_has_no_fact_in_it_and_the_stories_have_them_all(config):
    task = resolve(config).task
    stories, text = babilong_writes.read(task, rows=3, segments=4, facts_within=150, T=32)
    assert stories.shape == (3, 160) and text.shape == (3, 128)
    samples = task.samples("test", 400, 0, 150)
    for index, (told, behind) in enumerate(zip(stories, text, strict=True)):
        sample = samples.sample(index)
        np.testing.assert_array_equal(told, sample.read(0, 160))
        np.testing.assert_array_equal(behind, sample.read(160, 288))
        assert max(sample.fact_positions_F) < 150


def test_the_command(workdir, capsys):
    babilong_writes.main([str(workdir), "--rows=2", "--segments=3", "--facts_within=160", "--show=1"])
    out = capsys.readouterr().out.splitlines()
    # Initial weights have no gate: every segment writes.
    assert out[0].endswith("2 rows of 3 segments of 32 tokens, behind facts within 160") and "layer 1" in out[3] and "6 of 6" in out[3]
    assert out[4].startswith("layer 1, ")
    for wrong, said in (("--rows=0", "--rows=0 must be at least 1"), ("--checkpoint=9", "9"), ("--checkpoint=frist", "must be best")):
        with pytest.raises(SystemExit) as e:
            babilong_writes.main([str(workdir), wrong])
        assert "error: " in str(e.value) and said in str(e.value)
    with pytest.raises(SystemExit, match="error: "):
        babilong_writes.main([str(workdir.parent / "nothing")])
