"""Questions along the way: right by the facts before them, over no fact, answered by nothing, in training alone."""

import dataclasses
import re

import numpy as np
import pytest

from armt_jax.data.babi.solvers import solve
from armt_jax.data.babi.story import Story
from armt_jax.data.babilong import BabilongBatches
from armt_jax.data.babilong.asides import asides
from armt_jax.data.errors import DataError

FACT = r" ?(?:Mary|John|Sandra|Daniel) (?:moved|went|went back|travelled|journeyed) to the \w+\."
SPOKEN = re.compile(rf"(?P<fact>{FACT})|(?P<asked> Where is \w+\?)")
EVERY = 48


@pytest.fixture
def source(background):
    return BabilongBatches(background, segments=(6, 9), segment_length=64, questions=2, max_facts=6, asked_every=EVERY)


@pytest.mark.parametrize("question", ["running", "apart"])
def test_each_asks_for_what_the_facts_before_it_say(source, question):
    source = dataclasses.replace(source, question=question)
    asked, told_none, people = 0, 0, set()
    for step in range(4):
        batch = source.batch(3, step, 8)
        for ids, targets, weights, answers, valid in zip(
            batch.tokens_BxN, batch.targets_BxN, batch.weights_BxN, batch.answers_BxN, batch.valid_BxN, strict=True
        ):
            aside = np.flatnonzero((weights > 0) & (answers == 0))
            last = int(np.flatnonzero(answers)[0])  # behind the first question of the end
            told, places = [], []
            # What all answers begin with, a space, is part of an aside.
            text = "".join(chr(i) if real and i < 256 else "\0" for i, real in zip(ids, valid, strict=True))
            for match in SPOKEN.finditer(text[: last + 1]):
                if match["fact"]:
                    told.append(match["fact"].strip())
                    continue
                place = match.end()
                story = Story("qa1", tuple(told), match["asked"].strip(), "", (0,))
                if place < last:
                    places.append(place)
                    people.add(story.question)
                    assert text[place] == " " and chr(targets[place]) == solve(story)[0]
                    told_none += ids[place + 1] != targets[place]
            np.testing.assert_array_equal(aside, places)
            others = np.setdiff1d(np.flatnonzero(valid[:-1] & valid[1:]), aside)
            np.testing.assert_array_equal(targets[others], ids[others + 1])
            asked += len(places)
    assert asked > 4 * 8 * 2 and len(people) == 4 and told_none > 0.9 * asked, "the text goes on"


def test_facts_and_lengths_stay_and_other_splits_have_none(source):
    plain = dataclasses.replace(source, asked_every=None)
    for split in ("validation", "test"):
        a, b = source.batch(0, 1, 4, split), plain.batch(0, 1, 4, split)
        np.testing.assert_array_equal(a.tokens_BxN, b.tokens_BxN)
        np.testing.assert_array_equal(a.weights_BxN, b.weights_BxN)
    a, b = source.batch(0, 1, 4), plain.batch(0, 1, 4)
    np.testing.assert_array_equal(a.answers_BxN, b.answers_BxN)
    np.testing.assert_array_equal(a.valid_BxN, b.valid_BxN)
    assert (a.weights_BxN >= b.weights_BxN).all() and a.weights_BxN.sum() > b.weights_BxN.sum()
    facts = lambda batch: [re.findall(r"\w+ \w+(?: back)? to the \w+\.", "".join(map(chr, row % 256))) for row in batch.tokens_BxN]
    assert facts(a) == facts(b)


def test_one_in_every_so_many_tokens_but_over_no_fact_and_no_other_one():
    rng, spans, ask = np.random.default_rng(0), [(100, 107), (300, 309)], lambda rng, known: (np.full(5, known), 40 + known)
    counts = np.zeros(400, int)
    for _ in range(2000):
        ends = [0]
        for place, ids, wanted in asides(rng, spans, 400, 16, ask):
            assert place >= ends[-1] and place + 5 <= 400
            assert wanted == 40 + ids[0] == 40 + (1 if place < 309 else 2) and place >= 107
            ends.append(place + 5)
            counts[place] += 1
    assert not counts[:107].any() and not counts[296:309].any() and (counts[107:296] > 0).all() and (counts[309:396] > 0).all()


def test_what_cannot_be_asked_is_refused(source):
    with pytest.raises(DataError, match="asked_every=48 is for facts='running', not for 'apart'"):
        dataclasses.replace(source, facts="apart")
    with pytest.raises(DataError, match="asked_every=48 is for task='qa1', whose questions can be made up, not for 'qa2'"):
        dataclasses.replace(source, task="qa2", questions=1)
    with pytest.raises(ValueError, match="asked_every=0 is out of range"):
        dataclasses.replace(source, asked_every=0)
