"""Streams and windows: every target exactly once, rows contiguous and apart, any step on any number of hosts, resets where documents begin.

The text's characters are all different, so a token id tells its position: id = position + 1.
"""

import dataclasses

import jax
import numpy as np
import pytest

from armt_jax.data import STREAMS, ContiguousStreams, CorpusConfig, DataError, Windows
from armt_jax.parallel.mesh import MeshConfig, make_mesh, put_batch


def make_text(documents, start=0) -> list[str]:
    """Documents of the given lengths, of characters that never repeat."""
    texts = []
    for length in documents:
        texts.append("".join(chr(0x3400 + start + i) for i in range(length)))
        start += length
    return texts


@pytest.fixture
def corpus(make_corpus):
    """corpus(60, 40) has documents of 60 and 40 tokens in every split."""

    def make(*documents: int) -> CorpusConfig:
        texts = make_text(documents)
        return make_corpus("characters", train=texts, validation=texts, test=texts)

    return make


def positions(batch) -> np.ndarray:
    return np.asarray(batch.tokens_BxN) - 1


def read_all(source, split, batch_size, steps=None):
    steps = source.num_steps(batch_size, split) if steps is None else steps
    return [source.batch(0, step, batch_size, split) for step in range(steps)]


def predicted(batches) -> np.ndarray:
    """Positions of the targets that count, from every batch."""
    found = [np.asarray(b.targets_BxN)[np.asarray(b.weights_BxN) > 0] - 1 for b in batches]
    return np.sort(np.concatenate(found))


def sources(corpus) -> list:
    text = corpus(61, 40)
    return [
        ContiguousStreams(text, 4, 3),
        ContiguousStreams(text, 4, 3, resets_at="documents"),
        Windows(text, 4, 3),
        Windows(text, 4, 3, stride=5, loss="window"),
    ]


def test_batches_have_the_shapes_that_training_takes(corpus):
    for source in sources(corpus):
        batch = source.batch(0, 3, 6)
        for name, dtype in (("tokens", np.int32), ("targets", np.int32), ("weights", np.float32), ("answers", np.int32)):
            leaf = getattr(batch, f"{name}_BxN")
            assert leaf.shape == (6, source.row_length(source.size)) == (6, 12)
            assert leaf.dtype == dtype
        assert batch.valid_BxN is None
        assert (batch.reset_BxS is None) == (getattr(source, "resets_at", "never") == "never")
        if batch.reset_BxS is not None:
            assert batch.reset_BxS.shape == (6, 3) and batch.reset_BxS.dtype == bool
        assert source.vocab_size == 102 and source.num_answers == 0 and source.largest() == source
        assert source.carries_state == isinstance(source, ContiguousStreams)
        placed = put_batch(batch, make_mesh(MeshConfig()))
        assert jax.tree.structure(placed) == jax.tree.structure(batch)
        counted = np.asarray(batch.weights_BxN) > 0
        assert np.array_equal(batch.targets_BxN[counted], batch.tokens_BxN[counted] + 1)
    assert set(STREAMS) == {"contiguous", "windows"}


@pytest.mark.parametrize("split", ["train", "validation"])
def test_any_step_on_any_number_of_hosts(corpus, split):
    for source in sources(corpus):
        straight = read_all(source, split, 4, steps=2)
        again = dataclasses.replace(source)
        for step in reversed(range(2)):
            hosts = [again.batch(0, step, 4, split, slice(i, i + 1)) for i in range(4)]
            joined = jax.tree.map(lambda *leaves: np.concatenate(leaves), *hosts)
            two = jax.tree.map(lambda *leaves: np.concatenate(leaves), *[again.batch(0, step, 4, split, slice(i, i + 2)) for i in (0, 2)])
            for other in (joined, two):
                assert all(map(np.array_equal, jax.tree.leaves(other), jax.tree.leaves(straight[step])))


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 100, 150])
@pytest.mark.parametrize("segments", [1, 3, 5])
@pytest.mark.parametrize("split", ["validation", "test"])
def test_evaluation_counts_every_target_exactly_once(corpus, batch_size, segments, split):
    text = corpus(61, 40)
    for source in (ContiguousStreams(text, 4, segments), Windows(text, 4, segments), Windows(text, 4, segments, stride=3)):
        batches = read_all(source, split, batch_size)
        assert np.array_equal(predicted(batches), np.arange(1, 101))
        assert {float(w) for b in batches for w in np.unique(b.weights_BxN)} <= {0.0, 1.0}
        assert source.num_targets(split) == 100
        with pytest.raises(ValueError, match=f"step={len(batches)} is past the end of split '{split}', which {len(batches)} steps"):
            source.batch(0, len(batches), batch_size, split)


def test_stateful_evaluation_with_one_row_reads_the_text_from_its_start(corpus):
    source = ContiguousStreams(corpus(61, 40), 4, 3)
    read = np.concatenate([positions(batch)[0] for batch in read_all(source, "test", 1)])
    assert np.array_equal(read[:101], np.arange(101))


def test_stateful_evaluation_rows_are_contiguous_and_apart(corpus):
    source = ContiguousStreams(corpus(61, 40), 4, 2)
    batches = read_all(source, "validation", 3)
    starts = []
    for row in range(3):
        read = np.concatenate([positions(b)[row] for b in batches])
        counted = np.concatenate([b.weights_BxN[row] for b in batches]) > 0
        mine = read[counted]
        starts.append(mine[0])
        assert np.array_equal(mine, np.arange(mine[0], mine[-1] + 1))
        assert np.all(np.diff(counted.astype(int)) <= 0)  # once a row is done it stays done
    assert starts == [0, 33, 66]


@pytest.mark.parametrize("seed", [0, 1])
def test_training_rows_go_on_where_they_ended(corpus, seed):
    source = ContiguousStreams(corpus(61, 40), 4, 3)
    before = source.batch(seed, 0, 5)
    for step in range(1, 40):  # several epochs
        after = source.batch(seed, step, 5)
        assert np.array_equal(after.tokens_BxN[:, 0], before.targets_BxN[:, -1])
        before = after


def test_training_rows_start_evenly_spread(corpus):
    source = ContiguousStreams(corpus(60, 40), 5, 2)
    first = positions(source.batch(3, 0, 4))[:, 0]
    assert np.array_equal((first - first[0]) % 100, [0, 25, 50, 75])
    turns = {int(positions(source.batch(seed, 0, 4))[0, 0]) for seed in range(20)}
    assert len(turns) > 10


def test_an_epoch_of_training_reads_every_token_exactly_once(corpus):
    source = ContiguousStreams(corpus(60, 60), 5, 2)
    for epoch in range(3):
        batches = [source.batch(7, step, 4) for step in range(3 * epoch, 3 * epoch + 3)]  # 4 rows of 10, 120 tokens
        assert np.array_equal(np.sort(np.concatenate([positions(b).ravel() for b in batches])), np.arange(120))
        # Nobody predicts the first token: what precedes it in the ring is the end of the text.
        assert np.array_equal(predicted(batches), np.arange(1, 120))
    assert source.num_steps(4, "train") == 3


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_training_reads_no_token_more_than_another_when_nothing_divides(corpus, batch_size):
    source = ContiguousStreams(corpus(61, 40), 4, 3)
    batches = read_all(source, "train", batch_size, steps=101)  # 12 epochs of each row
    counts = np.bincount(np.concatenate([positions(b).ravel() for b in batches]), minlength=101)
    assert set(counts) == {12 * batch_size}


def test_resets_are_at_segments_in_which_documents_begin(corpus):
    documents = (10, 1, 1, 30, 8, 51)
    source = ContiguousStreams(corpus(*documents), 4, 3, resets_at="documents")
    starts = set(np.cumsum((0, *documents[:-1])))
    for split in ("train", "validation"):
        for batch in read_all(source, split, 3, steps=3 if split == "validation" else 30):
            segments = positions(batch).reshape(3, 3, 4)
            expected = [[bool(starts & set(segment)) for segment in row] for row in segments]
            assert np.array_equal(batch.reset_BxS, expected)
    assert source.batch(0, 0, 1, "test").reset_BxS[0, 0]


def test_a_text_shorter_than_a_row_is_a_short_ring(corpus):
    source = ContiguousStreams(corpus(5, 2), 4, 5, resets_at="documents")
    batch = source.batch(0, 1, 2)
    assert np.array_equal(positions(batch)[:, 1:], (positions(batch)[:, :-1] + 1) % 7)
    assert np.all(batch.weights_BxN == (np.asarray(batch.targets_BxN) != 1))
    assert batch.reset_BxS.sum() > 0
    assert np.array_equal(predicted(read_all(source, "test", 2)), np.arange(1, 7))


# -- windows ---------------------------------------------------------------------------------------------------------------


def test_published_windows_have_seven_segments_of_history(corpus):
    source = Windows(corpus(3000, 1097), 128, 8)
    batches = read_all(source, "test", 8)
    assert source.num_windows("test") == 32
    for window, (tokens, weights) in enumerate((t, w) for b in batches for t, w in zip(positions(b), b.weights_BxN)):
        counted = tokens[weights > 0]
        assert np.array_equal(counted, np.arange(128 * window, 128 * (window + 1)))
        assert np.array_equal(tokens, np.arange(tokens[0], tokens[0] + 1024))
        assert tokens[0] == max(0, 128 * (window - 7))


def test_every_target_has_its_history(corpus):
    source = Windows(corpus(61, 40), 4, 5, stride=3)
    for batch in read_all(source, "test", 2):
        for tokens, weights in zip(positions(batch), batch.weights_BxN):
            for place in np.flatnonzero(weights):
                assert place >= 20 - 3 or tokens[0] == 0


@pytest.mark.parametrize("batch_size", [1, 4, 7])
def test_training_draws_every_window_once_an_epoch_in_a_new_order(corpus, batch_size):
    source = Windows(corpus(61, 40), 4, 3)  # 25 windows
    batches = read_all(source, "train", batch_size, steps=2 * 25)
    blocks = [int(t[w > 0][0]) for b in batches for t, w in zip(positions(b), b.weights_BxN)][:50]
    assert sorted(blocks[:25]) == sorted(blocks[25:50]) == list(range(0, 100, 4))
    assert blocks[:25] != blocks[25:50] and blocks[:25] != sorted(blocks[:25])
    other = [int(positions(source.batch(1, step, batch_size))[0, 0]) for step in range(10)]
    assert other != [int(positions(b)[0, 0]) for b in batches[:10]]


def test_the_history_can_count_in_training_and_never_does_in_evaluation(corpus):
    source = Windows(corpus(61, 40), 4, 3, loss="window")
    for batch in read_all(source, "train", 5):
        for tokens, weights in zip(positions(batch), batch.weights_BxN):
            assert np.all(np.diff(weights) <= 0)
            assert weights.sum() == (12 if tokens[0] > 0 else weights.sum())
    starts = [w for b in read_all(source, "train", 5) for t, w in zip(positions(b), b.weights_BxN) if t[0] == 0]
    assert sorted(w.sum() for w in starts) == [4, 8, 12]
    assert np.array_equal(predicted(read_all(source, "test", 5)), np.arange(1, 101))


def test_windows_longer_than_the_text_are_refused(corpus):
    source = Windows(corpus(10), 4, 3)
    with pytest.raises(DataError, match="split 'train' has 9 targets, fewer than the 12 of a window: lower segments or segment_length"):
        source.batch(0, 0, 1)


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        (ContiguousStreams, {"segments": 0}, "segments=0 is out of range"),
        (ContiguousStreams, {"segment_length": 1.5}, "segment_length=1.5 has type float"),
        (ContiguousStreams, {"resets_at": "pages"}, "resets_at='pages' is unknown: use 'never' or 'documents'"),
        (ContiguousStreams, {"corpus": "enwik8"}, "corpus='enwik8' must be a CorpusConfig"),
        (Windows, {"stride": 25}, "stride=25 is out of range: set it to an integer from 1 to 24"),
        (Windows, {"loss": "all"}, "loss='all' is unknown: use 'block' or 'window'"),
    ],
)
def test_fields_are_checked(kind, fields, message):
    with pytest.raises(ValueError, match=message):
        kind(**{"corpus": CorpusConfig("enwik8"), "segment_length": 8, "segments": 3, **fields})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"step": -1}, "step=-1 is out of range"),
        ({"split": "valid"}, "split='valid' is unknown"),
        ({"rows": slice(2, 6)}, "not a shard of a batch of 4 rows"),
        ({"batch_size": 0}, "batch_size=0 is out of range"),
    ],
)
def test_batch_rejects(corpus, arguments, message):
    with pytest.raises(ValueError, match=message):
        ContiguousStreams(corpus(30), 4, 2).batch(**{"seed": 0, "step": 0, "batch_size": 4, **arguments})


def test_real_text_is_read_once(real_data, tmp_path):
    config = CorpusConfig("wikitext2", str(real_data / "wikitext-2"), "words", cache_dir=str(tmp_path))
    for source in (ContiguousStreams(config, 150, 4), Windows(config, 128, 8)):
        weight = sum(float(batch.weights_BxN.sum()) for batch in read_all(source, "test", 16))
        assert weight == source.num_targets("test") == 245_568
    streams = ContiguousStreams(config, 150, 4)
    ids_N = streams.text("test").ids_N
    rows = [b.targets_BxN[0][b.weights_BxN[0] > 0] for b in read_all(streams, "test", 16)]
    assert np.array_equal(np.concatenate(rows), ids_N[1 : 1 + 245_568 // 16])
