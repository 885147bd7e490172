"""Pieces of facts in the text: often, never a whole fact, the same however the text is read, and in training alone."""

import dataclasses
import re

import numpy as np
import pytest

from armt_jax.data.babilong import BabilongBatches
from armt_jax.data.babilong.torn import shortest_block, torn

FACTS = [np.array([200, 201, 202, 203, 204, 205]), np.array([210, 211, 212, 213, 214, 215, 216])]
EVERY = 40


@pytest.fixture
def plain(background):
    return background.open().split("train")


def test_any_stretch_has_the_same_ids(plain):
    text = torn(plain, FACTS, EVERY, seed=3)
    whole = text.read(0, 1500)
    for start, stop in ((0, 1), (0, EVERY), (7, 300), (39, 41), (400, 1499)):
        np.testing.assert_array_equal(text.read(start, stop), whole[start:stop])
    # A second round of the ring is another text, of the same sentences.
    again = text.read(plain.tokens, plain.tokens + 1500)
    assert not np.array_equal(again, whole)
    assert np.mean(again == plain.read(0, 1500)) > 0.5 and text.place(3) == plain.place(3)


def test_every_block_has_a_piece_and_none_is_a_whole_fact(plain):
    blocks = 2000
    text = torn(plain, FACTS, EVERY, seed=5)
    ids, before = text.read(0, blocks * EVERY), plain.read(0, blocks * EVERY)
    pieces = {"beginning": 0, "end": 0, "both": 0}
    for block, old in zip(ids.reshape(blocks, EVERY), before.reshape(blocks, EVERY), strict=True):
        changed = np.flatnonzero(block != old)
        assert 1 <= len(changed) <= shortest_block(FACTS) and np.all(block[changed] >= 200)
        names, ends = np.isin(block, [200, 210]).any(), np.isin(block, [204, 205, 215, 216]).any()
        pieces["both" if names and ends else "beginning" if names else "end"] += 1
        for fact in FACTS:
            assert not any(np.array_equal(block[i : i + len(fact)], fact) for i in np.flatnonzero(block == fact[0]))
    assert all(0.28 < count / blocks < 0.39 for count in pieces.values()), pieces


def test_training_rows_alone_are_torn_and_keep_their_facts(background):
    source = BabilongBatches(background, segments=6, segment_length=128, max_facts=4)
    often = dataclasses.replace(source, torn_every=96)
    for facts in ("running", "alone"):
        one, other = (dataclasses.replace(each, facts=facts) for each in (source, often))
        for split, same in (("validation", True), ("test", True), ("train", False)):
            a, b = one.batch(0, 2, 4, split), other.batch(0, 2, 4, split)
            assert np.array_equal(a.tokens_BxN, b.tokens_BxN) == same
        np.testing.assert_array_equal(other.batch(0, 2, 4).tokens_BxN, other.batch(0, 2, 4).tokens_BxN)
        for row in other.batch(0, 5, 8).tokens_BxN:
            text = bytes(int(i) for i in row if 0 < i < 256).decode(errors="replace")
            whole = re.findall(r"(?:Mary|John|Daniel|Sandra) (?:went(?: back)?|moved|journeyed|travelled) to the \w+\.", text)
            assert 1 <= len(whole) <= 4
            assert len(re.findall(r"Mary|John|Daniel|Sandra", text)) > len(whole) + 1


@pytest.mark.parametrize("every, message", [(0, "torn_every=0 is out of range"), (20, "torn_every=20 is too few tokens")])
def test_too_often_is_refused(background, every, message):
    with pytest.raises(ValueError, match=message):
        BabilongBatches(background, segments=6, segment_length=64, torn_every=every).batch(0, 0, 2)
