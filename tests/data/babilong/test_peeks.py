"""Questions along the way: answered by the facts until there, in training alone; without them a row is what it was."""

import dataclasses
import re

import numpy as np
import pytest

from armt_jax.data.babi.solvers import solve
from armt_jax.data.babi.story import Story
from armt_jax.data.babilong import BabilongBatches
from armt_jax.data.babilong.peeks import draw_peek
from armt_jax.data.errors import DataError

T, PEEKS = 96, 5
FACT = re.compile(r"(?:Mary|John|Sandra|Daniel) (?:moved|went|went back|travelled|journeyed) to the \w+\.")
ASKED = re.compile(r" (Where is (\w+)\?) (\w+)\0")


@pytest.fixture
def source(background):
    return BabilongBatches(background, segments=(6, 9), segment_length=T, questions=2, max_facts=6, peeks=PEEKS)


def rows(batch):
    """(ids, targets, weights, groups, valid, which are peeks) of each row, [segments, T]."""
    for row in range(len(batch.tokens_BxN)):
        leaves = (batch.tokens_BxN, batch.targets_BxN, batch.weights_BxN, batch.answers_BxN, batch.valid_BxN)
        yield *(leaf[row].reshape(-1, T) for leaf in leaves), batch.peek_BxS[row]


def said(ids, valid):
    """The end token, no byte, as \\0."""
    return "".join(chr(i) if i < 256 else "\0" for i in ids[valid])


@pytest.mark.parametrize("question", ["running", "apart"])
def test_a_peek_is_the_beginning_of_the_next_segment_with_questions_about_the_facts_until_there(source, question):
    source, people, facts_since, places = dataclasses.replace(source, question=question), set(), set(), set()
    for step in range(3):
        batch = source.batch(3, step, 8)
        assert batch.peek_BxS.sum() == 8 * PEEKS
        for ids, targets, weights, groups, valid, is_peek in rows(batch):
            seen = []
            for s in np.flatnonzero(is_peek & valid.any(axis=1)):
                text = said(ids[s], valid[s])
                begin = text.index(" Where is ")
                kept = "".join(said(ids[i], valid[i]) for i in np.flatnonzero(~is_peek[:s]))
                (after, *_) = (i for i in range(s, len(ids)) if not is_peek[i])
                assert said(ids[after], valid[after])[:begin] == text[:begin]
                told = tuple(FACT.findall(kept + text[:begin]))
                asked = ASKED.findall(text[begin:])
                assert 1 <= len(asked) <= 2 and len({name for _, name, _ in asked}) == len(asked)
                for one, name, answer in asked:
                    assert answer == solve(Story("qa1", told, one, "", (0,)))
                    people.add(name)
                for group in sorted(set(groups[s]) - {0}):
                    part = groups[s] == group
                    assert targets[s][part][-1] == source.codec.end_id and (weights[s][part] == 1).all()
                    seen.append(group)
                facts_since.add(len(told))
                places.add(begin)
            assert len(set(seen)) == len(seen) and all(2 < group <= source.num_answers for group in seen)
    assert len(people) == 4 and len(facts_since) >= 4 and len(places) > 20


def test_without_its_peeks_a_row_is_what_it_was(source):
    plain = dataclasses.replace(source, peeks=0)
    assert source.num_answers == 2 * (1 + PEEKS) and source.row_length(6) == plain.row_length(6)
    for step in range(3):
        with_peeks, without = source.batch(3, step, 6), plain.batch(3, step, 6)
        assert without.peek_BxS is None
        for name in ("tokens_BxN", "targets_BxN", "weights_BxN", "answers_BxN", "valid_BxN"):
            for row in range(6):
                kept = getattr(with_peeks, name)[row].reshape(-1, T)[~with_peeks.peek_BxS[row]].ravel()
                # What comes next may be a peek: nobody is asked for it there.
                where = without.weights_BxN[row] > 0 if name == "targets_BxN" else slice(None)
                np.testing.assert_array_equal(kept[where], getattr(without, name)[row][where], err_msg=name)
        part = source.batch(3, step, 6, rows=slice(2, 4))
        np.testing.assert_array_equal(part.tokens_BxN, with_peeks.tokens_BxN[2:4])
        np.testing.assert_array_equal(part.peek_BxS, with_peeks.peek_BxS[2:4])
    for split in ("validation", "test"):
        a, b = source.batch(3, 0, 4, split), plain.batch(3, 0, 4, split)
        assert a.peek_BxS is None
        np.testing.assert_array_equal(a.tokens_BxN, b.tokens_BxN)


def test_text_is_predicted_once(source):
    """With a loss on text, too: not in a peek, nor is the first token behind one, which comes after the segment before."""
    source = dataclasses.replace(source, text_weight=0.5)
    whole = []
    for _, _, weights, groups, _, is_peek in rows(source.batch(3, 0, 8)):
        before, after = np.append(False, is_peek[:-1]), np.append(is_peek[1:], False)
        assert set(weights[is_peek].ravel()) == {0, 1} and (weights[is_peek] == (groups[is_peek] > 0)).all()
        assert not weights[after & ~is_peek][:, -1].any(), "what comes next is the peek's"
        whole.append(weights[~is_peek & ~before & ~after][:-1])
    inside = np.concatenate(whole)
    assert np.isin(inside, (0, 0.5, 1)).all() and (inside == 0.5).mean() > 0.9


def test_a_place_is_in_no_fact_and_where_nothing_fits_nothing_is_asked():
    rng, context, spans = np.random.default_rng(0), np.arange(1000, 1300), [(100, 110), (200, 212)]
    ask = lambda rng, told: (np.full(7, told), np.array([0, 0, 0, 0, 0, 1, 1]))
    places = set()
    for _ in range(3000):
        peek = draw_peek(rng, context, spans, 32, ask)
        read = len(peek.ids) - 7
        place = 32 * peek.segment + read
        np.testing.assert_array_equal(peek.ids[:read], context[32 * peek.segment : place])
        assert peek.ids[-1] == (1 if place < 212 else 2) and read + 7 <= 32
        places.add(place)
    assert places == {p for p in range(110, 301) if p % 32 <= 25 and not 200 < p < 212}
    nothing = draw_peek(rng, context, spans, 6, ask)
    assert not nothing.ids.size and not nothing.groups.size


def test_a_peek_of_nothing_is_padding(background):
    source = BabilongBatches(background, segments=8, segment_length=24, max_facts=2, peeks=3)
    batch = source.batch(0, 0, 4)  # a question and its answer have 22 bytes and more
    empty = 0
    for row in range(4):
        valid = batch.valid_BxN[row].reshape(-1, 24).any(axis=1)
        assert valid[~batch.peek_BxS[row]][:-1].all()
        empty += (~valid & batch.peek_BxS[row]).sum()
    assert empty and np.isfinite(batch.weights_BxN).all()


def test_what_cannot_be_asked_is_refused(source):
    with pytest.raises(DataError, match="peeks=5 is for facts='running', not for 'apart': set it to 0"):
        dataclasses.replace(source, facts="apart")
    with pytest.raises(DataError, match="peeks=5 is for task='qa1', whose questions can be made up, not for 'qa2'"):
        dataclasses.replace(source, task="qa2", questions=1)
    with pytest.raises(ValueError, match="peeks=-1 is out of range"):
        dataclasses.replace(source, peeks=-1)
