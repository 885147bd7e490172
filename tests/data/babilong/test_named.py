"""Text that says the words of facts: often, never both kinds together, the same however it is read, and in training alone."""

import dataclasses
import re

import numpy as np
import pytest

from armt_jax.data.babilong import BabilongBatches
from armt_jax.data.babilong.named import AROUND, kinds_of, named, shortest_block

EVERY = 80
FACTS = ("Mary moved to the office.", "John went back to the garden.", "Sandra went to the hallway.")
PEOPLE, ROOMS = "Mary|John|Daniel|Sandra", "office|garden|kitchen|hallway|bathroom|bedroom"


@pytest.fixture
def background(write_books, make_book):
    """Books that now and then name a garden, or Mary, and once both."""

    def said(name):
        return f"{name} looked into the old garden. {name} had not seen poor Mary since the summer. {name} and Mary saw the garden again."

    names = {"train": ("Anna", "Boris"), "validation": ("Vera",), "test": ("Tom",)}
    texts = {f"{split}/{name}.txt": f"{make_book(name)}\n\n{said(name)}" for split, held in names.items() for name in held}
    return write_books(texts)


@pytest.fixture
def kinds(background):
    return kinds_of(FACTS, background.open().codec)


@pytest.fixture
def plain(background):
    return background.open().split("train")


def spoken(ids) -> str:
    return bytes(int(i) for i in ids if 0 < i < 256).decode(errors="replace")


def test_kinds_are_what_facts_begin_and_end_with(kinds):
    assert [[spoken(word).strip() for word in kind] for kind in kinds] == [["John", "Mary", "Sandra"], ["garden", "hallway", "office"]]


def test_any_stretch_has_the_same_ids(plain, kinds):
    text = named(plain, kinds, EVERY, seed=3)
    whole = text.read(0, 1500)
    for start, stop in ((0, 1), (0, EVERY), (7, 300), (79, 81), (400, 1499)):
        np.testing.assert_array_equal(text.read(start, stop), whole[start:stop])
    assert text.place(3) == plain.place(3) and text.tokens == plain.tokens


def test_every_block_says_a_word_and_none_could_tell_a_fact(plain, kinds):
    blocks = 1000
    text = named(plain, kinds, EVERY, seed=5)
    ids, before = text.read(0, blocks * EVERY), plain.read(0, blocks * EVERY)
    said = {name: 0 for name in ("Mary", "John", "Sandra", "office", "garden", "hallway")}
    changed = 0
    for block, old in zip(ids.reshape(blocks, EVERY), before.reshape(blocks, EVERY), strict=True):
        places = np.flatnonzero(block != old)
        if not len(places):
            continue
        changed += 1
        piece = spoken(block[max(places[0] - AROUND, 0) : places[-1] + AROUND])
        assert places[-1] - places[0] < shortest_block(kinds)
        for name in said:
            said[name] += name in piece
        assert not re.search("(Mary|John|Sandra) saw the (garden|office|hallway)", piece)
    # Both kinds are as likely, and each word of a kind, though the text has but one of each.
    assert changed > 0.9 * blocks
    assert all(0.1 < count / changed < 0.25 for count in said.values()), said


def test_training_rows_alone_say_more_and_keep_their_facts(background):
    source = BabilongBatches(background, segments=6, segment_length=128, max_facts=4)
    often = dataclasses.replace(source, named_every=EVERY)
    for split, same in (("validation", True), ("test", True), ("train", False)):
        a, b = source.batch(0, 2, 4, split), often.batch(0, 2, 4, split)
        assert np.array_equal(a.tokens_BxN, b.tokens_BxN) == same
    np.testing.assert_array_equal(often.batch(0, 2, 4).tokens_BxN, often.batch(0, 2, 4).tokens_BxN)
    fact = re.compile(rf"(?:{PEOPLE}) (?:went(?: back)?|moved|journeyed|travelled) to the (?:{ROOMS})\.")
    for one, other in zip(source.batch(0, 5, 8).tokens_BxN, often.batch(0, 5, 8).tokens_BxN, strict=True):
        one, other = spoken(one), spoken(other)
        assert fact.findall(one) == fact.findall(other) != []
        words = re.compile(f"{PEOPLE}|{ROOMS}")
        assert len(words.findall(other)) > len(words.findall(one)) + 3


def test_text_without_the_words_stays_as_it_is(write_books, make_book, kinds):
    plain = write_books({"train/a.txt": make_book("Anna"), "test/b.txt": make_book("Tom")}, folder="silent").open().split("train")
    np.testing.assert_array_equal(named(plain, kinds, EVERY, seed=1).read(0, 2000), plain.read(0, 2000))


@pytest.mark.parametrize("every, message", [(0, "named_every=0 is out of range"), (20, "named_every=20 is too few tokens")])
def test_too_often_is_refused(background, every, message):
    with pytest.raises(ValueError, match=message):
        BabilongBatches(background, segments=6, segment_length=64, named_every=every).batch(0, 0, 2)
