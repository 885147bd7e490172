"""Batches of BABILong against the samples they are made of."""

import dataclasses
import re

import jax
import numpy as np
import pytest

from armt_jax.config import override, resolve
from armt_jax.data.babilong import BabilongBatches, BackgroundConfig
from armt_jax.data.errors import DataError


@pytest.fixture
def source(background):
    return BabilongBatches(background, segments=(4, 6), segment_length=64, max_facts=5)


def rows_of(batch):
    for i in range(len(batch.tokens_BxN)):
        yield jax.tree.map(lambda leaf, i=i: leaf[i], batch)


def pieces(source, row):
    """(context, [(question, answer), ...]) as text, read off the batch alone."""
    decode = lambda ids: bytes(int(i) for i in ids if i < 256).decode()
    answers = []
    real = np.flatnonzero(row.valid_BxN)
    whole = np.append(row.tokens_BxN, 0)
    whole[real[-1] + 1] = row.targets_BxN[real[-1]]
    assert row.answers_BxN.max() <= source.questions
    for group in range(1, row.answers_BxN.max() + 1):
        places = np.flatnonzero(row.answers_BxN == group)
        assert np.array_equal(places, np.arange(places[0], places[-1] + 1))
        assert row.targets_BxN[places[-1]] == source.codec.end_id
        answers.append((places[0] + 1, decode(row.targets_BxN[places[:-1]])))
    valid = row.valid_BxN
    text = decode(whole[:-1][valid])
    return text, answers


def test_every_answer_of_the_task_is_encoded_before_a_run(source, monkeypatch):
    """One that a later row asks for, too: a tokenizer that makes one id of "? o" shows in the answer "office" alone."""
    source.check_answers()
    plain = type(source.tokenizer).encode

    def merging(tokenizer, text):
        before, asked, after = text.partition("? o")
        one = [np.int32(0)] if asked else []
        return np.concatenate([plain(tokenizer, before), one, plain(tokenizer, after)]).astype(np.int32)

    monkeypatch.setattr(type(source.tokenizer), "encode", merging)
    source.codec.answer.cache_clear()
    with pytest.raises(DataError, match="splits the answer 'office' differently in context"):
        source.check_answers()


@pytest.mark.parametrize("question", ["running", "apart"])
def test_a_row_is_context_question_answer(source, question):
    source = dataclasses.replace(source, question=question)
    for step in range(3):
        batch = source.batch(7, step, 4)
        N = batch.tokens_BxN.shape[1]
        assert N in (4 * 64, 6 * 64)
        for row in rows_of(batch):
            text, [(_, answer)] = pieces(source, row)
            tail = text[text.rindex(" Where is ") :]
            where, said = tail.split("?")
            assert said == answer and where.startswith(" Where is ")
            real = np.flatnonzero(row.valid_BxN)
            # The last token of the row is predicted, never read.
            assert row.answers_BxN[real[-1]] == 1 and not row.answers_BxN[real[-1] + 1 :].any()
            assert N - 64 <= real[-1] < N
            if question == "running":
                assert np.array_equal(real, np.arange(len(real)))
            else:
                assert bytes(row.tokens_BxN[N - 64 : N - 54].astype(np.uint8)) == b" Where is "
                assert row.valid_BxN[: N - 127].all()
            assert np.array_equal(row.weights_BxN > 0, row.answers_BxN > 0)
            assert not np.any(row.weights_BxN[~row.valid_BxN])
            read = np.flatnonzero(row.valid_BxN[:-1] & row.valid_BxN[1:])
            assert np.array_equal(row.targets_BxN[read], row.tokens_BxN[read + 1])


def test_a_row_is_a_sample_of_its_length(source):
    """Its context is, id by id, that of `BabilongSamples`, which streams are made of: training and evaluation read the same."""
    batch = source.batch(3, 0, 5, "validation")
    for i, row in enumerate(rows_of(batch)):
        real = int(row.valid_BxN.sum())
        answer = row.targets_BxN[row.answers_BxN == 1]
        asked = len(" Where is Mary?") if b"Mary?" in bytes(row.tokens_BxN[row.valid_BxN].astype(np.uint8)) else None
        for extra in [asked] if asked else range(14, 19):
            sample = source.samples("validation", real - len(answer) + 1, seed=3).sample(i)
            if len(sample.question_ids) == extra:
                break
        want = np.concatenate([sample.context(), sample.question_ids, sample.answer_ids])
        assert np.array_equal(row.tokens_BxN[:real], want[:-1]) and np.array_equal(row.targets_BxN[:real], want[1:])


def test_determinism_and_shards(source):
    whole = source.batch(1, 5, 6)
    again = source.batch(1, 5, 6)
    parts = [source.batch(1, 5, 6, rows=slice(*cut)) for cut in ((0, 2), (2, 6))]
    glued = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
    for leaf, same, part in zip(*map(jax.tree.leaves, (whole, again, glued))):
        assert np.array_equal(leaf, same) and np.array_equal(leaf, part)
    for other in (source.batch(2, 5, 6), source.batch(1, 6, 6), source.batch(1, 5, 6, "validation")):
        assert other.tokens_BxN.shape != whole.tokens_BxN.shape or not np.array_equal(other.tokens_BxN, whole.tokens_BxN)


def test_lengths_are_mixed(source):
    sizes = [source.batch(0, step, 1).tokens_BxN.shape[1] // 64 for step in range(40)]
    assert set(sizes) == {4, 6} and 8 <= sizes.count(4) <= 32
    ends = {int(np.flatnonzero(row.valid_BxN)[-1]) % 64 for step in range(8) for row in rows_of(source.batch(0, step, 8))}
    assert len(ends) > 25  # questions end at every place of a segment
    fixed = dataclasses.replace(source, segments=4, margin=20)
    batch = fixed.batch(0, 0, 4)
    first = [int(np.flatnonzero(row.answers_BxN)[0]) for row in rows_of(batch)]
    lengths = [int((row.answers_BxN > 0).sum()) for row in rows_of(batch)]
    assert [a + n for a, n in zip(first, lengths)] == [4 * 64 - 20] * 4
    assert source.largest().sizes == (6,)


@pytest.mark.parametrize("questions", [2, 3, 4])
def test_more_questions_are_right_and_of_different_people(background, questions):
    source = BabilongBatches(background, segments=8, segment_length=64, questions=questions)
    asked, orders = set(), set()
    for row in rows_of(source.batch(0, 0, 12)):
        text, answers = pieces(source, row)
        context, *tails = text.split(" Where is ")
        # A background sentence starts with "Anna", "Boris" or "Carol", a fact with a person of bAbI.
        last = dict(re.findall(r"(Mary|John|Daniel|Sandra) [a-z ]+ to the (\w+)\.", context))
        assert len(answers) == len(tails) == min(questions, len(last))
        names = tuple(tail.split("?")[0] for tail in tails)
        # An answer twice in the open segment could be copied.
        assert len(set(names)) == len(names)
        for name, tail, (_, answer) in zip(names, tails, answers, strict=True):
            assert tail.split("?")[1] == answer == f" {last[name]}"
        asked |= set(names)
        orders.add(names)
    assert len(asked) == 4 and len(orders) > 4


def test_a_story_of_one_person_has_one_question(background):
    source = BabilongBatches(background, segments=8, segment_length=64, questions=4, max_facts=2)
    counts = {int(row.answers_BxN.max()) for row in rows_of(source.batch(0, 0, 24))}
    assert counts == {1, 2}


def test_the_text_may_weigh(source):
    batch = dataclasses.replace(source, segments=4, text_weight=0.25).batch(0, 0, 3)
    answer = batch.answers_BxN > 0
    assert np.all(batch.weights_BxN[answer] == 1) and np.all(batch.weights_BxN[batch.valid_BxN & ~answer] == 0.25)
    assert not batch.weights_BxN[~batch.valid_BxN].any()


@pytest.fixture
def from_files(background, tmp_path):
    """Two persons, four rooms."""
    story = "1 Mary moved to the {}.\n2 John went to the garden.\n3 Where is Mary? \t{}\t1\n"
    rooms = ("office", "garden", "kitchen", "hallway")
    for split in ("train", "test"):
        (tmp_path / f"qa1_single-supporting-fact_{split}.txt").write_text("".join(story.format(r, r) for r in rooms * 10))
    return BabilongBatches(background, stories=str(tmp_path), segments=4, segment_length=64)


def test_files_end(from_files):
    source = from_files
    assert source.num_steps(3, "test") == 13 and source.num_steps(3, "validation") == 1 and source.num_steps(3, "train") is None
    assert source.num_steps(50, "validation") == 1
    source.batch(0, 0, 50, "validation")  # more rows than stories: some come twice
    generated = dataclasses.replace(source, stories=None)
    assert generated.num_steps(3, "test") is None and generated.fingerprint != source.fingerprint


def test_training_may_be_on_generated_stories_and_the_rest_on_files(from_files):
    mixed, generated = dataclasses.replace(from_files, generate=True), dataclasses.replace(from_files, stories=None)
    same = lambda a, b, split: all(
        np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a.batch(1, 2, 6, split)), jax.tree.leaves(b.batch(1, 2, 6, split)))
    )
    assert same(mixed, generated, "train") and not same(mixed, from_files, "train")
    for split in ("validation", "test"):
        assert same(mixed, from_files, split) and not same(mixed, generated, split)
        assert mixed.num_steps(3, split) == from_files.num_steps(3, split)
    assert mixed.samples("test", 300).stories == from_files.samples("test", 300).stories
    assert len({each.fingerprint for each in (mixed, generated, from_files)}) == 3


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(question="behind"), "'running' or 'apart'"),
        (dict(questions=2, task="qa2"), "qa1"),
        (dict(segments=1, question="apart"), "segments"),
        (dict(margin=64, segment_length=64), "margin"),
        (dict(text_weight=2.0), "text_weight"),
        (dict(task="qa21"), "qa21"),
    ],
)
def test_bad_fields(background, fields, message):
    with pytest.raises(ValueError, match=message):
        BabilongBatches(background, **fields)


def test_stories_that_fit_nothing(background):
    with pytest.raises(DataError, match="fits a row of 1 segments of 16 tokens"):
        BabilongBatches(background, segments=1, segment_length=16).batch(0, 0, 1)


def test_a_background_must_be_one():
    with pytest.raises(ValueError, match="BackgroundConfig"):
        BabilongBatches("/data/books")
    with pytest.raises(ValueError, match="wants a folder of books"):
        BabilongBatches(BackgroundConfig("/nowhere", tokenizer="bytes")).batch(0, 0, 1)


def test_a_config_names_what_is_wrong(background):
    base = {
        "backbone": {"name": "gpt2", "vocab_size": 257, "num_layers": 1, "width": 16, "num_heads": 2, "max_positions": 64},
        "task": {"name": "babilong", "segments": [4, 6], "segment_length": 64, "background": dataclasses.asdict(background)},
        "train": {"stages": [{"steps": 1, "task": {"segments": 5}}]},
    }
    config = resolve(base)
    assert config.task.sizes == (4, 6) and config.tasks[0].sizes == (5,) and config.model.recurrence.segment_length == 64
    for change, message in (
        ({"task.background.path": None}, r"task\.background.*path is not set.*--config\.task\.background\.path=DIR"),
        ({"task.background.colour": 1}, r"unknown key task\.background\.colour"),
        ({"task.task": "qa99"}, "qa99"),
        ({"task.task": "qa15"}, "qa15"),  # is not generated
        ({"task.stories": "/nowhere"}, "/nowhere"),
        ({"task.segment_length": 8}, r"train\.stages\[0\], 5 segments.*fits a row"),
        ({"recurrence.segment_length": 32}, "differs from recurrence"),
        ({"backbone.vocab_size": 256}, "vocabulary of 257"),
        ({"train.stages": [{"steps": 1, "task": {"stories": "/nowhere"}}]}, "stages share"),
    ):
        with pytest.raises(ValueError, match=message):
            resolve(override(base, change))
