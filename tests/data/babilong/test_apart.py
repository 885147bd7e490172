"""Rows whose facts stand whole in segments of their own or share them, against the stories they are made of."""

import dataclasses
import re

import numpy as np
import pytest

from armt_jax.data.babi.solvers import solve
from armt_jax.data.babi.story import Story
from armt_jax.data.babilong import BabilongBatches, apart
from armt_jax.data.errors import DataError

T, SEGMENTS, ASKED = 64, 9, 3


@pytest.fixture
def source(background):
    fields = dict(segments=SEGMENTS, segment_length=T, max_facts=5, facts="apart", question="apart", questions=ASKED)
    return BabilongBatches(background, **fields)


def segments_of(source, batch, row):
    """(text of each segment as far as it is real, ids that are predicted there)."""
    valid, tokens, targets = batch.valid_BxN[row], batch.tokens_BxN[row], batch.targets_BxN[row]
    decode = lambda ids: bytes(int(i) for i in ids if i < 256).decode()
    for segment in range(SEGMENTS):
        place = slice(segment * T, (segment + 1) * T)
        yield decode(tokens[place][valid[place]]), targets[place][batch.answers_BxN[row][place] > 0]


def story_of(segments):
    """The facts that open segments, and the questions and answers that do; checked for what stands around them."""
    facts, asked = [], []
    for number, (text, said) in enumerate(segments):
        if text.startswith(" Where is "):
            question, answer = text.split("?")
            asked.append((question.strip() + "?", answer.strip(), said))
            assert number >= SEGMENTS - ASKED
        else:
            assert number < SEGMENTS - ASKED and len(text.encode()) == T and not len(said)
            first = text[: text.index(".") + 1] if "." in text else ""
            if first.split()[:1] and first.split()[0] in ("Mary", "John", "Sandra", "Daniel"):
                facts.append(first.strip())
    return facts, asked


def test_every_fact_and_question_opens_a_segment(source):
    batch, places, people = source.batch(5, 0, 40), set(), []
    assert batch.tokens_BxN.shape == (40, SEGMENTS * T)
    for row in range(40):
        segments = list(segments_of(source, batch, row))
        facts, asked = story_of(segments)
        assert 1 <= len(facts) <= 5 and len(asked) == ASKED
        places |= {i for i, (text, _) in enumerate(segments) if any(text.strip().startswith(fact) for fact in facts)}
        for question, answer, said in asked:
            assert answer == solve(Story("qa1", tuple(facts), question, "", (0,)))
            assert source.codec.decode_answer(said) == answer and said[-1] == source.codec.end_id
        people.append([question for question, *_ in asked])
    assert places == set(range(SEGMENTS - ASKED)), "facts stand in any of the segments before the questions"
    assert any(len(set(each)) < len(each) for each in people), "people are drawn anew for every question"


FACT = re.compile(r" (?:Mary|John|Sandra|Daniel) (?:moved|went|went back|travelled|journeyed) to the \w+\.")


@pytest.mark.parametrize("question", ["running", "apart"])
def test_alone_a_fact_stands_anywhere_in_a_segment_and_so_does_a_running_question(source, question):
    source = dataclasses.replace(source, facts="alone", question=question)
    batch, begins, asked_at = source.batch(5, 0, 40), set(), set()
    for row in range(40):
        told = []
        for number, (text, said) in enumerate(segments_of(source, batch, row)):
            found = list(FACT.finditer(text))
            if number < SEGMENTS - ASKED:
                assert len(found) <= 1 and len(text.encode()) == T and not len(said)
                told += [match.group().strip() for match in found]
                begins |= {len(text[: match.start()].encode()) for match in found}
            else:
                (asked,) = re.finditer(r" (Where is \w+\?) (\w+)$", text)
                assert not found and asked[2] == solve(Story("qa1", tuple(told), asked[1], "", (0,)))
                assert source.codec.decode_answer(said) == asked[2]
                asked_at.add(len(text[: asked.start()].encode()))
        assert 1 <= len(told) <= 5
    assert len(begins) > 10 and (asked_at == {0} if question == "apart" else len(asked_at) > 10)


@pytest.mark.parametrize("segments", [ASKED + 2, ASKED + 6])
def test_whole_facts_share_segments_in_order_and_none_is_cut(source, segments):
    source = dataclasses.replace(source, facts="whole", question="running", segments=segments, max_facts=4, segment_length=96)
    batch, shared, begins = source.batch(5, 0, 40), 0, set()
    for row in range(40):
        ids, answers, told = batch.tokens_BxN[row].reshape(segments, -1), batch.answers_BxN[row].reshape(segments, -1), []
        for number in range(segments - ASKED):
            text = bytes(ids[number].astype(np.uint8)).decode()
            found = list(FACT.finditer(text))
            assert not answers[number].any() and not any(name in FACT.sub("", text) for name in ("Mary", "John", "Sandra", "Daniel"))
            told += [match.group().strip() for match in found]
            shared += len(found) > 1
            begins |= {match.start() for match in found}
        assert 1 <= len(told) <= 4
        for number in range(segments - ASKED, segments):
            text = bytes(int(i) for i in ids[number][batch.valid_BxN[row].reshape(segments, -1)[number]] if i < 256).decode()
            (asked,) = re.finditer(r" (Where is \w+\?) (\w+)$", text)
            assert asked[2] == solve(Story("qa1", tuple(told), asked[1], "", (0,)))
    assert shared > 10 and len(begins) > 20


def test_whole_facts_share_as_gaps_in_running_text_are_drawn():
    """Chi-square over the segments of three facts: drawn with replacement, and sorted."""
    rng = np.random.default_rng(0)
    drawn = np.array([apart.shared_segments(rng, [5, 5, 5], 3, 64) for _ in range(5400)])
    cells, counts = np.unique(drawn, axis=0, return_counts=True)
    expected = np.array([5400 / 27 * {1: 1, 2: 3, 3: 6}[len(set(cell))] for cell in cells.tolist()])
    assert len(cells) == 10 and ((counts - expected) ** 2 / expected).sum() < 23.6, "9 degrees of freedom, p = 0.005"


def test_the_loss_is_on_answers_and_text_behind_padding_is_not_predicted(source):
    batch = source.batch(5, 0, 8)
    np.testing.assert_array_equal(batch.weights_BxN > 0, batch.answers_BxN > 0)
    batch = dataclasses.replace(source, text_weight=0.5).batch(5, 0, 8)
    for row in range(8):
        predicted = np.flatnonzero(batch.weights_BxN[row]) + 1
        first_of_questions = np.arange(SEGMENTS - ASKED + 1, SEGMENTS) * T
        assert not set(first_of_questions) & set(predicted) and batch.valid_BxN[row, predicted - 1].all()


def test_rows_depend_on_seed_step_and_number_alone(source):
    whole = source.batch(5, 3, 6)
    part = source.batch(5, 3, 6, rows=slice(2, 4))
    for name in ("tokens_BxN", "targets_BxN", "weights_BxN", "answers_BxN", "valid_BxN"):
        np.testing.assert_array_equal(getattr(whole, name)[2:4], getattr(part, name))
    assert not np.array_equal(source.batch(5, 4, 6).tokens_BxN, whole.tokens_BxN)


def test_what_does_not_fit_is_refused(source):
    with pytest.raises(DataError, match="facts='aside' is unknown: use 'running' or 'apart' or 'alone' or 'whole'"):
        dataclasses.replace(source, facts="aside")
    with pytest.raises(DataError, match="none of .* fits a row of 4 segments of 64 tokens with one for each question and facts 'apart'"):
        dataclasses.replace(source, segments=4).batch(0, 0, 2)
    assert dataclasses.replace(source, segments=4, facts="whole", max_facts=2).batch(0, 0, 2).valid_BxN.any()
    with pytest.raises(DataError, match="segments of 24 tokens with one for each question and facts 'whole'"):
        dataclasses.replace(source, facts="whole", segment_length=24).batch(0, 0, 2)
